import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import Case, Recipe, cases, examples
from hypothesis import given
from hypothesis import strategies as st
from mmseg_wce.functional import normalizer, weighted_cross_entropy

SEED_LOGITS = [[-0.7795, -1.7373, 0.3856], [0.4031, -0.5632, -0.2389], [-2.3908, 0.7452, 0.7748]]


def value_and_gradient(loss, logits):
    logits = logits.detach().clone().requires_grad_()
    value = loss(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


@pytest.mark.parametrize(
    ('ignore_index', 'weight', 'expected'),
    [(255, None, 1.2784), (2, None, 1.5678), (255, (0.3, 0.6, 0.1), 1.4941), (2, (0.3, 0.6, 0.1), 1.5824)],
)
def test_seed_numbers_and_the_loop_that_explains_them(ignore_index, weight, expected):
    class_weight = None if weight is None else torch.tensor(weight)
    loss = weighted_cross_entropy(
        torch.tensor(SEED_LOGITS), torch.tensor([0, 1, 2]), class_weight, ignore_index=ignore_index
    )

    numerator = denominator = 0.0
    for z, y in zip(SEED_LOGITS, (0, 1, 2), strict=True):
        if y == ignore_index:
            continue
        w = 1.0 if weight is None else weight[y]
        numerator += w * (math.log(sum(math.exp(z_c) for z_c in z)) - z[y])
        denominator += w

    assert round(loss.item(), 4) == expected
    assert loss.item() == pytest.approx(numerator / denominator, rel=1e-6)


def test_mean_with_weights_and_ignored_pixels_is_pytorchs():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 150, 16, 16), torch.randint(0, 150, (2, 64, 64))
    target[:, 10:30] = 255
    weight = torch.rand(150) + 0.1

    ours = value_and_gradient(lambda z: weighted_cross_entropy(z, target, weight), logits)
    pytorch = value_and_gradient(
        lambda z: F.cross_entropy(F.interpolate(z, size=(64, 64), mode='bilinear'), target, weight, ignore_index=255),
        logits,
    )

    torch.testing.assert_close(ours, pytorch)


@given(case=cases(), reduction=st.sampled_from(('mean', 'sum', 'none')))
@examples(300)
def test_equals_pytorch_in_float64(case: Case, reduction):
    counted = case.valid & (torch.ones(case.logits.shape[1]) if case.class_weight is None else case.class_weight)[
        case.target.long().clamp(0, case.logits.shape[1] - 1)
    ].ne(0)
    nothing_counts = reduction == 'mean' and not counted.any()
    mix = torch.rand(case.target.shape, dtype=torch.float64) if reduction == 'none' else 1.0

    ours = value_and_gradient(
        lambda z: (weighted_cross_entropy(z, case.target, reduction=reduction, **case.options()) * mix).sum(),
        case.logits,
    )
    if nothing_counts:  # PyTorch: NaN, or infinite with label smoothing
        expected = torch.zeros((), dtype=torch.float64), torch.zeros_like(case.logits)
    else:
        expected = value_and_gradient(lambda z: (case.oracle(z, reduction) * mix).sum(), case.logits)

    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


@given(case=cases(dtypes=(torch.float16, torch.bfloat16, torch.float32), all_ignored=False))
@examples(200)
def test_at_most_pytorchs_error_in_low_precision(case: Case):
    """The truth is float64 on the same logits; our error must not exceed that of PyTorch in the same dtype."""
    truth, truth_gradient = value_and_gradient(lambda z: case.oracle(z, 'sum'), case.logits.double())
    eager, eager_gradient = value_and_gradient(lambda z: case.oracle(z, 'sum'), case.logits)
    ours, gradient = value_and_gradient(
        lambda z: weighted_cross_entropy(z, case.target, reduction='sum', **case.options()), case.logits
    )

    assert ours.dtype == torch.float32
    assert gradient.dtype == case.logits.dtype
    rounding = 4 * torch.finfo(torch.float32).eps * truth.abs().clamp(min=1.0) * case.target[0].numel() ** 0.5
    assert (ours - truth).abs() <= error_of(eager, truth) + rounding
    last_digit = torch.finfo(case.logits.dtype).eps * truth_gradient.abs().max()
    # any softmax in float32 has such an error, before its weights cancel
    of_a_probability = torch.finfo(torch.float32).eps * (1.0 if case.class_weight is None else case.class_weight.max())
    error = (gradient - truth_gradient).abs().max()
    assert error <= error_of(eager_gradient, truth_gradient) + last_digit + of_a_probability


def error_of(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The largest; none is allowed to us where PyTorch's answer is not finite and the truth is (float16 overflows)."""
    return (found - truth).abs().max() if found.isfinite().all() else truth.new_zeros(())


def test_a_sum_that_overflows_in_float16():
    """Found by `make fuzz`: PyTorch's smoothing term is NaN there."""
    case = Recipe(
        batch=3,
        size=(2, 4, 5),
        target_size=(2, 4, 5),
        dtype='float16',
        scale=20.0,
        special_weight=(0, 100.0),
        label_smoothing=1.0,
    ).case()

    ours = weighted_cross_entropy(case.logits, case.target, reduction='sum', **case.options())

    assert not case.oracle(case.logits, 'sum').isfinite()
    torch.testing.assert_close(ours.double(), case.oracle(case.logits.double(), 'sum'), rtol=1e-6, atol=0)


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
@pytest.mark.parametrize('normalize_by', ['class_weight', 'valid', 'all'])
def test_gradcheck(smoothing, normalize_by):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[[0, 1, 2, 255, 1]] * 3, [[2, 255, 0, 0, 1]] * 3])
    pixel_weight = torch.rand(2, 3, 5, dtype=torch.float64, requires_grad=True)

    def loss(z, p):
        return weighted_cross_entropy(
            z,
            target,
            torch.tensor([0.5, 0.0, 2.0]),
            pixel_weight=p,
            label_smoothing=smoothing,
            normalize_by=normalize_by,
        )

    assert torch.autograd.gradcheck(loss, (logits, pixel_weight))


@given(
    case=cases(resize=False), normalize_by=st.sampled_from(('class_weight', 'valid', 'all')), with_pixels=st.booleans()
)
@examples(150)
def test_normalisers_and_pixel_weights(case: Case, normalize_by, with_pixels):
    pixel_weight = torch.rand(case.target.shape, dtype=torch.float64) if with_pixels else None
    weight = torch.ones(case.logits.shape[1]) if case.class_weight is None else case.class_weight
    denominator = {
        'class_weight': sum(weight[y].item() for y in case.target[case.valid].long()),
        'valid': int(case.valid.sum()),
        'all': case.target.numel(),
    }[normalize_by]
    per_pixel = case.oracle(case.logits, 'none')
    numerator = (per_pixel if pixel_weight is None else per_pixel * pixel_weight).sum()

    loss = weighted_cross_entropy(
        case.logits, case.target, pixel_weight=pixel_weight, normalize_by=normalize_by, **case.options()
    )

    expected = numerator / denominator if denominator else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize('avg_factor', [7, 2.5, torch.tensor(2.5)])
def test_avg_factor_replaces_the_denominator(avg_factor):
    logits, target = torch.randn(2, 4, 3, 3), torch.randint(0, 4, (2, 3, 3))
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0])

    loss = weighted_cross_entropy(logits, target, weight, avg_factor=avg_factor, normalize_by='all')

    torch.testing.assert_close(loss, F.cross_entropy(logits, target, weight, reduction='sum') / avg_factor)


@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('poison', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_ignored_pixels_contribute_exactly_nothing(poison, reduction, smoothing):
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    target[:, 1:3] = 255
    poisoned = logits.clone()
    poisoned[:, :, 1:3] = poison
    pixel_weight = torch.rand(2, 4, 4)
    pixel_weight[:, 1:3] = poison
    clean = value_and_gradient(
        lambda z: weighted_cross_entropy(z, target, label_smoothing=smoothing, reduction=reduction).sum(), logits
    )

    def loss(z):
        return weighted_cross_entropy(z, target, label_smoothing=smoothing, reduction=reduction).sum()

    value, gradient = value_and_gradient(loss, poisoned)

    assert torch.equal(value, clean[0])
    assert torch.equal(gradient, clean[1])
    assert (gradient[:, :, 1:3] == 0).all()
    assert weighted_cross_entropy(logits, target, pixel_weight=pixel_weight).isfinite()


@pytest.mark.parametrize('normalize_by', ['class_weight', 'valid', 'all'])
@pytest.mark.parametrize('avg_factor', [None, 0, 3.0])
def test_nothing_that_counts_gives_a_connected_zero(normalize_by, avg_factor):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    ignored = torch.full((2, 8, 8), 255)
    for target, weight in (
        (ignored, None),
        (ignored, torch.ones(3)),
        (torch.ones_like(ignored), torch.tensor([1.0, 0, 1])),
    ):
        loss = weighted_cross_entropy(logits, target, weight, normalize_by=normalize_by, avg_factor=avg_factor)
        (gradient,) = torch.autograd.grad(loss, logits)

        assert loss.item() == 0.0
        assert gradient.shape == logits.shape
        assert (gradient == 0).all()


@pytest.mark.parametrize('poison', [math.nan, math.inf])
def test_non_finite_logits_of_valid_pixels_are_not_hidden(poison):
    logits, target = torch.randn(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    logits[0, 1, 0, 0] = poison

    assert weighted_cross_entropy(logits, target).isnan()
    assert F.cross_entropy(logits, target).isnan()


def test_masked_class_is_finite_where_pytorch_is():
    logits, target = torch.randn(2, 4, 3, 3), torch.randint(0, 3, (2, 3, 3))
    logits[:, 3] = -math.inf

    ours = value_and_gradient(lambda z: weighted_cross_entropy(z, target), logits)

    torch.testing.assert_close(ours, value_and_gradient(lambda z: F.cross_entropy(z, target), logits))
    assert ours[1].isfinite().all()


def test_masked_class_under_smoothing():
    """With weight 0 the class is left out (PyTorch: 0 * -inf = NaN); with a positive weight the loss is infinite."""
    logits, target = torch.randn(2, 4, 3, 3), torch.randint(0, 3, (2, 3, 3))
    weight = torch.tensor([1.0, 2.0, 0.5, 0.0])
    logits[:, 3] = -math.inf

    value, gradient = value_and_gradient(
        lambda z: weighted_cross_entropy(z, target, weight, label_smoothing=0.1), logits
    )
    almost_masked = logits.clamp(min=-100.0)
    expected = F.cross_entropy(almost_masked, target, weight, label_smoothing=0.1)

    torch.testing.assert_close(value, expected)
    assert gradient.isfinite().all()
    assert weighted_cross_entropy(logits, target, label_smoothing=0.1) == math.inf
    assert F.cross_entropy(logits, target, label_smoothing=0.1) == math.inf


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_computes_in_float32_at_least(dtype):
    logits, target = torch.randn(2, 3, 4, 4).to(dtype), torch.randint(0, 3, (2, 8, 8))

    loss = weighted_cross_entropy(logits, target, torch.ones(3))

    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(loss, weighted_cross_entropy(logits.to(loss.dtype), target))


def test_autocast_changes_nothing():
    logits, target, weight = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8)), torch.rand(3)
    expected = weighted_cross_entropy(logits, target, weight, label_smoothing=0.1)

    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = weighted_cross_entropy(logits, target, weight, label_smoothing=0.1)

    assert torch.equal(loss, expected)


def test_offset_of_ten_thousand_keeps_digits_through_the_upsampling():
    torch.manual_seed(0)
    logits, target = torch.randn(1, 19, 8, 8, dtype=torch.float64), torch.randint(0, 19, (1, 32, 32))
    shifted = (logits + 1e4).float()
    truth = F.cross_entropy(F.interpolate(shifted.double(), size=(32, 32), mode='bilinear'), target)
    eager = F.cross_entropy(F.interpolate(shifted, size=(32, 32), mode='bilinear'), target)

    ours = weighted_cross_entropy(shifted, target)

    assert (ours - truth).abs() < 1e-6 * truth
    assert (eager - truth).abs() > 10 * (ours - truth).abs()


@pytest.mark.parametrize('expanded', ['logits', 'target', 'both'])
def test_stride_zero_inputs(expanded):
    logits, target = torch.randn(1, 3, 1, 4).expand(2, 3, 4, 4), torch.randint(0, 3, (1, 4, 4)).expand(2, 4, 4)
    if expanded == 'target':
        logits = logits.clone()
    elif expanded == 'logits':
        target = target.clone()

    torch.testing.assert_close(weighted_cross_entropy(logits, target), F.cross_entropy(logits, target))


@pytest.mark.parametrize(
    ('logits_shape', 'target_shape'),
    [
        ((0, 3, 4, 4), (0, 4, 4)),
        ((0, 3, 4, 4), (0, 8, 8)),
        ((0, 3), (0,)),
        ((2, 3, 4, 4), (2, 0, 8)),
        ((2, 3, 0), (2, 0)),
    ],
)
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
def test_empty_batches(logits_shape, target_shape, reduction):
    logits = torch.randn(logits_shape, requires_grad=True)
    target = torch.zeros(target_shape, dtype=torch.long)

    loss = weighted_cross_entropy(logits, target, torch.ones(3), reduction=reduction)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)

    assert loss.sum().item() == 0.0
    assert loss.shape == (target_shape if reduction == 'none' else ())
    assert (gradient == 0).all()


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_integer_dtype(dtype):
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    ignore_index = 255 if dtype != torch.int8 else -1
    expected = F.cross_entropy(logits, target, ignore_index=ignore_index)

    torch.testing.assert_close(weighted_cross_entropy(logits, target.to(dtype), ignore_index=ignore_index), expected)


def test_negative_ignore_index_does_not_wrap_around_in_uint8():
    logits, target = torch.randn(1, 200, 4, 4), torch.full((1, 4, 4), 156, dtype=torch.uint8)  # 156 = -100 mod 256

    torch.testing.assert_close(
        weighted_cross_entropy(logits, target, ignore_index=-100), F.cross_entropy(logits, target.long())
    )


@pytest.mark.parametrize(('smoothing', 'reduction'), itertools.product((0.0, 0.1), ('mean', 'none')))
def test_compiles_whole(smoothing, reduction):
    torch.manual_seed(0)
    target, weight = torch.randint(0, 5, (2, 9, 9)), torch.rand(5)
    target[:, :3] = 255

    def loss(z):
        return weighted_cross_entropy(
            z, target, weight, label_smoothing=smoothing, reduction=reduction, pixel_weight=torch.ones(2, 9, 9)
        ).sum()

    logits = torch.randn(2, 5, 4, 4)
    torch.testing.assert_close(
        value_and_gradient(torch.compile(loss, fullgraph=True), logits), value_and_gradient(loss, logits)
    )


@pytest.mark.parametrize('dynamic', [None, True])
def test_compiles_whole_with_an_avg_factor_that_changes(dynamic):
    compiled = torch.compile(weighted_cross_entropy, fullgraph=True, dynamic=dynamic)

    for avg_factor in (3.0, 4.0, 5.0):
        torch.testing.assert_close(
            compiled(**GOOD, avg_factor=avg_factor), weighted_cross_entropy(**GOOD, avg_factor=avg_factor)
        )


def test_compiled_refuses_bad_labels():
    logits, target = torch.randn(2, 5, 4, 4), torch.full((2, 4, 4), 7)

    with pytest.raises(ValueError, match=r'7 \(32 px\)'):
        torch.compile(weighted_cross_entropy, fullgraph=True)(logits, target)


def test_functional_gradient_transform():
    logits, target = torch.randn(2, 5, 4, 4), torch.randint(0, 5, (2, 8, 8))
    _, expected = value_and_gradient(lambda z: weighted_cross_entropy(z, target), logits)

    torch.testing.assert_close(torch.func.grad(lambda z: weighted_cross_entropy(z, target))(logits), expected)


GOOD = dict(logits=torch.randn(2, 3, 4, 4), target=torch.zeros(2, 4, 4, dtype=torch.long))


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        (dict(logits=[[1.0, 2.0]]), TypeError, ['logits', 'list']),
        (dict(logits=torch.ones(2, 3, 4, 4, dtype=torch.long)), TypeError, ['int64', 'float32']),
        (dict(target=torch.zeros(2, 4, 4)), TypeError, ['(2, 3, 4, 4)', '(2, 4, 4)', 'torch.float32', 'integer']),
        (dict(target=torch.zeros(2, 4, 4, dtype=torch.bool)), TypeError, ['bool']),
        (dict(target=torch.zeros(2, 4, 4, 3, dtype=torch.long)), ValueError, ['(2, 4, 4, 3)', 'RGB', 'palette PNG']),
        (dict(target=torch.zeros(2, 3, 4, 4, dtype=torch.long)), ValueError, ['(2, 3, 4, 4)', 'RGB']),
        (dict(target=torch.zeros(2, 1, 4, 4, dtype=torch.long)), ValueError, ['(2, 1, 4, 4)', 'squeeze(1)']),
        (dict(target=torch.zeros(2, 4, 4, 1, dtype=torch.long)), ValueError, ['(2, 4, 4, 1)', 'squeeze(-1)']),
        (dict(target=torch.zeros(2, 4, dtype=torch.long)), ValueError, ['(2, 3, 4, 4)', '(2, 4)']),
        (dict(target=torch.zeros(3, 4, 4, dtype=torch.long)), ValueError, ['batch', '(3, 4, 4)', '(2, 3, 4, 4)']),
        (dict(logits=torch.randn(2, 3, 4), target=torch.zeros(2, 5).long()), ValueError, ['(2, 3, 4)', '(2, 5)']),
        (dict(logits=torch.randn(2, 3, 0, 4)), ValueError, ['(2, 3, 0, 4)', 'upsampled']),
        (dict(logits=torch.randn(3), target=torch.zeros(()).long()), ValueError, ['(N, C)']),
        (dict(logits=torch.randn(2, 1, 4, 4)), ValueError, ['use_sigmoid=True', 'out_channels=2']),
        (dict(class_weight=[1.0, 2.0, 3.0]), TypeError, ['class_weight', 'list']),
        (dict(class_weight=torch.tensor([1, 2, 3])), TypeError, ['class_weight', 'int64']),
        (dict(class_weight=torch.ones(3).bool()), TypeError, ['class_weight', 'bool']),
        (dict(class_weight=torch.ones(3, device='meta')), ValueError, ['class_weight', 'meta', 'cpu']),
        (dict(target=torch.zeros(2, 4, 4, dtype=torch.long, device='meta')), ValueError, ['target', 'meta', 'cpu']),
        (dict(pixel_weight=[1.0]), TypeError, ['pixel_weight', 'list']),
        (dict(pixel_weight=torch.ones(2, 4, 4, device='meta')), ValueError, ['pixel_weight', 'meta', 'cpu']),
        (dict(pixel_weight=torch.ones(2, 4, 4, dtype=torch.complex64)), TypeError, ['pixel_weight', 'complex64']),
        (dict(label_smoothing='0.1'), TypeError, ['label_smoothing', "'0.1'"]),
        (dict(class_weight=torch.ones(4)), ValueError, ['class_weight', '3 channels', '(4,)']),
        (dict(pixel_weight=torch.ones(2, 4)), ValueError, ['pixel_weight', '(2, 4)', '(2, 4, 4)']),
        (dict(pixel_weight=torch.ones(2, 5, 4)), ValueError, ['pixel_weight', '(2, 5, 4)']),
        (dict(reduction='average'), ValueError, ["'average'"]),
        (dict(normalize_by='pixels'), ValueError, ["'pixels'"]),
        (dict(label_smoothing=1.5), ValueError, ['1.5']),
        (dict(label_smoothing=math.nan), ValueError, ['nan']),
        (dict(ignore_index='255'), TypeError, ['ignore_index', "'255'"]),
        (dict(ignore_index=255.0), TypeError, ['ignore_index', '255.0']),
        (dict(avg_factor=3.0, reduction='sum'), ValueError, ['avg_factor', 'sum']),
        (dict(avg_factor=-1.0), ValueError, ['avg_factor', '-1.0']),
        (dict(avg_factor=math.nan), ValueError, ['avg_factor', 'nan']),
        (dict(avg_factor=torch.ones(2)), ValueError, ['avg_factor', '(2,)']),
    ],
)
def test_bad_arguments(change, error, words):
    with pytest.raises(error) as caught:
        weighted_cross_entropy(**{**GOOD, **change})

    for word in words:
        assert word in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_cuda_equals_cpu():
    torch.manual_seed(0)
    logits, target, weight = torch.randn(2, 150, 16, 16), torch.randint(0, 150, (2, 64, 64)), torch.rand(150)
    target[:, :9] = 255
    on_cpu = value_and_gradient(lambda z: weighted_cross_entropy(z, target, weight), logits)
    on_cuda = value_and_gradient(lambda z: weighted_cross_entropy(z, target.cuda(), weight.cuda()), logits.cuda())

    torch.testing.assert_close([x.cpu() for x in on_cuda], list(on_cpu))


@given(case=cases(), normalize_by=st.sampled_from(('class_weight', 'valid', 'all')))
@examples(50)
def test_normalizer_is_what_the_mean_divides_by(case: Case, normalize_by):
    options = {**case.options(), 'label_smoothing': 0.0}
    total, mean = (
        weighted_cross_entropy(case.logits, case.target, reduction=reduction, normalize_by=normalize_by, **options)
        for reduction in ('sum', 'mean')
    )

    denominator = normalizer(
        case.logits,
        case.target,
        case.class_weight,
        ignore_index=case.ignore_index,
        normalize_by=normalize_by,
    )

    torch.testing.assert_close(mean * denominator, total if denominator else torch.zeros_like(total))


@pytest.mark.parametrize('change', [dict(target=torch.zeros(2, 4, 4)), dict(class_weight=torch.ones(4))])
def test_normalizer_refuses_what_the_loss_refuses(change):
    with pytest.raises((TypeError, ValueError), match=r'target must hold|class_weight must hold'):
        normalizer(**{**GOOD, **change})
    with pytest.raises(ValueError, match='pixels'):
        normalizer(**GOOD, normalize_by='pixels')


def test_pixel_weight_of_length_one_is_broadcast():
    per_row = torch.rand(2, 4, 1)
    expected = weighted_cross_entropy(**GOOD, pixel_weight=per_row.expand(2, 4, 4))

    assert torch.equal(weighted_cross_entropy(**GOOD, pixel_weight=per_row), expected)


def test_numpys_integers_are_integers():
    assert torch.equal(
        weighted_cross_entropy(**GOOD, ignore_index=np.int64(1)), weighted_cross_entropy(**GOOD, ignore_index=1)
    )


def test_nan_avg_factor_is_not_hidden():
    loss = weighted_cross_entropy(**GOOD, avg_factor=torch.tensor(math.nan))

    assert loss.isnan()


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_no_gradient_flows_to_class_weights(smoothing):
    weight = torch.ones(3, requires_grad=True)

    loss = weighted_cross_entropy(**GOOD, class_weight=weight, label_smoothing=smoothing)

    assert not loss.requires_grad


def test_avg_factor_of_zero_is_mmsegs():
    total = weighted_cross_entropy(**GOOD, reduction='sum')

    torch.testing.assert_close(weighted_cross_entropy(**GOOD, avg_factor=0), total / torch.finfo(torch.float32).eps)
