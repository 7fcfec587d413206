import warnings
from dataclasses import replace

import numpy as np
import pytest
from mmseg_wce.class_weights import SCHEMES, LabelEncoding, LabelStatistics, class_weights, load_statistics
from mmseg_wce.class_weights.schemes import check_options

PIXELS = np.array([8000, 1500, 400, 100])
IMAGES = np.array([100, 60, 30, 5])
IN_IMAGES = np.array([12000, 7000, 4000, 600])
N = 120


@pytest.fixture
def statistics():
    return replace(
        LabelStatistics.empty('four', 'abcd', LabelEncoding(True)),
        pixels=PIXELS,
        images=IMAGES,
        pixels_in_images=IN_IMAGES,
        num_images=N,
        num_pixels=12000,
    )


@pytest.fixture
def with_absent(statistics):
    def longer(array):
        return np.append(array, 0)

    return replace(
        statistics,
        classes=(*'abcd', 'unicorn'),
        pixels=longer(PIXELS),
        images=longer(IMAGES),
        pixels_in_images=longer(IN_IMAGES),
    )


SHARE = PIXELS / 10000
PAPERS = dict(
    inverse_frequency=1 / SHARE,
    sqrt_inverse_frequency=SHARE**-0.5,
    # Eigen & Fergus 2015: median freq / freq(c), freq(c) = pixels of c / pixels of images where c is present
    median_frequency=np.median(PIXELS / IN_IMAGES) / (PIXELS / IN_IMAGES),
    # Paszke et al. 2016: 1 / ln(c + p), c = 1.02
    enet=1 / np.log(1.02 + SHARE),
    # Cui et al. 2019: 1 / E_n, E_n = (1 - beta^n) / (1 - beta), beta = (N - 1) / N
    effective_number=(1 - 119 / 120) / (1 - (119 / 120) ** IMAGES),
)


@pytest.mark.parametrize('scheme', SCHEMES)
def test_formula_of_the_paper(statistics, scheme):
    weights = class_weights(statistics, scheme, normalize=None)

    np.testing.assert_allclose(weights, PAPERS[scheme], rtol=1e-12)


@pytest.mark.parametrize('beta', [0, 0.9, 0.999, 0.9999])
def test_effective_number_of_a_given_beta(statistics, beta):
    weights = class_weights(statistics, 'effective_number', beta=beta, normalize='classes')

    expected = (1 - beta) / (1 - beta**IMAGES)
    np.testing.assert_allclose(weights, expected * 4 / expected.sum(), rtol=1e-9)  # the paper: the sum is C


def test_effective_number_keeps_its_digits_with_pixel_counts(statistics):
    huge = replace(statistics, pixels=PIXELS * 10**10)

    usual = class_weights(huge, 'effective_number', count='pixels', beta=0.9999, normalize='classes')
    own = class_weights(huge, 'effective_number', count='pixels', normalize=None)

    assert usual.tolist() == [1, 1, 1, 1]  # saturated, which is why images are the default
    # in the limit N -> inf, 1 - (1 - 1 / N)^(p N) = 1 - exp(-p)
    np.testing.assert_allclose(own * huge.pixels.sum(), 1 / (1 - np.exp(-SHARE)), rtol=1e-9)


@pytest.mark.parametrize('scheme', SCHEMES)
def test_normalisation(statistics, scheme):
    assert (class_weights(statistics, scheme) * SHARE).sum() == pytest.approx(1)
    assert class_weights(statistics, scheme, normalize='classes').mean() == pytest.approx(1)


@pytest.mark.parametrize('scheme', SCHEMES)
def test_exponent_and_largest_ratio(statistics, scheme):
    plain = class_weights(statistics, scheme, normalize=None)

    np.testing.assert_allclose(class_weights(statistics, scheme, normalize=None, exponent=0.5), plain**0.5)
    np.testing.assert_allclose(class_weights(statistics, scheme, exponent=0), 1)
    clamped = class_weights(statistics, scheme, normalize=None, max_ratio=1.5)
    np.testing.assert_allclose(clamped, np.minimum(plain, 1.5 * plain.min()))
    normalised = class_weights(statistics, scheme, max_ratio=1.5, exponent=2)
    assert normalised.max() / normalised.min() == pytest.approx(1.5)
    assert (normalised * SHARE).sum() == pytest.approx(1)


@pytest.mark.parametrize('absent', [0, 1])
@pytest.mark.parametrize('scheme', SCHEMES)
def test_class_that_never_occurs(statistics, with_absent, scheme, absent):
    with pytest.warns(UserWarning, match=f'1 of the 5 classes never occur .* the weight {absent}: unicorn'):
        weights = class_weights(with_absent, scheme, absent=absent)

    np.testing.assert_allclose(weights[:4], class_weights(statistics, scheme))
    assert weights[4] == absent


def test_nothing_is_said_where_every_class_occurs(statistics):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        class_weights(statistics)


def test_statistics_without_pixels_raise(statistics):
    nothing = replace(statistics, pixels=0 * PIXELS)

    with pytest.raises(ValueError, match='no pixel has a class'):
        class_weights(nothing)


@pytest.mark.parametrize(
    ('options', 'error', 'words'),
    [
        (dict(scheme='focal'), ValueError, "got 'focal'"),
        (dict(exponent='2'), TypeError, "exponent must be a finite number, got '2'"),
        (dict(exponent=float('nan')), ValueError, 'exponent must be a finite number, got nan'),
        (dict(max_ratio=0.9), ValueError, 'at least 1, got 0.9'),
        (dict(max_ratio=True), TypeError, 'got True'),
        (dict(normalize='mean'), ValueError, "got 'mean'"),
        (dict(absent=2), ValueError, 'absent must be 0 or 1, got 2'),
        (dict(scheme='enet', beta=0.9), TypeError, "'enet' has no option 'beta'; it has exponent,"),
        (dict(power=2), TypeError, "no option 'power'"),
        (dict(scheme='effective_number', beta=1.0), ValueError, 'less than 1, got 1.0'),
        (dict(scheme='effective_number', beta='0.9'), TypeError, "got '0.9'"),
        (dict(scheme='effective_number', count='objects'), ValueError, "got 'objects'"),
    ],
)
def test_bad_options(statistics, options, error, words):
    for refuse in (check_options, lambda **options: class_weights(statistics, **options)):
        with pytest.raises(error) as caught:
            refuse(**options)
        assert words in str(caught.value)


@pytest.mark.parametrize('exponent', [2000, -2000])
def test_weights_that_overflow(statistics, exponent):
    with pytest.raises(ValueError, match=f'exponent={exponent} makes'):
        class_weights(statistics, exponent=exponent)


@pytest.mark.parametrize('scheme', SCHEMES)
def test_ade20k_is_finite(scheme):
    weights = class_weights(load_statistics('ade20k'), scheme)

    assert np.isfinite(weights).all()
    assert (weights > 0).all()
