"""Labels of one sample from a pipeline, and errors for samples without labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ['LoadedLabels', 'NoLabelsError', 'NoLoaderError', 'SampleDroppedError', 'labels_in']


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
    """Return the labels of a sample, packed or not.

    Args:
        results: output of a transform or a data set.

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
