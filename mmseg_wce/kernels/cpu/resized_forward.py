"""Loss of logits that are upsampled on the way: one row of output pixels, all classes, at a time.

Letters of shapes are those of :mod:`mmseg_wce.kernels.cpu.layout`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels import units
from mmseg_wce.kernels.cpu.exact import is_greatest_resized, logits_at, losses_of
from mmseg_wce.kernels.cpu.input_rows import room
from mmseg_wce.kernels.cpu.jit import Kernel, allocating_function, exact_function, fast_function, inlined_function
from mmseg_wce.kernels.cpu.layout import Axes
from mmseg_wce.kernels.cpu.scalars import LN_2, exp2, log2, maximum
from mmseg_wce.kernels.cpu.surroundings import at_height, load_raw, load_rows, make_surroundings
from mmseg_wce.kernels.cpu.task import IGNORED, INVALID, NUM_SUMS, TASK, Maps, add_up, label_of
from numba import types

__all__ = ['forward']

_ZERO, _ONE, _NAN, _LOWEST = (np.float32(x) for x in (0, 1, np.nan, -np.inf))
_SMALLEST_SUM, _LIMIT = np.float32(units.SMALLEST_SUM), np.float32(-units.LARGEST_LOSS)
# Two logits closer than so many units in the last place are compared again.
_TIE = np.float32(8 * 2.0**-23)

f32, f64 = types.float32, types.float64


class _Slots(NamedTuple):
    """The pixels of an output row, each (S, K); float32 but for the labels."""

    y: np.ndarray  # int32, the label, or IGNORED or INVALID
    total: np.ndarray  # sum of 2^z over the classes
    own: np.ndarray  # z of the label's class
    other: np.ndarray  # largest z of the other classes
    nll: np.ndarray
    smooth: np.ndarray
    correct: np.ndarray  # 1 or 0
    weight: np.ndarray  # of the label
    present: np.ndarray  # (C,), uint8, classes that are labels in this row
    lanes: np.ndarray  # (NUM_SUMS, 16), float64


@allocating_function
def _make_slots(classes, axes):
    S, K = axes.pixel.shape
    numbers = room(8 * S * K).reshape((8, S, K))
    y, present, lanes = numbers[7].view(np.int32), np.empty(classes, np.uint8), np.empty((NUM_SUMS, 16))
    return _Slots(
        y, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6], present, lanes
    )  # fmt: skip


@fast_function
def _sort_labels(task, target, pixel, slots):
    """Put the labels of an output row (W,) into slots."""
    slots.present[:] = 0
    for p in range(pixel.shape[0]):
        for j in range(pixel.shape[1]):
            k = pixel[p, j]
            own = label_of(task, target[k]) if k >= 0 else IGNORED
            slots.y[p, j] = own
            slots.weight[p, j] = task.class_weight[own] if own >= 0 else _ZERO
            if own >= 0:
                slots.present[own] = 1


@fast_function
def _measure(top, low, row_weights, axes, on_left, on_right, y, present, total, own, other, constants):
    """Sweep over the classes of an output row: fills total, own and other."""
    left_weight, right_weight = axes.slot_weights[0], axes.slot_weights[1]
    total[:] = _ZERO
    own[:] = _ZERO
    other[:] = _LOWEST
    for c in range(present.shape[0]):
        at_height(top[c], low[c], row_weights, axes.shift, on_left, on_right)
        label = np.int32(c)
        for p in range(total.shape[0]):
            if present[c]:
                for j in range(total.shape[1]):
                    z = left_weight[p, j] * on_left[j] + right_weight[p, j] * on_right[j]
                    is_label = y[p, j] == label
                    total[p, j] += exp2(z, constants)
                    own[p, j] += z if is_label else _ZERO
                    other[p, j] = maximum(other[p, j], z + (_LOWEST if is_label else _ZERO))
            else:
                for j in range(total.shape[1]):
                    z = left_weight[p, j] * on_left[j] + right_weight[p, j] * on_right[j]
                    total[p, j] += exp2(z, constants)
                    other[p, j] = maximum(other[p, j], z)


@inlined_function
def _is_unsettled(total, own):
    return not (total >= _SMALLEST_SUM and own >= _LIMIT)


@inlined_function
def _nearly_ties(own, other):
    return abs(own - other) <= _TIE * (_ONE + abs(other))


@fast_function
def _finish(y, total, own, other, nll, correct):
    """Losses of a row; returns if one of them needs the exact way."""
    odd = np.int32(0)
    for p in range(total.shape[0]):
        for j in range(total.shape[1]):
            nll[p, j] = (log2(total[p, j]) - own[p, j]) * LN_2
            correct[p, j] = _ONE if own[p, j] > other[p, j] else _ZERO
            again = _is_unsettled(total[p, j], own[p, j]) or _nearly_ties(own[p, j], other[p, j])
            odd |= np.int32(again and y[p, j] >= 0)
    return odd != 0


@fast_function
def _finish_smooth(total, left_weight, right_weight, on_left, on_right, weight_sum, smooth):
    """sum_c w_c (log sum exp z - z_c) of a row, NaN where the exact way is needed; returns if it is anywhere."""
    odd = np.int32(0)
    for p in range(total.shape[0]):
        for j in range(total.shape[1]):
            mean = left_weight[p, j] * on_left[j] + right_weight[p, j] * on_right[j]
            smooth[p, j] = (log2(total[p, j]) * weight_sum - mean) * LN_2 if mean >= _LIMIT else _NAN
            odd |= np.int32(not mean >= _LIMIT)
    return odd != 0


@exact_function
def _finish_exactly(task, axes, n, i, r, slots, given):
    """Do again those pixels of output row r, in row i of the cells, that need the exact way."""
    load_raw(task, axes, n, i, given)
    top, low, smoothing = given.raw[i % 2], given.raw[(i + 1) % 2], task.smoothing_weight
    for k in range(axes.slot.shape[0]):
        q = axes.slot[k, 0], axes.slot[k, 1]
        own = slots.y[q]
        if own < 0:
            continue
        unsettled = _is_unsettled(slots.total[q], slots.own[q])
        unsettled |= smoothing.shape[0] > 0 and slots.smooth[q] != slots.smooth[q]
        if unsettled or _nearly_ties(slots.own[q], slots.other[q]):
            slots.correct[q] = np.float32(is_greatest_resized(top, low, axes, r, k, own))
        if unsettled:
            peak = logits_at(top, low, axes, r, k, given.pixel)
            nll, smooth, total = losses_of(given.pixel, peak, own, smoothing)
            slots.nll[q], slots.total[q] = np.float32(nll), -np.float32(total)
            if smoothing.shape[0] > 0:
                slots.smooth[q] = np.float32(smooth)


@fast_function
def _write(axes, slots, nll, smooth, correct, total, sums):
    """Maps of an output row, 0 where the label is ignored and NaN where it is invalid; and its sums."""
    for k in range(nll.shape[0]):
        p, j = axes.slot[k, 0], axes.slot[k, 1]
        y = slots.y[p, j]
        instead = _NAN if y == INVALID else _ZERO
        nll[k] = slots.nll[p, j] if y >= 0 else instead
        correct[k] = y >= 0 and slots.correct[p, j] > _ZERO
        total[k] = slots.total[p, j]
        if smooth.shape[0] > 0:
            smooth[k] = slots.smooth[p, j] if y >= 0 else instead
    sums[:] = 0.0
    for p in range(slots.y.shape[0]):
        add_up(slots.y[p], slots.weight[p], slots.nll[p], slots.smooth[p], slots.correct[p], slots.lanes, sums)


@fast_function
def _forward_band(task, axes, n, first, last, given, slots, maps):
    """Rows ``first`` to ``last`` of the cells of image n."""
    classes, smoothing = task.class_weight.shape[0], task.smoothing_weight.shape[0] > 0
    left_weight, right_weight = axes.slot_weights[0], axes.slot_weights[1]
    on_left, on_right = given.sides[0], given.sides[1]
    given.held[:] = -1
    for i in range(first, last):
        if axes.start[i] == axes.start[i + 1]:
            continue
        load_rows(task, axes, n, i, _NAN, given)
        top, low = given.rows[i % 2], given.rows[(i + 1) % 2]
        for r in range(axes.start[i], axes.start[i + 1]):
            weights = axes.row_weights[r]
            _sort_labels(task, task.target[n, r], axes.pixel, slots)
            _measure(
                top, low, weights, axes, on_left, on_right, slots.y, slots.present, slots.total, slots.own,
                slots.other, task.exp2,
            )  # fmt: skip
            odd = _finish(slots.y, slots.total, slots.own, slots.other, slots.nll, slots.correct)
            if smoothing:
                at_height(top[classes], low[classes], weights, axes.shift, on_left, on_right)
                odd |= _finish_smooth(
                    slots.total, left_weight, right_weight, on_left, on_right, task.weight_sum, slots.smooth
                )
            if odd:
                _finish_exactly(task, axes, n, i, r, slots, given)
            _write(
                axes, slots, maps.nll[n, r], maps.smooth[n, r], maps.correct[n, r], maps.total[n, r], maps.sums[n, r]
            )


@Kernel(TASK, Axes.signature(), Maps.signature(f32[:, :, ::1], f64[:, :, ::1]))
def forward(first, last, bands, task, axes, maps):
    """Write the maps of some bands."""
    given, slots = make_surroundings(task.class_weight.shape[0], axes), _make_slots(task.class_weight.shape[0], axes)
    for k in range(first, last):
        _forward_band(task, axes, bands[k, 0], bands[k, 1], bands[k, 2], given, slots, maps)
