"""The arguments of every kernel, labels as indices, slopes of a pixel, and sums over pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels.cpu.input_rows import LOGITS, Logits
from mmseg_wce.kernels.cpu.jit import fast_function, inlined_function
from mmseg_wce.kernels.cpu.scalars import EXP2
from numba import types

__all__ = [
    'IGNORED',
    'INVALID',
    'NUM_SUMS',
    'TASK',
    'UPSTREAM',
    'Maps',
    'Task',
    'Upstream',
    'add_up',
    'label_of',
    'label_slope',
    'slopes_of',
    'smoothing_slope',
]

_ZERO, _ONE = np.float32(0), np.float32(1)
IGNORED, INVALID = np.int32(-1), np.int32(-2)
# Over the pixels that count: loss times the label's weight, smoothed loss, weights, number, number of correct ones;
# then the number of pixels whose label is invalid.
NUM_SUMS = 6


class Task(NamedTuple):
    """Logits and labels of one call."""

    logits: Logits  # (N, C, h, w)
    target: np.ndarray  # (N, H, W), int64, of any strides
    ignore_index: int
    class_weight: np.ndarray  # (C,), float32, of the sums
    smoothing_weight: np.ndarray  # (C,), float32, or (0,)
    weight_sum: float  # of the smoothing
    exp2: tuple  # constants


_f32, _i64 = types.float32, types.int64
TASK = types.NamedTuple(
    (LOGITS, _i64[:, :, :], _i64, _f32[::1], _f32[::1], _f32, types.UniTuple(_f32, len(EXP2))), Task
)


@inlined_function
def label_of(task, target):
    """Return a label as an index that is within bounds, or what it is instead."""
    if target == task.ignore_index:
        return IGNORED
    return np.int32(target) if 0 <= target < task.class_weight.shape[0] else INVALID


class Upstream(NamedTuple):
    """Gradient of the maps (N, H, W), of any strides, or (N, H, 0) for zeros, and of the sums of both losses."""

    nll: np.ndarray
    smooth: np.ndarray
    of_weighted_sum: float
    of_smooth_sum: float


UPSTREAM = types.NamedTuple((_f32[:, :, :], _f32[:, :, :], _f32, _f32), Upstream)


class Maps(NamedTuple):
    """The results of a forward sweep.

    X is (N, H, W) and Y is (N, H) where logits are resized, otherwise X is (N, 2, H, W) and Y is (blocks,).
    """

    nll: np.ndarray  # (N, H, W), float32
    smooth: np.ndarray  # (N, H, W), float32, or (N, H, 0)
    correct: np.ndarray  # (N, H, W), bool
    total: np.ndarray  # X, float32: what the backward needs
    sums: np.ndarray  # (*Y, NUM_SUMS), float64

    @classmethod
    def signature(cls, total, sums):
        return types.NamedTuple((_f32[:, :, ::1], _f32[:, :, ::1], types.boolean[:, :, ::1], total, sums), cls)


@inlined_function
def slopes_of(task, upstream, n, r, k, label):
    """Return the gradient of a pixel's loss and of its smoothed loss."""
    slope, smooth = task.class_weight[label] * upstream.of_weighted_sum, upstream.of_smooth_sum
    if upstream.nll.shape[2] > 0:
        slope += upstream.nll[n, r, k]
    if upstream.smooth.shape[2] > 0:
        smooth += upstream.smooth[n, r, k]
    return slope, smooth


@inlined_function
def label_slope(e, is_label, total, slope):
    """Gradient of nll: e = exp(z) and its total over the classes give the probability, ``slope`` is for the total.

    Subtracted before it is scaled, which keeps the digits where a probability is nearly 1.
    """
    return (e - (total if is_label else _ZERO)) * slope


@inlined_function
def smoothing_slope(e, weight, rest, total, slope):
    """Gradient of the smoothed loss, e sum(w) - weight total, where ``rest`` is sum(w) - weight.

    In a form that does not cancel where the class has nearly all of the total.
    """
    return (e * rest - weight * (total - e)) * slope


@fast_function
def add_up(y, weight, nll, smooth, correct, lanes, sums):
    """Add what ``NUM_SUMS`` pixels add up to: ``sums`` (NUM_SUMS,) in float64.

    Args:
        y, weight, nll, smooth, correct: (B,), B a multiple of 16; smooth may hold anything where it is not asked for.
        lanes: (NUM_SUMS, 16), float64, overwritten: a single sum would wait for itself at every addition.
    """
    lanes[:] = 0.0
    for begin in range(0, y.shape[0], 16):
        labels, weights = y[begin : begin + 16], weight[begin : begin + 16]
        losses, smoothed, right = nll[begin : begin + 16], smooth[begin : begin + 16], correct[begin : begin + 16]
        for k in range(16):
            counts = labels[k] >= 0
            lanes[0, k] += weights[k] * losses[k] if counts else _ZERO
            lanes[1, k] += smoothed[k] if counts else _ZERO
            lanes[2, k] += weights[k]
            lanes[3, k] += _ONE if counts else _ZERO
            lanes[4, k] += right[k] if counts else _ZERO
            lanes[5, k] += _ONE if labels[k] == INVALID else _ZERO
    for i in range(sums.shape[0]):
        for k in range(16):
            sums[i] += lanes[i, k]
