"""Values of label arrays: which shapes and dtypes hold class indices, what reading changes, how many of each."""

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
    """A label file does not hold one class index for each pixel."""


class VolumeError(ValueError):
    """Labels have three dimensions."""


def two_dimensional(values: np.ndarray) -> np.ndarray:
    """Return an array with two dimensions as it is.

    Args:
        values: of a label file, any shape.

    Raises:
        LabelFileError: it has no pixels, or another number of dimensions; it names what it seems to hold.
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
            f'it holds an array of shape {values.shape} of 0 and 1, a mask for each class where these overlap, or a '
            'volume: store one class index for each pixel, (H, W)'
        )
    if values.ndim == 3 and values.shape[-1] <= 4:
        raise LabelFileError(
            f'it holds {values.shape[-1]} colour channels, as an RGB mask does: store one class index for each pixel'
        )
    raise LabelFileError(f'it holds an array of shape {values.shape}: store one class index for each pixel, (H, W)')


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Convert values as ``LoadAnnotations`` does, which keeps 8 bits.

    Args:
        values: of a label file, any dtype; uint8 is returned as it is.
    """
    if values.dtype == np.uint8:
        return values
    with np.errstate(invalid='ignore'):
        return values.astype(np.uint8)


def altered_bytes(raw: np.ndarray, kept: np.ndarray, is_ignored: np.ndarray) -> dict[str, tuple[int, str]]:
    """Count the values that differ after 8 bits were kept of them, by kind.

    Args:
        raw: (H, W), values of the file.
        kept: (H, W), uint8: what is left of them.
        is_ignored: (H, W), bool: the label that is made of them does not count.

    Returns:
        For each kind (a key of ``LabelStatistics.altered``): number of pixels, and the first value with its place.
    """
    differs = raw != kept
    found = _altered_floats(raw)
    wrapped = differs & (raw == np.trunc(raw)) if raw.dtype.kind == 'f' else differs
    all_ones = wrapped & is_ignored & np.isin(raw, (-1, 2**16 - 1, 2**32 - 1))
    for kind, mask in (
        ('wrapped', wrapped & ~is_ignored),
        ('wrapped to ignored', wrapped & is_ignored & ~all_ones),
        ('all ones', all_ones),
    ):
        if mask.any():
            found[kind] = int(mask.sum()), _first_change(mask, raw, kept)
    return found


def _altered_floats(values: np.ndarray) -> dict[str, tuple[int, str]]:
    """Count floating-point values that are no whole numbers, by kind."""
    if values.dtype.kind != 'f':
        return {}
    finite = np.isfinite(values)
    found = {}
    if not finite.all():
        found['not finite'] = int((~finite).sum()), _first_change(~finite, values)
    fraction = finite & (values != np.trunc(values))
    if fraction.any():
        found['fraction'] = int(fraction.sum()), _first_change(fraction, values)
    return found


def _first_change(mask: np.ndarray, before: np.ndarray, after: np.ndarray | None = None) -> str:
    """Name the first marked value, its place and what it becomes."""
    row, column = divmod(int(mask.argmax()), mask.shape[1])
    value = before[row, column].item()
    becomes = after[row, column].item() if after is not None else int(value) if np.isfinite(value) else None
    shown = f'{value:g}' if isinstance(value, float) else str(value)
    return f'{shown} at row {row}, column {column}' + ('' if becomes is None else f', which becomes {becomes}')


def as_integers(values: np.ndarray) -> tuple[np.ndarray, dict[str, tuple[int, str]]]:
    """Convert labels as ``PackSegInputs`` does, and count the values that this changes, by kind.

    Args:
        values: (H, W), also with a dimension of 1 before or after; any dtype.

    Returns:
        (H, W), integers; and as :func:`altered_bytes`.

    Raises:
        LabelFileError: they have a shape or dtype that holds no class indices.
        VolumeError: they have three dimensions.
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
    """Return the size of labels (H, W), (1, H, W) or (H, W, 1); None of other shapes.

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
    """Return the values that occur, sorted, int64, and how many pixels have each, int64.

    Args:
        values: any shape, integers.
    """
    runs, lengths = _runs(values)
    found, positions = np.unique(runs, return_inverse=True)
    return found.astype(np.int64), np.bincount(positions, weights=lengths, minlength=len(found)).astype(np.int64)


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values and lengths of runs of equal values: to count those takes a third of the time."""
    values = values.ravel()
    if values.size == 0:
        return values, np.zeros(0, np.int64)
    starts = np.concatenate(([0], 1 + np.flatnonzero(values[1:] != values[:-1])))
    return values[starts], np.diff(starts, append=values.size)
