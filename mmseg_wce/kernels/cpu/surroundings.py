"""The input rows above and below an output row: reading them and interpolating between them.

Shapes use the letters of :mod:`mmseg_wce.kernels.cpu.layout`: an output row has S phases in each of K cells, an input
row has P positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels import units
from mmseg_wce.kernels.cpu.input_rows import aligned_empty, fill_row, read_row
from mmseg_wce.kernels.cpu.jit import allocating_function, fast_function, inlined_function

_ZERO, _LIMIT = np.float32(0), np.float32(-units.LARGEST_LOSS)
_VERY_LOW = np.float32(-1e34)  # a sum of many stays finite


class InputRows(NamedTuple):
    """The input rows above and below a row of cells, and buffers to interpolate them."""

    rows: np.ndarray  # (2, C + 1, P), row above cell i at i % 2; last, the mean for smoothing
    raw: np.ndarray  # (2, C, P), the same rows unshifted, for float64
    loaded_rows: np.ndarray  # (4,), index of the input rows in ``rows``, then in ``raw``
    max_logit: np.ndarray  # (P,)
    line: np.ndarray  # (w,)
    sides: np.ndarray  # (2, K), one class interpolated to an output row, left and right of each cell
    pixel_logits: np.ndarray  # (C,), float64, logits of one output pixel


@allocating_function
def make_input_rows(classes, axes):
    """Allocate the buffers."""
    K, P = axes.output_column.shape[1], axes.num_positions
    rows = aligned_empty(2 * (classes + 1) * P).reshape((2, classes + 1, P))
    raw, loaded_rows = np.empty((2, classes, P), np.float32), np.empty(4, np.int64)
    sides, pixel_logits = aligned_empty(2 * K).reshape((2, K)), np.empty(classes, np.float64)
    return InputRows(rows, raw, loaded_rows, aligned_empty(P), aligned_empty(axes.width), sides, pixel_logits)


@fast_function
def load_rows(task, axes, n, i, undefined_value, inputs):
    """Read the input rows around row i of the cells, unless loaded; ``undefined_value`` as in :func:`fill_row`."""
    classes = task.class_weight.shape[0]
    for side in range(2):
        buffer, row = (i + side) % 2, _input_row(axes, i, side)
        if inputs.loaded_rows[buffer] != row:
            inputs.loaded_rows[buffer] = row
            fill_row(
                task.logits, n, row, axes, undefined_value, inputs.max_logit, inputs.line, inputs.rows[buffer, :classes]
            )
            if task.smoothing_weight.shape[0] > 0:
                _fill_mean(inputs.rows[buffer], task.smoothing_weight)


@inlined_function
def _input_row(axes, i, side):
    """Return the input row above (side 0) or below (side 1) row i of the cells, clamped to the image."""
    return min(max(i - 1 + side, 0), axes.start.shape[0] - 3)


@fast_function
def load_raw(task, axes, n, i, inputs):
    """Read the same rows unshifted, unless loaded; full rows, since the classes of a pixel lie far apart in memory."""
    for side in range(2):
        buffer, row = (i + side) % 2, _input_row(axes, i, side)
        if inputs.loaded_rows[2 + buffer] != row:
            inputs.loaded_rows[2 + buffer] = row
            for c in range(inputs.raw.shape[1]):
                read_row(task.logits, n, c, row, axes, inputs.line, inputs.raw[buffer, c])


@fast_function
def _fill_mean(rows, smoothing_weight):
    """Set the last of (C + 1, P) to sum_c w_c z_c, which is linear in z: no output pixel sums over the classes again.

    It is very low where a class of nonzero weight is at or near -inf. Such pixels are computed again in float64.
    """
    mean = rows[smoothing_weight.shape[0]]
    mean[:] = _ZERO
    for c in range(smoothing_weight.shape[0]):
        if smoothing_weight[c] != _ZERO:
            for j in range(mean.shape[0]):
                mean[j] += smoothing_weight[c] * rows[c, j] if rows[c, j] >= _LIMIT else _VERY_LOW


@inlined_function
def interpolate_rows(top, bottom, weights, shift, on_left, on_right):
    """Interpolate one class of two input rows (P,) to an output row, at both sides of each cell (K,)."""
    cells, above, below = on_left.shape[0], weights[0], weights[1]
    next_top, next_bottom = top[shift : shift + cells], bottom[shift : shift + cells]
    for j in range(cells):
        on_left[j] = above * top[j] + below * bottom[j]
    for j in range(cells):
        on_right[j] = above * next_top[j] + below * next_bottom[j]
