"""Loss of logits that are resized in the sweep, for all classes of one row of output pixels at a time.

Shapes use the letters of :mod:`mmseg_wce.kernels.cpu.layout`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels import units
from mmseg_wce.kernels.cpu.exact import is_argmax_resized, pixel_losses, resize_pixel
from mmseg_wce.kernels.cpu.input_rows import aligned_empty
from mmseg_wce.kernels.cpu.jit import Kernel, allocating_function, exact_function, fast_function, inlined_function
from mmseg_wce.kernels.cpu.layout import Axes
from mmseg_wce.kernels.cpu.scalars import LN_2, exp2, log2, maximum
from mmseg_wce.kernels.cpu.surroundings import interpolate_rows, load_raw, load_rows, make_input_rows
from mmseg_wce.kernels.cpu.task import IGNORED, INVALID, NUM_SUMS, TASK, Maps, add_sums, label_index
from numba import types

_ZERO, _ONE, _NAN, _LOWEST = (np.float32(x) for x in (0, 1, np.nan, -np.inf))
_SMALLEST_SUM, _LIMIT = np.float32(units.SMALLEST_SUM), np.float32(-units.LARGEST_LOSS)
# Two logits that differ by fewer than 8 units in the last place are compared again.
_TIE = np.float32(8 * 2.0**-23)

f32, f64 = types.float32, types.float64


class _RowPixels(NamedTuple):
    """The pixels of an output row, each (S, K), float32 unless stated."""

    y: np.ndarray  # int32, the label, or IGNORED or INVALID
    sum_exp: np.ndarray  # sum of 2^z over the classes
    label_logit: np.ndarray  # z of the label
    max_other: np.ndarray  # largest z of the other classes
    nll: np.ndarray
    smooth: np.ndarray
    correct: np.ndarray  # 1 or 0
    weight: np.ndarray  # class weight of the label
    present: np.ndarray  # (C,), uint8, 1 for classes that are labels in this row
    lanes: np.ndarray  # (NUM_SUMS, 16), float64


@allocating_function
def _make_row_pixels(classes, axes):
    S, K = axes.output_column.shape
    numbers = aligned_empty(8 * S * K).reshape((8, S, K))
    y, present, lanes = numbers[7].view(np.int32), np.empty(classes, np.uint8), np.empty((NUM_SUMS, 16))
    return _RowPixels(
        y, numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5], numbers[6], present, lanes
    )  # fmt: skip


@fast_function
def _load_labels(task, target, output_column, pixels):
    """Rearrange the labels of an output row (W,) by phase and cell."""
    pixels.present[:] = 0
    for p in range(output_column.shape[0]):
        for j in range(output_column.shape[1]):
            k = output_column[p, j]
            label = label_index(task, target[k]) if k >= 0 else IGNORED
            pixels.y[p, j] = label
            pixels.weight[p, j] = task.class_weight[label] if label >= 0 else _ZERO
            if label >= 0:
                pixels.present[label] = 1


@fast_function
def _sweep_classes(
    top, bottom, row_weights, axes, on_left, on_right, y, present, sum_exp, label_logit, max_other, constants
):
    """Fill sum_exp, label_logit and max_other from the classes of an output row."""
    left_weight, right_weight = axes.phase_weights[0], axes.phase_weights[1]
    sum_exp[:] = _ZERO
    label_logit[:] = _ZERO
    max_other[:] = _LOWEST
    for c in range(present.shape[0]):
        interpolate_rows(top[c], bottom[c], row_weights, axes.shift, on_left, on_right)
        label = np.int32(c)
        for p in range(sum_exp.shape[0]):
            if present[c]:
                for j in range(sum_exp.shape[1]):
                    z = left_weight[p, j] * on_left[j] + right_weight[p, j] * on_right[j]
                    is_label = y[p, j] == label
                    sum_exp[p, j] += exp2(z, constants)
                    label_logit[p, j] += z if is_label else _ZERO
                    max_other[p, j] = maximum(max_other[p, j], z + (_LOWEST if is_label else _ZERO))
            else:
                for j in range(sum_exp.shape[1]):
                    z = left_weight[p, j] * on_left[j] + right_weight[p, j] * on_right[j]
                    sum_exp[p, j] += exp2(z, constants)
                    max_other[p, j] = maximum(max_other[p, j], z)


@inlined_function
def _is_inaccurate(sum_exp, label_logit):
    return not (sum_exp >= _SMALLEST_SUM and label_logit >= _LIMIT)


@inlined_function
def _may_tie(label_logit, max_other):
    return abs(label_logit - max_other) <= _TIE * (_ONE + abs(max_other))


@fast_function
def _compute_losses(y, sum_exp, label_logit, max_other, nll, correct):
    """Compute nll and correct of a row; return whether a pixel needs float64."""
    needs_float64 = np.int32(0)
    for p in range(sum_exp.shape[0]):
        for j in range(sum_exp.shape[1]):
            nll[p, j] = (log2(sum_exp[p, j]) - label_logit[p, j]) * LN_2
            correct[p, j] = _ONE if label_logit[p, j] > max_other[p, j] else _ZERO
            redo = _is_inaccurate(sum_exp[p, j], label_logit[p, j]) or _may_tie(label_logit[p, j], max_other[p, j])
            needs_float64 |= np.int32(redo and y[p, j] >= 0)
    return needs_float64 != 0


@fast_function
def _compute_smooth(sum_exp, left_weight, right_weight, on_left, on_right, weight_sum, smooth):
    """Compute sum_c w_c (log_sum_exp - z_c) of a row, NaN where it needs float64; return whether any pixel does."""
    needs_float64 = np.int32(0)
    for p in range(sum_exp.shape[0]):
        for j in range(sum_exp.shape[1]):
            mean = left_weight[p, j] * on_left[j] + right_weight[p, j] * on_right[j]
            smooth[p, j] = (log2(sum_exp[p, j]) * weight_sum - mean) * LN_2 if mean >= _LIMIT else _NAN
            needs_float64 |= np.int32(not mean >= _LIMIT)
    return needs_float64 != 0


@exact_function
def _recompute_in_float64(task, axes, n, i, r, pixels, inputs):
    """Compute the pixels of output row r, in row i of the cells, that need it again in float64."""
    load_raw(task, axes, n, i, inputs)
    top, bottom, smoothing = inputs.raw[i % 2], inputs.raw[(i + 1) % 2], task.smoothing_weight
    for k in range(axes.phase_and_cell.shape[0]):
        q = axes.phase_and_cell[k, 0], axes.phase_and_cell[k, 1]
        label = pixels.y[q]
        if label < 0:
            continue
        is_inaccurate = _is_inaccurate(pixels.sum_exp[q], pixels.label_logit[q])
        is_inaccurate |= smoothing.shape[0] > 0 and pixels.smooth[q] != pixels.smooth[q]
        if is_inaccurate or _may_tie(pixels.label_logit[q], pixels.max_other[q]):
            pixels.correct[q] = np.float32(is_argmax_resized(top, bottom, axes, r, k, label))
        if is_inaccurate:
            max_logit = resize_pixel(top, bottom, axes, r, k, inputs.pixel_logits)
            nll, smooth, sum_exp = pixel_losses(inputs.pixel_logits, max_logit, label, smoothing)
            pixels.nll[q], pixels.sum_exp[q] = np.float32(nll), -np.float32(sum_exp)
            if smoothing.shape[0] > 0:
                pixels.smooth[q] = np.float32(smooth)


@fast_function
def _write_row(axes, pixels, nll, smooth, correct, softmax_stats, sums):
    """Write the maps of an output row, 0 at ignored and NaN at invalid labels, and its sums."""
    for k in range(nll.shape[0]):
        p, j = axes.phase_and_cell[k, 0], axes.phase_and_cell[k, 1]
        y = pixels.y[p, j]
        fill_value = _NAN if y == INVALID else _ZERO
        nll[k] = pixels.nll[p, j] if y >= 0 else fill_value
        correct[k] = y >= 0 and pixels.correct[p, j] > _ZERO
        softmax_stats[k] = pixels.sum_exp[p, j]
        if smooth.shape[0] > 0:
            smooth[k] = pixels.smooth[p, j] if y >= 0 else fill_value
    sums[:] = 0.0
    for p in range(pixels.y.shape[0]):
        add_sums(pixels.y[p], pixels.weight[p], pixels.nll[p], pixels.smooth[p], pixels.correct[p], pixels.lanes, sums)


@fast_function
def _forward_band(task, axes, n, first, last, inputs, pixels, maps):
    """Write the maps and sums of rows ``first`` to ``last`` of the cells of image n."""
    classes, smoothing = task.class_weight.shape[0], task.smoothing_weight.shape[0] > 0
    left_weight, right_weight = axes.phase_weights[0], axes.phase_weights[1]
    on_left, on_right = inputs.sides[0], inputs.sides[1]
    inputs.loaded_rows[:] = -1
    for i in range(first, last):
        if axes.start[i] == axes.start[i + 1]:
            continue
        load_rows(task, axes, n, i, _NAN, inputs)
        top, bottom = inputs.rows[i % 2], inputs.rows[(i + 1) % 2]
        for r in range(axes.start[i], axes.start[i + 1]):
            weights = axes.row_weights[r]
            _load_labels(task, task.target[n, r], axes.output_column, pixels)
            _sweep_classes(
                top, bottom, weights, axes, on_left, on_right, pixels.y, pixels.present, pixels.sum_exp,
                pixels.label_logit, pixels.max_other, task.exp2,
            )  # fmt: skip
            needs_float64 = _compute_losses(
                pixels.y, pixels.sum_exp, pixels.label_logit, pixels.max_other, pixels.nll, pixels.correct
            )
            if smoothing:
                interpolate_rows(top[classes], bottom[classes], weights, axes.shift, on_left, on_right)
                needs_float64 |= _compute_smooth(
                    pixels.sum_exp, left_weight, right_weight, on_left, on_right, task.weight_sum, pixels.smooth
                )
            if needs_float64:
                _recompute_in_float64(task, axes, n, i, r, pixels, inputs)
            _write_row(
                axes, pixels, maps.nll[n, r], maps.smooth[n, r], maps.correct[n, r], maps.softmax_stats[n, r],
                maps.sums[n, r],
            )  # fmt: skip


@Kernel(TASK, Axes.signature(), Maps.signature(f32[:, :, ::1], f64[:, :, ::1]))
def forward(first, last, bands, task, axes, maps):
    """Write the maps of some bands; ``softmax_stats`` are sums of exponentials, negative if computed in float64."""
    inputs = make_input_rows(task.class_weight.shape[0], axes)
    pixels = _make_row_pixels(task.class_weight.shape[0], axes)
    for k in range(first, last):
        _forward_band(task, axes, bands[k, 0], bands[k, 1], bands[k, 2], inputs, pixels, maps)
