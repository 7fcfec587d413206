import math

import pytest
import torch
import torch.nn.functional as F
from cases import BinaryCase, Recipe, assert_at_most_pytorchs_error, binary_cases, examples, value_and_gradient
from hypothesis import given
from hypothesis import strategies as st
from mmseg_wce.functional import (
    binary_normalizer,
    weighted_binary_cross_entropy,
    weighted_cross_entropy,
)


@given(case=binary_cases(), reduction=st.sampled_from(('mean', 'sum', 'none')))
@examples(150)
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
@examples(100)
def test_at_most_pytorchs_error_in_low_precision(case: BinaryCase, reduction):
    elements = case.target[0].numel() * case.logits.shape[1]
    assert_at_most_pytorchs_error(case, weighted_binary_cross_entropy, reduction, elements, probability=4)


@given(
    case=binary_cases(),
    normalize_by=st.sampled_from(('class_weight', 'valid')),
    reduction=st.sampled_from(('mean', 'sum', 'none')),
)
@examples(75)
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
@examples(75)
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


@pytest.mark.parametrize('reduction', ['mean', 'none'])
def test_a_masked_class_that_is_never_the_label(reduction):
    """PyTorch: NaN, of 0 * -inf."""
    logits, target = torch.randn(1, 3, 2, 2), torch.zeros(1, 8, 8, dtype=torch.long)
    logits[:, 1] = -math.inf
    almost = logits.clamp(min=-1e4)

    torch.testing.assert_close(
        weighted_binary_cross_entropy(logits, target, reduction=reduction),
        weighted_binary_cross_entropy(almost, target, reduction=reduction),
    )


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


GOOD = dict(logits=torch.randn(2, 3, 4, 4), target=torch.zeros(2, 4, 4, dtype=torch.long))
ONE = dict(logits=torch.randn(2, 1, 4, 4), normalize_by='class_weight')


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        (dict(logits=torch.randn(2, 0, 4, 4)), ValueError, ['no classes']),
        (dict(class_weight=2.0), TypeError, ['class_weight', 'float']),
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
        (dict(pixel_weight=torch.ones(2, 3, 4)), ValueError, ['pixel_weight', '(2, 3, 4)']),
    ],
)
def test_invalid_arguments_raise_and_name_the_value(change, error, words):
    with pytest.raises(error) as caught:
        weighted_binary_cross_entropy(**{**GOOD, **change})

    for word in words:
        assert word in str(caught.value)


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
