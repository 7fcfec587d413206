"""Labels of one sample as a pipeline gives them, and why there are none."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ['LoadedLabels', 'NoLabelsError', 'NoLoaderError', 'SampleDroppedError', 'labels_in']


class SampleDroppedError(Exception):
    """A transform returned None: the training takes another sample in its place."""


class NoLabelsError(KeyError):
    """No transform has set ``gt_seg_map``."""


class NoLoaderError(ValueError):
    """A pipeline has no transform that loads labels."""


class LoadedLabels(NamedTuple):
    """Labels of one sample.

    Attributes:
        labels: as the transforms left them: (H, W) integers, if all is well.
        size: height and width of the labels directly after they were loaded; None where that is not known.
        path: of the file that plain ``LoadAnnotations`` read; None without one.
        resized_by: name of the first transform after that which changed their size; empty where none did.
        whole_because: why the whole pipeline was run, with its crops and flips; empty where it was not.
    """

    labels: np.ndarray
    size: tuple[int, int] | None = None
    path: str | None = None
    resized_by: str = ''
    whole_because: str = ''


def labels_in(results: dict) -> np.ndarray:
    """Return the labels of a sample, packed or not.

    Args:
        results: as a transform or a data set gives them.

    Raises:
        NoLabelsError: it has none.
    """
    if results.get('gt_seg_map') is not None:
        return np.asarray(results['gt_seg_map'])
    sample = results.get('data_samples')
    if sample is None or not hasattr(sample, 'gt_sem_seg'):
        raise NoLabelsError('no transform has set gt_seg_map: the sample has no labels')
    labels = np.asarray(sample.gt_sem_seg.data)
    return labels[0] if labels.ndim == 3 and labels.shape[0] == 1 else labels
