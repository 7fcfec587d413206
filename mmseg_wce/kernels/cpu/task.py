"""Arguments of every kernel, labels as indices, gradients of a pixel, and sums over pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels.cpu.input_rows import LOGITS, Logits
from mmseg_wce.kernels.cpu.jit import fast_function, inlined_function
from mmseg_wce.kernels.cpu.scalars import EXP2
from numba import types

_ZERO, _ONE = np.float32(0), np.float32(1)
IGNORED, INVALID = np.int32(-1), np.int32(-2)
# Sums over the valid pixels: loss times the label's weight, smoothed loss, weights, number, number correct; then the
# number of pixels whose label is invalid.
NUM_SUMS = 6


class Task(NamedTuple):
    """Logits and labels of one call."""

    logits: Logits  # (N, C, h, w)
    target: np.ndarray  # (N, H, W), int64, of any strides
    ignore_index: int
    class_weight: np.ndarray  # (C,), float32, for the sums
    smoothing_weight: np.ndarray  # (C,), float32, or (0,)
    weight_sum: float  # sum of smoothing_weight
    exp2: tuple  # constants of exp2


_f32, _i64 = types.float32, types.int64
TASK = types.NamedTuple(
    (LOGITS, _i64[:, :, :], _i64, _f32[::1], _f32[::1], _f32, types.UniTuple(_f32, len(EXP2))), Task
)


@inlined_function
def label_index(task, target):
    """Return the label as a class index within bounds, or else IGNORED or INVALID."""
    if target == task.ignore_index:
        return IGNORED
    return np.int32(target) if 0 <= target < task.class_weight.shape[0] else INVALID


class Upstream(NamedTuple):
    """Gradients of the maps (N, H, W), any strides, or (N, H, 0) for zeros, and of the sums of both losses."""

    nll: np.ndarray
    smooth: np.ndarray
    grad_loss_sum: float
    grad_smooth_sum: float


UPSTREAM = types.NamedTuple((_f32[:, :, :], _f32[:, :, :], _f32, _f32), Upstream)


class Maps(NamedTuple):
    """The results of a forward sweep.

    If logits are resized, X is (N, H, W) and Y is (N, H). Otherwise X is (N, 2, H, W) and Y is (blocks,).
    """

    nll: np.ndarray  # (N, H, W), float32
    smooth: np.ndarray  # (N, H, W), float32, or (N, H, 0)
    correct: np.ndarray  # (N, H, W), bool
    softmax_stats: np.ndarray  # X, float32, for the backward: sum of exponentials, or maximum and sum
    sums: np.ndarray  # (*Y, NUM_SUMS), float64

    @classmethod
    def signature(cls, softmax_stats, sums):
        return types.NamedTuple((_f32[:, :, ::1], _f32[:, :, ::1], types.boolean[:, :, ::1], softmax_stats, sums), cls)


@inlined_function
def upstream_gradients(task, upstream, n, r, k, label):
    """Return the upstream gradients of a pixel's nll and smooth, from the maps and from the sums."""
    grad_nll, grad_smooth = task.class_weight[label] * upstream.grad_loss_sum, upstream.grad_smooth_sum
    if upstream.nll.shape[2] > 0:
        grad_nll += upstream.nll[n, r, k]
    if upstream.smooth.shape[2] > 0:
        grad_smooth += upstream.smooth[n, r, k]
    return grad_nll, grad_smooth


@inlined_function
def nll_gradient(e, is_label, sum_exp, factor):
    """Return the gradient of nll, given e = exp(z), its sum over the classes and ``factor``, upstream over that sum.

    Subtracting before scaling keeps the digits of a probability close to 1.
    """
    return (e - (sum_exp if is_label else _ZERO)) * factor


@inlined_function
def smooth_gradient(e, weight, other_weights, sum_exp, factor):
    """Return factor * (e sum(w) - weight sum_exp), the gradient of smooth; ``other_weights`` is sum(w) - weight.

    This form does not cancel where e is nearly all of sum_exp.
    """
    return (e * other_weights - weight * (sum_exp - e)) * factor


@fast_function
def add_sums(y, weight, nll, smooth, correct, lanes, sums):
    """Add pixels to the sums (NUM_SUMS,), float64.

    Args:
        y, weight, nll, smooth, correct: (B,), B a multiple of 16; smooth is arbitrary without label smoothing.
        lanes: (NUM_SUMS, 16), float64, overwritten. 16 independent sums: one sum would make each addition wait.
    """
    lanes[:] = 0.0
    for begin in range(0, y.shape[0], 16):
        labels, weights = y[begin : begin + 16], weight[begin : begin + 16]
        losses, smoothed, are_correct = nll[begin : begin + 16], smooth[begin : begin + 16], correct[begin : begin + 16]
        for k in range(16):
            is_valid = labels[k] >= 0
            lanes[0, k] += weights[k] * losses[k] if is_valid else _ZERO
            lanes[1, k] += smoothed[k] if is_valid else _ZERO
            lanes[2, k] += weights[k]
            lanes[3, k] += _ONE if is_valid else _ZERO
            lanes[4, k] += are_correct[k] if is_valid else _ZERO
            lanes[5, k] += _ONE if labels[k] == INVALID else _ZERO
    for i in range(sums.shape[0]):
        for k in range(16):
            sums[i] += lanes[i, k]
