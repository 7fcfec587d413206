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

# Their exponentials vanish beside 1 in float64, and in float32: most are left out, since they take most of the time.
_NOTHING_BESIDE_ONE, _NOTHING_IN_FLOAT32 = -40.0, -110.0


@exact_function
def _weighted(a, b, weight_a, weight_b):
    """a weight_a + b weight_b, where a neighbour of weight 0 does not count: 0 * inf is NaN."""
    if weight_b == 0:
        return a * weight_a
    if weight_a == 0:
        return b * weight_b
    return a * weight_a + b * weight_b


@exact_function
def _logit_at(top, low, axes, r, k, c):
    """Interpolate one class in the order of F.interpolate: along the row, then down; without what has no weight."""
    left, right = axes.slot[k, 1], axes.slot[k, 1] + axes.shift
    down, along = axes.row_fraction[r], axes.column_fraction[k]
    above = _weighted(np.float64(top[c, left]), np.float64(top[c, right]), 1 - along, along)
    below = _weighted(np.float64(low[c, left]), np.float64(low[c, right]), 1 - along, along)
    return _weighted(above, below, 1 - down, down)


@exact_function
def logits_at(top, low, axes, r, k, z):
    """Interpolate all classes at column k of output row r.

    A class at -inf is -inf wherever it has a weight.

    Args:
        top: (C, P), the input row above, as it is.
        low: (C, P), the one below.
        z: (C,), float64, overwritten.

    Returns:
        The maximum, for finite numbers and -inf; anything beside NaN, which :func:`losses_of` meets again.
    """
    peak = -np.inf
    for c in range(z.shape[0]):
        z[c] = _logit_at(top, low, axes, r, k, c)
        if not z[c] <= peak:
            peak = z[c]
    return peak


@exact_function
def _is_beaten(own, label, other, c):
    """Return if the label is not the arg-max, since class c is greater, lower at a tie, or one of both is NaN."""
    return not (other < own or (other == own and c >= label))


@exact_function
def is_greatest_resized(top, low, axes, r, k, label):
    """Return if the label is the arg-max at a pixel, as :func:`logits_at` counts them."""
    own, c = _logit_at(top, low, axes, r, k, label), 0
    while c < top.shape[0] and not _is_beaten(own, label, _logit_at(top, low, axes, r, k, c), c):
        c += 1
    return c == top.shape[0]


@exact_function
def is_greatest(logits, n, i, j, label, classes):
    """Return if the label is the arg-max at a pixel of logits that are not resized."""
    own, c = read_one(logits, n, label, i, j), 0
    while c < classes and not _is_beaten(own, label, read_one(logits, n, c, i, j), c):
        c += 1
    return c == classes


@exact_function
def losses_of(z, peak, label, smoothing_weight):
    """Return nll, smooth and sum exp(z - peak)."""
    total = 0.0
    for c in range(z.shape[0]):
        if not z[c] - peak <= _NOTHING_BESIDE_ONE:  # NaN is added
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
        z[c] = 0.0 if z[c] - peak <= _NOTHING_IN_FLOAT32 else math.exp(z[c] - peak)
        total += z[c]
    for c in range(z.shape[0]):
        z[c] /= total
