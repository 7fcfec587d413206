"""Scores of several rebalanced predictions of the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS
from mmseg_wce.fused_heads.prediction import REBALANCED
from mmseg_wce.metrics import class_areas, mean_scores
from mmseg_wce.rebalanced_argmax import RebalancedClasses
from mmseg_wce.targets import name_sources, valid_pixels
from torch import Tensor

__all__ = ['RebalancedScores']


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
            file = str(sample.get('seg_map_path') or sample.get('img_path', 'an image'))
            if 'gt_sem_seg' not in sample:
                raise ValueError(f'{file} has no labels: LoadAnnotations must be in the pipeline of these images')
            predicted, label = sample[REBALANCED], sample['gt_sem_seg']['data'].squeeze(0)
            size = predicted.lowest.shape
            if label.shape != size:
                raise ValueError(
                    f'{file}: its labels are {tuple(label.shape)}, the prediction {tuple(size)}: in a test pipeline '
                    'LoadAnnotations must come after Resize'
                )
            self.results.append(self._count(predicted, label.to(predicted.lowest.device).long(), num_classes, file))

    def _count(self, predicted: RebalancedClasses, label: Tensor, num_classes: int, file: str) -> np.ndarray:
        """Count the pixels of an image, (T, 3, C): those that move, and those that do not, only once."""
        name_sources([file])
        try:
            (valid,) = valid_pixels(label[None], num_classes, self._ignore_index)
        finally:
            name_sources([])
        valid, label, lowest = valid.flatten(), label.flatten(), predicted.lowest.flatten()
        is_counted = valid[predicted.moving]
        moving, classes = predicted.moving[is_counted], predicted.classes[:, is_counted]
        valid[moving] = False
        still = valid.nonzero().flatten()
        areas = _areas(lowest[still][None], label[still], num_classes)
        return areas + _areas(classes, label[moving], num_classes)

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
    taus = torch.arange(len(predictions), device=label.device).view(-1, 1)
    pairs = (taus * num_classes + label) * num_classes + predictions
    confusion = pairs.flatten().bincount(minlength=len(predictions) * num_classes**2)
    right, _, predicted, labelled = class_areas(confusion.view(-1, num_classes, num_classes).cpu().numpy())
    return np.stack([right, predicted, labelled], 1)
