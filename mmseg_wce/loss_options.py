"""Check the arguments of :class:`mmseg_wce.losses.WeightedCrossEntropyLoss`, and translate mmseg's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from functools import lru_cache
from numbers import Integral, Real
from typing import Any

from mmseg_wce.arguments import NORMALIZERS, REDUCTIONS, Normalizer, check_smoothing

__all__ = ['check_loss_options', 'resolve_normalizer']

_TYPES: dict[str, Any] = dict(
    use_sigmoid=bool,
    avg_non_ignore=bool | None,
    loss_weight=Real,
    label_smoothing=Real,
    loss_name=str,
    ignore_index=Integral | None,
)


def check_loss_options(options: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for an invalid argument of the loss; ``options`` maps names to values."""
    for name, expected in _TYPES.items():
        value = options[name]
        if not isinstance(value, expected) or (
            isinstance(value, bool) and name not in ('use_sigmoid', 'avg_non_ignore')
        ):
            raise TypeError(f'WeightedCrossEntropyLoss: {name} may not be {value!r}')
    check_smoothing(options['label_smoothing'])
    reduction, loss_weight, label_smoothing = (options[k] for k in ('reduction', 'loss_weight', 'label_smoothing'))
    for condition, message in (
        (reduction in REDUCTIONS, f'reduction must be one of {REDUCTIONS}, got {reduction!r}'),
        (math.isfinite(loss_weight), f'loss_weight must be finite, got {loss_weight}'),
        (
            options['loss_name'].startswith('loss_'),
            f"loss_name={options['loss_name']!r} must start with 'loss_', or mmengine does not add it to the total "
            'loss',
        ),
        (
            not options['use_mask'],
            "use_mask=True is a loss on masks, not on pixels: use mmseg's type='CrossEntropyLoss' for it",
        ),
        (
            not (options['use_sigmoid'] and label_smoothing > 0),
            f'label_smoothing={label_smoothing} is defined for a softmax, not for use_sigmoid=True, where every '
            'channel is a separate binary task: remove one of the two',
        ),
    ):
        if not condition:
            raise ValueError(f'WeightedCrossEntropyLoss: {message}')


def resolve_normalizer(
    normalize_by: Normalizer | None, avg_non_ignore: bool | None, num_weights: int, use_sigmoid: bool
) -> Normalizer:
    """Translate mmseg's ``avg_non_ignore`` into ``normalize_by``.

    Args:
        normalize_by: argument of the loss, or None.
        avg_non_ignore: argument of the loss, or None.
        num_weights: number of class weights; 0 without.
        use_sigmoid: argument of the loss.

    Returns:
        One of ``NORMALIZERS``.

    Raises:
        ValueError: ``normalize_by`` is unknown, contradicts ``avg_non_ignore``, or with a sigmoid needs two weights.
    """
    if normalize_by is not None and normalize_by not in NORMALIZERS:
        raise ValueError(f'normalize_by must be one of {NORMALIZERS}, got {normalize_by!r}')
    if use_sigmoid and normalize_by == 'class_weight' and num_weights != 2:
        raise ValueError(
            "WeightedCrossEntropyLoss: normalize_by='class_weight' with use_sigmoid=True needs one channel and two "
            f"class weights, for labels 0 and 1: got {num_weights}. Use 'valid' or 'all'"
        )
    default: Normalizer = 'valid' if use_sigmoid else 'class_weight'
    if avg_non_ignore is None:
        return normalize_by or default
    weighted = num_weights > 0 and not use_sigmoid
    implied = default if avg_non_ignore or weighted else 'all'
    if normalize_by not in (None, implied):
        case = 'with use_sigmoid=True' if use_sigmoid else f'{"with" if weighted else "without"} class_weight'
        raise ValueError(
            f'avg_non_ignore={avg_non_ignore} {case} means normalize_by={implied!r}, which contradicts '
            f'normalize_by={normalize_by!r}: give one of the two'
        )
    if weighted and not avg_non_ignore and normalize_by is None:
        _warn_once(
            'WeightedCrossEntropyLoss: avg_non_ignore=False with class_weight divides by the class weights of the '
            'pixels that are not ignored, as avg_non_ignore=True does; mmseg defines no other value for label 255'
        )
    return implied


@lru_cache  # every head of a model has a loss
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
