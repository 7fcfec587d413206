import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmseg_wce.class_weights import class_weights, load_statistics
from mmseg_wce.functional import class_offsets

COUNTS = [900.0, 90.0, 10.0]


def test_formula():
    prior = np.array(COUNTS) * [0.5, 1, 3]
    expected = -0.4 * (np.log(prior) - np.log(prior).mean())

    offsets = class_offsets(COUNTS, 0.4, [0.5, 1, 3])

    assert offsets.dtype == torch.float32
    np.testing.assert_allclose(offsets, expected, rtol=1e-6)
    assert offsets.sum().item() == pytest.approx(0, abs=1e-6)


def test_tau_1_makes_the_posterior_that_of_equally_frequent_classes():
    """Bayes' rule on a made-up world of three classes and four observations."""
    likelihood = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.2, 0.5, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    frequency = torch.tensor(COUNTS, dtype=torch.float64)
    learnt = (likelihood * frequency.view(3, 1)).log()  # logits of a perfect model, up to a constant

    moved = learnt + class_offsets(COUNTS, 1.0).double().view(3, 1)

    torch.testing.assert_close(moved.softmax(0), likelihood / likelihood.sum(0), rtol=1e-6, atol=0)


def test_weights_of_the_training_count():
    """A weighted cross-entropy has learnt the prior w n: its logits of no information."""
    counts, weight = torch.tensor(COUNTS), torch.tensor([0.2, 1.0, 4.0])
    logits = torch.zeros(3, requires_grad=True)
    labels = torch.repeat_interleave(torch.arange(3), counts.long())
    for _ in range(4000):
        loss = F.cross_entropy(logits.expand(len(labels), 3), labels, weight)
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 2 * gradient).detach().requires_grad_()

    balanced = logits.detach() + class_offsets(counts, 1.0, weight)

    torch.testing.assert_close(balanced, balanced.mean().expand(3), rtol=0, atol=1e-3)


def test_0_changes_nothing():
    assert class_offsets(COUNTS, 0).tolist() == [0, 0, 0]


@pytest.mark.parametrize('tau', [-0.5, 0.25, 1])
def test_a_class_that_was_not_learnt_gains_on_no_class(tau):
    offsets = class_offsets([900, 0, 10, 90], tau, [1, 1, 1, 0])

    torch.testing.assert_close(offsets[[0, 2]], class_offsets([900, 10], tau))
    assert offsets[1] == offsets[3] == offsets.min()


def test_counts_of_every_kind():
    statistics = load_statistics('ade20k')
    expected = class_offsets(statistics.pixels, 0.5)

    pixels = statistics.pixels
    for counts in (statistics, 'ade20k', pixels.tolist(), torch.from_numpy(pixels), torch.from_numpy(pixels).double()):
        assert torch.equal(class_offsets(counts, 0.5), expected)
    assert expected.shape == (150,)
    assert (expected[0], expected[149]) == (expected.min(), expected.max())  # wall and flag


def test_weights_by_a_scheme():
    scheme = dict(statistics='ade20k', scheme='sqrt_inverse_frequency')
    weights = class_weights(load_statistics('ade20k'), 'sqrt_inverse_frequency')

    half = class_offsets('ade20k', 1, scheme)

    torch.testing.assert_close(half, class_offsets('ade20k', 1, weights))
    torch.testing.assert_close(half, class_offsets('ade20k', 0.5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ((COUNTS, '1'), TypeError, "tau must be a number, got '1'"),
        ((COUNTS, True), TypeError, 'tau must be a number, got True'),
        ((COUNTS, float('nan')), ValueError, 'tau must be finite, got nan'),
        (([1, 2, -3], 1), ValueError, 'got class 2: -3'),
        (([1, float('inf')], 1), ValueError, 'got class 1: inf'),
        (([5], 1), TypeError, 'one number for each of at least 2 classes'),
        ((['a', 'b'], 1), TypeError, 'one number for each of at least 2 classes'),
        (([[1, 2]], 1), TypeError, 'one number for each of at least 2 classes'),
        ((COUNTS, 1, [1, 2]), ValueError, 'class_weight has 2 weights for 3 classes'),
        (([0, 0], 1), ValueError, 'no class has both pixels and a weight above 0'),
        (([5, 0], 1, [0, 1]), ValueError, 'no class has both pixels and a weight above 0'),
        (('nowhere.json', 1), ValueError, "statistics 'nowhere.json' cannot be read"),
    ],
)
def test_arguments_that_cannot_be(arguments, error, message):
    with pytest.raises(error, match=message):
        class_offsets(*arguments)


def test_huge_numbers_and_low_precision():
    assert class_offsets([1e300, 1e300], 1, [1e30, 1e10]).isfinite().all()
    assert (
        class_offsets(torch.tensor([4.0, 1.0], dtype=torch.bfloat16), 1).tolist() == class_offsets([4, 1], 1).tolist()
    )


def test_offsets_that_float32_cannot_hold():
    with pytest.raises(ValueError, match='too large for float32'):
        class_offsets(COUNTS, 1e300)
