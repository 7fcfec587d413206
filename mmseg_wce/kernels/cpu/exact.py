"""Single pixels in float64 from the unshifted logits, where float32 and the subtraction of the maxima are inaccurate.

That is: where neighbouring input pixels differ so much that every class is far below the maxima, where the loss is so
large that the label's class may be at -inf, where the label's class nearly ties with another, and next to NaN and inf.
"""

from __future__ import annotations

import math

import numpy as np
from mmseg_wce.kernels.cpu.input_rows import read_one
from mmseg_wce.kernels.cpu.jit import exact_function

# Below these, exponentials vanish next to 1 in float64, and are 0 in float32. Skipping them saves most of the time.
_NEGLIGIBLE_IN_FLOAT64, _NEGLIGIBLE_IN_FLOAT32 = -40.0, -110.0


@exact_function
def _weighted_sum(a, b, weight_a, weight_b):
    """Return a weight_a + b weight_b, without a neighbour of weight 0: 0 * inf is NaN."""
    if weight_b == 0:
        return a * weight_a
    if weight_a == 0:
        return b * weight_b
    return a * weight_a + b * weight_b


@exact_function
def _resize_logit(top, bottom, axes, r, k, c):
    """Interpolate one class in the order of F.interpolate, columns before rows; skip neighbours of weight 0."""
    left, right = axes.phase_and_cell[k, 1], axes.phase_and_cell[k, 1] + axes.shift
    row_fraction, column_fraction = axes.row_fraction[r], axes.column_fraction[k]
    above = _weighted_sum(np.float64(top[c, left]), np.float64(top[c, right]), 1 - column_fraction, column_fraction)
    below = _weighted_sum(
        np.float64(bottom[c, left]), np.float64(bottom[c, right]), 1 - column_fraction, column_fraction
    )
    return _weighted_sum(above, below, 1 - row_fraction, row_fraction)


@exact_function
def resize_pixel(top, bottom, axes, r, k, z):
    """Interpolate all classes at column k of output row r.

    A class at -inf stays -inf wherever it has a weight.

    Args:
        top: (C, P), unshifted logits of the input row above.
        bottom: (C, P), those of the input row below.
        z: (C,), float64, overwritten.

    Returns:
        The maximum of finite numbers and -inf. Arbitrary if there is a NaN, which makes :func:`pixel_losses` NaN.
    """
    max_logit = -np.inf
    for c in range(z.shape[0]):
        z[c] = _resize_logit(top, bottom, axes, r, k, c)
        if not z[c] <= max_logit:
            max_logit = z[c]
    return max_logit


@exact_function
def _beats_label(label_logit, label, logit, c):
    """Return whether class c is larger than the label's, equal with a lower index, or one of both is NaN."""
    return not (logit < label_logit or (logit == label_logit and c >= label))


@exact_function
def is_argmax_resized(top, bottom, axes, r, k, label):
    """Return whether the label is the arg-max at column k of output row r, see :func:`resize_pixel`."""
    label_logit, c = _resize_logit(top, bottom, axes, r, k, label), 0
    while c < top.shape[0] and not _beats_label(label_logit, label, _resize_logit(top, bottom, axes, r, k, c), c):
        c += 1
    return c == top.shape[0]


@exact_function
def is_argmax(logits, n, i, j, label, classes):
    """Return whether the label is the arg-max at a pixel of logits that are not resized."""
    label_logit, c = read_one(logits, n, label, i, j), 0
    while c < classes and not _beats_label(label_logit, label, read_one(logits, n, c, i, j), c):
        c += 1
    return c == classes


@exact_function
def pixel_losses(z, max_logit, label, smoothing_weight):
    """Return nll, smooth and sum exp(z - max_logit)."""
    sum_exp = 0.0
    for c in range(z.shape[0]):
        if not z[c] - max_logit <= _NEGLIGIBLE_IN_FLOAT64:  # NaN is added
            sum_exp += math.exp(z[c] - max_logit)
    log_sum_exp = math.log(sum_exp)
    smooth = 0.0
    for c in range(smoothing_weight.shape[0]):
        if smoothing_weight[c] != 0:  # 0 * -inf of a masked class would be NaN
            smooth += smoothing_weight[c] * (log_sum_exp + (max_logit - z[c]))
    # in this order: adding a maximum of 1e30 to the logarithm first would lose the logarithm
    return log_sum_exp + (max_logit - z[label]), smooth, sum_exp


@exact_function
def softmax_in_place(z, max_logit):
    """Replace logits (C,) by their softmax."""
    sum_exp = 0.0
    for c in range(z.shape[0]):
        z[c] = 0.0 if z[c] - max_logit <= _NEGLIGIBLE_IN_FLOAT32 else math.exp(z[c] - max_logit)
        sum_exp += z[c]
    for c in range(z.shape[0]):
        z[c] /= sum_exp
