"""Loss and gradient of logits that are upsampled on the way: one row of output pixels, all classes, at a time.

Letters of shapes are those of :mod:`mmseg_wce.kernels.cpu.layout`: an output row has S slots in each of K cells, an
input row is padded to P columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels.cpu.exact import logits_at, losses_of, softmax_in_place
from mmseg_wce.kernels.cpu.input_rows import FLOAT32, GRADIENT, Gradient, fill_row, room, write_columns
from mmseg_wce.kernels.cpu.jit import Kernel, allocating_function, exact_function, fast_function
from mmseg_wce.kernels.cpu.layout import Axes
from mmseg_wce.kernels.cpu.scalars import LN_2, exp2, log2, maximum
from mmseg_wce.kernels.cpu.task import (
    IGNORED,
    INVALID,
    NUM_SUMS,
    TASK,
    UPSTREAM,
    Upstream,
    add_up,
    label_of,
    make_task,
    slopes_of,
)
from numba import types

__all__ = ['backward', 'forward']

_ZERO, _ONE, _NAN, _LOWEST = (np.float32(x) for x in (0, 1, np.nan, -np.inf))
# A sum of exponentials below this has lost digits: the shift is far above the largest logit.
_SMALLEST_SUM = np.float32(2.0**-57)
# A logit so far down either belongs to a class at -inf or is as large.
_LIMIT, _VERY_LOW = np.float32(-1e25), np.float32(-1e34)  # the sum of many of them stays finite
# Two logits closer than so many units in the last place are compared again.
_TIE = np.float32(8 * 2.0**-23)
_ROWS = 8  # of pixels in a row of cells, which the backward takes at once

f32, f64, i64 = types.float32, types.float64, types.int64


class _Input(NamedTuple):
    """The input rows above and below a row of cells, and room to interpolate them."""

    rows: np.ndarray  # (2, C + 1, P): the row above cell i at i % 2; the last class is the mean that smoothing needs
    held: np.ndarray  # (2,), which input rows they are
    invalid: np.ndarray  # (2,), bool, if NaN and the like are in them
    peak: np.ndarray  # (P,)
    line: np.ndarray  # (P,)
    sides: np.ndarray  # (2, K), one class at the height of an output row, left and right of each cell
    pixel: np.ndarray  # (C,), float64, all classes of one output pixel


@allocating_function
def _make_input(classes, axes):
    K, P = axes.pixel.shape[1], axes.padded
    rows, sides = room(2 * (classes + 1) * P).reshape((2, classes + 1, P)), room(2 * K).reshape((2, K))
    held, invalid, pixel = np.empty(2, np.int64), np.zeros(2, np.bool_), np.empty(classes, np.float64)
    return _Input(rows, held, invalid, room(P), room(P), sides, pixel)


@fast_function
def _load_rows(task, axes, n, i, given):
    """Read the input rows around row i of the cells, unless they are there. Returns if all pixels need the exact way."""
    classes, height, width = task.class_weight.shape[0], axes.start.shape[0] - 2, axes.width
    for side in range(2):
        at, row = (i + side) % 2, min(max(i - 1 + side, 0), height - 1)
        if given.held[at] != row:
            given.held[at] = row
            given.invalid[at] = fill_row(task.logits, n, row, width, given.peak, given.rows[at, :classes])
            if task.smoothing_weight.shape[0] > 0:
                _fill_mean(given.rows[at], task.smoothing_weight)
    return given.invalid[0] or given.invalid[1]


@fast_function
def _fill_mean(rows, weight):
    """Set the last of (C + 1, P) to sum_c w_c z_c, which is linear in z: no pixel needs a pass over the classes for it.

    It is very low where a class counts that is at -inf or nearly, however small its weight: the exact way tells.
    """
    mean = rows[weight.shape[0]]
    mean[:] = _ZERO
    for c in range(weight.shape[0]):
        if weight[c] != _ZERO:
            for j in range(mean.shape[0]):
                mean[j] += weight[c] * rows[c, j] if rows[c, j] >= _LIMIT else _VERY_LOW


@fast_function
def _at_height(top, low, weights, left, line, on_left, on_right):
    """Interpolate one class of two input rows (P,) down to the height of an output row: both sides of each cell (K,)."""
    cells, above, below = on_left.shape[0], weights[0], weights[1]
    if left.shape[0] == 0:
        next_top, next_low = top[1 : cells + 1], low[1 : cells + 1]
        for j in range(cells):
            on_left[j] = above * top[j] + below * low[j]
        for j in range(cells):
            on_right[j] = above * next_top[j] + below * next_low[j]
    else:
        for j in range(line.shape[0]):
            line[j] = above * top[j] + below * low[j]
        for j in range(cells):
            on_left[j] = line[left[j]]
            on_right[j] = line[left[j] + 1]


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
    y, present, lanes = numbers[7].view(np.int32), np.zeros(classes, np.uint8), np.empty((NUM_SUMS, 16))
    return _Slots(
        y, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6], present, lanes
    )  # fmt: skip


@fast_function
def _sort_labels(task, target, pixel, slots):
    """Put the labels of an output row (W,) into slots."""
    for p in range(pixel.shape[0]):
        for j in range(pixel.shape[1]):
            k = pixel[p, j]
            own = label_of(task, target[k]) if k >= 0 else IGNORED
            slots.y[p, j] = own
            slots.weight[p, j] = task.class_weight[own] if own >= 0 else _ZERO
            if own >= 0:
                slots.present[own] = 1


@fast_function
def _measure(top, low, row_weights, axes, line, on_left, on_right, y, present, total, own, other, constants):
    """Sweep over the classes of an output row: fills total, own and other."""
    left_weight, right_weight = axes.slot_weights[0], axes.slot_weights[1]
    total[:] = _ZERO
    own[:] = _ZERO
    other[:] = _LOWEST
    for c in range(present.shape[0]):
        _at_height(top[c], low[c], row_weights, axes.left, line, on_left, on_right)
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


@fast_function
def _is_unsettled(total, own):
    return not (total >= _SMALLEST_SUM and own >= _LIMIT)


@fast_function
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
def _finish_exactly(task, axes, n, i, r, all_of_them, slots, pixel):
    """Do again those pixels of output row r, in row i of the cells, that need the exact way."""
    height, width, smoothing = axes.start.shape[0] - 2, axes.width, task.smoothing_weight
    for k in range(axes.cell.shape[0]):
        q, cell = (axes.slot[k, 0], axes.slot[k, 1]), axes.cell[k]
        if slots.y[q] < 0:
            continue
        unsettled = all_of_them or _is_unsettled(slots.total[q], slots.own[q])
        unsettled |= smoothing.shape[0] > 0 and slots.smooth[q] != slots.smooth[q]
        if unsettled or _nearly_ties(slots.own[q], slots.other[q]):
            peak = logits_at(
                task.logits, n, max(i - 1, 0), min(i, height - 1), max(cell - 1, 0), min(cell, width - 1),
                axes.row_fraction[r], axes.column_fraction[k], pixel,
            )  # fmt: skip
            nll, smooth, correct, total = losses_of(pixel, peak, slots.y[q], smoothing)
            slots.correct[q] = np.float32(correct)
            if unsettled:
                slots.nll[q], slots.total[q] = np.float32(nll), -np.float32(total)
                if smoothing.shape[0] > 0:
                    slots.smooth[q] = np.float32(smooth)


@fast_function
def _write(axes, slots, nll, smooth, correct, total, sums):
    """Maps of an output row: from slots to pixels, 0 where the label is ignored and NaN where it is invalid. And sums."""
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
        for j in range(slots.y.shape[1]):
            if slots.y[p, j] >= 0:
                slots.present[slots.y[p, j]] = 0


@fast_function
def _forward_band(task, axes, n, first, last, given, slots, nll, smooth, correct, total, sums):
    """Rows ``first`` to ``last`` of the cells of image n, to its maps (H, W) and sums (H, NUM_SUMS)."""
    classes, smoothing = task.class_weight.shape[0], task.smoothing_weight.shape[0] > 0
    left_weight, right_weight = axes.slot_weights[0], axes.slot_weights[1]
    on_left, on_right = given.sides[0], given.sides[1]
    given.held[:] = -1
    for i in range(first, last):
        if axes.start[i] == axes.start[i + 1]:
            continue
        poisoned = _load_rows(task, axes, n, i, given)
        top, low = given.rows[i % 2], given.rows[(i + 1) % 2]
        for r in range(axes.start[i], axes.start[i + 1]):
            weights = axes.row_weights[r]
            _sort_labels(task, task.target[n, r], axes.pixel, slots)
            _measure(
                top, low, weights, axes, given.line, on_left, on_right, slots.y, slots.present, slots.total, slots.own,
                slots.other, task.exp2,
            )  # fmt: skip
            odd = _finish(slots.y, slots.total, slots.own, slots.other, slots.nll, slots.correct)
            if smoothing:
                _at_height(top[classes], low[classes], weights, axes.left, given.line, on_left, on_right)
                odd |= _finish_smooth(
                    slots.total, left_weight, right_weight, on_left, on_right, task.weight_sum, slots.smooth
                )
            if odd or poisoned:
                _finish_exactly(task, axes, n, i, r, poisoned, slots, given.pixel)
            _write(axes, slots, nll[r], smooth[r], correct[r], total[r], sums[r])


@Kernel(*TASK, Axes.signature(), f32[:, :, ::1], f32[:, :, ::1], types.boolean[:, :, ::1], f32[:, :, ::1], f64[:, :, ::1])
def forward(first, last, bands, a, b, c, d, e, f, g, h, o, axes, nll, smooth, correct, total, sums):
    """Write the maps (N, H, W) and the sums (N, H, NUM_SUMS) of some bands."""
    task = make_task(a, b, c, d, e, f, g, h, o)
    given, slots = _make_input(g.shape[0], axes), _make_slots(g.shape[0], axes)
    for k in range(first, last):
        n = bands[k, 0]
        _forward_band(
            task, axes, n, bands[k, 1], bands[k, 2], given, slots, nll[n], smooth[n], correct[n], total[n], sums[n]
        )


class _Slopes(NamedTuple):
    """What the gradient of the logits of R output rows is made of, (R, S, K), 0 where nothing counts.

    With e = 2^z: d loss / d z_c = slope (e_c - [c is the label] total) + smooth (e_c sum(w) - w_c total).
    """

    y: np.ndarray  # int32, the label
    total: np.ndarray  # sum of e_c
    slope: np.ndarray
    smooth: np.ndarray
    present: np.ndarray  # (R, C), uint8, classes that are labels
    corners: np.ndarray  # (6, K), sums over the rows: above left, above right, below left and right; one row's left, right
    gradient: np.ndarray  # (2, C, P), of the input rows above and below


@allocating_function
def _make_slopes(classes, axes):
    (S, K), P = axes.pixel.shape, axes.padded
    numbers = room(4 * _ROWS * S * K).reshape((4, _ROWS, S, K))
    corners, gradient = room(6 * K).reshape((6, K)), room(2 * classes * P).reshape((2, classes, P))
    present = np.zeros((_ROWS, classes), np.uint8)
    return _Slopes(numbers[0].view(np.int32), numbers[1], numbers[2], numbers[3], present, corners, gradient)


@fast_function
def _fill_slopes(task, upstream, axes, n, r, total, y, sum_exp, slope, smooth, present):
    """Slots of output row r; returns if a pixel needs the exact way, as the forward found."""
    exact = False
    for p in range(y.shape[0]):
        for j in range(y.shape[1]):
            k = axes.pixel[p, j]
            own = label_of(task, task.target[n, r, k]) if k >= 0 else IGNORED
            y[p, j], sum_exp[p, j], slope[p, j], smooth[p, j] = IGNORED, _ONE, _ZERO, _ZERO
            if own >= 0 and total[n, r, k] > _ZERO:
                y[p, j], sum_exp[p, j], present[own] = own, total[n, r, k], 1
                of_loss, of_smooth = slopes_of(task, upstream, n, r, k, own)
                slope[p, j], smooth[p, j] = of_loss / sum_exp[p, j], of_smooth / sum_exp[p, j]
            else:
                exact |= own >= 0
    return exact


def _slot_adder(at_once):
    """Make a function that adds up the gradient of so many slots of every cell in registers."""

    @fast_function
    def add(label, is_present, left_weight, right_weight, on_left, on_right, y, total, slope, to_left, to_right, constants):
        if is_present:
            for j in range(on_left.shape[0]):
                left, right = to_left[j], to_right[j]
                for u in range(at_once):
                    e = exp2(left_weight[u, j] * on_left[j] + right_weight[u, j] * on_right[j], constants)
                    # subtracted before it is scaled, which keeps the digits where a probability is nearly 1
                    d = (e - (total[u, j] if y[u, j] == label else _ZERO)) * slope[u, j]
                    left += left_weight[u, j] * d
                    right += right_weight[u, j] * d
                to_left[j], to_right[j] = left, right
        else:
            for j in range(on_left.shape[0]):
                left, right = to_left[j], to_right[j]
                for u in range(at_once):
                    d = exp2(left_weight[u, j] * on_left[j] + right_weight[u, j] * on_right[j], constants) * slope[u, j]
                    left += left_weight[u, j] * d
                    right += right_weight[u, j] * d
                to_left[j], to_right[j] = left, right

    return add


_add_four_slots, _add_one_slot = _slot_adder(4), _slot_adder(1)


@fast_function
def _add_smoothed(
    label, weight, rest, left_weight, right_weight, on_left, on_right, y, total, slope, smooth, to_left, to_right, constants
):  # fmt: skip
    """As the above, with smoothing: ``weight`` is that of the class, ``rest`` that of all others."""
    for p in range(y.shape[0]):
        for j in range(y.shape[1]):
            e = exp2(left_weight[p, j] * on_left[j] + right_weight[p, j] * on_right[j], constants)
            d = (e - (total[p, j] if y[p, j] == label else _ZERO)) * slope[p, j]
            # e sum(w) - w_c total, in a form that does not cancel where the class has nearly all of the total
            d += (e * rest - weight * (total[p, j] - e)) * smooth[p, j]
            to_left[j] += left_weight[p, j] * d
            to_right[j] += right_weight[p, j] * d


@fast_function
def _add_to_row(to_left, to_right, left, row):
    """From both sides of the cells (K,) to the input pixels of a row (P,)."""
    if left.shape[0] == 0:
        next_pixels = row[1 : to_left.shape[0] + 1]
        for j in range(to_left.shape[0]):
            row[j] += to_left[j]
        for j in range(to_left.shape[0]):
            next_pixels[j] += to_right[j]
    else:
        for j in range(to_left.shape[0]):
            row[left[j]] += to_left[j]
            row[left[j] + 1] += to_right[j]


@fast_function
def _differentiate(task, axes, top, low, row_weights, line, on_left, on_right, slopes, to_top, to_low):
    """Add the gradient of R output rows of one row of cells to that of the input rows above and below, (C, P)."""
    corners, smoothing, S = slopes.corners, task.smoothing_weight, axes.pixel.shape[0]
    fours = S - S % 4
    for c in range(to_top.shape[0]):
        label = np.int32(c)
        corners[:4] = _ZERO
        for r in range(row_weights.shape[0]):
            _at_height(top[c], low[c], row_weights[r], axes.left, line, on_left, on_right)
            y, total, slope = slopes.y[r], slopes.total[r], slopes.slope[r]
            corners[4:] = _ZERO
            if smoothing.shape[0] > 0:
                _add_smoothed(
                    label, smoothing[c], task.weight_sum - smoothing[c], axes.slot_weights[0], axes.slot_weights[1], on_left,
                    on_right, y, total, slope, slopes.smooth[r], corners[4], corners[5], task.exp2,
                )  # fmt: skip
            else:
                for p in range(0, fours, 4):
                    _add_four_slots(
                        label, slopes.present[r, c], axes.slot_weights[0, p : p + 4], axes.slot_weights[1, p : p + 4],
                        on_left, on_right, y[p : p + 4], total[p : p + 4], slope[p : p + 4], corners[4], corners[5],
                        task.exp2,
                    )  # fmt: skip
                for p in range(fours, S):
                    _add_one_slot(
                        label, slopes.present[r, c], axes.slot_weights[0, p : p + 1], axes.slot_weights[1, p : p + 1],
                        on_left, on_right, y[p : p + 1], total[p : p + 1], slope[p : p + 1], corners[4], corners[5],
                        task.exp2,
                    )  # fmt: skip
            above, below = row_weights[r, 0], row_weights[r, 1]
            for j in range(corners.shape[1]):
                corners[0, j] += above * corners[4, j]
                corners[1, j] += above * corners[5, j]
                corners[2, j] += below * corners[4, j]
                corners[3, j] += below * corners[5, j]
        _add_to_row(corners[0], corners[1], axes.left, to_top[c])
        _add_to_row(corners[2], corners[3], axes.left, to_low[c])


@exact_function
def _differentiate_exactly(task, upstream, axes, n, i, r, all_of_them, total, z, to_top, to_low):
    """Add the gradient of those pixels of output row r, in row i of the cells, that need the exact way."""
    height, width, smoothing, down = axes.start.shape[0] - 2, axes.width, task.smoothing_weight, axes.row_fraction[r]
    for k in range(axes.cell.shape[0]):
        own = label_of(task, task.target[n, r, k])
        if own < 0 or (total[n, r, k] > _ZERO and not all_of_them):
            continue
        cell, along, at = axes.cell[k], axes.column_fraction[k], axes.cell[k]
        peak = logits_at(
            task.logits, n, max(i - 1, 0), min(i, height - 1), max(cell - 1, 0), min(cell, width - 1), down, along, z
        )
        softmax_in_place(z, peak)
        slope, smooth = slopes_of(task, upstream, n, r, k, own)
        for c in range(z.shape[0]):
            d = np.float64(slope) * (z[c] - (1.0 if c == own else 0.0))
            if smoothing.shape[0] > 0:
                d += np.float64(smooth) * (z[c] * task.weight_sum - smoothing[c])
            to_top[c, at] += np.float32(d * (1 - down) * (1 - along))
            to_top[c, at + 1] += np.float32(d * (1 - down) * along)
            to_low[c, at] += np.float32(d * down * (1 - along))
            to_low[c, at + 1] += np.float32(d * down * along)


@fast_function
def _add_rows(source, into):
    for c in range(into.shape[0]):
        for j in range(into.shape[1]):
            into[c, j] += source[c, j]


@fast_function
def _backward_band(task, upstream, axes, k, n, first, last, total, given, slopes, gradient, edges):
    """Gradient of the input rows of the cells ``first`` to ``last`` of image n. The first and the last of these rows, to
    which other bands add, are the edges of band k.
    """
    height, width, classes = axes.start.shape[0] - 2, axes.width, task.class_weight.shape[0]
    given.held[:] = -1
    slopes.gradient[:] = _ZERO
    for i in range(first, last):
        to_top, to_low = slopes.gradient[i % 2], slopes.gradient[(i + 1) % 2]
        if axes.start[i] < axes.start[i + 1]:
            poisoned = _load_rows(task, axes, n, i, given)
            top, low = given.rows[i % 2], given.rows[(i + 1) % 2]
            for begin in range(axes.start[i], axes.start[i + 1], _ROWS):
                end, exact = min(begin + _ROWS, axes.start[i + 1]), poisoned
                slopes.present[:] = 0
                for r in range(begin, end):
                    q = r - begin
                    exact |= _fill_slopes(
                        task, upstream, axes, n, r, total, slopes.y[q], slopes.total[q], slopes.slope[q],
                        slopes.smooth[q], slopes.present[q],
                    )  # fmt: skip
                if not poisoned:
                    _differentiate(
                        task, axes, top, low, axes.row_weights[begin:end], given.line, given.sides[0], given.sides[1],
                        slopes, to_top, to_low,
                    )  # fmt: skip
                if exact:
                    for r in range(begin, end):
                        _differentiate_exactly(
                            task, upstream, axes, n, i, r, poisoned, total, given.pixel, to_top, to_low
                        )
        if i == 0:  # pixels outside the image repeat its edge, whose gradient theirs is
            _add_rows(to_top, to_low)
        else:
            if i == height:
                _add_rows(to_low, to_top)
            for c in range(classes):
                _fold(to_top[c], width)
                row = to_top[c, 1 : width + 1]
                if i == first:
                    write_columns(row, edges, k, c, 0, 0)
                else:
                    write_columns(row, gradient, n, c, i - 1, 0)
        to_top[:] = _ZERO
    if last <= height:
        for c in range(classes):
            row = slopes.gradient[last % 2, c]
            _fold(row, width)
            write_columns(row[1 : width + 1], edges, k, c, 1, 0)


@fast_function
def _fold(row, width):
    """Add what is beside the image to the edge, which it repeats."""
    row[1] += row[0]
    row[width] += row[width + 1]


@Kernel(*TASK, Axes.signature(), f32[:, :, ::1], *UPSTREAM, *GRADIENT, f32[:, :, :, ::1])
def backward(first, last, bands, a, b, c, d, e, f, g, h, o, axes, total, u, v, w, x, single, half, edges):
    """Write the gradient (N, C, h, w) of some bands, but for ``edges`` (bands, C, 2, w): rows that bands share."""
    task, upstream, gradient = make_task(a, b, c, d, e, f, g, h, o), Upstream(u, v, w, x), Gradient(single, half, d)
    given, slopes = _make_input(g.shape[0], axes), _make_slopes(g.shape[0], axes)
    for k in range(first, last):
        _backward_band(
            task, upstream, axes, k, bands[k, 0], bands[k, 1], bands[k, 2], total, given, slopes, gradient,
            Gradient(edges, half, FLOAT32),
        )  # fmt: skip
