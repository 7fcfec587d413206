"""Focal loss of many pixels from their negative log-likelihood: its sum, and its slope for the backward."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels.cpu.input_rows import aligned_empty
from mmseg_wce.kernels.cpu.jit import Kernel, allocating_function, fast_function
from mmseg_wce.kernels.cpu.scalars import EXP2, LOG2_E, exp2, log2, maximum
from numba import types

_ZERO, _ONE, _TWO, _TINY = (np.float32(x) for x in (0, 1, 2, np.finfo(np.float32).tiny))
_CERTAINLY_WRONG = np.float32(100)  # exp(-100) is 0 beside 1
# Below _SMALL, 1 - exp(-n) is computed as n (1 - n / 2 + n^2 / 6 - ...): a difference would lose its digits.
_SMALL = np.float32(0.25)
_S2, _S3, _S4, _S5, _S6 = (np.float32(1 / x) for x in (2, 6, 24, 120, 720))
PIECE = 4096  # pixels whose buffers stay in the cache
_LANES = 16  # independent sums: a single one would make each addition wait

f32, f64, i64 = types.float32, types.float64, types.int64


class _Buffers(NamedTuple):
    """Numbers of the pixels of a piece, (4096,) each, float32."""

    weight: np.ndarray  # class weight of the label, 0 if it is ignored or invalid
    nll: np.ndarray  # 0 where the weight is
    wrong: np.ndarray  # 1 - p
    power: np.ndarray  # (1 - p)^gamma


@allocating_function
def _make_buffers():
    numbers = aligned_empty(4 * PIECE).reshape((4, PIECE))
    return _Buffers(numbers[0], numbers[1], numbers[2], numbers[3])


@fast_function
def _load(nll, target, ignore_index, num_classes, class_weight, buffers):
    """Set the weights and the losses of the pixels (B,), the rest of the buffers to 0."""
    buffers.weight[nll.shape[0] :] = _ZERO
    buffers.nll[nll.shape[0] :] = _ZERO
    for j in range(nll.shape[0]):
        is_valid = (target[j] != ignore_index) & (target[j] >= 0) & (target[j] < num_classes)
        buffers.weight[j] = _ONE if is_valid else _ZERO
        buffers.nll[j] = nll[j] if is_valid else _ZERO
    if class_weight.shape[0] > 0:
        for j in range(nll.shape[0]):
            if buffers.weight[j] > _ZERO:
                buffers.weight[j] = class_weight[target[j]]


@fast_function
def _raise_to(wrong, gamma, power, constants):
    if gamma == _TWO:
        for j in range(power.shape[0]):
            power[j] = wrong[j] * wrong[j]
    else:
        for j in range(power.shape[0]):
            exponent = gamma * log2(maximum(_TINY, wrong[j]))
            power[j] = exp2(exponent if exponent < _ZERO else _ZERO, constants)


@fast_function
def _add_piece(buffers, gamma, constants, slope, lanes):
    """Write the slopes (B,) of weighted losses, and add the losses to ``lanes``."""
    weight, nll, wrong, power = buffers.weight, buffers.nll, buffers.wrong, buffers.power
    for j in range(nll.shape[0]):
        n = maximum(_ZERO, nll[j])
        series = n * (_ONE - n * (_S2 - n * (_S3 - n * (_S4 - n * (_S5 - n * _S6)))))
        difference = _ONE - exp2(-n * LOG2_E, constants)
        nll[j], wrong[j] = n, series if n < _SMALL else difference
    _raise_to(wrong, gamma, power, constants)
    for begin in range(0, nll.shape[0], lanes.shape[0]):
        for k in range(lanes.shape[0]):
            lanes[k] += weight[begin + k] * (power[begin + k] * nll[begin + k])
    for j in range(slope.shape[0]):
        n = nll[j] if nll[j] < _CERTAINLY_WRONG else _CERTAINLY_WRONG
        probability = _ONE - wrong[j]
        slope[j] = weight[j] * power[j] * (_ONE + gamma * probability * (n / maximum(_TINY, wrong[j])))


@Kernel(f32[::1], i64[::1], i64, i64, f32[::1], f32, types.UniTuple(f32, len(EXP2)), f32[::1], f64[::1])
def add_up(first, last, pieces, nll, target, ignore_index, num_classes, class_weight, gamma, constants, slope, sums):
    """Write the slopes of the pixels of some pieces, from pieces[i, 0] to pieces[i, 1], and the sum of each piece."""
    buffers, lanes = _make_buffers(), np.empty(_LANES)
    for i in range(first, last):
        begin, end = pieces[i, 0], pieces[i, 1]
        _load(nll[begin:end], target[begin:end], ignore_index, num_classes, class_weight, buffers)
        lanes[:] = 0.0
        _add_piece(buffers, gamma, constants, slope[begin:end], lanes)
        sums[i] = lanes.sum()
