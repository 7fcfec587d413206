import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from cases import BinaryCase, Recipe, binary_cases, examples
from hypothesis import given
from hypothesis import strategies as st
from mmseg_wce.functional import (
    binary_normalizer,
    weighted_binary_cross_entropy,
    weighted_cross_entropy,
)


def value_and_gradient(loss, logits):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def test_mean_with_weights_and_ignored_pixels_is_pytorchs():
    torch.manual_seed(0)
    logits, target, weight = torch.randn(2, 19, 16, 16), torch.randint(0, 19, (2, 64, 64)), torch.rand(19) + 0.1
    target[:, 10:30] = 255
    counted = target != 255
    one_hot = F.one_hot(target.where(counted, 0), 19).movedim(-1, 1).float()

    def pytorchs(z):
        z = F.interpolate(z, size=(64, 64), mode='bilinear')
        loss = F.binary_cross_entropy_with_logits(z, one_hot, pos_weight=weight.view(19, 1, 1), reduction='none')
        return loss.movedim(1, -1)[counted].mean()

    ours = value_and_gradient(lambda z: weighted_binary_cross_entropy(z, target, weight), logits)

    torch.testing.assert_close(ours, value_and_gradient(pytorchs, logits))


@given(case=binary_cases(), reduction=st.sampled_from(('mean', 'sum', 'none')))
@examples(300)
def test_equals_pytorch_in_float64(case: BinaryCase, reduction):
    mix = torch.rand(case.oracle(case.logits, 'none').shape, dtype=torch.float64) if reduction == 'none' else 1.0

    ours = value_and_gradient(
        lambda z: (weighted_binary_cross_entropy(z, case.target, reduction=reduction, **case.options()) * mix).sum(),
        case.logits,
    )
    if reduction == 'mean' and not case.valid.any():  # PyTorch: NaN
        expected = torch.zeros((), dtype=torch.float64), torch.zeros_like(case.logits)
    else:
        expected = value_and_gradient(lambda z: (case.oracle(z, reduction) * mix).sum(), case.logits)

    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@given(
    case=binary_cases(dtypes=(torch.float16, torch.bfloat16, torch.float32), all_ignored=False),
    reduction=st.sampled_from(('sum', 'none')),
)
@examples(200)
def test_at_most_pytorchs_error_in_low_precision(case: BinaryCase, reduction):
    """The truth is float64 on the same logits; our error must not exceed that of PyTorch in the same dtype."""
    truth, truth_gradient = value_and_gradient(lambda z: case.oracle(z, reduction).sum(), case.logits.double())
    eager, eager_gradient = value_and_gradient(lambda z: case.oracle(z, reduction).sum(), case.logits)
    ours, gradient = value_and_gradient(
        lambda z: weighted_binary_cross_entropy(z, case.target, reduction=reduction, **case.options()).sum(),
        case.logits,
    )

    assert ours.dtype == torch.float32
    assert gradient.dtype == case.logits.dtype
    elements = case.target[0].numel() * case.logits.shape[1]
    rounding = 4 * torch.finfo(torch.float32).eps * truth.abs().clamp(min=1.0) * elements**0.5
    assert (ours - truth).abs() <= error_of(eager, truth) + rounding
    last_digit = torch.finfo(case.logits.dtype).eps * truth_gradient.abs().max()
    # any sigmoid in float32 has such an error, before what comes of many pixels cancels
    largest = 1.0 if case.class_weight is None else case.class_weight.max()
    of_a_probability = 4 * torch.finfo(torch.float32).eps * largest
    error = (gradient - truth_gradient).abs().max()
    assert error <= error_of(eager_gradient, truth_gradient) + last_digit + of_a_probability


def error_of(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The largest; none is allowed to us where PyTorch's answer is not finite and the truth is (float16 overflows)."""
    return (found - truth).abs().max() if found.isfinite().all() else truth.new_zeros(())


@given(
    case=binary_cases(),
    normalize_by=st.sampled_from(('class_weight', 'valid')),
    reduction=st.sampled_from(('mean', 'sum', 'none')),
)
@examples(150)
def test_one_channel_with_two_weights_is_a_softmax_of_two(case: BinaryCase, normalize_by, reduction):
    """The cross-entropy of the logits (0, z)."""
    logits, weight = case.logits[:, :1], torch.tensor([0.3, 2.5])
    target = torch.where(case.target.long() == case.ignore_index, case.ignore_index, case.target.long().clamp(max=1))
    options = dict(
        ignore_index=case.ignore_index, reduction=reduction, normalize_by=normalize_by, align_corners=case.align_corners
    )
    mix = torch.rand(case.target.shape, dtype=torch.float64) if reduction == 'none' else 1.0

    def softmax(z):
        z = case.resized(z)
        return (weighted_cross_entropy(torch.cat([torch.zeros_like(z), z], 1), target, weight, **options) * mix).sum()

    ours = value_and_gradient(
        lambda z: (weighted_binary_cross_entropy(z, target, weight, **options) * mix).sum(), logits
    )

    torch.testing.assert_close(ours, value_and_gradient(softmax, logits), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('channels', [2, 3])
def test_one_number_weights_all_channels(channels):
    logits, target = torch.randn(2, channels, 4, 4), torch.randint(0, channels, (2, 4, 4))
    expected = weighted_binary_cross_entropy(logits, target, torch.full((channels,), 2.5))

    for one in (torch.tensor(2.5), torch.tensor([2.5])):
        torch.testing.assert_close(weighted_binary_cross_entropy(logits, target, one), expected)


@pytest.mark.parametrize('one', [torch.tensor(2.5), torch.tensor([2.5]), torch.tensor([1.0, 2.5])])
def test_one_number_is_pos_weight_of_one_channel(one):
    logits, target = torch.randn(2, 1, 4, 4), torch.randint(0, 2, (2, 4, 4))
    expected = F.binary_cross_entropy_with_logits(
        logits.squeeze(1), target.float(), pos_weight=torch.tensor(2.5), reduction='none'
    )

    for reduction in ('mean', 'none'):
        found = weighted_binary_cross_entropy(logits, target, one, reduction=reduction)
        torch.testing.assert_close(found, expected.mean() if reduction == 'mean' else expected)


@given(case=binary_cases(resize=False), with_pixels=st.booleans(), reduction=st.sampled_from(('mean', 'none')))
@examples(150)
def test_normalisers_and_pixel_weights(case: BinaryCase, with_pixels, reduction):
    pixel_weight = torch.rand(case.target.shape, dtype=torch.float64) if with_pixels else None
    elements = case.oracle(case.logits, 'none')
    by_element = elements.dim() > case.target.dim()
    if with_pixels:
        elements = elements * (pixel_weight.unsqueeze(1) if by_element else pixel_weight)
    channels = case.logits.shape[1]
    denominators = dict(valid=channels * int(case.valid.sum()), all=channels * case.target.numel())
    if channels == 1 and case.class_weight is not None and case.class_weight.numel() == 2:
        denominators['class_weight'] = case.class_weight[case.target[case.valid].long()].double().sum().item()

    for normalize_by, denominator in denominators.items():
        loss = weighted_binary_cross_entropy(
            case.logits,
            case.target,
            pixel_weight=pixel_weight,
            normalize_by=normalize_by,
            reduction=reduction,
            **case.options(),
        )
        divisor = binary_normalizer(
            case.logits, case.target, case.class_weight, ignore_index=case.ignore_index, normalize_by=normalize_by
        )
        assert divisor.item() == pytest.approx(denominator, rel=1e-6)
        mean = elements.sum() / denominator if denominator else torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(loss, elements if reduction == 'none' else mean, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('avg_factor', [7, 2.5, torch.tensor(2.5), 0])
def test_avg_factor_replaces_the_denominator(channels, avg_factor):
    logits, target = torch.randn(2, channels, 3, 3), torch.randint(0, max(channels, 2), (2, 3, 3))
    total = weighted_binary_cross_entropy(logits, target, reduction='sum')

    loss = weighted_binary_cross_entropy(logits, target, avg_factor=avg_factor, normalize_by='all')

    torch.testing.assert_close(loss, total / (avg_factor or torch.finfo(torch.float32).eps))


@pytest.mark.parametrize(
    ('channels', 'normalize_by'), [(1, 'class_weight'), (1, 'valid'), (1, 'all'), (3, 'valid'), (3, 'all')]
)
@pytest.mark.parametrize('reduction', ['mean', 'none'])
def test_gradcheck(channels, normalize_by, reduction):
    weight = torch.tensor([0.5, 2.0, 1.5][: max(channels, 2)])
    torch.manual_seed(0)
    target = torch.tensor([[[0, 1, 1, 255, 1]] * 3, [[1, 255, 0, 0, 1]] * 3])
    pixel_weight = torch.rand(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def loss(z, p):
        return weighted_binary_cross_entropy(
            z, target, weight, pixel_weight=p, normalize_by=normalize_by, reduction=reduction
        )

    for size in ((2, 3), (3, 5)):
        logits = torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(loss, (logits, pixel_weight))


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('poison', [math.nan, math.inf, -math.inf])
def test_ignored_pixels_contribute_exactly_nothing(channels, poison, reduction):
    logits, target = torch.randn(2, channels, 4, 4), torch.randint(0, 2, (2, 4, 4))
    target[:, 1:3] = 255
    poisoned, pixel_weight = logits.clone(), torch.ones(2, 4, 4)
    poisoned[:, :, 1:3] = poison
    pixel_weight[:, 1:3] = poison
    weight = torch.rand(max(channels, 2))

    def loss(z, p=None):
        return weighted_binary_cross_entropy(z, target, weight, reduction=reduction, pixel_weight=p).sum()

    clean = value_and_gradient(loss, logits)
    for found in (value_and_gradient(loss, poisoned), value_and_gradient(lambda z: loss(z, pixel_weight), poisoned)):
        assert torch.equal(found[0], clean[0])
        assert torch.equal(found[1], clean[1])
        assert (found[1][:, :, 1:3] == 0).all()
        assert (found[1][:, :, :1] != 0).all()


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('avg_factor', [None, 0, 3.0])
def test_nothing_that_counts_gives_a_connected_zero(channels, avg_factor):
    logits, ignored = torch.randn(2, channels, 4, 4, requires_grad=True), torch.full((2, 8, 8), 255)
    losses = [
        weighted_binary_cross_entropy(logits, ignored, weight, normalize_by=by, avg_factor=avg_factor)
        for by in ('valid', 'all')
        for weight in (None, torch.ones(max(channels, 2)))
    ]
    if channels == 1:
        for weight, target in ((torch.ones(2), ignored), (torch.tensor([1.0, 0.0]), torch.ones_like(ignored))):
            losses.append(weighted_binary_cross_entropy(logits, target, weight, normalize_by='class_weight'))

    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert loss.item() == 0.0
        assert (gradient == 0).all()


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('poison', [math.nan, math.inf])
def test_non_finite_logits_of_valid_pixels_are_not_hidden(channels, poison):
    logits, target = torch.randn(1, channels, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    logits[0, -1, 0, 0] = poison

    assert not weighted_binary_cross_entropy(logits, target).isfinite()


def test_nan_avg_factor_is_not_hidden():
    assert weighted_binary_cross_entropy(**GOOD, avg_factor=torch.tensor(math.nan)).isnan()


@pytest.mark.parametrize('reduction', ['mean', 'none'])
def test_a_class_that_is_masked_and_nobodys_label(reduction):
    """PyTorch: NaN, of 0 * -inf."""
    logits, target = torch.randn(1, 3, 2, 2), torch.zeros(1, 8, 8, dtype=torch.long)
    logits[:, 1] = -math.inf
    almost = logits.clamp(min=-1e4)

    torch.testing.assert_close(
        weighted_binary_cross_entropy(logits, target, reduction=reduction),
        weighted_binary_cross_entropy(almost, target, reduction=reduction),
    )


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('reduction', ['mean', 'none'])
def test_computes_in_float32_at_least(channels, dtype, reduction):
    logits, target = torch.randn(2, channels, 4, 4).to(dtype), torch.randint(0, 2, (2, 8, 8))
    weight = torch.rand(max(channels, 2))

    loss = weighted_binary_cross_entropy(logits, target, weight, reduction=reduction)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        under_autocast = weighted_binary_cross_entropy(logits, target, weight, reduction=reduction)

    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = weighted_binary_cross_entropy(logits.to(loss.dtype), target, weight, reduction=reduction)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(under_autocast, loss)


@pytest.mark.parametrize('expanded', ['logits', 'target', 'both'])
@pytest.mark.parametrize('channels', [1, 3])
def test_stride_zero_inputs(expanded, channels):
    logits = torch.randn(1, channels, 1, 4).expand(2, channels, 4, 4)
    target = torch.randint(0, 2, (1, 4, 4)).expand(2, 4, 4)
    if expanded == 'target':
        logits = logits.clone()
    elif expanded == 'logits':
        target = target.clone()
    expected = weighted_binary_cross_entropy(logits.clone(), target.clone())

    torch.testing.assert_close(weighted_binary_cross_entropy(logits, target), expected)


@pytest.mark.parametrize(
    'shape', [((0, 3, 4, 4), (0, 8, 8)), ((0, 1), (0,)), ((2, 3, 4, 4), (2, 0, 8)), ((2, 1, 0), (2, 0))]
)
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
def test_empty_batches(shape, reduction):
    logits, target = torch.randn(shape[0], requires_grad=True), torch.zeros(shape[1], dtype=torch.long)

    loss = weighted_binary_cross_entropy(logits, target, reduction=reduction)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)

    assert loss.sum().item() == 0.0
    elements = shape[1] if logits.shape[1] == 1 else (*logits.shape[:2], *shape[1][1:])
    assert loss.shape == (elements if reduction == 'none' else ())
    assert (gradient == 0).all()


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize('channels', [1, 3])
def test_every_integer_dtype(dtype, channels):
    logits, target = torch.randn(2, channels, 4, 4), torch.randint(0, 2, (2, 4, 4))
    ignore_index = 255 if dtype != torch.int8 else -1

    found = weighted_binary_cross_entropy(logits, target.to(dtype), ignore_index=ignore_index)

    assert torch.equal(found, weighted_binary_cross_entropy(logits, target))


@pytest.mark.parametrize(('channels', 'reduction'), itertools.product((1, 5), ('mean', 'none')))
def test_compiles_whole(channels, reduction):
    torch.manual_seed(0)
    target, weight = torch.randint(0, max(channels, 2), (2, 9, 9)), torch.rand(max(channels, 2))
    target[:, :3] = 255

    def loss(z):
        return weighted_binary_cross_entropy(
            z, target, weight, reduction=reduction, pixel_weight=torch.ones(2, 9, 9)
        ).sum()

    logits = torch.randn(2, channels, 4, 4)
    torch.testing.assert_close(
        value_and_gradient(torch.compile(loss, fullgraph=True), logits), value_and_gradient(loss, logits)
    )


@pytest.mark.parametrize('channels', [1, 5])
def test_functional_gradient_transform(channels):
    logits, target = torch.randn(2, channels, 4, 4), torch.randint(0, 2, (2, 8, 8))
    _, expected = value_and_gradient(lambda z: weighted_binary_cross_entropy(z, target), logits)

    torch.testing.assert_close(torch.func.grad(lambda z: weighted_binary_cross_entropy(z, target))(logits), expected)


@pytest.mark.parametrize('reduction', ['mean', 'none'])
def test_no_gradient_flows_to_class_weights(reduction):
    weight = torch.ones(3, requires_grad=True)

    assert not weighted_binary_cross_entropy(**GOOD, class_weight=weight, reduction=reduction).requires_grad


@pytest.mark.parametrize('bad', [2, 7, 254, 255, -1])
def test_labels_of_one_channel_are_0_and_1(bad):
    target = torch.tensor([[[0, 1], [bad, 0]]])

    with pytest.raises(ValueError, match=rf'in \[0, 2\) nor ignore_index=-100: {bad} \(1 px\).*index \(0, 1, 0\)'):
        weighted_binary_cross_entropy(torch.randn(1, 1, 2, 2), target, ignore_index=-100)


@pytest.mark.parametrize('reduction', ['mean', 'none'])
@pytest.mark.parametrize('bad', [3, 254, -1])
def test_labels_of_channels_are_their_indices(bad, reduction):
    target = torch.tensor([[[0, 1], [bad, 2]]])

    with pytest.raises(ValueError, match=rf'in \[0, 3\) nor ignore_index=255: {bad} \(1 px\)'):
        weighted_binary_cross_entropy(torch.randn(1, 3, 2, 2), target, reduction=reduction)


def test_compiled_refuses_bad_labels():
    with pytest.raises(ValueError, match=r'7 \(32 px\)'):
        torch.compile(weighted_binary_cross_entropy, fullgraph=True)(torch.randn(2, 1, 4, 4), torch.full((2, 4, 4), 7))


GOOD = dict(logits=torch.randn(2, 3, 4, 4), target=torch.zeros(2, 4, 4, dtype=torch.long))
ONE = dict(logits=torch.randn(2, 1, 4, 4), normalize_by='class_weight')


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        (dict(logits=[[1.0, 2.0]]), TypeError, ['logits', 'list']),
        (dict(logits=torch.ones(2, 3, 4, 4, dtype=torch.long)), TypeError, ['int64', 'float32']),
        (dict(target=torch.zeros(2, 4, 4)), TypeError, ['(2, 3, 4, 4)', 'torch.float32', 'integer']),
        (dict(target=torch.zeros(2, 4, 4, dtype=torch.bool)), TypeError, ['bool']),
        (dict(target=torch.zeros(2, 3, 4, 4, dtype=torch.long)), ValueError, ['(2, 3, 4, 4)', 'RGB']),
        (dict(target=torch.zeros(2, 1, 4, 4, dtype=torch.long)), ValueError, ['(2, 1, 4, 4)', 'squeeze(1)']),
        (dict(target=torch.zeros(3, 4, 4, dtype=torch.long)), ValueError, ['batch', '(3, 4, 4)']),
        (dict(logits=torch.randn(2, 3, 4), target=torch.zeros(2, 5).long()), ValueError, ['(2, 3, 4)', '(2, 5)']),
        (dict(logits=torch.randn(2, 3, 0, 4)), ValueError, ['(2, 3, 0, 4)', 'upsampled']),
        (dict(logits=torch.randn(2, 0, 4, 4)), ValueError, ['no classes']),
        (dict(logits=torch.randn(3), target=torch.zeros(()).long()), ValueError, ['(N, C)']),
        (dict(target=torch.zeros(2, 4, 4, dtype=torch.long, device='meta')), ValueError, ['target', 'meta', 'cpu']),
        (dict(class_weight=[1.0, 2.0, 3.0]), TypeError, ['class_weight', 'list']),
        (dict(class_weight=2.0), TypeError, ['class_weight', 'float']),
        (dict(class_weight=torch.tensor([1, 2, 3])), TypeError, ['class_weight', 'int64']),
        (dict(class_weight=torch.ones(3, device='meta')), ValueError, ['class_weight', 'meta', 'cpu']),
        (dict(class_weight=torch.ones(4)), ValueError, ['class_weight', 'each of the 3 channels', '(4,)']),
        (dict(class_weight=torch.ones(2)), ValueError, ['class_weight', 'each of the 3 channels', '(2,)']),
        (dict(class_weight=torch.ones(3, 1, 1)), ValueError, ['class_weight', '(3, 1, 1)']),
        (dict(ONE, class_weight=torch.ones(3)), ValueError, ['labels 0 and 1', '(3,)', '(2, 1, 4, 4)']),
        (dict(normalize_by='class_weight'), ValueError, ['one channel and two', "'valid' or 'all'"]),
        (dict(normalize_by='class_weight', class_weight=torch.ones(3)), ValueError, ["'valid' or 'all'"]),
        (dict(ONE), ValueError, ['got 0', "'valid' or 'all'"]),
        (dict(ONE, class_weight=torch.ones(1)), ValueError, ['got 1', "'valid' or 'all'"]),
        (
            dict(logits=torch.randn(2, 2, 4, 4), normalize_by='class_weight', class_weight=torch.ones(2)),
            ValueError,
            ['got 2 for logits (2, 2, 4, 4)'],
        ),
        (dict(pixel_weight=[1.0]), TypeError, ['pixel_weight', 'list']),
        (dict(pixel_weight=torch.ones(2, 4)), ValueError, ['pixel_weight', '(2, 4)', '(2, 4, 4)']),
        (dict(pixel_weight=torch.ones(2, 3, 4)), ValueError, ['pixel_weight', '(2, 3, 4)']),
        (dict(pixel_weight=torch.ones(2, 4, 4, device='meta')), ValueError, ['pixel_weight', 'meta', 'cpu']),
        (dict(pixel_weight=torch.ones(2, 4, 4, dtype=torch.complex64)), TypeError, ['pixel_weight', 'complex64']),
        (dict(reduction='average'), ValueError, ["'average'"]),
        (dict(normalize_by='pixels'), ValueError, ["'pixels'"]),
        (dict(ignore_index='255'), TypeError, ['ignore_index', "'255'"]),
        (dict(ignore_index=255.0), TypeError, ['ignore_index', '255.0']),
        (dict(avg_factor=3.0, reduction='sum'), ValueError, ['avg_factor', 'sum']),
        (dict(avg_factor=-1.0), ValueError, ['avg_factor', '-1.0']),
        (dict(avg_factor=torch.ones(2)), ValueError, ['avg_factor', '(2,)']),
    ],
)
def test_bad_arguments(change, error, words):
    with pytest.raises(error) as caught:
        weighted_binary_cross_entropy(**{**GOOD, **change})

    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    'change',
    [dict(target=torch.zeros(2, 4, 4)), dict(class_weight=torch.ones(4)), dict(normalize_by='class_weight')],
)
def test_normalizer_refuses_what_the_loss_refuses(change):
    with pytest.raises((TypeError, ValueError), match=r'target must hold|class_weight must hold|two class weights'):
        binary_normalizer(**{**GOOD, **change})


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('channels', [1, 19])
@pytest.mark.parametrize('deterministic', [False, True])
def test_cuda_equals_cpu(channels, deterministic):
    torch.manual_seed(0)
    target, weight = torch.randint(0, max(channels, 2), (2, 64, 64)), torch.rand(max(channels, 2))
    logits = torch.randn(2, channels, 16, 16)
    target[:, :9] = 255
    on_cpu = value_and_gradient(lambda z: weighted_binary_cross_entropy(z, target, weight), logits)
    torch.use_deterministic_algorithms(deterministic)
    try:
        on_cuda = value_and_gradient(
            lambda z: weighted_binary_cross_entropy(z, target.cuda(), weight.cuda()), logits.cuda()
        )
    finally:
        torch.use_deterministic_algorithms(False)

    torch.testing.assert_close([x.cpu() for x in on_cuda], list(on_cpu))


def test_pixels_that_are_known_are_used():
    from mmseg_wce.kernels import pixel_bce

    pixels = pixel_bce(GOOD['logits'], GOOD['target'], ignore_index=255)
    doubled = 2 * pixels[0], 2 * pixels[1], pixels[2]

    torch.testing.assert_close(
        weighted_binary_cross_entropy(**GOOD, pixels=doubled), 2 * weighted_binary_cross_entropy(**GOOD)
    )


def test_a_sum_that_overflows_in_float16():
    case = Recipe(batch=3, classes=5, size=(8, 9), target_size=(8, 9), dtype='float16', scale=2000.0).binary_case()

    ours = weighted_binary_cross_entropy(case.logits, case.target, reduction='sum', **case.options())

    assert not case.oracle(case.logits, 'sum').isfinite()
    torch.testing.assert_close(ours.double(), case.oracle(case.logits.double(), 'sum'), rtol=1e-6, atol=0)
