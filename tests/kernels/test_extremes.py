"""Logits near the ends of their dtype, of mixed magnitudes, and at -inf: every back end, values and gradients.

The truth is float64, PyTorch in float32 the measure: where it is finite so are we, and our error is at most its own
(where it is NaN by 0 * -inf, that of its operations without this product) and

    values     4 epsilon of the loss, and of 57 log 2: so far may a pixel lie below the maxima of its nodes before it is
               computed finely; and half an epsilon of the two logits whose difference the loss is, since PyTorch's are
               rounded as well, to our luck or to its own
    gradients  one epsilon of their dtype of the largest, and 64 float32 epsilon of probability for each pixel in reach
"""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import examples
from hypothesis import given
from hypothesis import strategies as st
from ways import NUMBA, SLABS, every_way, every_way_or_slowly, fused, maps_and_gradient, pytorchs, resize

EPSILON = torch.finfo(torch.float32).eps
SHIFT = 57 * math.log(2)
# Nodes, pixels, align_corners. Fractions of the first two are exact in binary. Of (5, 6) -> (17, 21) every fourth pixel
# lies on a node, of (5, 6) -> (15, 18) every third: their other neighbours have weight 0.
EXACT = [((5, 6), (20, 24), False), ((5, 6), (17, 21), True), ((5, 6), (5, 6), False)]
SIZES = [*EXACT, ((5, 6), (15, 18), False), ((5, 6), (13, 17), False), ((5, 6), (3, 4), False)]
KINDS = ('uniform', 'signs', 'mixed magnitudes', 'one class', 'one class masked in places', 'one class masked')


def extreme_logits(kind: str, largest: float, nodes: tuple[int, int], seed: int) -> torch.Tensor:
    """(2, 5, h, w), float64."""
    generator, shape = torch.Generator().manual_seed(seed), (2, 5, *nodes)

    def random():
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    uniform, usual, sign = (2 * random() - 1) * largest, 4 * random() - 2, (random() - 0.5).sign()
    masked = torch.zeros(shape, dtype=torch.bool)
    masked[:, 1] = True
    return {
        'uniform': uniform,
        'signs': sign * largest,
        'mixed magnitudes': sign * largest ** (2 * random() - 1),
        'one class': torch.where(masked, sign * largest, usual),
        'one class masked in places': torch.where(masked & (random() < 0.2), -math.inf, uniform),
        'one class masked': torch.where(masked, -math.inf, torch.where(random() < 0.1, uniform, usual)),
    }[kind]


def exact_logits(logits, size, align_corners):
    """``F.interpolate`` without its 0 * -inf: a class at -inf reaches those pixels that it has a weight in."""
    masked = logits.detach() == -math.inf
    if logits.shape[2:] == size:
        return logits
    z, share = (resize(x, size, align_corners) for x in (torch.where(masked, 0, logits), masked.to(logits.dtype)))
    return z + torch.where(share > 0, -math.inf, 0.0)


def exact_losses(logits, target, weight, align_corners):
    """Plain and smoothed loss, 0 where ignored, and the logits in between."""
    z = exact_logits(logits, target.shape[1:], align_corners)
    log_p, w, counts = z.log_softmax(1), weight.view(1, -1, 1, 1), target != 255
    plain = F.nll_loss(log_p, target, ignore_index=255, reduction='none')
    smooth = -torch.where(w == 0, 0, w * log_p).sum(1)
    return plain, torch.where(counts, smooth, 0), z.detach()


def assert_as_close_as_pytorch(way, logits, target, weight, align_corners=False):
    target, weight = target.to(way.device), weight.to(way.device).double()
    generator = torch.Generator().manual_seed(7)
    upstream = [torch.randn(target.shape, generator=generator, dtype=torch.float64).to(way.device) for _ in range(2)]

    def sweep(function, z, finite):
        z = z.detach().clone().requires_grad_()
        losses = function(z)[:2]
        # of infinite losses there is nothing to compare but that they are
        loss = sum(torch.where(where, x, 0).mul(u).sum() for x, u, where in zip(losses, upstream, finite, strict=True))
        (gradient,) = torch.autograd.grad(loss, z)
        return [x.detach().double() for x in losses], gradient.double()

    def of_ours(z):
        return way(z, target, smoothing_weight=weight, align_corners=align_corners)

    def of_pytorch(z):
        return pytorchs(in_float32(z), target, weight, 255, align_corners)

    def resized(z):
        return exact_logits(z, target.shape[1:], align_corners)

    def in_float32(z):
        return z.to(torch.promote_types(z.dtype, torch.float32))

    *truth, z = exact_losses(logits.to(way.device, torch.float64), target, weight, align_corners)
    reach = resized(logits.masked_fill(logits == -math.inf, 0).to(way.device, torch.float64).abs())
    cancelled = (z.abs() < 1e-10 * reach) & (reach > 1e6)  # what is left is rounding, in float64 as well
    finite = [x.isfinite() & ~cancelled.any(1) for x in truth]
    (_, true_gradient) = sweep(
        lambda x: exact_losses(x, target, weight, align_corners), logits.to(way.device, torch.float64), finite
    )
    ours, gradient = sweep(of_ours, logits.to(way.device), finite)
    theirs, their_gradient = sweep(of_pytorch, logits.to(way.device), finite)
    rounded, rounded_gradient = sweep(
        lambda x: exact_losses(in_float32(x), target, weight.float(), align_corners), logits.to(way.device), finite
    )

    top = z.abs().gather(1, z.argmax(1, keepdim=True))
    own = z.gather(1, target.where(target != 255, 0).unsqueeze(1)).squeeze(1).abs()
    spread = torch.where(weight.view(1, -1, 1, 1) == 0, 0, weight.view(1, -1, 1, 1) * (z.abs() + top)).sum(1)
    logits_and_shares = (own + top[:, 0], 1.0), (spread, float(weight.sum()))
    for found, expected, eager, measure, where, (logit, share) in zip(
        ours, truth, theirs, rounded, finite, logits_and_shares, strict=True
    ):
        assert torch.equal(found.isfinite(), expected.isfinite())
        assert torch.equal(found.isposinf(), expected.isposinf())
        assert bool((found.isfinite() | ~eager.isfinite()).all())
        measure = eager.where(eager.isfinite(), measure)
        error, eager_error = ((x - expected).abs().nan_to_num(0, 0) for x in (found, measure))
        allowed = eager_error + 4 * EPSILON * (expected.abs() + share * SHIFT) + EPSILON / 2 * logit
        excess = torch.where(where, error - allowed, 0)
        assert bool((excess <= 0).all()), float(excess.max())

    assert bool(gradient.isfinite().all())
    measure = their_gradient.where(their_gradient.isfinite(), rounded_gradient)
    allowed = (measure - true_gradient).abs().max() + torch.finfo(logits.dtype).eps * true_gradient.abs().max()
    probability = torch.autograd.functional.vjp(
        resized,
        torch.zeros_like(true_gradient[:, :1]),
        sum(u.abs().unsqueeze(1) for u in upstream),
    )[1].max()
    assert float((gradient - true_gradient).abs().max()) <= float(allowed + 64 * EPSILON * probability)


@every_way_or_slowly
@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from((torch.float32, torch.float16, torch.bfloat16)),
    largest=st.sampled_from((1e4, 1e30)),
    sizes=st.sampled_from(SIZES),
    seed=st.integers(0, 2**31),
    keep_weight=st.booleans(),
)
@examples(25)
def test_as_close_to_float64_as_pytorch(way, kind, dtype, largest, sizes, seed, keep_weight):
    if kind in ('signs', 'one class') and sizes not in EXACT:
        kind = 'uniform'  # +-1e30 that cancel but for the rounding of their fractions: float64 has no truth there
    if way.backend not in ('cpu', 'slabs') and sizes not in EXACT:
        sizes = EXACT[0]  # fractions in float32, as those of F.interpolate: small ones of large logits differ
    nodes, pixels, align_corners = sizes
    logits = extreme_logits(kind, 1e4 if dtype == torch.float16 else largest, nodes, seed).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    target, weight = torch.randint(0, 5, (2, *pixels), generator=generator), torch.rand(5, generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    if 'masked' in kind and not keep_weight:
        weight[1] = 0

    assert_as_close_as_pytorch(way, logits, target, weight, align_corners)


@every_way_or_slowly
@pytest.mark.parametrize(('dtype', 'largest'), [(torch.float16, 1e4), (torch.bfloat16, 1e30), (torch.float32, 1e30)])
@pytest.mark.parametrize('kind', KINDS)
def test_each_kind_of_extreme_logits_is_as_close_as_pytorch(way, kind, dtype, largest):
    """Each kind once, so that none depends on what hypothesis draws."""
    logits = extreme_logits(kind, largest, (3, 4), seed=5).to(dtype)
    target = torch.randint(0, 5, (2, 12, 16), generator=torch.Generator().manual_seed(5))

    assert_as_close_as_pytorch(way, logits, target, torch.tensor([1.0, 0.0, 2.0, 0.5, 0.1]))


@every_way
def test_a_masked_neighbour_of_weight_zero_does_not_count(way):
    assert_sees_its_node_alone(way, (9, 13), 4, align_corners=True)


@fused
def test_a_masked_neighbour_whose_fraction_rounds_to_zero_does_not_count(way):
    assert_sees_its_node_alone(way, (9, 12), 3, align_corners=False)


def assert_sees_its_node_alone(way, pixels, step, align_corners):
    """These pixels lie on an input pixel, where F.interpolate gives NaN."""
    start = 0 if align_corners else 1
    logits = torch.randn(1, 3, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
    logits[0, 1, 1, 2] = -math.inf
    target = torch.ones(1, *pixels, dtype=torch.long)

    nll, _, _ = way(logits, target, align_corners=align_corners)

    at_nodes = nll[:, start::step, start::step].cpu()
    expected = F.cross_entropy(logits, torch.ones(1, 3, 4, dtype=torch.long), reduction='none')
    assert expected.isinf().sum() == 1
    torch.testing.assert_close(at_nodes, expected)
    eager = pytorchs(logits, target, torch.ones(3), 255, align_corners)[0][:, start::step, start::step]
    assert eager.isnan().sum() > 0


@every_way
def test_large_logits_that_tie_share_the_probability(way):
    """2^z of either is lost beside the other unless the maximum is subtracted alone."""
    logits = torch.tensor([1e30, 1e30, -1e30]).view(1, 3, 1, 1).repeat(1, 1, 2, 2)
    logits[0, :, 0, 0] = torch.tensor([-1e30, -1e30, 1e30])  # the others' maximum is far above, in between
    logits.requires_grad_()
    target = torch.zeros(1, 8, 8, dtype=torch.long)

    nll, smooth, _ = way(logits, target, smoothing_weight=torch.tensor([1.0, 1.0, 0.0]))
    (gradient,) = torch.autograd.grad(nll[0, 5, 5] + smooth[0, 5, 5], logits)

    torch.testing.assert_close(nll[0, 5, 5].item(), math.log(2))
    torch.testing.assert_close(smooth[0, 5, 5].item(), 2 * math.log(2))
    torch.testing.assert_close(gradient.sum((2, 3)), torch.tensor([[-0.5, 0.5, 0.0]]))


@every_way
@pytest.mark.parametrize('pixels', [(6, 8), (3, 4)])
def test_no_class_left_is_nan(way, pixels):
    """As in PyTorch: a softmax over nothing but -inf."""
    logits = torch.full((1, 3, 3, 4), -math.inf)

    nll, smooth, _ = way(logits, torch.zeros(1, *pixels, dtype=torch.long), smoothing_weight=torch.ones(3))

    assert nll.isnan().all()
    assert smooth.isnan().all()


@every_way_or_slowly
def test_a_class_at_minus_infinity_is_there_however_small_its_weight(way):
    """Weights of a corner are as small as 7e-7."""
    logits = torch.randn(1, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    logits[0, 1, 1, 1] = -math.inf
    target = torch.ones(1, 2047, 2045, dtype=torch.long)

    nll, _, _ = way(logits, target)

    share = resize((logits == -math.inf).double(), target.shape[1:])[:, 1]
    assert 0 < share[share > 0].min() < 1e-6
    assert torch.equal(nll.cpu() == math.inf, share > 0)


@every_way
@pytest.mark.parametrize('pixels', [(8, 8), (2, 2)])
def test_a_finite_logit_is_not_minus_infinity(way, pixels):
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 1] = -1e37

    nll, _, _ = way(logits, torch.ones(1, *pixels, dtype=torch.long))

    torch.testing.assert_close(nll.cpu(), torch.full((1, *pixels), 1e37))


@fused
@pytest.mark.parametrize('smoothing', [False, True])
@pytest.mark.parametrize('pixels', [(20, 25), (6, 7), (5, 4)])
def test_ignored_pixels_keep_nan_and_infinity_from_all_others(way, pixels, smoothing):
    """Also from those that lie on a node beside them, where F.interpolate gives NaN."""
    logits, target, weight = way.problem(pixels=pixels, dtype=torch.float32)
    clean = logits.clone()
    logits[0, 1, 2, 3] = logits[1, 2, 4, 1] = math.nan
    logits[0, 4, 5, 0], logits[1, :, 1, 6] = math.inf, -math.inf
    touched = (logits != clean).any(1, keepdim=True).double()
    reached = touched if logits.shape[2:] == target.shape[1:] else resize(touched, target.shape[1:])
    target[reached[:, 0] > 0] = 255
    assert 0 < (target != 255).sum() < target.numel()

    found, expected = (maps_and_gradient(way, z, target, weight if smoothing else None) for z in (logits, clean))

    torch.testing.assert_close(found, expected)


@every_way
@pytest.mark.parametrize('pixels', [(20, 25), (6, 7)])
def test_the_lowest_of_classes_that_tie_everywhere_is_predicted(way, pixels):
    """A classifier that starts at zero gives such logits in the first step."""
    logits, target, _ = way.problem(pixels=pixels)

    nll, _, correct = way(torch.zeros_like(logits), target)

    assert torch.equal(correct, target == 0)
    torch.testing.assert_close(nll[target != 255], torch.full_like(nll[target != 255], math.log(5)))


@pytest.mark.parametrize('way', [NUMBA, SLABS], ids=['cpu', 'slabs'])
@pytest.mark.parametrize('transposed', [False, True])
def test_nan_does_not_reach_a_neighbour_of_weight_zero(way, transposed):
    """In the loss of valid pixels and in their gradient: rows of the same number are not mixed."""
    logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 8, dtype=torch.long)
    logits[0, 1, 2, 1] = math.nan
    expected = torch.tensor([False, False, True, False])
    if transposed:
        logits, target = logits.mT.contiguous(), target.mT.contiguous()
    logits.requires_grad_()

    nll, smooth, _ = way(logits, target, smoothing_weight=torch.ones(2))
    (gradient,) = torch.autograd.grad((nll + smooth).sum(), logits)

    along = 1 if transposed else 2
    assert torch.equal((nll + smooth).isnan().any(along)[0], expected)
    assert torch.equal(gradient.isnan().any(1).any(along)[0], expected)
