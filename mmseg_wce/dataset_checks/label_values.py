"""Values of label arrays: shapes and dtypes of class indices, values that reading changes, and counts."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    'LabelFileError',
    'VolumeError',
    'altered_bytes',
    'as_bytes',
    'as_integers',
    'count_bytes',
    'count_values',
    'height_and_width',
    'two_dimensional',
]


class LabelFileError(ValueError):
    """Error for a label file that does not hold one class index for each pixel."""


class VolumeError(ValueError):
    """Error for labels with three dimensions."""


def two_dimensional(values: np.ndarray) -> np.ndarray:
    """Return a two-dimensional array unchanged.

    Args:
        values: values of a label file, any shape.

    Raises:
        LabelFileError: the array has no pixels or another number of dimensions. The message says what it seems to hold.
    """
    if values.size == 0:
        raise LabelFileError('it has no pixels')
    if values.ndim == 2:
        return values
    if values.ndim == 3 and values.any() and ((values == 0) | (values == 1)).all():
        for axis in (0, -1):
            if values.shape[axis] > 1 and (values.sum(axis) <= 1).all() and values.any(axis).mean() > 0.5:
                ignored = '' if values.any(axis).all() else ', and the ignored label where all are 0'
                raise LabelFileError(
                    f'it holds one-hot labels of shape {values.shape}: take their argmax({axis}){ignored}'
                )
        raise LabelFileError(
            f'it holds an array of shape {values.shape} of 0 and 1, which are overlapping masks of classes or a '
            'volume: store one class index for each pixel, (H, W)'
        )
    if values.ndim == 3 and values.shape[-1] <= 4:
        raise LabelFileError(
            f'it holds {values.shape[-1]} colour channels, as an RGB mask does: store one class index for each pixel'
        )
    raise LabelFileError(f'it holds an array of shape {values.shape}: store one class index for each pixel, (H, W)')


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Convert values to 8 bits as ``LoadAnnotations`` does.

    Args:
        values: values of a label file, any dtype; uint8 is returned unchanged.
    """
    if values.dtype == np.uint8:
        return values
    with np.errstate(invalid='ignore'):
        return values.astype(np.uint8)


def altered_bytes(raw: np.ndarray, kept: np.ndarray, is_ignored: np.ndarray) -> dict[str, tuple[int, str]]:
    """Count the values that a conversion to 8 bits changes, by kind.

    Args:
        raw: (H, W), values of the file.
        kept: (H, W), uint8: the converted values.
        is_ignored: (H, W), bool: True where the resulting label is ignored.

    Returns:
        For each kind (a key of ``LabelStatistics.altered``): number of pixels, and the first value with its position.
    """
    differs = raw != kept
    altered = _altered_floats(raw)
    wrapped = differs & (raw == np.trunc(raw)) if raw.dtype.kind == 'f' else differs
    all_ones = wrapped & is_ignored & np.isin(raw, (-1, 2**16 - 1, 2**32 - 1))
    for kind, mask in (
        ('wrapped', wrapped & ~is_ignored),
        ('wrapped to ignored', wrapped & is_ignored & ~all_ones),
        ('all ones', all_ones),
    ):
        if mask.any():
            altered[kind] = int(mask.sum()), _first_change(mask, raw, kept)
    return altered


def _altered_floats(values: np.ndarray) -> dict[str, tuple[int, str]]:
    """Count floating-point values that are not whole numbers, by kind."""
    if values.dtype.kind != 'f':
        return {}
    finite = np.isfinite(values)
    altered = {}
    if not finite.all():
        altered['not finite'] = int((~finite).sum()), _first_change(~finite, values)
    fraction = finite & (values != np.trunc(values))
    if fraction.any():
        altered['fraction'] = int(fraction.sum()), _first_change(fraction, values)
    return altered


def _first_change(mask: np.ndarray, before: np.ndarray, after: np.ndarray | None = None) -> str:
    """Describe the first value in a mask: its position and its value afterwards."""
    row, column = divmod(int(mask.argmax()), mask.shape[1])
    value = before[row, column].item()
    becomes = after[row, column].item() if after is not None else int(value) if np.isfinite(value) else None
    shown = f'{value:g}' if isinstance(value, float) else str(value)
    return f'{shown} at row {row}, column {column}' + ('' if becomes is None else f', which becomes {becomes}')


def as_integers(values: np.ndarray) -> tuple[np.ndarray, dict[str, tuple[int, str]]]:
    """Convert labels as ``PackSegInputs`` does, and count the values that this changes, by kind.

    Args:
        values: (H, W), (1, H, W) or (H, W, 1), any dtype.

    Returns:
        (H, W), integers; and the counts as :func:`altered_bytes` returns them.

    Raises:
        LabelFileError: the shape or dtype cannot be that of class indices.
        VolumeError: the labels have three dimensions.
    """
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    try:
        values = two_dimensional(values)
    except LabelFileError as error:
        if values.ndim == 3 and values.shape[-1] > 4 and 'array of shape' in str(error):
            raise VolumeError(f'labels are volumes of shape {values.shape}, which are not checked') from error
        raise
    if values.dtype.kind not in 'biuf':
        raise LabelFileError(f'labels have dtype {values.dtype}: class indices are integers')
    altered = _altered_floats(values)
    with np.errstate(invalid='ignore'):
        return values if values.dtype.kind in 'iu' else values.astype(np.int64), altered


def height_and_width(labels: Any) -> tuple[int, int] | None:
    """Return the size of labels (H, W), (1, H, W) or (H, W, 1); None for other shapes.

    Args:
        labels: an array, or anything else.
    """
    shape = np.shape(labels)
    if len(shape) == 3 and 1 in (shape[0], shape[-1]):
        shape = shape[1:] if shape[0] == 1 else shape[:2]
    return shape if len(shape) == 2 else None


def count_bytes(values: np.ndarray) -> np.ndarray:
    """Count how often each byte occurs.

    Args:
        values: any shape, uint8.

    Returns:
        (256,), int64.
    """
    runs, lengths = _runs(values)
    return np.bincount(runs, weights=lengths, minlength=256).astype(np.int64)


def count_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted unique values, int64, and the number of pixels of each, int64.

    Args:
        values: any shape, integers.
    """
    runs, lengths = _runs(values)
    unique, positions = np.unique(runs, return_inverse=True)
    return unique.astype(np.int64), np.bincount(positions, weights=lengths, minlength=len(unique)).astype(np.int64)


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values and lengths of runs of equal values; counting runs takes a third of the time of counting pixels."""
    values = values.ravel()
    if values.size == 0:
        return values, np.zeros(0, np.int64)
    starts = np.concatenate(([0], 1 + np.flatnonzero(values[1:] != values[:-1])))
    return values[starts], np.diff(starts, append=values.size)
