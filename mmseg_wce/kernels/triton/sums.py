"""Triton kernels that add up the maps of a forward or the focal loss, and those that describe invalid labels.

Sums are made in a fixed order, so they have the same bits from run to run.
"""

import triton
import triton.language as tl
from mmseg_wce.kernels.triton.compiling import kernel
from mmseg_wce.kernels.triton.coordinates import is_within
from mmseg_wce.kernels.units import LOG2_E

_LOG2_E = tl.constexpr(LOG2_E)


@triton.jit(do_not_specialize=['programs', 'ignore_index'])  # threads load several neighbouring numbers at once
def add_up(
    nll, smooth, correct, target, class_weight, partial_sums, ignore_index, channels, pixels, programs,
    SMOOTHING: tl.constexpr, ROUNDS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write six sums of some pixels: loss, smoothing term, weights; valid, correct and invalid pixels."""
    losses, smooths, weights = (
        tl.zeros([LANES], tl.float32),
        tl.zeros([LANES], tl.float32),
        tl.zeros([LANES], tl.float32),
    )
    num_valid, num_correct, num_invalid = losses, losses, losses
    first = tl.program_id(0).to(tl.int64) * ROUNDS * LANES
    for i in range(ROUNDS):
        pixel = first + i * LANES + tl.arange(0, LANES)
        mask = pixel < pixels
        label = tl.load(target + pixel, mask=mask, other=ignore_index)
        is_counted, is_class = label != ignore_index, is_within(label, channels)
        valid = is_counted & is_class
        weight = tl.where(valid, 1.0, 0.0)
        num_valid += weight
        if class_weight is not None:
            weight = tl.load(class_weight + label, mask=valid, other=0.0)
        weights += weight
        # where(), because 0 * NaN is NaN; a weight of 0 does not hide a loss that is not finite
        losses += tl.where(valid, weight * tl.load(nll + pixel, mask=mask, other=0.0), 0.0)
        if SMOOTHING:
            smooths += tl.load(smooth + pixel, mask=valid, other=0.0)
        num_correct += tl.where(tl.load(correct + pixel, mask=mask, other=0) != 0, 1.0, 0.0)
        num_invalid += tl.where(is_counted & (is_class == 0), 1.0, 0.0)
    result = partial_sums + tl.program_id(0)
    tl.store(result, tl.sum(losses, 0).to(tl.float64))
    tl.store(result + programs, tl.sum(smooths, 0).to(tl.float64))
    tl.store(result + 2 * programs, tl.sum(weights, 0).to(tl.float64))
    # float32 counts some thousand pixels exactly
    tl.store(result + 3 * programs, tl.sum(num_valid, 0).to(tl.float64))
    tl.store(result + 4 * programs, tl.sum(num_correct, 0).to(tl.float64))
    tl.store(result + 5 * programs, tl.sum(num_invalid, 0).to(tl.float64))


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
def add_up_focal(
    nll, target, class_weight, slope, partial_sums, gamma, ignore_index, channels, pixels,
    ROUNDS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write the slopes of the weighted losses of some pixels, and the sum of the losses."""
    losses = tl.zeros([LANES], tl.float32)
    exponent = tl.load(gamma)
    first = tl.program_id(0).to(tl.int64) * ROUNDS * LANES
    for i in range(ROUNDS):
        pixel = first + i * LANES + tl.arange(0, LANES)
        mask = pixel < pixels
        label = tl.load(target + pixel, mask=mask, other=ignore_index)
        valid = (label != ignore_index) & is_within(label, channels)
        weight = tl.where(valid, 1.0, 0.0)
        if class_weight is not None:
            weight = tl.load(class_weight + label, mask=valid, other=0.0)
        loss = tl.load(nll + pixel, mask=valid, other=0.0)
        loss = tl.where(loss < 0, 0.0, loss)  # not maximum(), which drops NaN
        # below 1/4 a series for 1 - exp(-n): a difference would lose its digits
        series = 1 / 6 - loss * (1 / 24 - loss * (1 / 120 - loss / 720))
        series = loss * (1 - loss * (1 / 2 - loss * series))
        wrong = tl.where(loss < 0.25, series, 1 - tl.exp2(-loss * _LOG2_E))
        bounded = tl.where(wrong < 1.2e-38, 1.2e-38, wrong)
        power = tl.exp2(exponent * tl.log2(bounded))
        losses += weight * (power * loss)
        ratio = tl.where(loss > 100, 100.0, loss) / bounded  # exp(-100) is 0 beside 1
        result = weight * power * (1 + exponent * (1 - wrong) * ratio)
        tl.store(slope + pixel, tl.where(valid, result, 0.0), mask=mask)
    tl.store(partial_sums + tl.program_id(0), tl.sum(losses, 0).to(tl.float64))


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
