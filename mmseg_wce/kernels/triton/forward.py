"""Triton kernels of the forward: loss and accuracy of every pixel, without full-size logits.

Every kernel loops over the classes, so a thread keeps the sums of its pixels in registers. Logits are in the units of
:mod:`mmseg_wce.kernels.units`, relative to the maximum of each input pixel. Where neighbouring input pixels differ so
much that this loses digits, :func:`measure_in_float64` computes output pixels again in float64, from the logits without
that shift and relative to an origin per output pixel.

``log_sums`` is the log2 of the sum of 2^z. Some values of it have a meaning:

* infinity: the label is not valid, so the pixel counts for nothing;
* -infinity: :func:`measure_in_float64` computes the pixel, and writes its ``origins`` and ``fine_log_sums``;
* NaN: the pixel counts for nothing, and lies in a block that must not be differentiated by progressions.

``flag`` is not zero if one of the last two occurs, so that programs without work return at once.
"""

import triton
import triton.language as tl
from mmseg_wce.kernels.triton.blocks import DOWNSCALE, block_exponentials, block_is_safe, first_in_cell
from mmseg_wce.kernels.triton.compiling import kernel
from mmseg_wce.kernels.triton.coordinates import (
    first_pixel,
    is_within,
    locate,
    neighbours,
    to_fraction,
    to_fraction_float64,
)
from mmseg_wce.kernels.triton.interpolation import (
    INF,
    LOG2_E,
    MASKED,
    bilinear,
    bilinear_float64,
    corner_offsets,
    lerp,
    load_corners,
    load_maxima,
    masked,
)
from mmseg_wce.kernels.triton.pixels import load_labels, log2_of_sum, store_maps, zeros
from mmseg_wce.kernels.units import LARGEST_LOSS, SMALLEST_SUM

_LIMIT, _SMALLEST_SUM = tl.constexpr(LARGEST_LOSS), tl.constexpr(SMALLEST_SUM)


@kernel
def find_maxima(
    logits, max_logit, flag, channels, height, width, stride_n, stride_c, stride_h, stride_w,
    CLASSES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write the largest logit of every input pixel, NaN if one is NaN, and clear the flag."""
    tiles, program = tl.cdiv(height * width, LANES), tl.program_id(0)
    n, index = (program // tiles).to(tl.int64), program % tiles * LANES + tl.arange(0, LANES)
    mask = index < height * width
    index = tl.where(mask, index, 0)
    logits += n * stride_n + (index // width).to(tl.int64) * stride_h + (index % width).to(tl.int64) * stride_w
    largest, has_nan = tl.full([LANES], -INF, tl.float32), index < 0
    for _ in tl.range(0, channels, loop_unroll_factor=CLASSES):
        logit = tl.load(logits).to(tl.float32)
        logits += stride_c
        largest, has_nan = tl.maximum(largest, logit), has_nan | (logit != logit)
    tl.store(max_logit + n * height * width + index, tl.where(has_nan, float('nan'), largest), mask=mask)
    if program == 0:
        tl.store(flag, 0.0)


@triton.jit
def _add_class(sums, best, argmax, powers, k, NUMBER: tl.constexpr):
    """Add the powers of class k to the sums of some pixels; keep the lowest class with the largest power."""
    new_sums, new_best, new_argmax = (), (), ()
    for i in tl.static_range(NUMBER):
        is_larger = powers[i] > best[i]
        new_sums = new_sums + (sums[i] + powers[i],)
        new_best = new_best + (tl.where(is_larger, powers[i], best[i]),)
        new_argmax = new_argmax + (tl.where(is_larger, k, argmax[i]),)
    return new_sums, new_best, new_argmax


@triton.jit
def _add_weighted(sums, values, weight):
    return (
        sums[0] + weight * values[0],
        sums[1] + weight * values[1],
        sums[2] + weight * values[2],
        sums[3] + weight * values[3],
    )


@kernel
def measure_blocks(
    logits, max_logit, target, smoothing_weight, smoothing_sum, nll, smooth, correct, log_sums, flag,
    ignore_index, channels, height, width, tiles, stride_n, stride_c, stride_h, stride_w,
    SCALE: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_H: tl.constexpr,
    SMOOTHING: tl.constexpr, WIDE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write the maps for an integer scale. A thread owns a block of pixels; the blocks of an image are numbered."""
    columns, rows = (width + 1) * (SCALE // BLOCK_W), (height + 1) * (SCALE // BLOCK_H)
    n, index = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * LANES + tl.arange(0, LANES)
    column, row = index % columns, tl.minimum(index // columns, rows - 1)
    cell_x, cell_y = column // (SCALE // BLOCK_W), row // (SCALE // BLOCK_H)
    left, right = neighbours(cell_x, width)
    above, below = neighbours(cell_y, height)
    logits, max_logit = logits + n * stride_n, max_logit + n * height * width
    offsets = corner_offsets(above, below, left, right, stride_h, stride_w, WIDE)
    maxima = load_maxima(max_logit, above, below, left, right, width, WIDE)

    x_begin, y_begin = column * BLOCK_W - (SCALE + 1) // 2, row * BLOCK_H - (SCALE + 1) // 2
    x_first, y_first = first_in_cell(x_begin, cell_x, SCALE, BLOCK_W), first_in_cell(y_begin, cell_y, SCALE, BLOCK_H)
    PIXELS: tl.constexpr = BLOCK_W * BLOCK_H
    sums, best = zeros(PIXELS, LANES), zeros(PIXELS, LANES)
    argmax = zeros(PIXELS, LANES, tl.int32)
    corner_means = zeros(4, LANES)
    worst_x, worst_y = tl.zeros([LANES], tl.float32), tl.zeros([LANES], tl.float32)
    class_ptr = logits
    for k in range(channels):
        corners = masked(load_corners(class_ptr, offsets, maxima))
        class_ptr += stride_c
        powers = block_exponentials(corners, x_first, y_first, SCALE, BLOCK_W, BLOCK_H)
        sums, best, argmax = _add_class(sums, best, argmax, powers, k, PIXELS)
        worst_x = tl.maximum(worst_x, tl.abs(powers[PIXELS]))
        worst_y = tl.maximum(worst_y, tl.maximum(tl.abs(powers[PIXELS + 1]), tl.abs(powers[PIXELS + 2])))
        if SMOOTHING:
            corner_means = _add_weighted(corner_means, corners, tl.load(smoothing_weight + k))

    is_safe = block_is_safe(worst_x, worst_y, BLOCK_W, BLOCK_H)
    image = n * height * width * SCALE * SCALE
    nll, correct, target = nll + image, correct + image, target + image
    log_sums += image
    if SMOOTHING:
        smooth += image
    if WIDE:
        x_begin, y_begin = x_begin.to(tl.int64), y_begin.to(tl.int64)
    is_flagged = index < 0
    for i in tl.static_range(PIXELS):
        x, y = x_begin + i % BLOCK_W, y_begin + i // BLOCK_W
        mask = (index < columns * rows) & is_within(x, SCALE * width) & is_within(y, SCALE * height)
        pixel = y * (width * SCALE) + x
        is_counted, valid, label = load_labels(target, pixel, mask, ignore_index, channels)
        x_fraction, y_fraction = (x_first + i % BLOCK_W) * (1.0 / SCALE), (y_first + i // BLOCK_W) * (1.0 / SCALE)
        corners = load_corners(logits + label.to(tl.int64) * stride_c, offsets, maxima)
        label_logit, mean = bilinear(corners, x_fraction, y_fraction), 0.0
        sum_exp = sums[i] * DOWNSCALE
        # not <, because interpolating -inf may give NaN
        needs_float64 = (is_safe == 0) | (sum_exp < _SMALLEST_SUM) | ((label_logit >= -_LIMIT) == 0)
        if SMOOTHING:
            mean = bilinear(corner_means, x_fraction, y_fraction)
            needs_float64 |= mean < -_LIMIT
        log2_sum_exp = log2_of_sum(sum_exp)
        store_maps(
            nll, smooth, correct, pixel, mask, is_counted, valid, log2_sum_exp, label_logit, argmax[i] == label, mean,
            smoothing_sum, SMOOTHING,
        )  # fmt: skip
        log2_sum_exp = tl.where(needs_float64, -INF, log2_sum_exp)
        uncounted = tl.where(is_safe, INF, float('nan'))
        tl.store(log_sums + pixel, tl.where(valid, log2_sum_exp, uncounted), mask=mask)
        is_flagged |= mask & needs_float64 & (valid | (is_safe == 0))
    tl.store(flag + index * 0, 1.0, mask=is_flagged)


@kernel
def measure_resized(
    logits, max_logit, target, smoothing_weight, smoothing_sum, nll, smooth, correct, log_sums, flag,
    ignore_index, channels, height, width, H, W, tiles, stride_n, stride_c, stride_h, stride_w,
    row_step, row_shift, row_denominator, row_inverse, column_step, column_shift, column_denominator, column_inverse,
    SMOOTHING: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write the maps for any scale. A program owns the pixels of one row of cells in some columns."""
    x = tl.program_id(0) % tiles * LANES + tl.arange(0, LANES)
    cell_y, n = tl.program_id(0) // tiles % (height + 1), (tl.program_id(0) // tiles // (height + 1)).to(tl.int64)
    if WIDE:
        x, cell_y = x.to(tl.int64), cell_y.to(tl.int64)
    column_mask, begin = x < W, first_pixel(cell_y, row_step, row_shift, row_denominator, H)
    end = first_pixel(cell_y + 1, row_step, row_shift, row_denominator, H)
    cell_x, x_numerator = locate(tl.minimum(x, W - 1), column_step, column_shift, column_denominator)
    x_fraction = to_fraction(x_numerator, column_inverse)
    left, right = neighbours(cell_x, width)
    above, below = neighbours(cell_y, height)
    logits, max_logit = logits + n * stride_n, max_logit + n * height * width
    offsets = corner_offsets(above, below, left, right, stride_h, stride_w, WIDE)
    maxima = load_maxima(max_logit, above, below, left, right, width, WIDE)

    for first in range(begin, end, ROWS):
        y_fractions = ()
        for i in tl.static_range(ROWS):
            _, y_numerator = locate(first + i, row_step, row_shift, row_denominator)
            y_fractions = y_fractions + (to_fraction(y_numerator, row_inverse),)
        sums, best = zeros(ROWS, LANES), zeros(ROWS, LANES)
        argmax, corner_means = zeros(ROWS, LANES, tl.int32), zeros(4, LANES)
        class_ptr = logits
        for k in range(channels):
            corners = masked(load_corners(class_ptr, offsets, maxima))
            class_ptr += stride_c
            top, bottom = lerp(corners[0], corners[1], x_fraction), lerp(corners[2], corners[3], x_fraction)
            powers = ()
            for i in tl.static_range(ROWS):
                powers = powers + (tl.exp2(lerp(top, bottom, y_fractions[i])),)
            sums, best, argmax = _add_class(sums, best, argmax, powers, k, ROWS)
            if SMOOTHING:
                corner_means = _add_weighted(corner_means, corners, tl.load(smoothing_weight + k))
        for i in tl.static_range(ROWS):
            mask = column_mask & (first + i < end)
            pixel = (n * H + first + i) * W + x
            is_counted, valid, label = load_labels(target, pixel, mask, ignore_index, channels)
            corners = load_corners(logits + label.to(tl.int64) * stride_c, offsets, maxima)
            label_logit, mean = bilinear(corners, x_fraction, y_fractions[i]), 0.0
            needs_float64 = (sums[i] < _SMALLEST_SUM) | ((label_logit >= -_LIMIT) == 0)
            if SMOOTHING:
                mean = bilinear(corner_means, x_fraction, y_fractions[i])
                needs_float64 |= mean < -_LIMIT
            log2_sum_exp = log2_of_sum(sums[i])
            store_maps(
                nll, smooth, correct, pixel, mask, is_counted, valid, log2_sum_exp, label_logit, argmax[i] == label,
                mean, smoothing_sum, SMOOTHING,
            )  # fmt: skip
            log2_sum_exp = tl.where(valid, tl.where(needs_float64, -INF, log2_sum_exp), INF)
            tl.store(log_sums + pixel, log2_sum_exp, mask=mask)
            tl.store(flag + x * 0, 1.0, mask=mask & (log2_sum_exp == -INF))


@kernel
def measure_in_float64(
    logits, target, smoothing_weight, smoothing_sum, nll, smooth, correct, log_sums, origins, fine_log_sums, flag,
    channels, height, width, H, W, tiles, stride_n, stride_c, stride_h, stride_w,
    row_step, row_shift, row_denominator, row_inverse, column_step, column_shift, column_denominator, column_inverse,
    SMOOTHING: tl.constexpr, WIDE: tl.constexpr, PIXELS: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write the maps of the pixels of which another kernel left it to this one; usually there are none."""
    if tl.load(flag) == 0:
        return
    n, first = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * PIXELS
    for start in range(first, tl.minimum(first + PIXELS, H * W), LANES):
        index = start + tl.arange(0, LANES)
        if WIDE:
            index = index.to(tl.int64)
        pixel = n * H * W + index
        mask = tl.load(log_sums + pixel, mask=index < H * W, other=INF) == -INF
        if tl.max(mask.to(tl.int32), 0) > 0:
            index = tl.where(mask, index, 0)
            _measure_pixels_in_float64(
                logits + n * stride_n, target, smoothing_weight, smoothing_sum, nll, smooth, correct, origins,
                fine_log_sums, channels, height, width, index // W, index % W, n * H * W + index, mask,
                stride_c, stride_h, stride_w, row_step, row_shift, row_denominator, row_inverse,
                column_step, column_shift, column_denominator, column_inverse, SMOOTHING, LANES,
            )  # fmt: skip


@triton.jit
def _measure_pixels_in_float64(
    image, target, smoothing_weight, smoothing_sum, nll, smooth, correct, origins, fine_log_sums,
    channels, height, width, y, x, pixel, mask, stride_c, stride_h, stride_w,
    row_step, row_shift, row_denominator, row_inverse, column_step, column_shift, column_denominator, column_inverse,
    SMOOTHING: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write the maps of some pixels, their origins and sums."""
    cell_y, y_fraction = locate(y, row_step, row_shift, row_denominator)
    cell_x, x_fraction = locate(x, column_step, column_shift, column_denominator)
    y_fraction = to_fraction_float64(y_fraction, row_denominator, row_inverse)
    x_fraction = to_fraction_float64(x_fraction, column_denominator, column_inverse)
    left, right = neighbours(cell_x, width)
    above, below = neighbours(cell_y, height)
    offsets = corner_offsets(above, below, left, right, stride_h, stride_w, True)

    largest, argmax = tl.full([LANES], -INF, tl.float64), tl.zeros([LANES], tl.int32)
    class_ptr = image
    for k in range(channels):
        z = bilinear_float64(class_ptr, offsets, mask, x_fraction, y_fraction)
        class_ptr += stride_c
        is_larger = z > largest
        largest, argmax = tl.where(is_larger, z, largest), tl.where(is_larger, k, argmax)
    origin = largest.to(tl.float32)
    sum_exp, mean = tl.zeros([LANES], tl.float32), tl.zeros([LANES], tl.float32)
    class_ptr = image
    for k in range(channels):
        z = bilinear_float64(class_ptr, offsets, mask, x_fraction, y_fraction)
        class_ptr += stride_c
        z = (z - origin.to(tl.float64)).to(tl.float32)
        sum_exp += tl.exp2(z)
        if SMOOTHING:
            weight = tl.load(smoothing_weight + k)
            mean += tl.where(weight == 0, 0.0, weight * z)
    label = tl.load(target + pixel, mask=mask, other=0)
    label_logit = bilinear_float64(image + label.to(tl.int64) * stride_c, offsets, mask, x_fraction, y_fraction)
    label_logit = (label_logit - origin.to(tl.float64)).to(tl.float32)
    log2_sum_exp = tl.log2(sum_exp)
    is_correct = (argmax == label) & (sum_exp == sum_exp)
    store_maps(
        nll, smooth, correct, pixel, mask, mask, mask, log2_sum_exp, label_logit, is_correct, mean, smoothing_sum,
        SMOOTHING,
    )  # fmt: skip
    tl.store(origins + pixel, origin, mask=mask)
    tl.store(fine_log_sums + pixel, log2_sum_exp, mask=mask)


@kernel
def measure_same_size(
    logits, max_logit, target, smoothing_weight, smoothing_sum, nll, smooth, correct, log_sums,
    ignore_index, channels, W, tiles, stride_n, stride_c, stride_w,
    SMOOTHING: tl.constexpr, CLASSES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write the maps, and the largest logit, of images of one row that are not resized. Reads the logits twice."""
    n, x = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * LANES + tl.arange(0, LANES)
    mask, lane = x < W, tl.arange(0, CLASSES)
    column = tl.where(mask, x, 0).to(tl.int64)
    logits += n * stride_n + column * stride_w
    first_ptr = logits[None, :] + (lane.to(tl.int64) * stride_c)[:, None]
    step = tl.cast(CLASSES, tl.int64) * stride_c

    largest, chunk = tl.full([CLASSES, LANES], -INF, tl.float32), tl.zeros([CLASSES, LANES], tl.int32)
    class_ptr = first_ptr
    for first in range(0, channels, CLASSES):
        logit = tl.load(class_ptr, mask=(first + lane < channels)[:, None], other=-INF).to(tl.float32)
        class_ptr += step
        is_larger = logit > largest
        largest, chunk = tl.where(is_larger, logit, largest), tl.where(is_larger, first, chunk)
    maximum = tl.max(largest, 0)
    argmax = tl.min(tl.where(largest == maximum[None, :], chunk + lane[:, None], channels), 0)

    sums, means = tl.zeros([CLASSES, LANES], tl.float32), tl.zeros([CLASSES, LANES], tl.float32)
    class_ptr = first_ptr
    for first in range(0, channels, CLASSES):
        logit = tl.load(class_ptr, mask=(first + lane < channels)[:, None], other=-INF).to(tl.float32)
        class_ptr += step
        z = (logit - maximum[None, :]) * LOG2_E
        sums += tl.exp2(tl.where(z < MASKED, MASKED, z))  # NaN stays NaN
        if SMOOTHING:
            weight = tl.load(smoothing_weight + first + lane, mask=first + lane < channels, other=0.0)[:, None]
            means += tl.where(weight == 0, 0.0, weight * z)
    is_counted, valid, label = load_labels(target, n * W + x, mask, ignore_index, channels)
    label_logit = (tl.load(logits + label.to(tl.int64) * stride_c).to(tl.float32) - maximum) * LOG2_E
    sum_exp = tl.sum(sums, 0)
    log2_sum_exp, is_correct = tl.log2(sum_exp), (argmax == label) & (sum_exp == sum_exp)
    store_maps(
        nll, smooth, correct, n * W + x, mask, is_counted, valid, log2_sum_exp, label_logit, is_correct,
        tl.sum(means, 0), smoothing_sum, SMOOTHING,
    )  # fmt: skip
    tl.store(log_sums + n * W + x, tl.where(valid, log2_sum_exp, INF), mask=mask)
    tl.store(max_logit + n * W + x, maximum, mask=mask)
