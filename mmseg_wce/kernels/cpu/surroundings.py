"""The input rows around an output row: read, and interpolated down to its height.

Letters of shapes are those of :mod:`mmseg_wce.kernels.cpu.layout`: an output row has S slots in each of K cells, an
input row has P places.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels import units
from mmseg_wce.kernels.cpu.input_rows import fill_row, read_row, room
from mmseg_wce.kernels.cpu.jit import allocating_function, fast_function, inlined_function

__all__ = ['Surroundings', 'at_height', 'load_raw', 'load_rows', 'make_surroundings']

_ZERO, _LIMIT = np.float32(0), np.float32(-units.LARGEST_LOSS)
_VERY_LOW = np.float32(-1e34)  # many of them add up to a finite number


class Surroundings(NamedTuple):
    """The input rows above and below a row of cells, and room to interpolate them."""

    rows: np.ndarray  # (2, C + 1, P): the row above cell i at i % 2; the last class is the mean that smoothing needs
    raw: np.ndarray  # (2, C, P), the same as they are, for the exact way
    held: np.ndarray  # (4,), which input rows they are, and the raw ones
    peak: np.ndarray  # (P,)
    line: np.ndarray  # (w,)
    sides: np.ndarray  # (2, K), one class at the height of an output row, left and right of each cell
    pixel: np.ndarray  # (C,), float64, all classes of one output pixel


@allocating_function
def make_surroundings(classes, axes):
    K, P = axes.pixel.shape[1], axes.padded
    rows, sides = room(2 * (classes + 1) * P).reshape((2, classes + 1, P)), room(2 * K).reshape((2, K))
    raw, held, pixel = np.empty((2, classes, P), np.float32), np.empty(4, np.int64), np.empty(classes, np.float64)
    return Surroundings(rows, raw, held, room(P), room(axes.width), sides, pixel)


@fast_function
def load_rows(task, axes, n, i, undefined, given):
    """Read the input rows around row i of the cells, unless they are there; ``undefined`` as in :func:`fill_row`."""
    classes = task.class_weight.shape[0]
    for side in range(2):
        at, row = (i + side) % 2, _input_row(axes, i, side)
        if given.held[at] != row:
            given.held[at] = row
            fill_row(task.logits, n, row, axes, undefined, given.peak, given.line, given.rows[at, :classes])
            if task.smoothing_weight.shape[0] > 0:
                _fill_mean(given.rows[at], task.smoothing_weight)


@inlined_function
def _input_row(axes, i, side):
    """The row above row i of the cells, or below; outside the image its edge."""
    return min(max(i - 1 + side, 0), axes.start.shape[0] - 3)


@fast_function
def load_raw(task, axes, n, i, given):
    """Read the same rows as they are, unless they are there: logits of all classes lie far apart in memory."""
    for side in range(2):
        at, row = (i + side) % 2, _input_row(axes, i, side)
        if given.held[2 + at] != row:
            given.held[2 + at] = row
            for c in range(given.raw.shape[1]):
                read_row(task.logits, n, c, row, axes, given.line, given.raw[at, c])


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


@inlined_function
def at_height(top, low, weights, shift, on_left, on_right):
    """Interpolate one class of two input rows (P,) to the height of an output row: both sides of each cell (K,)."""
    cells, above, below = on_left.shape[0], weights[0], weights[1]
    next_top, next_low = top[shift : shift + cells], low[shift : shift + cells]
    for j in range(cells):
        on_left[j] = above * top[j] + below * low[j]
    for j in range(cells):
        on_right[j] = above * next_top[j] + below * next_low[j]
