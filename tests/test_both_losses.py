"""Properties that the softmax loss and the sigmoid loss share."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import value_and_gradient
from mmseg_wce.functional import binary_normalizer, normalizer, weighted_binary_cross_entropy, weighted_cross_entropy

LOSSES = [weighted_cross_entropy, weighted_binary_cross_entropy]
GOOD = dict(logits=torch.randn(2, 3, 4, 4), target=torch.zeros(2, 4, 4, dtype=torch.long))
both_losses = pytest.mark.parametrize('loss', LOSSES)
every_kind = pytest.mark.parametrize(
    ('loss', 'channels'),
    [(weighted_cross_entropy, 3), (weighted_binary_cross_entropy, 1), (weighted_binary_cross_entropy, 3)],
)


@every_kind
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('reduction', ['mean', 'none'])
def test_computes_in_float32_at_least_and_under_autocast(loss, channels, dtype, reduction):
    logits, target = torch.randn(2, channels, 4, 4).to(dtype), torch.randint(0, 2, (2, 8, 8))
    options = dict(class_weight=torch.rand(max(channels, 2)), reduction=reduction)
    options |= dict(label_smoothing=0.1) if loss is weighted_cross_entropy else {}

    found = loss(logits, target, **options)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        under_autocast = loss(logits, target, **options)

    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found, loss(logits.to(found.dtype), target, **options))
    assert torch.equal(under_autocast, found)


@every_kind
@pytest.mark.parametrize('expanded', ['logits', 'target', 'both'])
def test_stride_zero_inputs(loss, channels, expanded):
    logits = torch.randn(1, channels, 1, 4).expand(2, channels, 4, 4)
    target = torch.randint(0, 2, (1, 4, 4)).expand(2, 4, 4)
    expected = loss(logits.clone(), target.clone())
    if expanded == 'target':
        logits = logits.clone()
    elif expanded == 'logits':
        target = target.clone()

    torch.testing.assert_close(loss(logits, target), expected)


@every_kind
@pytest.mark.parametrize(
    ('shape', 'target_shape'),
    [
        ((0, 4, 4), (0, 4, 4)),
        ((0, 4, 4), (0, 8, 8)),
        ((0,), (0,)),
        ((2, 4, 4), (2, 0, 8)),
        ((2, 0), (2, 0)),
    ],
)
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
def test_empty_batches(loss, channels, shape, target_shape, reduction):
    logits = torch.randn(shape[0], channels, *shape[1:], requires_grad=True)
    target = torch.zeros(target_shape, dtype=torch.long)

    found = loss(logits, target, torch.ones(max(channels, 2)), reduction=reduction)
    (gradient,) = torch.autograd.grad(found.sum(), logits)

    by_channel = channels > 1 and loss is weighted_binary_cross_entropy
    losses = (shape[0], channels, *target_shape[1:]) if by_channel else target_shape
    assert found.sum().item() == 0.0
    assert found.shape == (losses if reduction == 'none' else ())
    assert (gradient == 0).all()


@every_kind
@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_integer_dtype(loss, channels, dtype):
    logits, target = torch.randn(2, channels, 4, 4), torch.randint(0, 2, (2, 4, 4))
    ignore_index = 255 if dtype != torch.int8 else -1

    assert torch.equal(loss(logits, target.to(dtype), ignore_index=ignore_index), loss(logits, target))


@every_kind
def test_functional_gradient_transform(loss, channels):
    logits, target = torch.randn(2, channels, 4, 4), torch.randint(0, 2, (2, 8, 8))
    _, expected = value_and_gradient(loss, logits, target)

    torch.testing.assert_close(torch.func.grad(lambda z: loss(z, target))(logits), expected)


@pytest.mark.parametrize(
    ('loss', 'channels', 'options'),
    [
        *[
            (weighted_cross_entropy, 3, dict(label_smoothing=smoothing, normalize_by=by))
            for smoothing in (0.0, 0.2)
            for by in ('class_weight', 'valid', 'all')
        ],
        *[
            (weighted_binary_cross_entropy, channels, dict(reduction=reduction, normalize_by=by))
            for channels, by in ((1, 'class_weight'), (1, 'valid'), (1, 'all'), (3, 'valid'), (3, 'all'))
            for reduction in ('mean', 'none')
        ],
    ],
)
def test_gradcheck(loss, channels, options):
    torch.manual_seed(0)
    target = torch.tensor([[[0, 1, channels - 1, 255, 1]] * 3, [[1, 255, 0, 0, 1]] * 3])
    weight = torch.tensor([0.5, 2.0, 0.0])[: max(channels, 2)]
    pixel_weight = torch.rand(2, 3, 5, dtype=torch.float64, requires_grad=True)

    for size in ((2, 3), (3, 5)):
        logits = torch.randn(2, channels, *size, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            lambda z, p: loss(z, target, weight, pixel_weight=p, **options), (logits, pixel_weight)
        )


@every_kind
@pytest.mark.parametrize('avg_factor', [7, 2.5, torch.tensor(2.5), 0])
def test_avg_factor_replaces_the_denominator(loss, channels, avg_factor):
    """0 becomes a small number, as in mmseg."""
    logits, target = torch.randn(2, channels, 3, 3), torch.randint(0, max(channels, 2), (2, 3, 3))
    weight = torch.tensor([1.0, 2.0, 0.5])[: max(channels, 2)]
    total = loss(logits, target, weight, reduction='sum')

    found = loss(logits, target, weight, avg_factor=avg_factor, normalize_by='all')

    torch.testing.assert_close(found, total / (avg_factor or torch.finfo(torch.float32).eps))


@pytest.mark.parametrize(
    ('loss', 'channels', 'smoothing'),
    [
        (weighted_cross_entropy, 3, dict()),
        (weighted_cross_entropy, 3, dict(label_smoothing=0.1)),
        (weighted_binary_cross_entropy, 1, dict()),
        (weighted_binary_cross_entropy, 3, dict()),
    ],
)
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('poison', [math.nan, math.inf, -math.inf])
def test_ignored_pixels_contribute_exactly_nothing(loss, channels, smoothing, poison, reduction):
    logits, target = torch.randn(2, channels, 4, 4), torch.randint(0, 2, (2, 4, 4))
    target[:, 1:3] = 255
    poisoned, pixel_weight = logits.clone(), torch.ones(2, 4, 4)
    poisoned[:, :, 1:3] = poison
    pixel_weight[:, 1:3] = poison
    options = dict(class_weight=torch.rand(max(channels, 2)) + 0.1, reduction=reduction, **smoothing)

    for weight, poisoned_weight in ((None, None), (torch.ones(2, 4, 4), pixel_weight)):
        clean = value_and_gradient(loss, logits, target, pixel_weight=weight, **options)
        value, gradient = value_and_gradient(loss, poisoned, target, pixel_weight=poisoned_weight, **options)
        assert torch.equal(value, clean[0])
        assert torch.equal(gradient, clean[1])
        assert (gradient[:, :, 1:3] == 0).all()
        assert (gradient[:, :, :1] != 0).all()


@every_kind
@pytest.mark.parametrize('avg_factor', [None, 0, 3.0])
def test_nothing_that_counts_gives_a_connected_zero(loss, channels, avg_factor):
    logits, ignored = torch.randn(2, channels, 4, 4, requires_grad=True), torch.full((2, 8, 8), 255)
    calls = [(ignored, weight, by) for by in ('valid', 'all') for weight in (None, torch.ones(max(channels, 2)))]
    if loss is weighted_cross_entropy:
        masked = torch.ones_like(ignored), torch.tensor([1.0, 0.0, 1.0])
        calls += [(*masked, by) for by in ('class_weight', 'valid', 'all')]
        calls += [(ignored, None, 'class_weight'), (ignored, torch.ones(3), 'class_weight')]
    elif channels == 1:
        calls.append((ignored, torch.ones(2), 'class_weight'))
        if avg_factor is None:
            calls.append((torch.ones_like(ignored), torch.tensor([1.0, 0.0]), 'class_weight'))

    for target, weight, by in calls:
        found = loss(logits, target, weight, normalize_by=by, avg_factor=avg_factor)
        (gradient,) = torch.autograd.grad(found, logits)
        assert found.item() == 0.0
        assert gradient.shape == logits.shape
        assert (gradient == 0).all()


@every_kind
@pytest.mark.parametrize('poison', [math.nan, math.inf])
def test_non_finite_logits_of_valid_pixels_are_not_hidden(loss, channels, poison):
    logits, target = torch.randn(1, channels, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)
    logits[0, -1, 0, 0] = poison

    found = loss(logits, target)

    assert not found.isfinite()
    if loss is weighted_cross_entropy:
        assert found.isnan()
        assert F.cross_entropy(logits, target).isnan()


@pytest.mark.parametrize(
    ('loss', 'channels', 'options', 'backend'),  # compiling C++ takes seconds
    [
        (weighted_cross_entropy, 5, dict(label_smoothing=0.1), 'inductor'),
        (weighted_cross_entropy, 5, dict(reduction='none'), 'aot_eager'),
        (weighted_binary_cross_entropy, 1, dict(), 'inductor'),
        (weighted_binary_cross_entropy, 5, dict(reduction='none'), 'aot_eager'),
    ],
)
def test_compiles_without_graph_breaks(loss, channels, options, backend):
    torch.manual_seed(0)
    target, weight = torch.randint(0, max(channels, 2), (2, 9, 9)), torch.rand(max(channels, 2))
    target[:, :3] = 255

    def weighted(z):
        return loss(z, target, weight, pixel_weight=torch.ones(2, 9, 9), **options)

    logits, compiled = torch.randn(2, channels, 4, 4), torch.compile(weighted, fullgraph=True, backend=backend)
    torch.testing.assert_close(value_and_gradient(compiled, logits), value_and_gradient(weighted, logits))


@every_kind
def test_compiled_refuses_bad_labels(loss, channels):
    compiled = torch.compile(loss, fullgraph=True, backend='aot_eager')

    with pytest.raises(ValueError, match=r'7 \(32 px\)'):
        compiled(torch.randn(2, channels, 4, 4), torch.full((2, 4, 4), 7))


@both_losses
def test_nan_avg_factor_is_not_hidden(loss):
    assert loss(**GOOD, avg_factor=torch.tensor(math.nan)).isnan()


@pytest.mark.parametrize(
    ('loss', 'options'),
    [
        (weighted_cross_entropy, dict()),
        (weighted_cross_entropy, dict(label_smoothing=0.1)),
        (weighted_binary_cross_entropy, dict()),
        (weighted_binary_cross_entropy, dict(reduction='none')),
    ],
)
def test_no_gradient_flows_to_class_weights(loss, options):
    assert not loss(**GOOD, class_weight=torch.ones(3, requires_grad=True), **options).requires_grad


@both_losses
@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        (dict(logits=[[1.0, 2.0]]), TypeError, ['logits', 'list']),
        (dict(logits=torch.ones(2, 3, 4, 4, dtype=torch.long)), TypeError, ['int64', 'float32']),
        (dict(target=torch.zeros(2, 4, 4)), TypeError, ['(2, 3, 4, 4)', '(2, 4, 4)', 'torch.float32', 'integer']),
        (dict(target=torch.zeros(2, 4, 4, dtype=torch.bool)), TypeError, ['bool']),
        (dict(target=torch.zeros(2, 3, 4, 4, dtype=torch.long)), ValueError, ['(2, 3, 4, 4)', 'RGB']),
        (dict(target=torch.zeros(2, 1, 4, 4, dtype=torch.long)), ValueError, ['(2, 1, 4, 4)', 'squeeze(1)']),
        (dict(target=torch.zeros(3, 4, 4, dtype=torch.long)), ValueError, ['batch', '(3, 4, 4)', '(2, 3, 4, 4)']),
        (dict(logits=torch.randn(2, 3, 4), target=torch.zeros(2, 5).long()), ValueError, ['(2, 3, 4)', '(2, 5)']),
        (dict(logits=torch.randn(2, 3, 0, 4)), ValueError, ['(2, 3, 0, 4)', 'upsampled']),
        (dict(logits=torch.randn(3), target=torch.zeros(()).long()), ValueError, ['(N, C)']),
        (dict(class_weight=[1.0, 2.0, 3.0]), TypeError, ['class_weight', 'list']),
        (dict(class_weight=torch.tensor([1, 2, 3])), TypeError, ['class_weight', 'int64']),
        (dict(class_weight=torch.ones(3, device='meta')), ValueError, ['class_weight', 'meta', 'cpu']),
        (dict(target=torch.zeros(2, 4, 4, dtype=torch.long, device='meta')), ValueError, ['target', 'meta', 'cpu']),
        (dict(pixel_weight=[1.0]), TypeError, ['pixel_weight', 'list']),
        (dict(pixel_weight=torch.ones(2, 4, 4, device='meta')), ValueError, ['pixel_weight', 'meta', 'cpu']),
        (dict(pixel_weight=torch.ones(2, 4, 4, dtype=torch.complex64)), TypeError, ['pixel_weight', 'complex64']),
        (dict(class_weight=torch.ones(4)), ValueError, ['class_weight', 'each of the 3 channels', '(4,)']),
        (dict(pixel_weight=torch.ones(2, 4)), ValueError, ['pixel_weight', '(2, 4)', '(2, 4, 4)']),
        (dict(reduction='average'), ValueError, ["'average'"]),
        (dict(normalize_by='pixels'), ValueError, ["'pixels'"]),
        (dict(ignore_index='255'), TypeError, ['ignore_index', "'255'"]),
        (dict(ignore_index=255.0), TypeError, ['ignore_index', '255.0']),
        (dict(avg_factor=3.0, reduction='sum'), ValueError, ['avg_factor', 'sum']),
        (dict(avg_factor=-1.0), ValueError, ['avg_factor', '-1.0']),
        (dict(avg_factor=torch.ones(2)), ValueError, ['avg_factor', '(2,)']),
    ],
)
def test_invalid_arguments_raise_and_name_the_value(loss, change, error, words):
    with pytest.raises(error) as caught:
        loss(**{**GOOD, **change})

    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ('function', 'change'),
    [
        (normalizer, dict(target=torch.zeros(2, 4, 4))),
        (normalizer, dict(class_weight=torch.ones(4))),
        (normalizer, dict(normalize_by='pixels')),
        (binary_normalizer, dict(target=torch.zeros(2, 4, 4))),
        (binary_normalizer, dict(class_weight=torch.ones(4))),
        (binary_normalizer, dict(normalize_by='class_weight')),
    ],
)
def test_normalizer_refuses_what_the_loss_refuses(function, change):
    words = dict(
        target='target must hold', class_weight='class_weight must hold', normalize_by='pixels|two class weights'
    )

    with pytest.raises((TypeError, ValueError), match=words[next(iter(change))]):
        function(**{**GOOD, **change})


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize(
    ('loss', 'channels'),
    [(weighted_cross_entropy, 150), (weighted_binary_cross_entropy, 1), (weighted_binary_cross_entropy, 19)],
)
@pytest.mark.parametrize('deterministic', [False, True])
def test_cuda_equals_cpu(loss, channels, deterministic):
    torch.manual_seed(0)
    target, weight = torch.randint(0, max(channels, 2), (2, 64, 64)), torch.rand(max(channels, 2))
    logits = torch.randn(2, channels, 16, 16)
    target[:, :9] = 255
    on_cpu = value_and_gradient(loss, logits, target, weight)
    torch.use_deterministic_algorithms(deterministic)
    try:
        on_cuda = value_and_gradient(loss, logits.cuda(), target.cuda(), weight.cuda())
    finally:
        torch.use_deterministic_algorithms(False)

    torch.testing.assert_close([x.cpu() for x in on_cuda], list(on_cpu))
