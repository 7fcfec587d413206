"""Labels of one sample: where they are, shapes and dtypes of class indices, values that reading changes, and counts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = [
    'LabelFileError',
    'LoadedLabels',
    'NoLabelsError',
    'NoLoaderError',
    'SampleDroppedError',
    'VolumeError',
    'altered_bytes',
    'as_bytes',
    'as_integers',
    'count_values',
    'height_and_width',
    'labels_in',
    'two_dimensional',
]


class LabelFileError(ValueError):
    """Error for a label file that does not hold one class index for each pixel."""


class VolumeError(ValueError):
    """Error for labels with three dimensions."""


class SampleDroppedError(Exception):
    """Error for a sample that a transform drops by returning None; the training replaces it by another one."""


class NoLabelsError(KeyError):
    """Error for a sample without ``gt_seg_map``."""


class NoLoaderError(ValueError):
    """Error for a pipeline without a transform that loads labels."""


class LoadedLabels(NamedTuple):
    """Labels of one sample.

    Attributes:
        labels: labels after the transforms: (H, W) integers, if they are valid.
        size: height and width of the labels directly after they were loaded; None if unknown.
        path: path of the file that plain ``LoadAnnotations`` read; None without one.
        resized_by: name of the first transform after loading that changed their size; empty if none did.
        full_run_reason: reason why the full pipeline was run, with its crops and flips; empty if it was not.
    """

    labels: np.ndarray
    size: tuple[int, int] | None = None
    path: str | None = None
    resized_by: str = ''
    full_run_reason: str = ''


def labels_in(results: dict) -> np.ndarray:
    """Return the labels of a sample, the output of a transform or a data set, packed or not.

    Raises:
        NoLabelsError: the sample has no labels.
    """
    if results.get('gt_seg_map') is not None:
        return np.asarray(results['gt_seg_map'])
    sample = results.get('data_samples')
    if sample is None or not hasattr(sample, 'gt_sem_seg'):
        raise NoLabelsError('no transform has set gt_seg_map: the sample has no labels')
    labels = np.asarray(sample.gt_sem_seg.data)
    return labels[0] if labels.ndim == 3 and labels.shape[0] == 1 else labels


def two_dimensional(values: np.ndarray) -> np.ndarray:
    """Return a two-dimensional array unchanged.

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
    """Convert values to 8 bits as ``LoadAnnotations`` does; uint8 is returned unchanged."""
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
    size = height_and_width(values)
    values = values if size is None else values.reshape(size)
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
    """Return the size of labels (H, W), (1, H, W) or (H, W, 1); None for other shapes, and for what is no array."""
    shape = np.shape(labels)
    if len(shape) == 3 and 1 in (shape[0], shape[-1]):
        shape = shape[1:] if shape[0] == 1 else shape[:2]
    return shape if len(shape) == 2 else None


def count_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted unique integers of an array, int64, and the number of pixels of each, int64.

    Runs of equal values are counted, which takes a third of the time of counting pixels.
    """
    values = values.ravel()
    if values.size == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.concatenate(([0], 1 + np.flatnonzero(values[1:] != values[:-1])))
    runs, lengths = values[starts], np.diff(starts, append=values.size)
    if values.dtype == np.uint8:  # without sorting
        counts = np.bincount(runs, weights=lengths)
        unique = np.flatnonzero(counts)
        return unique, counts[unique].astype(np.int64)
    unique, positions = np.unique(runs, return_inverse=True)
    return unique.astype(np.int64), np.bincount(positions, weights=lengths).astype(np.int64)
