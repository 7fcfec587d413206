import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import Case, Recipe, assert_at_most_pytorchs_error, cases, examples, value_and_gradient
from hypothesis import given
from hypothesis import strategies as st
from mmseg_wce.functional import normalizer, weighted_cross_entropy

SEED_LOGITS = [[-0.7795, -1.7373, 0.3856], [0.4031, -0.5632, -0.2389], [-2.3908, 0.7452, 0.7748]]


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
@examples(150)
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
@examples(100)
def test_at_most_pytorchs_error_in_low_precision(case: Case):
    assert_at_most_pytorchs_error(case, weighted_cross_entropy, 'sum', case.target[0].numel(), probability=1)


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


@given(
    case=cases(resize=False), normalize_by=st.sampled_from(('class_weight', 'valid', 'all')), with_pixels=st.booleans()
)
@examples(75)
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


def test_negative_ignore_index_does_not_wrap_around_in_uint8():
    logits, target = torch.randn(1, 200, 4, 4), torch.full((1, 4, 4), 156, dtype=torch.uint8)  # 156 = -100 mod 256

    torch.testing.assert_close(
        weighted_cross_entropy(logits, target, ignore_index=-100), F.cross_entropy(logits, target.long())
    )


@pytest.mark.parametrize('dynamic', [None, True])
def test_compiles_whole_with_an_avg_factor_that_changes(dynamic):
    compiled = torch.compile(weighted_cross_entropy, fullgraph=True, dynamic=dynamic, backend='aot_eager')

    for avg_factor in (3.0, 4.0, 5.0):
        torch.testing.assert_close(
            compiled(**GOOD, avg_factor=avg_factor), weighted_cross_entropy(**GOOD, avg_factor=avg_factor)
        )


GOOD = dict(logits=torch.randn(2, 3, 4, 4), target=torch.zeros(2, 4, 4, dtype=torch.long))


@pytest.mark.parametrize(
    ('change', 'error', 'words'),
    [
        (dict(target=torch.zeros(2, 4, 4, 3, dtype=torch.long)), ValueError, ['(2, 4, 4, 3)', 'RGB', 'palette PNG']),
        (dict(target=torch.zeros(2, 4, 4, 1, dtype=torch.long)), ValueError, ['(2, 4, 4, 1)', 'squeeze(-1)']),
        (dict(target=torch.zeros(2, 4, dtype=torch.long)), ValueError, ['(2, 3, 4, 4)', '(2, 4)']),
        (dict(logits=torch.randn(2, 1, 4, 4)), ValueError, ['use_sigmoid=True', 'out_channels=2']),
        (dict(class_weight=torch.ones(3).bool()), TypeError, ['class_weight', 'bool']),
        (dict(label_smoothing='0.1'), TypeError, ['label_smoothing', "'0.1'"]),
        (dict(pixel_weight=torch.ones(2, 5, 4)), ValueError, ['pixel_weight', '(2, 5, 4)']),
        (dict(label_smoothing=1.5), ValueError, ['1.5']),
        (dict(label_smoothing=math.nan), ValueError, ['nan']),
        (dict(avg_factor=math.nan), ValueError, ['avg_factor', 'nan']),
    ],
)
def test_invalid_arguments_raise_and_name_the_value(change, error, words):
    with pytest.raises(error) as caught:
        weighted_cross_entropy(**{**GOOD, **change})

    for word in words:
        assert word in str(caught.value)


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


def test_pixel_weight_of_length_one_is_broadcast():
    per_row = torch.rand(2, 4, 1)
    expected = weighted_cross_entropy(**GOOD, pixel_weight=per_row.expand(2, 4, 4))

    assert torch.equal(weighted_cross_entropy(**GOOD, pixel_weight=per_row), expected)


def test_numpys_integers_are_integers():
    assert torch.equal(
        weighted_cross_entropy(**GOOD, ignore_index=np.int64(1)), weighted_cross_entropy(**GOOD, ignore_index=1)
    )
