"""Loading and storing what belongs to output pixels, for the kernels."""

import triton
import triton.language as tl
from mmseg_wce.kernels.triton.coordinates import is_within
from mmseg_wce.kernels.triton.interpolation import INF, LN_2


@triton.jit
def zeros(NUMBER: tl.constexpr, LANES: tl.constexpr, dtype: tl.constexpr = tl.float32):
    """Return zeros for every lane, NUMBER of them."""
    zeros = ()
    for _ in tl.static_range(NUMBER):
        zeros = zeros + (tl.zeros([LANES], dtype),)
    return zeros


@triton.jit
def log2_of_sum(x):
    """Compute the logarithm of a positive, normal number with a relative error of 2e-7.

    tl.log2 takes twice as many instructions, most of them for numbers that a sum of exponentials cannot be. The
    polynomial approximates log2(1 + t) / t for 1 + t between sqrt(0.5) and sqrt(2), with the least relative error.
    """
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) & -0x800000  # of the nearest power of 2, in place
    t = (bits - exponent).to(tl.float32, bitcast=True) - 1
    value = 0.125837042927742
    value = value * t - 0.2072698175907135
    value = value * t + 0.21571563184261322
    value = value * t - 0.23894481360912323
    value = value * t + 0.28791624307632446
    value = value * t - 0.3607036769390106
    value = value * t + 0.48091062903404236
    value = value * t - 0.7213473320007324
    value = value * t + 1.4426950216293335
    return exponent.to(tl.float32) * (2.0**-23) + value * t


@triton.jit
def load_labels(target, pixel, mask, ignore_index, channels):
    """Load labels, and return which are not ignored, which are classes, and the latter, 0 elsewhere."""
    label = tl.load(target + pixel, mask=mask, other=ignore_index)
    is_counted = label != ignore_index
    valid = is_counted & is_within(label, channels)
    return is_counted, valid, tl.where(valid, label, 0).to(tl.int32)


@triton.jit
def store_maps(
    nll, smooth, correct, pixel, mask, is_counted, valid, log2_sum_exp, label_logit, is_correct, mean, smoothing_sum,
    SMOOTHING: tl.constexpr,
):  # fmt: skip
    """Write the maps of some pixels: 0 where ignored, NaN where the label is invalid."""
    loss = (log2_sum_exp - label_logit) * LN_2
    loss = tl.where(loss < 0, 0.0, loss)  # rounding error
    fill_value = tl.where(is_counted, float('nan'), 0.0)
    tl.store(nll + pixel, tl.where(valid, loss, fill_value), mask=mask)
    tl.store(correct + pixel, valid & is_correct, mask=mask)
    if SMOOTHING:
        loss = (log2_sum_exp * tl.load(smoothing_sum) - mean) * LN_2
        tl.store(smooth + pixel, tl.where(valid, loss, fill_value), mask=mask)


@triton.jit
def load_pixels(
    grad_nll, grad_smooth, grad_loss_sum, grad_smooth_sum, class_weight, target, log_sums, pixel, mask,
    SMOOTHING: tl.constexpr,
):  # fmt: skip
    """Load labels, log2_sum_exp and upstream gradients of some pixels, and whether they count.

    Of other pixels, log2_sum_exp is infinite, upstream gradients are zero, and labels mean nothing.
    """
    log2_sum_exp = tl.load(log_sums + pixel, mask=mask, other=INF)
    valid = log2_sum_exp != INF
    label = tl.load(target + pixel, mask=mask, other=0).to(tl.int32)
    upstream_nll, upstream_smooth = tl.zeros_like(log2_sum_exp), tl.zeros_like(log2_sum_exp)
    if grad_loss_sum is not None:
        upstream_nll += tl.load(grad_loss_sum)
        if class_weight is not None:
            # < and not valid: labels of pixels at NaN need not be classes
            upstream_nll *= tl.load(class_weight + label, mask=log2_sum_exp < INF, other=0.0)
    if grad_nll is not None:
        upstream_nll += tl.load(grad_nll + pixel, mask=valid, other=0.0)
    if SMOOTHING:
        if grad_smooth_sum is not None:
            upstream_smooth += tl.load(grad_smooth_sum)
        if grad_smooth is not None:
            upstream_smooth += tl.load(grad_smooth + pixel, mask=valid, other=0.0)
    # where(), because what comes from above may be infinite
    return label, valid, log2_sum_exp, tl.where(valid, upstream_nll, 0.0), tl.where(valid, upstream_smooth, 0.0)
