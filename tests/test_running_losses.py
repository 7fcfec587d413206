"""torch.nn.functional in float64 is the oracle: to 1e-6 relative, in whatever groups the channels come."""

import pytest
import torch
import torch.nn.functional as F
from cases import examples
from hypothesis import given
from hypothesis import strategies as st
from mmseg_wce.running_losses import RunningSigmoidLoss, RunningSoftmaxLoss

groups_of = st.lists(st.integers(1, 9), min_size=1, max_size=6)


def logits_and_label(groups, scale, offset, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    num_channels = sum(groups)
    logits = scale * torch.randn(1, num_channels, 5, 7, generator=generator) + offset
    return logits.to(dtype), torch.randint(num_channels, (1, 5, 7), generator=generator)


def feed(loss, logits, groups):
    first = 0
    for number in groups:
        loss.update(logits[:, first : first + number], first)
        first += number
    return loss.maps()


problems = dict(
    groups=groups_of,
    scale=st.sampled_from((0.0, 0.1, 1.0, 10.0, 60.0)),
    offset=st.sampled_from((0.0, -80.0, 1e4)),
    dtype=st.sampled_from((torch.float16, torch.bfloat16, torch.float32, torch.float64)),
    seed=st.integers(0, 2**31),
)


@examples(100)
@given(**problems)
def test_softmax_losses_of_pixels(groups, scale, offset, dtype, seed):
    logits, label = logits_and_label(groups, scale, offset, dtype, seed)

    nll, smooth = feed(RunningSoftmaxLoss(label), logits, groups)

    torch.testing.assert_close(nll, F.cross_entropy(logits.double(), label, reduction='none'), rtol=1e-6, atol=1e-12)
    assert nll.dtype == torch.float64
    assert not smooth.any()


@examples(100)
@given(weighted=st.booleans(), **problems)
def test_smoothed_losses_of_pixels(weighted, groups, scale, offset, dtype, seed):
    logits, label = logits_and_label(groups, scale, offset, dtype, seed)
    weight = torch.arange(sum(groups)) / 3 if weighted else torch.ones(sum(groups))

    _, smooth = feed(RunningSoftmaxLoss(label, weight), logits, groups)

    expected = -(weight.double().view(1, -1, 1, 1) * logits.double().log_softmax(1)).sum(1)
    torch.testing.assert_close(smooth, expected, rtol=1e-6, atol=1e-9 * max(1.0, abs(offset)))


@pytest.mark.parametrize('at', [[0], [1], [0, 1], [1, 2]])
def test_classes_that_are_masked(at):
    logits = torch.randn(1, 4, 2, 2)
    logits[:, at] = -torch.inf
    label = torch.tensor([[[3, 3], [0, 1]]])

    nll, _ = feed(RunningSoftmaxLoss(label), logits, [1, 1, 2])

    torch.testing.assert_close(nll, F.cross_entropy(logits.double(), label, reduction='none'), rtol=1e-6, atol=0)


def test_smoothing_ignores_a_masked_class_of_weight_0():
    logits, weight = torch.randn(1, 3, 2, 2), torch.tensor([1.0, 0.0, 2.0])
    logits[:, 1] = -torch.inf

    _, smooth = feed(RunningSoftmaxLoss(torch.zeros(1, 2, 2).long(), weight), logits, [1, 2])

    of_others = logits[:, [0, 2]].double().log_softmax(1)
    torch.testing.assert_close(smooth, -(of_others[:, 0] + 2 * of_others[:, 1]), rtol=1e-6, atol=0)


@examples(100)
@given(**problems)
def test_sigmoid_losses_of_pixels(groups, scale, offset, dtype, seed):
    logits, label = logits_and_label(groups, scale, offset, dtype, seed)
    if sum(groups) == 1:
        label = torch.arange(35).view(1, 5, 7) % 2

    positive, negative = feed(RunningSigmoidLoss(label, sum(groups)), logits, groups)

    target = (label.unsqueeze(1) == (torch.arange(sum(groups)).view(1, -1, 1, 1) if sum(groups) > 1 else 1)).double()
    losses = F.binary_cross_entropy_with_logits(logits.double(), target, reduction='none')
    torch.testing.assert_close(positive, (target * losses).sum(1), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(negative, ((1 - target) * losses).sum(1), rtol=1e-6, atol=1e-12)
