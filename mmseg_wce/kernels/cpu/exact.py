"""One pixel in float64, from logits as they are: where float32 and a shift by the maxima of the input pixels fail.

They do between neighbours that disagree so much that every class lies far below those maxima, where a loss is so large
that its class may be at -inf, where the label's class and another one nearly tie, and beside NaN and inf.
"""

from __future__ import annotations

import math

import numpy as np
from mmseg_wce.kernels.cpu.input_rows import read_one
from mmseg_wce.kernels.cpu.jit import exact_function

__all__ = ['is_greatest', 'is_greatest_resized', 'logits_at', 'losses_of', 'softmax_in_place']


@exact_function
def _weighted(a, b, weight_a, weight_b):
    """a weight_a + b weight_b, where a neighbour of weight 0 does not count: 0 * inf is NaN."""
    if weight_b == 0:
        return a * weight_a
    if weight_a == 0:
        return b * weight_b
    return a * weight_a + b * weight_b


@exact_function
def _corners(axes, i, r, k):
    """Rows and columns of the input pixels around column k of output row r, which lies in row i of the cells."""
    top, low = max(i - 1, 0), min(i, axes.start.shape[0] - 3)
    left, right = max(axes.cell[k] - 1, 0), min(axes.cell[k], axes.width - 1)
    return top, low, left, right, axes.row_fraction[r], axes.column_fraction[k]


@exact_function
def _logit_at(logits, n, c, corners):
    """Interpolate one class in float64, in the order of F.interpolate: along the row, then down."""
    top, low, left, right, down, along = corners
    above = _weighted(read_one(logits, n, c, top, left), read_one(logits, n, c, top, right), 1 - along, along)
    below = _weighted(read_one(logits, n, c, low, left), read_one(logits, n, c, low, right), 1 - along, along)
    return _weighted(above, below, 1 - down, down)


@exact_function
def logits_at(logits, axes, n, i, r, k, z):
    """Interpolate all classes at column k of output row r, which lies in row i of the cells.

    A class at -inf is -inf wherever it has a weight.

    Args:
        z: (C,), float64, overwritten.

    Returns:
        The maximum; NaN where there is one.
    """
    corners, peak = _corners(axes, i, r, k), -np.inf
    for c in range(z.shape[0]):
        z[c] = _logit_at(logits, n, c, corners)
        if not z[c] <= peak:
            peak = z[c]
    return peak


@exact_function
def _loses(own, label, other, c):
    """If class c, with the logit ``other``, is the arg-max rather than the label: the lowest class at a tie."""
    return not (other < own or (other == own and c >= label))


@exact_function
def is_greatest_resized(logits, axes, n, i, r, k, label, classes):
    """Return if the label is the arg-max at a pixel, as :func:`logits_at` counts them."""
    corners = _corners(axes, i, r, k)
    own = _logit_at(logits, n, label, corners)
    c = 0
    while c < classes and not _loses(own, label, _logit_at(logits, n, c, corners), c):
        c += 1
    return c == classes


@exact_function
def is_greatest(logits, n, i, j, label, classes):
    """Return if the label is the arg-max at a pixel of logits that are not resized."""
    own = read_one(logits, n, label, i, j)
    c = 0
    while c < classes and not _loses(own, label, read_one(logits, n, c, i, j), c):
        c += 1
    return c == classes


@exact_function
def losses_of(z, peak, label, smoothing_weight):
    """Return nll, smooth and sum exp(z - peak)."""
    total = 0.0
    for c in range(z.shape[0]):
        total += math.exp(z[c] - peak)
    log_sum = math.log(total)
    smooth = 0.0
    for c in range(smoothing_weight.shape[0]):
        if smoothing_weight[c] != 0:  # 0 * -inf of a masked class would be NaN
            smooth += smoothing_weight[c] * (log_sum + (peak - z[c]))
    # the maximum is not added to the logarithm first, which would vanish beside 1e30
    return log_sum + (peak - z[label]), smooth, total


@exact_function
def softmax_in_place(z, peak):
    """Replace logits by probabilities."""
    total = 0.0
    for c in range(z.shape[0]):
        z[c] = math.exp(z[c] - peak)
        total += z[c]
    for c in range(z.shape[0]):
        z[c] /= total
