"""Gradient of logits that are upsampled on the way: some output rows of one row of cells, all classes, at a time.

Letters of shapes are those of :mod:`mmseg_wce.kernels.cpu.layout`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels.cpu.exact import logits_at, softmax_in_place
from mmseg_wce.kernels.cpu.input_rows import GRADIENT, clear_rows, room, write_columns, write_row
from mmseg_wce.kernels.cpu.jit import Kernel, allocating_function, exact_function, fast_function, inlined_function
from mmseg_wce.kernels.cpu.layout import Axes
from mmseg_wce.kernels.cpu.scalars import exp2
from mmseg_wce.kernels.cpu.surroundings import at_height, load_raw, load_rows, make_surroundings
from mmseg_wce.kernels.cpu.task import IGNORED, TASK, UPSTREAM, label_of, label_slope, slopes_of, smoothing_slope
from numba import types

__all__ = ['backward', 'join']

_ZERO, _ONE = np.float32(0), np.float32(1)
_ROWS = 8  # output rows that are taken at once

f32 = types.float32


class _Slopes(NamedTuple):
    """Factors of the gradient of the logits of R output rows, (R, S, K), 0 where nothing counts.

    With e = 2^z: d loss / d z_c = slope (e_c - [c is the label] total) + smooth (e_c sum(w) - w_c total).
    """

    y: np.ndarray  # int32, the label
    total: np.ndarray  # sum of e_c
    slope: np.ndarray
    smooth: np.ndarray
    present: np.ndarray  # (R, C), uint8, classes that are labels
    corners: np.ndarray  # (6, K), above left and right, below left and right, summed over rows; one row's left, right
    gradient: np.ndarray  # (2, C, P), of the input rows above and below; by this name for whole bands only


@allocating_function
def _make_slopes(classes, axes):
    (S, K), P = axes.pixel.shape, axes.padded
    numbers = room(4 * _ROWS * S * K).reshape((4, _ROWS, S, K))
    corners, gradient = room(6 * K).reshape((6, K)), room(2 * classes * P).reshape((2, classes, P))
    present = np.empty((_ROWS, classes), np.uint8)
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


def _slot_adder(at_once: int) -> Callable:
    """Make a function that adds up the gradient of so many slots of every cell in registers."""

    @inlined_function
    def add(
        label, is_present, left_weight, right_weight, on_left, on_right, y, total, slope, to_left, to_right, constants
    ):
        if is_present:
            for j in range(on_left.shape[0]):
                left, right = to_left[j], to_right[j]
                for u in range(at_once):
                    e = exp2(left_weight[u, j] * on_left[j] + right_weight[u, j] * on_right[j], constants)
                    d = label_slope(e, y[u, j] == label, total[u, j], slope[u, j])
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
    label, weight, rest, left_weight, right_weight, on_left, on_right, y, total, slope, smooth, to_left, to_right,
    constants,
):  # fmt: skip
    """Add up the gradient of all slots with smoothing: ``weight`` is that of the class, ``rest`` that of all others."""
    for p in range(y.shape[0]):
        for j in range(y.shape[1]):
            e = exp2(left_weight[p, j] * on_left[j] + right_weight[p, j] * on_right[j], constants)
            d = label_slope(e, y[p, j] == label, total[p, j], slope[p, j])
            d += smoothing_slope(e, weight, rest, total[p, j], smooth[p, j])
            to_left[j] += left_weight[p, j] * d
            to_right[j] += right_weight[p, j] * d


@inlined_function
def _add_to_row(to_left, to_right, shift, row):
    """Add both sides of the cells (K,) to the places of a row (P,)."""
    on_right = row[shift : shift + to_left.shape[0]]
    for j in range(to_left.shape[0]):
        row[j] += to_left[j]
    for j in range(to_left.shape[0]):
        on_right[j] += to_right[j]


@fast_function
def _differentiate(task, axes, top, low, row_weights, on_left, on_right, slopes, to_top, to_low):
    """Add the gradient of R output rows of one row of cells to that of the input rows above and below, (C, P)."""
    corners, smoothing, S = slopes.corners, task.smoothing_weight, axes.pixel.shape[0]
    fours = S - S % 4
    for c in range(to_top.shape[0]):
        label = np.int32(c)
        corners[:4] = _ZERO
        for r in range(row_weights.shape[0]):
            at_height(top[c], low[c], row_weights[r], axes.shift, on_left, on_right)
            y, total, slope = slopes.y[r], slopes.total[r], slopes.slope[r]
            corners[4:] = _ZERO
            if smoothing.shape[0] > 0:
                _add_smoothed(
                    label, smoothing[c], task.weight_sum - smoothing[c], axes.slot_weights[0], axes.slot_weights[1],
                    on_left, on_right, y, total, slope, slopes.smooth[r], corners[4], corners[5], task.exp2,
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
        _add_to_row(corners[0], corners[1], axes.shift, to_top[c])
        _add_to_row(corners[2], corners[3], axes.shift, to_low[c])


@exact_function
def _add_both_sides(row, left, right, d, along):
    """Add to the places of a row (P,) that have a weight: 0 * NaN is NaN."""
    if along < 1:
        row[left] += np.float32(d * (1 - along))
    if along > 0:
        row[right] += np.float32(d * along)


@exact_function
def _differentiate_exactly(task, upstream, axes, n, i, r, total, given, to_top, to_low):
    """Add the gradient of those pixels of output row r, in row i of the cells, that need the exact way."""
    load_raw(task, axes, n, i, given)
    top, low, z = given.raw[i % 2], given.raw[(i + 1) % 2], given.pixel
    smoothing, down = task.smoothing_weight, axes.row_fraction[r]
    for k in range(axes.slot.shape[0]):
        own = label_of(task, task.target[n, r, k])
        if own < 0 or total[n, r, k] > _ZERO:
            continue
        along, left = axes.column_fraction[k], axes.slot[k, 1]
        right = left + axes.shift
        softmax_in_place(z, logits_at(top, low, axes, r, k, z))
        slope, smooth = slopes_of(task, upstream, n, r, k, own)
        for c in range(z.shape[0]):
            d = np.float64(slope) * (z[c] - (1.0 if c == own else 0.0))
            if smoothing.shape[0] > 0:
                d += np.float64(smooth) * (z[c] * task.weight_sum - smoothing[c])
            if down < 1:
                _add_both_sides(to_top[c], left, right, d * (1 - down), along)
            if down > 0:
                _add_both_sides(to_low[c], left, right, d * down, along)


@fast_function
def _add_rows(source, into):
    for c in range(into.shape[0]):
        for j in range(into.shape[1]):
            into[c, j] += source[c, j]


@fast_function
def _clear_unreached(axes, n, first, last, classes, gradient):
    """Set input rows to zero, if some of them may be beside no pixel: faster than row by row of all classes."""
    if axes.row_fraction.shape[0] < axes.start.shape[0] - 2:
        for c in range(classes):
            clear_rows(gradient, n, c, first, last)


@fast_function
def _backward_band(task, upstream, axes, k, n, first, last, total, given, slopes, gradient, edges):
    """Gradient of the input rows of the cells ``first`` to ``last`` of image n, but for the last row, to which the next
    band adds: it is an edge of band k, and in half precision the first row as well.
    """
    height, classes = axes.start.shape[0] - 2, task.class_weight.shape[0]
    given.held[:] = -1
    slopes.gradient[:] = _ZERO
    _clear_unreached(axes, n, first, last - 1, classes, gradient)
    for i in range(first, last):
        to_top, to_low = slopes.gradient[i % 2], slopes.gradient[(i + 1) % 2]
        if axes.start[i] < axes.start[i + 1]:
            load_rows(task, axes, n, i, _ZERO, given)
            top, low = given.rows[i % 2], given.rows[(i + 1) % 2]
            for begin in range(axes.start[i], axes.start[i + 1], _ROWS):
                end, exact = min(begin + _ROWS, axes.start[i + 1]), False
                slopes.present[:] = 0
                for r in range(begin, end):
                    q = r - begin
                    exact |= _fill_slopes(
                        task, upstream, axes, n, r, total, slopes.y[q], slopes.total[q], slopes.slope[q],
                        slopes.smooth[q], slopes.present[q],
                    )  # fmt: skip
                _differentiate(
                    task, axes, top, low, axes.row_weights[begin:end], given.sides[0], given.sides[1],
                    slopes, to_top, to_low,
                )  # fmt: skip
                if exact:
                    for r in range(begin, end):
                        _differentiate_exactly(task, upstream, axes, n, i, r, total, given, to_top, to_low)
        if i == 0:  # pixels outside the image repeat its edge, whose gradient theirs is
            _add_rows(to_top, to_low)
            to_top[:] = _ZERO
        elif i == first or axes.start[i - 1] < axes.start[i + 1]:  # else no pixel is beside this row
            if i == height:
                _add_rows(to_low, to_top)
            for c in range(classes):
                if i == first and edges.single.shape[2] == 2:
                    write_row(to_top[c], axes, given.line, edges, k, c, 1)
                else:
                    write_row(to_top[c], axes, given.line, gradient, n, c, i - 1)
            to_top[:] = _ZERO
    if last <= height:
        for c in range(classes):
            write_row(slopes.gradient[last % 2, c], axes, given.line, edges, k, c, 0)


@Kernel(TASK, Axes.signature(), f32[:, :, ::1], UPSTREAM, GRADIENT, GRADIENT)
def backward(first, last, bands, task, axes, total, upstream, gradient, edges):
    """Write the gradient (N, C, h, w) of some bands; ``edges`` (bands, C, 1 or 2, w) are rows that bands share."""
    given, slopes = make_surroundings(task.class_weight.shape[0], axes), _make_slopes(task.class_weight.shape[0], axes)
    for k in range(first, last):
        n, begin, end = bands[k, 0], bands[k, 1], bands[k, 2]
        _backward_band(task, upstream, axes, k, n, begin, end, total, given, slopes, gradient, edges)


@fast_function
def _join(k, n, row, gradient, edges):
    for c in range(edges.shape[1]):
        from_above = edges[k - 1, c, 0]
        from_below = edges[k, c, 1] if edges.shape[2] == 2 else gradient.single[n, c, row]
        for j in range(from_above.shape[0]):
            from_above[j] += from_below[j]
        write_columns(from_above, gradient, n, c, row, 0)


@Kernel(GRADIENT, f32[:, :, :, ::1])
def join(first, last, bands, gradient, edges):
    """Write the input rows that two bands share; not in PyTorch, whose threads hang in a forked child."""
    for k in range(first, last):
        if bands[k, 1] > 0:
            _join(k, bands[k, 0], bands[k, 1] - 1, gradient, edges)
