"""One pixel in float64, from logits as they are: where float32 and a shift by the maxima of the input pixels fail.

They do between neighbours that disagree so much that every class lies far below those maxima, where a loss is so large
that its class may be at -inf, where the label's class and another one nearly tie, and beside NaN and inf.
"""

from __future__ import annotations

import math

import numpy as np
from mmseg_wce.kernels.cpu.input_rows import read_one
from mmseg_wce.kernels.cpu.jit import exact_function

__all__ = ['logits_at', 'losses_of', 'softmax_in_place']


@exact_function
def _weighted(a, b, weight_a, weight_b):
    """a weight_a + b weight_b, where a neighbour of weight 0 does not count: 0 * inf is NaN."""
    if weight_b == 0:
        return a * weight_a
    if weight_a == 0:
        return b * weight_b
    return a * weight_a + b * weight_b


@exact_function
def logits_at(logits, axes, n, i, r, k, z):
    """Interpolate all classes at column k of output row r, which lies in row i of the cells, in float64.

    In the order of F.interpolate: along the row, then down. A class at -inf is -inf wherever it has a weight.

    Args:
        z: (C,), float64, overwritten.

    Returns:
        The maximum; NaN where there is one.
    """
    cell, down, along = axes.cell[k], axes.row_fraction[r], axes.column_fraction[k]
    top, low = max(i - 1, 0), min(i, axes.start.shape[0] - 3)
    left, right = max(cell - 1, 0), min(cell, axes.width - 1)
    peak = -np.inf
    for c in range(z.shape[0]):
        above = _weighted(read_one(logits, n, c, top, left), read_one(logits, n, c, top, right), 1 - along, along)
        below = _weighted(read_one(logits, n, c, low, left), read_one(logits, n, c, low, right), 1 - along, along)
        z[c] = _weighted(above, below, 1 - down, down)
        if not z[c] <= peak:
            peak = z[c]
    return peak


@exact_function
def losses_of(z, peak, label, smoothing_weight):
    """Return nll, smooth, whether the label is the arg-max (the lowest class at a tie), and sum exp(z - peak)."""
    total = 0.0
    correct = True
    for c in range(z.shape[0]):
        total += math.exp(z[c] - peak)
        correct &= z[c] < z[label] or (z[c] == z[label] and c >= label)
    log_sum = math.log(total)
    smooth = 0.0
    for c in range(smoothing_weight.shape[0]):
        if smoothing_weight[c] != 0:  # 0 * -inf of a masked class would be NaN
            smooth += smoothing_weight[c] * (log_sum + (peak - z[c]))
    # the maximum is not added to the logarithm first, which would vanish beside 1e30
    return log_sum + (peak - z[label]), smooth, correct, total


@exact_function
def softmax_in_place(z, peak):
    """Replace logits by probabilities."""
    total = 0.0
    for c in range(z.shape[0]):
        z[c] = math.exp(z[c] - peak)
        total += z[c]
    for c in range(z.shape[0]):
        z[c] /= total
