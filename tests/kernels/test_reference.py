import math

import pytest
import torch
import torch.nn.functional as F
from cases import Case, cases
from hypothesis import given, settings
from mmseg_wce.kernels import pixel_nll


@given(case=cases())
@settings(max_examples=150, deadline=None)
def test_maps_are_pytorchs_per_pixel_losses(case: Case):
    num_classes, target = case.logits.shape[1], case.target.long()
    weight = torch.ones(num_classes) if case.class_weight is None else case.class_weight
    z = case.resized(case.logits)

    nll, smooth, correct = pixel_nll(
        case.logits,
        target,
        ignore_index=case.ignore_index,
        smoothing_weight=weight,
        align_corners=case.align_corners,
    )

    plain = F.cross_entropy(z, target, ignore_index=case.ignore_index, reduction='none')
    # PyTorch gives the smoothing term alone at label_smoothing=1, divided by C
    smoothed = F.cross_entropy(
        z, target, weight.double(), ignore_index=case.ignore_index, reduction='none', label_smoothing=1.0
    )
    torch.testing.assert_close(nll, plain, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(smooth, smoothed * num_classes, rtol=1e-10, atol=1e-12)
    assert torch.equal(correct, (z.argmax(1) == target) & case.valid)


def test_correct_means_the_lowest_class_at_a_tie():
    logits = torch.zeros(1, 3, 1, 3)
    logits[0, :, 0, 2] = torch.tensor([0.0, 1.0, 1.0])

    _, _, correct = pixel_nll(logits, torch.tensor([[[0, 1, 1]]]), ignore_index=255)

    assert correct.tolist() == [[[True, False, True]]]


def test_nan_logits_are_never_correct():
    logits = torch.full((1, 3, 1, 1), math.nan)

    assert not pixel_nll(logits, torch.zeros(1, 1, 1, dtype=torch.long), ignore_index=255)[2].any()


@pytest.mark.parametrize('bad', [3, 254, -1, 10**9, -(10**9)])
def test_a_bad_target_is_nan_and_never_an_index(bad):
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    target = torch.tensor([[[0, bad], [255, 2]]])

    nll, smooth, correct = pixel_nll(logits, target, ignore_index=255, smoothing_weight=torch.ones(3))

    assert nll.isnan().tolist() == smooth.isnan().tolist() == [[[False, True], [False, False]]]
    assert nll[0, 1, 0] == smooth[0, 1, 0] == 0
    assert not correct[0, 0, 1]
    (gradient,) = torch.autograd.grad(nll[0, 0, 0], logits)
    assert gradient[:, :, 0, 1].eq(0).all()
