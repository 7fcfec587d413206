"""focal_gamma, everywhere it can be given, against the formula in plain PyTorch and mmseg's sigmoid focal loss."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import BinaryCase, Case, binary_cases, cases, examples, value_and_gradient
from decode_heads import fused_copy, head, samples, sweep
from hypothesis import given
from hypothesis import strategies as st
from mmseg.models.losses.focal_loss import py_sigmoid_focal_loss
from mmseg_wce import WeightedCrossEntropyLoss
from mmseg_wce.functional import normalizer, weighted_binary_cross_entropy, weighted_cross_entropy
from mmseg_wce.kernels import pixel_bce
from mmseg_wce.validation_loss import RunningSums, loss_terms

GAMMAS = st.sampled_from((0.3, 1.0, 2.0, 3.5))
REDUCTIONS = ('mean', 'sum', 'none')


def focal(nll, gamma):
    return (-torch.expm1(-nll)) ** gamma * nll


def assert_same(ours, expected, rtol=1e-9, atol=1e-12):
    """Compare values and gradients; autograd's is NaN where a probability is 1 and gamma below 1."""
    value, gradient = expected
    assert ours[1].isfinite().all()
    gradient = torch.where(gradient.isfinite(), gradient, ours[1])
    torch.testing.assert_close(ours, (value, gradient), rtol=rtol, atol=atol)


def softmax_focal(case: Case, logits, gamma, reduction):
    weight = None if case.class_weight is None else case.class_weight.to(logits.dtype)
    z = case.resized(logits)
    target = case.target.long()
    nll = F.cross_entropy(z, target, ignore_index=case.ignore_index, reduction='none')
    loss = torch.where(case.valid, focal(torch.where(case.valid, nll, 1.0), gamma), 0)
    factor = torch.ones_like(loss) if weight is None else weight[torch.where(case.valid, target, 0)]
    loss = factor * loss
    if reduction == 'none':
        return loss
    return loss.sum() if reduction == 'sum' else loss.sum() / (factor * case.valid).sum()


@given(case=cases(), gamma=GAMMAS, reduction=st.sampled_from(REDUCTIONS))
@examples(100)
def test_softmax_equals_the_formula(case: Case, gamma, reduction):
    options = case.options() | dict(label_smoothing=0.0, focal_gamma=gamma, reduction=reduction)
    mix = torch.rand(case.target.shape, dtype=torch.float64) if reduction == 'none' else 1.0

    ours = value_and_gradient(lambda z: (weighted_cross_entropy(z, case.target, **options) * mix).sum(), case.logits)

    expected = value_and_gradient(lambda z: (softmax_focal(case, z, gamma, reduction) * mix).sum(), case.logits)
    weight = normalizer(case.logits, case.target, case.class_weight, ignore_index=case.ignore_index)
    if reduction == 'mean' and weight == 0:
        expected = torch.zeros((), dtype=torch.float64), torch.zeros_like(case.logits)
    assert_same(ours, expected)


@given(case=binary_cases(), gamma=GAMMAS)
@examples(75)
def test_sigmoid_equals_mmsegs_focal_loss(case: BinaryCase, gamma):
    """With alpha 0.5 mmseg's has half the value; it has other class weights, so there are none here."""
    channels = case.logits.shape[1]
    options = dict(ignore_index=case.ignore_index, align_corners=case.align_corners)

    def theirs(logits):
        z = case.resized(logits).movedim(1, -1).reshape(-1, channels)
        one_hot = case.one_hot().movedim(1, -1).reshape(-1, channels)
        return 2 * py_sigmoid_focal_loss(z, one_hot, gamma=gamma, alpha=0.5, valid_mask=case.valid.reshape(-1, 1))

    ours = value_and_gradient(
        lambda z: weighted_binary_cross_entropy(z, case.target, focal_gamma=gamma, normalize_by='all', **options),
        case.logits,
    )

    assert_same(ours, value_and_gradient(theirs, case.logits), rtol=1e-8, atol=1e-10)


@given(case=binary_cases(), gamma=GAMMAS, reduction=st.sampled_from(REDUCTIONS))
@examples(75)
def test_sigmoid_with_weights_equals_the_formula(case: BinaryCase, gamma, reduction):
    weight = torch.rand(max(case.logits.shape[1], 2), dtype=torch.float64)
    options = dict(ignore_index=case.ignore_index, align_corners=case.align_corners, reduction=reduction)

    def plain(logits):
        z, one_hot = case.resized(logits), case.one_hot().bool()
        losses = focal(F.binary_cross_entropy_with_logits(z, one_hot.to(z.dtype), reduction='none'), gamma)
        negative = weight[0] if z.shape[1] == 1 else 1.0
        positive = weight[1] if z.shape[1] == 1 else weight.view(-1, *[1] * (z.dim() - 2))
        losses = torch.where(case.valid.unsqueeze(1), torch.where(one_hot, positive, negative) * losses, 0)
        if reduction == 'none':
            losses = losses.squeeze(1) if z.shape[1] == 1 else losses
            return (losses * torch.linspace(0, 1, losses.numel(), dtype=z.dtype).view_as(losses)).sum()
        number = z.shape[1] * case.valid.sum()
        return losses.sum() if reduction == 'sum' else losses.sum() / number.clamp(min=1)

    def ours(logits):
        losses = weighted_binary_cross_entropy(logits, case.target, weight, focal_gamma=gamma, **options)
        if reduction != 'none':
            return losses
        return (losses * torch.linspace(0, 1, losses.numel(), dtype=losses.dtype).view_as(losses)).sum()

    assert_same(*(value_and_gradient(function, case.logits) for function in (ours, plain)))


@pytest.mark.parametrize('gamma', [0.5, 1.0, 2.0])
@pytest.mark.parametrize('function', [weighted_cross_entropy, weighted_binary_cross_entropy])
def test_gradcheck(function, gamma):
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 7, 9))
    target[0, :2] = 255
    weight = torch.tensor([0.3, 0.6, 2.0], dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda z: function(z, target, weight, focal_gamma=gamma), logits)


@pytest.mark.parametrize('function', [weighted_cross_entropy, weighted_binary_cross_entropy])
@pytest.mark.parametrize('reduction', REDUCTIONS)
def test_gamma_0_has_the_same_bits(function, reduction):
    logits, target = torch.randn(2, 4, 8, 8), torch.randint(0, 4, (2, 32, 32))
    weight = torch.rand(4)

    without = value_and_gradient(function, logits, target, weight, reduction=reduction)
    zero = value_and_gradient(function, logits, target, weight, reduction=reduction, focal_gamma=0)

    assert all(torch.equal(a, b) for a, b in zip(without, zero, strict=True))


@pytest.mark.parametrize('gamma', [0.5, 2.0])
@pytest.mark.parametrize('function', [weighted_cross_entropy, weighted_binary_cross_entropy])
def test_certain_pixels_have_a_finite_gradient(function, gamma):
    """With gamma below 1 the plain formula gives NaN at probability 1."""
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4], [0.0, 0.0]])
    target = torch.tensor([0, 0, 255])

    value, gradient = value_and_gradient(function, logits, target, focal_gamma=gamma, reduction='sum')

    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient[2].tolist() == [0, 0]


@pytest.mark.parametrize('backend', ['reference', 'slabs', 'cpu'])
def test_back_ends_agree(backend, monkeypatch):
    logits, target = torch.randn(2, 5, 8, 9), torch.randint(0, 5, (2, 32, 36))
    options = dict(class_weight=torch.rand(5), focal_gamma=2.0)
    expected = value_and_gradient(weighted_cross_entropy, logits.double(), target, **options)
    monkeypatch.setenv('MMSEG_WCE_BACKEND', backend)

    found = value_and_gradient(weighted_cross_entropy, logits, target, **options)

    torch.testing.assert_close([x.double() for x in found], list(expected), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('use_sigmoid', [False, True])
def test_a_fused_head_has_the_losses_of_an_unfused_one(use_sigmoid):
    """Beside a loss without focal_gamma, which shares the maps of a softmax and not those of sigmoids."""
    loss = dict(type='WeightedCrossEntropyLoss', use_sigmoid=use_sigmoid, class_weight=[0.5, 1, 2, 3, 0.1])
    plain = head([dict(loss, focal_gamma=2.0, loss_name='loss_focal'), dict(loss), dict(loss, focal_gamma=0.5)])
    fused, line = fused_copy(plain)
    assert line.endswith(': fused')

    expected, found = (sweep(one, samples()) for one in (plain, fused))

    assert found[0].keys() == expected[0].keys()
    assert expected[0]['loss_focal'] != expected[0]['loss_ce']
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('use_sigmoid', [False, True])
def test_loss_on_the_validation_set(use_sigmoid):
    loss = dict(type='WeightedCrossEntropyLoss', use_sigmoid=use_sigmoid, class_weight=[1, 2, 3, 4, 5], focal_gamma=2.0)
    built = head(loss)
    ((term,), left_out) = loss_terms(built)
    assert left_out == []
    sample, logits = samples()[0], torch.randn(1, 5, 32, 40)

    sums = RunningSums([term], sample, (32, 40), 5)
    sums.update(logits[:, :2], 0)
    sums.update(logits[:, 2:], 2)
    sums.finish()

    ((_, numerator, denominator),) = sample.get('validation_loss_sums')
    expected = built.loss_decode(logits, sample.gt_sem_seg.data, ignore_index=255)
    assert numerator / denominator == pytest.approx(expected.item(), rel=1e-5)


def test_an_observer_gets_the_focal_loss():
    loss, seen = WeightedCrossEntropyLoss(focal_gamma=2.0), []
    loss.observer = seen.append
    logits, target = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 255])

    loss(logits, target)

    expected = F.cross_entropy(logits, target, ignore_index=255, reduction='none').detach()
    torch.testing.assert_close(seen[0].nll, focal(expected, 2.0))


def test_shared_maps_may_be_given():
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    maps = pixel_bce(logits, target, ignore_index=255, focal_gamma=2.0)

    found = weighted_binary_cross_entropy(logits, target, focal_gamma=2.0, pixels=maps)

    torch.testing.assert_close(found, weighted_binary_cross_entropy(logits, target, focal_gamma=2.0))


@pytest.mark.parametrize('use_sigmoid', [False, True])
def test_inside_torch_func_and_twice_differentiated(use_sigmoid):
    loss = WeightedCrossEntropyLoss(use_sigmoid=use_sigmoid, focal_gamma=1.5)
    logits, target = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randint(0, 3, (2, 8, 8))

    value, gradient = value_and_gradient(loss, logits, target)

    torch.testing.assert_close(torch.func.grad(loss)(logits, target), gradient)
    tangent = torch.randn_like(logits)
    found_value, derivative = torch.func.jvp(lambda z: loss(z, target), (logits,), (tangent,))
    torch.testing.assert_close(found_value, value)
    torch.testing.assert_close(derivative, (gradient * tangent).sum())


@pytest.mark.parametrize('gamma', ['2', None, True])
def test_gamma_of_another_type(gamma):
    with pytest.raises(TypeError, match='focal_gamma'):
        WeightedCrossEntropyLoss(focal_gamma=gamma)
    for function in (weighted_cross_entropy, weighted_binary_cross_entropy):
        with pytest.raises(TypeError, match='focal_gamma must be a number'):
            function(torch.randn(2, 3), torch.tensor([0, 1]), focal_gamma=gamma)


@pytest.mark.parametrize('gamma', [-0.5, float('nan'), float('inf')])
def test_gamma_out_of_range(gamma):
    with pytest.raises(ValueError, match='focal_gamma must be finite and not negative'):
        WeightedCrossEntropyLoss(focal_gamma=gamma)
    with pytest.raises(ValueError, match='focal_gamma must be finite and not negative'):
        weighted_cross_entropy(torch.randn(2, 3), torch.tensor([0, 1]), focal_gamma=gamma)


def test_smoothing_beside_it_is_an_error():
    with pytest.raises(ValueError, match=r'focal_gamma=2\.0 and label_smoothing=0\.1: .* Leave out one of the two'):
        WeightedCrossEntropyLoss(focal_gamma=2.0, label_smoothing=0.1)
    with pytest.raises(ValueError, match='Leave out one of the two'):
        weighted_cross_entropy(torch.randn(2, 3), torch.tensor([0, 1]), focal_gamma=2.0, label_smoothing=0.1)


def test_copies_keep_it():
    loss = copy.deepcopy(WeightedCrossEntropyLoss(focal_gamma=2.0))

    assert loss.focal_gamma == 2.0
    assert 'focal_gamma=2.0' in repr(loss)
