"""Offsets of the logits that replace the class prior of a trained model. Imports no mmseg."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
from mmseg_wce.class_weights.statistics import LabelStatistics
from mmseg_wce.class_weights.statistics_file import load_statistics
from mmseg_wce.class_weights.weights import ClassWeight, load_class_weight
from torch import Tensor

__all__ = ['ClassCounts', 'class_offsets']

ClassCounts = LabelStatistics | str | os.PathLike | Sequence[float] | np.ndarray | Tensor


def class_offsets(counts: ClassCounts, tau: float, class_weight: ClassWeight | None = None) -> Tensor:
    """Return what to add to the logits of each class to make a trained model find rare classes more, or less, often.

    With n_c the pixels of class c in the training, w_c its weight in the loss (1 by default) and the mean over the
    classes::

        prior_c  = w_c n_c                 # up to a factor, the prior that the model has learnt
        offset_c = -tau (log prior_c - mean log prior)

    This is the logit adjustment of Menon et al. 2021 (https://arxiv.org/abs/2007.07314). With tau = 0 nothing changes.
    With tau = 1 every class counts as if it had been as frequent as any other, the maximum-likelihood rule of Chan et
    al. 2019 (https://arxiv.org/abs/1907.01342). Below 0, common classes gain. The offsets add up to 0; a number that is
    the same for all classes changes neither softmax nor arg-max. They may be added before or after a bilinear resize.

    A class that the model cannot have learnt, n_c or w_c being 0, gets the smallest offset of the others: it gains on
    no class.

    Args:
        counts: pixels (or any frequency) of each class in the training labels: (C,), or statistics: an object, a name
            ('ade20k') or a file of ``tools/class_weights.py``.
        tau: any finite number; from -0.5 to 1 is usual.
        class_weight: weights that the model was trained with, as in :class:`mmseg_wce.WeightedCrossEntropyLoss`.

    Returns:
        (C,), float32, on the CPU. A model with one channel for the labels 0 and 1 takes the difference,
        ``offsets[1] - offsets[0]``.

    Raises:
        TypeError, ValueError: an argument is invalid, the weights are of another number of classes, or no class has
            both pixels and a weight.

    Example:
        >>> from mmseg_wce.functional import class_offsets
        >>> class_offsets([900, 90, 10], tau=0.5)
        tensor([-1.1337,  0.0176,  1.1162])
    """
    if isinstance(tau, bool) or not isinstance(tau, Real):
        raise TypeError(f'tau must be a number, got {tau!r}')
    if not math.isfinite(tau):
        raise ValueError(f'tau must be finite, got {tau}')
    number = _class_counts(counts)
    weights = np.ones(len(number)) if class_weight is None else load_class_weight(class_weight).double().numpy()
    if weights.shape != number.shape:
        raise ValueError(f'class_weight has {len(weights)} weights for {len(number)} classes')
    learnt = (number > 0) & (weights > 0)
    if not learnt.any():
        raise ValueError('no class has both pixels and a weight above 0, so there is no prior')
    log_prior = np.log(number[learnt]) + np.log(weights[learnt])
    offsets = float(tau) * (log_prior.mean() - log_prior)
    result = np.full(len(number), offsets.min())
    result[learnt] = offsets
    if not np.abs(result).max() <= np.finfo(np.float32).max:
        raise ValueError(f'tau {tau} makes offsets too large for float32')
    return torch.from_numpy(result).float()


def _class_counts(counts: ClassCounts) -> np.ndarray:
    if isinstance(counts, (str, os.PathLike)):
        counts = load_statistics(counts)
    if isinstance(counts, LabelStatistics):
        counts = counts.pixels
    elif isinstance(counts, Tensor):
        counts = counts.detach().cpu().double().numpy()
    array = np.asarray(counts)
    if array.dtype.kind not in 'iuf' or array.ndim != 1 or len(array) < 2:
        raise TypeError(f'counts must be one number for each of at least 2 classes, or statistics, got {counts!r:.100}')
    array = array.astype(np.float64)
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        c = int(bad.argmax())
        raise ValueError(f'counts must be finite and not negative, got class {c}: {array[c]:g}')
    return array
