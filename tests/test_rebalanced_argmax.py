import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmseg_wce.rebalanced_argmax import RebalancedArgmax

TAUS = [-0.5, 0.0, 0.25, 0.5, 1.0]


def swept(logits, direction, taus, groups):
    offsets = torch.tensor(taus, dtype=torch.float64).view(-1, 1) * direction.double()
    argmax = RebalancedArgmax(offsets, sorted({0, len(taus) - 1}))
    for add in (argmax.update, argmax.refine):
        first = 0
        for channels in logits.split(groups, 1):
            add(channels, first)
            first += channels.shape[1]
    return torch.stack([argmax.result.prediction(t) for t in range(len(taus))])


@given(
    seed=st.integers(0, 2**31),
    channels=st.integers(2, 9),
    groups=st.integers(1, 9),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    taus=st.lists(st.sampled_from([i / 8 for i in range(-8, 9)]), min_size=1, max_size=6, unique=True).map(sorted),
)
def test_equals_the_arg_max_for_each_tau(seed, channels, groups, dtype, taus):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, channels, 5, 6, generator=generator, dtype=dtype)
    direction = 3 * torch.randn(channels, generator=generator)

    found = swept(logits, direction, taus, groups)

    for t, tau in enumerate(taus):
        moved = logits.double() + (tau * direction.double()).view(-1, 1, 1)
        chosen = moved.gather(1, found[t].unsqueeze(1)).squeeze(1)
        # another class only where rounding decides
        assert (moved.amax(1) - chosen <= 1e-5).all()
        assert (found[t] == moved.argmax(1)).float().mean() > 0.9


def test_ties_and_nan():
    logits = torch.zeros(1, 3, 1, 3)
    logits[0, 1, 0, 1] = torch.nan
    logits[0, 2, 0, 2] = 5

    found = swept(logits, torch.zeros(3), TAUS, 2)

    assert found.tolist() == [[[[0, 1, 2]]]] * len(TAUS)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_offsets_of_low_precision_logits_are_not_rounded(dtype):
    logits = torch.tensor([100.0, 100.0]).view(1, 2, 1, 1).to(dtype)

    found = swept(logits, torch.tensor([0.0, 0.01]), [-1.0, 1.0], 2)

    assert found.flatten().tolist() == [0, 1]


def test_offsets_with_a_kink():
    """A class that was not learnt: its offset falls on both sides of 0."""
    logits = torch.tensor([3.0, 2.0, 2.9]).view(1, 3, 1, 1).repeat(1, 1, 1, 50)
    logits += torch.linspace(-1, 1, 50) * torch.tensor([0.0, 1.0, 1.5]).view(1, 3, 1, 1)
    taus = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0])
    offsets = torch.stack([-taus, taus, -taus.abs()], 1)

    argmax = RebalancedArgmax(offsets, knots=[0, 2, 4])
    argmax.update(logits, 0)
    argmax.refine(logits, 0)

    for t in range(5):
        expected = (logits + offsets[t].view(3, 1, 1)).argmax(1)
        assert torch.equal(argmax.result.prediction(t), expected)
    assert (argmax.result.prediction(2) == 2).any()
    assert not (argmax.result.prediction(0) == 2).any()
