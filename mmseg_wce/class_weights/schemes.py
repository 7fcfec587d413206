"""Weighting schemes, which turn label statistics into one weight per class.

n_c are a class's pixels, m_c the images that contain it, N all images, p_c = n_c / sum_k n_k:

======================== ========================================= ===== ==========================================
scheme                   weight                                    ratio source
======================== ========================================= ===== ==========================================
'enet'                   1 / ln(1.02 + p_c)                          8.7 Paszke et al. 2016 (ENet)
'sqrt_inverse_frequency' 1 / sqrt(p_c)                                28 as Mahajan et al. 2018 sample hashtags
'median_frequency'       median(f) / f_c, f_c being n_c over all      81 Eigen & Fergus 2015
                         pixels of the images that contain c
'effective_number'       (1 - b) / (1 - b^m_c), b = (N - 1) / N      203 Cui et al. 2019
'inverse_frequency'      1 / p_c                                     788 folklore
======================== ========================================= ===== ==========================================

The ratio is the largest weight divided by the smallest on ADE20K. ``docs/class_weights.md`` says when to use which.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal

import numpy as np
from mmseg_wce.class_weights.statistics import LabelStatistics

__all__ = ['NORMALIZATIONS', 'SCHEMES', 'Scheme', 'check_options', 'class_weights']

Scheme = Literal['inverse_frequency', 'sqrt_inverse_frequency', 'median_frequency', 'enet', 'effective_number']
NORMALIZATIONS = ('pixels', 'classes', None)


def _median_frequency(statistics: LabelStatistics, present: np.ndarray) -> np.ndarray:
    frequency = statistics.frequency_where_present[present]
    return np.median(frequency) / frequency


def _effective_number(
    statistics: LabelStatistics, present: np.ndarray, beta: float | None = None, count: str = 'images'
) -> np.ndarray:
    number = getattr(statistics, count)[present]
    if beta is None:
        complement = 1 / (statistics.num_images if count == 'images' else statistics.pixels.sum())
    else:
        complement = 1 - beta
    if complement == 1:
        return np.ones(len(number))
    return complement / -np.expm1(number * math.log1p(-complement))  # 1 - b^n, exact where b is next to 1


SCHEMES: dict[str, Callable[..., np.ndarray]] = {
    'inverse_frequency': lambda statistics, present: 1 / statistics.share[present],
    'sqrt_inverse_frequency': lambda statistics, present: 1 / np.sqrt(statistics.share[present]),
    'median_frequency': _median_frequency,
    'enet': lambda statistics, present: 1 / np.log(1.02 + statistics.share[present]),
    'effective_number': _effective_number,
}


def class_weights(
    statistics: LabelStatistics,
    scheme: Scheme = 'sqrt_inverse_frequency',
    *,
    exponent: float = 1.0,
    max_ratio: float | None = None,
    normalize: Literal['pixels', 'classes'] | None = 'pixels',
    absent: float = 0.0,
    **options: Any,
) -> np.ndarray:
    """Return class weights: the scheme's formula, then exponent, max_ratio, normalize and absent, in this order.

    Args:
        statistics: statistics of the training labels.
        scheme: key of ``SCHEMES``; the table in this module's docstring has the formulas.
        exponent: power to which the weights are raised: 0 makes them equal, 0.5 halves their range in logarithms.
        max_ratio: largest ratio of two weights, at least 1; larger weights are lowered to this times the smallest.
        normalize: 'pixels' makes the mean weight of the labelled pixels 1, so that the scale of the loss and the
            learning rate can stay; 'classes' makes the mean of the weights 1; None keeps the formula's scale.
        absent: weight of classes that never occur, not normalized: 0 or 1. A warning names these classes.
        **options: options of the scheme. 'effective_number' has ``beta`` (default (N - 1) / N) and ``count``: 'images'
            or 'pixels' (N is the number of pixels then, so large that every usual beta makes the weights equal).

    Returns:
        (C,), float64, finite.

    Raises:
        TypeError: the scheme has no such option.
        ValueError: the scheme is unknown, a value is out of range, weights overflow, or no class occurs.

    Example:
        >>> from mmseg_wce.class_weights import class_weights, load_statistics
        >>> weights = class_weights(load_statistics('ade20k'), 'median_frequency', max_ratio=10)
        >>> weights.shape, round(float(weights.max() / weights.min()), 3)
        ((150,), 10.0)
    """
    check_options(scheme, exponent=exponent, max_ratio=max_ratio, normalize=normalize, absent=absent, **options)
    present = statistics.pixels > 0
    if not present.any():
        raise ValueError(f'statistics of {statistics.dataset!r}: no pixel has a class, so nothing can be weighted')
    if names := statistics.absent:
        listed = ', '.join(names[:8]) + f' and {len(names) - 8} more' * (len(names) > 8)
        warnings.warn(
            f'{len(names)} of the {len(statistics.classes)} classes never occur in the {statistics.num_images} images '
            f'of {statistics.dataset!r}, and get the weight {absent:g}: {listed}',
            stacklevel=2,
        )
    with np.errstate(over='ignore', under='ignore'):  # checked below
        present_weights = SCHEMES[scheme](statistics, present, **options) ** exponent
    if not (np.isfinite(present_weights).all() and present_weights.all()):
        raise ValueError(f'exponent={exponent} makes weights of scheme {scheme!r} infinite or zero')
    if max_ratio is not None:
        present_weights = np.minimum(present_weights, max_ratio * present_weights.min())
    if normalize is not None:
        share = statistics.share[present] if normalize == 'pixels' else 1 / present.sum()
        present_weights = present_weights / (share * present_weights).sum()
    weights = np.full(len(statistics.classes), float(absent))
    weights[present] = present_weights
    return weights


def check_options(scheme: str = 'sqrt_inverse_frequency', **options: Any) -> None:
    """Raise TypeError or ValueError for options that :func:`class_weights` refuses whatever the statistics."""
    if scheme not in SCHEMES:
        raise ValueError(f'scheme must be one of {", ".join(SCHEMES)}, got {scheme!r}')
    known = [name for name in _OPTIONS if scheme == 'effective_number' or name not in ('beta', 'count')]
    for name, value in options.items():
        if name not in known:
            raise TypeError(f'scheme {scheme!r} has no option {name!r}; it has {", ".join(known)}')
        kind, is_valid, description = _OPTIONS[name]
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f'{name} must be {description}, got {value!r}')
        if not is_valid(value):
            raise ValueError(f'{name} must be {description}, got {value!r}')


# Type, check and description of each option.
_OPTIONS: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
    'exponent': (Real, math.isfinite, 'a finite number'),
    'max_ratio': (Real | None, lambda ratio: ratio is None or 1 <= ratio < math.inf, 'a finite number of at least 1'),
    'normalize': (str | None, lambda value: value in NORMALIZATIONS, "'pixels', 'classes' or None"),
    'absent': (Real, lambda weight: weight in (0, 1), '0 or 1'),
    'beta': (Real | None, lambda beta: beta is None or 0 <= beta < 1, 'at least 0 and less than 1'),
    'count': (str, lambda value: value in ('images', 'pixels'), "'images' or 'pixels'"),
}
