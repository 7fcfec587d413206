"""Triton kernels that add up the maps of a forward, and those that describe invalid labels.

Sums are made in a fixed order, so they have the same bits from run to run.
"""

import triton
import triton.language as tl
from mmseg_wce.kernels.triton.compiling import kernel
from mmseg_wce.kernels.triton.coordinates import is_within


@triton.jit
def _count(mask):
    return tl.sum(tl.where(mask, 1.0, 0.0), 0).to(tl.float64)  # exact, of a few thousand pixels


@kernel
def add_up(
    nll, smooth, correct, target, class_weight, partial_sums, ignore_index, channels, pixels, programs,
    SMOOTHING: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write six sums of some pixels: loss, smoothing term, weights; valid, correct and invalid pixels."""
    pixel = tl.program_id(0).to(tl.int64) * LANES + tl.arange(0, LANES)
    mask = pixel < pixels
    label = tl.load(target + pixel, mask=mask, other=ignore_index)
    is_counted = label != ignore_index
    valid = is_counted & is_within(label, channels)
    weight = tl.where(valid, 1.0, 0.0)
    if class_weight is not None:
        weight = tl.load(class_weight + label, mask=valid, other=0.0)
    loss = tl.load(nll + pixel, mask=mask, other=0.0)
    result = partial_sums + tl.program_id(0)
    # where(), because 0 * NaN is NaN; a weight of 0 does not hide a loss that is not finite
    tl.store(result, tl.sum(tl.where(valid, weight * loss, 0.0), 0).to(tl.float64))
    smooth_sum = 0.0
    if SMOOTHING:
        smooth_sum = tl.sum(tl.load(smooth + pixel, mask=valid, other=0.0), 0)
    tl.store(result + programs, smooth_sum.to(tl.float64))
    tl.store(result + 2 * programs, tl.sum(weight, 0).to(tl.float64))
    is_correct = tl.load(correct + pixel, mask=mask, other=0) != 0
    is_invalid = is_counted & (valid == 0)
    tl.store(result + 3 * programs, _count(valid))
    tl.store(result + 4 * programs, _count(is_correct))
    tl.store(result + 5 * programs, _count(is_invalid))


@kernel
def finish_sums(partial_sums, loss_sum, smooth_sum, counts, programs, LANES: tl.constexpr):
    """Add up what programs wrote, in float64: program i the i-th sum. Two are losses, four are counts."""
    which = tl.program_id(0)
    total = tl.zeros([LANES], tl.float64)
    for first in range(0, programs, LANES):
        index = first + tl.arange(0, LANES)
        total += tl.load(partial_sums + which * programs + index, mask=index < programs, other=0.0)
    result = tl.sum(total, 0)
    tl.store(loss_sum, result.to(tl.float32), mask=which == 0)
    tl.store(smooth_sum, result.to(tl.float32), mask=which == 1)
    tl.store(counts + which - 2, result, mask=which >= 2)


@kernel
def describe_labels(
    target, num_invalid, report, ignore_index, channels, pixels, BINS: tl.constexpr, LANES: tl.constexpr
):
    """Write a histogram of labels, the number of ignored ones, and position and value of the first invalid one.

    Bins are values below 0, each value up to 255, larger invalid ones, larger classes. A program counts one number, and
    without invalid labels none: then only the position, ``pixels``, is meaningful.
    """
    which = tl.program_id(0)
    count, first = tl.zeros([LANES], tl.int64), tl.full([LANES], 0, tl.int64) + pixels
    end = tl.where(tl.load(num_invalid) > 0, pixels, 0).to(tl.int64)
    for start in range(tl.zeros([], tl.int64), end, LANES):
        pixel = start + tl.arange(0, LANES)
        mask = pixel < pixels
        label = tl.load(target + pixel, mask=mask, other=0)
        is_invalid = (label != ignore_index) & (is_within(label, channels) == 0)
        large_bin = tl.where(is_invalid, BINS - 2, BINS - 1)
        bin = tl.where(label < 0, 0, tl.where(label < BINS - 3, label + 1, large_bin))
        is_wanted = tl.where(which < BINS, bin == which, label == ignore_index)
        count += (mask & is_wanted).to(tl.int64)
        first = tl.minimum(first, tl.where(mask & is_invalid, pixel, pixels))
    if which <= BINS:
        tl.store(report + which, tl.sum(count, 0))
    else:
        position = tl.min(first, 0)
        tl.store(report + which, position)
        tl.store(report + which + 1, tl.load(target + tl.minimum(position, pixels - 1)))
