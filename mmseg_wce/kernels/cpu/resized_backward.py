"""Gradient of logits that are resized in the sweep, for all classes of some output rows of one row of cells at a time.

Shapes use the letters of :mod:`mmseg_wce.kernels.cpu.layout`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels.cpu.exact import resize_pixel, softmax_in_place
from mmseg_wce.kernels.cpu.input_rows import GRADIENT, aligned_empty, clear_rows, write_columns, write_row
from mmseg_wce.kernels.cpu.jit import Kernel, allocating_function, exact_function, fast_function, inlined_function
from mmseg_wce.kernels.cpu.layout import Axes
from mmseg_wce.kernels.cpu.scalars import exp2
from mmseg_wce.kernels.cpu.surroundings import interpolate_rows, load_raw, load_rows, make_input_rows
from mmseg_wce.kernels.cpu.task import (
    IGNORED,
    TASK,
    UPSTREAM,
    label_index,
    nll_gradient,
    smooth_gradient,
    upstream_gradients,
)
from numba import types

_ZERO, _ONE = np.float32(0), np.float32(1)
_ROWS_AT_ONCE = 8  # output rows at a time

f32 = types.float32


class _GradientFactors(NamedTuple):
    """Factors of the gradient of the logits of R output rows, (R, S, K), 0 at pixels without a valid label.

    With e = 2^z: d loss / d z_c = nll_factor (e_c - [c is the label] sum_exp)
    + smooth_factor (e_c sum(w) - w_c sum_exp).
    """

    y: np.ndarray  # int32, the label
    sum_exp: np.ndarray  # sum of e_c
    nll_factor: np.ndarray
    smooth_factor: np.ndarray
    present: np.ndarray  # (R, C), uint8, 1 for classes that are labels in the row
    corners: np.ndarray  # (6, K): sums over rows at the 4 input pixels of a cell; one row's left and right
    gradient: np.ndarray  # (2, C, P), gradient of the input rows above and below


@allocating_function
def _make_factors(classes, axes):
    (S, K), P = axes.output_column.shape, axes.num_positions
    numbers = aligned_empty(4 * _ROWS_AT_ONCE * S * K).reshape((4, _ROWS_AT_ONCE, S, K))
    corners, gradient = aligned_empty(6 * K).reshape((6, K)), aligned_empty(2 * classes * P).reshape((2, classes, P))
    present = np.empty((_ROWS_AT_ONCE, classes), np.uint8)
    return _GradientFactors(numbers[0].view(np.int32), numbers[1], numbers[2], numbers[3], present, corners, gradient)


@fast_function
def _load_factors(task, upstream, axes, n, r, softmax_stats, y, sum_exp, nll_factor, smooth_factor, present):
    """Set the factors of output row r; return whether the forward computed a pixel in float64."""
    needs_float64 = False
    for p in range(y.shape[0]):
        for j in range(y.shape[1]):
            k = axes.output_column[p, j]
            label = label_index(task, task.target[n, r, k]) if k >= 0 else IGNORED
            y[p, j], sum_exp[p, j], nll_factor[p, j], smooth_factor[p, j] = IGNORED, _ONE, _ZERO, _ZERO
            if label >= 0 and softmax_stats[n, r, k] > _ZERO:
                y[p, j], sum_exp[p, j], present[label] = label, softmax_stats[n, r, k], 1
                grad_nll, grad_smooth = upstream_gradients(task, upstream, n, r, k, label)
                nll_factor[p, j], smooth_factor[p, j] = grad_nll / sum_exp[p, j], grad_smooth / sum_exp[p, j]
            else:
                needs_float64 |= label >= 0
    return needs_float64


def _phase_adder(num_phases: int) -> Callable:
    """Return a function that adds up the gradient of ``num_phases`` phases of every cell in registers."""

    @inlined_function
    def add(
        label, is_present, left_weight, right_weight, on_left, on_right, y, sum_exp, nll_factor, grad_left, grad_right,
        constants,
    ):  # fmt: skip
        if is_present:
            for j in range(on_left.shape[0]):
                left, right = grad_left[j], grad_right[j]
                for p in range(num_phases):
                    e = exp2(left_weight[p, j] * on_left[j] + right_weight[p, j] * on_right[j], constants)
                    d = nll_gradient(e, y[p, j] == label, sum_exp[p, j], nll_factor[p, j])
                    left += left_weight[p, j] * d
                    right += right_weight[p, j] * d
                grad_left[j], grad_right[j] = left, right
        else:
            for j in range(on_left.shape[0]):
                left, right = grad_left[j], grad_right[j]
                for p in range(num_phases):
                    e = exp2(left_weight[p, j] * on_left[j] + right_weight[p, j] * on_right[j], constants)
                    d = e * nll_factor[p, j]
                    left += left_weight[p, j] * d
                    right += right_weight[p, j] * d
                grad_left[j], grad_right[j] = left, right

    return add


_add_four_phases, _add_one_phase = _phase_adder(4), _phase_adder(1)


@fast_function
def _add_phases_smoothed(
    label, weight, other_weights, left_weight, right_weight, on_left, on_right, y, sum_exp, nll_factor, smooth_factor,
    grad_left, grad_right, constants,
):  # fmt: skip
    """Add up the gradient of all phases with smoothing, given the class's weight and the sum of the other weights."""
    for p in range(y.shape[0]):
        for j in range(y.shape[1]):
            e = exp2(left_weight[p, j] * on_left[j] + right_weight[p, j] * on_right[j], constants)
            d = nll_gradient(e, y[p, j] == label, sum_exp[p, j], nll_factor[p, j])
            d += smooth_gradient(e, weight, other_weights, sum_exp[p, j], smooth_factor[p, j])
            grad_left[j] += left_weight[p, j] * d
            grad_right[j] += right_weight[p, j] * d


@inlined_function
def _add_to_row(grad_left, grad_right, shift, row):
    """Add both sides of the cells (K,) to the positions of a row (P,)."""
    right_positions = row[shift : shift + grad_left.shape[0]]
    for j in range(grad_left.shape[0]):
        row[j] += grad_left[j]
    for j in range(grad_left.shape[0]):
        right_positions[j] += grad_right[j]


@fast_function
def _differentiate(task, axes, top, bottom, row_weights, on_left, on_right, factors, grad_top, grad_bottom):
    """Add the gradient of R output rows of one row of cells to that of the input rows above and below, (C, P)."""
    corners, smoothing, num_phases = factors.corners, task.smoothing_weight, axes.output_column.shape[0]
    in_fours = num_phases - num_phases % 4
    for c in range(grad_top.shape[0]):
        label = np.int32(c)
        corners[:4] = _ZERO
        for r in range(row_weights.shape[0]):
            interpolate_rows(top[c], bottom[c], row_weights[r], axes.shift, on_left, on_right)
            y, sum_exp, nll_factor = factors.y[r], factors.sum_exp[r], factors.nll_factor[r]
            corners[4:] = _ZERO
            if smoothing.shape[0] > 0:
                _add_phases_smoothed(
                    label, smoothing[c], task.weight_sum - smoothing[c], axes.phase_weights[0], axes.phase_weights[1],
                    on_left, on_right, y, sum_exp, nll_factor, factors.smooth_factor[r], corners[4], corners[5],
                    task.exp2,
                )  # fmt: skip
            else:
                for p in range(0, in_fours, 4):
                    _add_four_phases(
                        label, factors.present[r, c], axes.phase_weights[0, p : p + 4],
                        axes.phase_weights[1, p : p + 4], on_left, on_right, y[p : p + 4], sum_exp[p : p + 4],
                        nll_factor[p : p + 4], corners[4], corners[5], task.exp2,
                    )  # fmt: skip
                for p in range(in_fours, num_phases):
                    _add_one_phase(
                        label, factors.present[r, c], axes.phase_weights[0, p : p + 1],
                        axes.phase_weights[1, p : p + 1], on_left, on_right, y[p : p + 1], sum_exp[p : p + 1],
                        nll_factor[p : p + 1], corners[4], corners[5], task.exp2,
                    )  # fmt: skip
            above, below = row_weights[r, 0], row_weights[r, 1]
            for j in range(corners.shape[1]):
                corners[0, j] += above * corners[4, j]
                corners[1, j] += above * corners[5, j]
                corners[2, j] += below * corners[4, j]
                corners[3, j] += below * corners[5, j]
        _add_to_row(corners[0], corners[1], axes.shift, grad_top[c])
        _add_to_row(corners[2], corners[3], axes.shift, grad_bottom[c])


@exact_function
def _add_both_sides(row, left, right, d, column_fraction):
    """Add to the positions of a row (P,) of nonzero weight: 0 * NaN is NaN."""
    if column_fraction < 1:
        row[left] += np.float32(d * (1 - column_fraction))
    if column_fraction > 0:
        row[right] += np.float32(d * column_fraction)


@exact_function
def _differentiate_in_float64(task, upstream, axes, n, i, r, softmax_stats, inputs, grad_top, grad_bottom):
    """Add the gradient of the pixels of output row r, in row i of the cells, that need float64."""
    load_raw(task, axes, n, i, inputs)
    top, bottom, z = inputs.raw[i % 2], inputs.raw[(i + 1) % 2], inputs.pixel_logits
    smoothing, row_fraction = task.smoothing_weight, axes.row_fraction[r]
    for k in range(axes.phase_and_cell.shape[0]):
        label = label_index(task, task.target[n, r, k])
        if label < 0 or softmax_stats[n, r, k] > _ZERO:
            continue
        column_fraction, left = axes.column_fraction[k], axes.phase_and_cell[k, 1]
        right = left + axes.shift
        softmax_in_place(z, resize_pixel(top, bottom, axes, r, k, z))
        grad_nll, grad_smooth = upstream_gradients(task, upstream, n, r, k, label)
        for c in range(z.shape[0]):
            d = np.float64(grad_nll) * (z[c] - (1.0 if c == label else 0.0))
            if smoothing.shape[0] > 0:
                d += np.float64(grad_smooth) * (z[c] * task.weight_sum - smoothing[c])
            if row_fraction < 1:
                _add_both_sides(grad_top[c], left, right, d * (1 - row_fraction), column_fraction)
            if row_fraction > 0:
                _add_both_sides(grad_bottom[c], left, right, d * row_fraction, column_fraction)


@fast_function
def _add_rows(source, target):
    for c in range(target.shape[0]):
        for j in range(target.shape[1]):
            target[c, j] += source[c, j]


@fast_function
def _clear_uncovered_rows(axes, n, first, last, classes, gradient):
    """Zero input rows if some may have no output pixel next to them; one call per class is faster than one per row."""
    if axes.row_fraction.shape[0] < axes.start.shape[0] - 2:
        for c in range(classes):
            clear_rows(gradient, n, c, first, last)


@fast_function
def _backward_band(task, upstream, axes, k, n, first, last, softmax_stats, inputs, factors, gradient, edges):
    """Write the gradient of the input rows of band k, the cells ``first`` to ``last`` of image n.

    The last row goes to ``edges``, since the next band adds to it; in half precision so does the first row.
    """
    height, classes = axes.start.shape[0] - 2, task.class_weight.shape[0]
    inputs.loaded_rows[:] = -1
    factors.gradient[:] = _ZERO
    _clear_uncovered_rows(axes, n, first, last - 1, classes, gradient)
    for i in range(first, last):
        grad_top, grad_bottom = factors.gradient[i % 2], factors.gradient[(i + 1) % 2]
        if axes.start[i] < axes.start[i + 1]:
            load_rows(task, axes, n, i, _ZERO, inputs)
            top, bottom = inputs.rows[i % 2], inputs.rows[(i + 1) % 2]
            for begin in range(axes.start[i], axes.start[i + 1], _ROWS_AT_ONCE):
                end, needs_float64 = min(begin + _ROWS_AT_ONCE, axes.start[i + 1]), False
                factors.present[:] = 0
                for r in range(begin, end):
                    row = r - begin
                    needs_float64 |= _load_factors(
                        task, upstream, axes, n, r, softmax_stats, factors.y[row], factors.sum_exp[row],
                        factors.nll_factor[row], factors.smooth_factor[row], factors.present[row],
                    )  # fmt: skip
                _differentiate(
                    task, axes, top, bottom, axes.row_weights[begin:end], inputs.sides[0], inputs.sides[1],
                    factors, grad_top, grad_bottom,
                )  # fmt: skip
                if needs_float64:
                    for r in range(begin, end):
                        _differentiate_in_float64(
                            task, upstream, axes, n, i, r, softmax_stats, inputs, grad_top, grad_bottom
                        )
        if i == 0:  # neighbours outside the image repeat its edge: their gradient belongs to it
            _add_rows(grad_top, grad_bottom)
            grad_top[:] = _ZERO
        elif i == first or axes.start[i - 1] < axes.start[i + 1]:  # else no output pixel is next to this row
            if i == height:
                _add_rows(grad_bottom, grad_top)
            for c in range(classes):
                if i == first and edges.single.shape[2] == 2:
                    write_row(grad_top[c], axes, inputs.line, edges, k, c, 1)
                else:
                    write_row(grad_top[c], axes, inputs.line, gradient, n, c, i - 1)
            grad_top[:] = _ZERO
    if last <= height:
        for c in range(classes):
            write_row(factors.gradient[last % 2, c], axes, inputs.line, edges, k, c, 0)


@Kernel(TASK, Axes.signature(), f32[:, :, ::1], UPSTREAM, GRADIENT, GRADIENT)
def backward(first, last, bands, task, axes, softmax_stats, upstream, gradient, edges):
    """Write the gradient (N, C, h, w) of some bands; ``edges`` (bands, C, 1 or 2, w) are the rows that bands share."""
    inputs = make_input_rows(task.class_weight.shape[0], axes)
    factors = _make_factors(task.class_weight.shape[0], axes)
    for k in range(first, last):
        n, begin, end = bands[k, 0], bands[k, 1], bands[k, 2]
        _backward_band(task, upstream, axes, k, n, begin, end, softmax_stats, inputs, factors, gradient, edges)


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
    """Write the input rows that two bands share. PyTorch's threads would hang in a forked child."""
    for k in range(first, last):
        if bands[k, 1] > 0:
            _join(k, bands[k, 0], bands[k, 1] - 1, gradient, edges)
