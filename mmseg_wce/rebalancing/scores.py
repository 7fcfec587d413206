"""Scores of several rebalanced predictions of the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS
from mmseg_wce.fused_heads.prediction import REBALANCED
from mmseg_wce.metrics import area_scores
from mmseg_wce.targets import name_sources, valid_pixels
from torch import Tensor

__all__ = ['RebalancedScores', 'mean_scores']


@METRICS.register_module()
class RebalancedScores(BaseMetric):
    """Metric that counts, for each tau, the pixels of every class that ``tools/rebalance.py`` needs.

    Args:
        taus: T numbers, in the order of the predictions.
        ignore_index: the ignored label.
        **kwargs: arguments of mmengine's ``BaseMetric``.

    Attributes:
        areas: (N, T, 3, C), int64, on the main process after an evaluation: for each image and tau the pixels of each
            class that are right, predicted and labelled.
    """

    areas: np.ndarray

    def __init__(self, taus: Sequence[float], ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.taus, self._ignore_index = list(taus), ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of each image."""
        num_classes = len((self.dataset_meta or {})['classes'])
        for sample in data_samples:
            predictions, label = sample[REBALANCED], sample['gt_sem_seg']['data'].squeeze(0)
            file = str(sample.get('seg_map_path') or sample.get('img_path', 'an image'))
            if label.shape != predictions.shape[1:]:
                raise ValueError(
                    f'{file}: its labels are {tuple(label.shape)}, the prediction {tuple(predictions.shape[1:])}: in a '
                    'test pipeline LoadAnnotations must come after Resize'
                )
            self.results.append(self._count(predictions, label.to(predictions.device), num_classes, file))

    def _count(self, predictions: Tensor, label: Tensor, num_classes: int, file: str) -> np.ndarray:
        name_sources([file])
        try:
            (valid,) = valid_pixels(label[None].long(), num_classes, self._ignore_index)
        finally:
            name_sources([])
        moving = (predictions != predictions[0]).any(0) & valid
        still = ~moving & valid
        areas = _areas(predictions[:1, still], label[still], num_classes) + np.zeros((len(predictions), 1, 1), int)
        return areas + _areas(predictions[:, moving], label[moving], num_classes)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Keep the counts of all images; return the means at every tau."""
        self.areas = np.stack(results)
        means = mean_scores(self.areas.sum(0))
        return {
            f'{name}/tau {tau:g}': round(float(values[t]), 2)
            for name, values in means.items()
            for t, tau in enumerate(self.taus)
        }


def _areas(predictions: Tensor, label: Tensor, num_classes: int) -> np.ndarray:
    """Count right, predicted and labelled pixels of each class, (T, 3, C), for predictions (T, P), labels (P,)."""
    label = label.long()
    areas = torch.zeros(len(predictions), 3, num_classes, dtype=torch.int64)
    areas[:, 2] = label.bincount(minlength=num_classes)
    for t, prediction in enumerate(predictions.long()):
        areas[t, 0] = label[prediction == label].bincount(minlength=num_classes)
        areas[t, 1] = prediction.bincount(minlength=num_classes)
    return areas.numpy()


def mean_scores(areas: np.ndarray) -> dict[str, np.ndarray]:
    """Return mIoU, mAcc and aAcc in percent, as mmseg's IoUMetric defines them.

    Args:
        areas: (..., 3, C), pixels that are right, predicted and labelled.

    Returns:
        (...) each.
    """
    scores = area_scores(areas)
    return dict(mIoU=np.nanmean(scores['IoU'], -1), mAcc=np.nanmean(scores['Acc'], -1), aAcc=scores['aAcc'])
