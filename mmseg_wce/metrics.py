"""Per-class figures and confusion matrix, in addition to mmseg's IoUMetric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import is_main_process
from mmseg.evaluation import IoUMetric
from mmseg.registry import METRICS
from mmseg_wce.safe_io.json_files import write_json
from mmseg_wce.targets import name_sources, valid_pixels
from torch import Tensor

__all__ = ['ClassIoUMetric', 'confusion_matrix']

MEANS = ('mIoU', 'mAcc', 'aAcc')
"""Means over the classes, and pixel accuracy, by the names that IoUMetric gives them."""


def confusion_matrix(prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int = 255) -> Tensor:
    """Count the pixels of each labelled class (row) that were predicted as each class (column).

    Args:
        prediction: integer, any shape, in [0, C).
        label: integer, of the same shape, in [0, C) or ``ignore_index``.
        num_classes: C.
        ignore_index: the ignored label.

    Returns:
        int64, (C, C).

    Raises:
        ValueError: a label is neither in [0, C) nor ignored, or the prediction of a valid pixel is not in [0, C).

    Example:
        >>> import torch
        >>> from mmseg_wce.metrics import confusion_matrix
        >>> confusion_matrix(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 255]), num_classes=2)
        tensor([[1, 0],
                [1, 1]])
    """
    valid = valid_pixels(label.long(), num_classes, ignore_index)
    predicted = prediction[valid].long()
    if ((predicted < 0) | (predicted >= num_classes)).any():
        raise ValueError(
            f'predictions must be in [0, {num_classes}), got {predicted.min()} to {predicted.max()}: '
            f'check that the decode head has no more classes than the data set'
        )
    cells = label[valid].long() * num_classes + predicted
    return cells.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def class_areas(confusion: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the intersection, union, predicted and labelled pixels of each class, in the order that IoUMetric takes.

    Each has shape (..., C), for integer confusion matrices (..., C, C) with a row per labelled class.
    """
    intersection = np.diagonal(confusion, axis1=-2, axis2=-1).copy()
    predicted, labelled = confusion.sum(-2), confusion.sum(-1)
    return intersection, predicted + labelled - intersection, predicted, labelled


def class_scores(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores of each class, as IoUMetric defines them.

    Args:
        confusion: integer, (..., C, C), pixels of each labelled class (row) that were predicted as each class (column).

    Returns:
        float64, in percent: ``IoU``, ``Acc`` (recall) and ``Precision``, (..., C); ``aAcc`` (pixel accuracy), (...).
        NaN where the denominator is 0: the class is neither labelled nor predicted, not labelled, or not predicted.

    Example:
        >>> import numpy as np
        >>> from mmseg_wce.metrics import class_scores
        >>> scores = class_scores(np.array([[3, 1], [0, 4]]))
        >>> {name: values.tolist() for name, values in scores.items()}
        {'IoU': [75.0, 80.0], 'Acc': [75.0, 100.0], 'Precision': [100.0, 80.0], 'aAcc': 87.5}
    """
    intersection, _, predicted, labelled = class_areas(confusion)
    return area_scores(np.stack([intersection, predicted, labelled], -2))


def area_scores(areas: np.ndarray) -> dict[str, np.ndarray]:
    """Return the scores of :func:`class_scores`, given the pixels of each class that are right, predicted and labelled.

    Args:
        areas: integer, (..., 3, C).
    """
    intersection, predicted, labelled = np.moveaxis(areas, -2, 0)
    union = predicted + labelled - intersection
    with np.errstate(invalid='ignore', divide='ignore'):
        return dict(
            IoU=100 * intersection / union,
            Acc=100 * intersection / labelled,
            Precision=100 * intersection / predicted,
            aAcc=100 * intersection.sum(-1) / labelled.sum(-1),
        )


def mean_scores(areas: np.ndarray) -> dict[str, np.ndarray]:
    """Return mIoU, mAcc and aAcc in percent, as mmseg's IoUMetric defines them.

    Args:
        areas: (..., 3, C), pixels that are right, predicted and labelled.

    Returns:
        (...) each.
    """
    scores = area_scores(areas)
    return dict(mIoU=np.nanmean(scores['IoU'], -1), mAcc=np.nanmean(scores['Acc'], -1), aAcc=scores['aAcc'])


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """IoUMetric of mmseg that also reports every class, as ``IoU/wall`` and ``Acc/wall``.

    Invalid labels raise an error; IoUMetric counts such pixels as errors of the predicted class.

    Args:
        confusion_file: JSON file for the confusion matrix, written at every evaluation, with the keys ``classes`` and
            ``confusion`` (rows: labelled class, columns: predicted class, values: number of pixels).
        **kwargs: arguments of IoUMetric.

    Example:
        >>> import torch
        >>> from mmseg_wce.metrics import ClassIoUMetric
        >>> metric = ClassIoUMetric(prefix='val')
        >>> metric.dataset_meta = dict(classes=('sky', 'bird'))
        >>> maps = dict(pred_sem_seg=[[0, 0, 1, 1]], gt_sem_seg=[[0, 1, 1, 255]])
        >>> metric.process({}, [{name: dict(data=torch.tensor([rows])) for name, rows in maps.items()}])
        >>> figures = metric.evaluate(size=1)
        >>> figures['val/Acc/sky'], figures['val/Acc/bird'], figures['val/IoU/bird']
        (100.0, 50.0, 50.0)
    """

    def __init__(self, confusion_file: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.confusion_file = confusion_file

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the pixels of each sample, and write its prediction if ``output_dir`` is set.

        Raises:
            ValueError: a label is neither a class nor ignored; the message names the file.
        """
        num_results = len(self.results)
        super().process(data_batch, data_samples)
        if not self.format_only:
            self.results[num_results:] = [self._nonzero_cells(sample) for sample in data_samples]

    def _nonzero_cells(self, sample: dict) -> tuple[np.ndarray, np.ndarray]:
        """Return indices and counts of the nonzero cells of the confusion matrix; an image has few of many classes."""
        prediction, label = (sample[key]['data'].squeeze(0).cpu() for key in ('pred_sem_seg', 'gt_sem_seg'))
        name_sources([sample.get('seg_map_path') or sample.get('img_path', '')])
        try:
            confusion = confusion_matrix(prediction[None], label[None], self._num_classes, self.ignore_index)
        finally:
            name_sources([])
        cells = confusion.flatten().nonzero().squeeze(1)
        return cells.numpy(), confusion.flatten()[cells].numpy()

    @property
    def _num_classes(self) -> int:
        return len(self.dataset_meta['classes'])

    def compute_metrics(self, results: list) -> dict[str, Any]:
        """Return the means of IoUMetric, and the figures of each class, in percent."""
        if self.format_only:
            return super().compute_metrics(results)
        classes, flat = self.dataset_meta['classes'], np.zeros(self._num_classes**2, np.int64)
        for cells, counts in results:
            flat[cells] += counts
        confusion = flat.reshape(self._num_classes, self._num_classes)
        if self.confusion_file is not None and is_main_process():
            write_json(
                Path(self.confusion_file), dict(classes=list(classes), confusion=confusion.tolist()), indent=None
            )
        areas = [torch.from_numpy(area).double() for area in class_areas(confusion)]
        metrics = super().compute_metrics([areas])
        class_metrics = self.total_area_to_metrics(*areas, self.metrics, self.nan_to_num, self.beta)
        for name, values in class_metrics.items():
            if name != 'aAcc':
                metrics.update({f'{name}/{c}': round(float(x) * 100, 2) for c, x in zip(classes, values, strict=True)})
        return metrics
