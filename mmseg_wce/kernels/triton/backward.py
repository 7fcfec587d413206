"""Triton kernels of the backward: the gradient of the logits, without atomics and without partial sums in memory.

A thread goes down a column of cells (see :mod:`mmseg_wce.kernels.bilinear` and :mod:`.strips`), computes the softmax of
their pixels again and adds up what they give to the four input pixels around them; the lower two it keeps in registers
for the next cell. Neighbouring threads exchange their left and right halves.
"""

import triton
import triton.language as tl
from mmseg_wce.kernels.triton.blocks import DOWNSCALE, UPSCALE, block_exponentials, first_in_cell
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
    bilinear_float64,
    corner_offsets,
    lerp,
    load_corners,
    load_maxima,
    masked,
)
from mmseg_wce.kernels.triton.pixels import load_pixels, zeros
from mmseg_wce.kernels.triton.strips import edge_fraction, locate_lane, store_row


@triton.jit
def _to_corners(values, x_fractions, y_fractions, BLOCK_W: tl.constexpr, BLOCK_H: tl.constexpr):
    """Add up pixels of a block, row by row, to the four input pixels around it."""
    total, lower = (), ()
    for i in tl.static_range(BLOCK_W):
        column, weighted = values[i], y_fractions[0] * values[i]
        for j in tl.static_range(1, BLOCK_H):
            column += values[j * BLOCK_W + i]
            weighted += y_fractions[j] * values[j * BLOCK_W + i]
        total, lower = total + (column,), lower + (weighted,)
    all_columns, all_lower = total[0], lower[0]
    right, lower_right = x_fractions[0] * total[0], x_fractions[0] * lower[0]
    for i in tl.static_range(1, BLOCK_W):
        all_columns += total[i]
        all_lower += lower[i]
        right += x_fractions[i] * total[i]
        lower_right += x_fractions[i] * lower[i]
    upper_right, lower_left = right - lower_right, all_lower - lower_right
    return all_columns - right - lower_left, upper_right, lower_left, lower_right


@triton.jit
def _load_block(
    grad_nll, grad_smooth, grad_loss_sum, grad_smooth_sum, class_weight, target, log_sums, smoothing_sum,
    x_begin, y_begin, W, H, BLOCK_W: tl.constexpr, BLOCK_H: tl.constexpr, SMOOTHING: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Load what the pixels of a block need, whatever the class.

    Returns:
        Labels; factors that turn 2^z into gradients; what a gradient gets for its label, and smoothing gradients, both
        times UPSCALE.
    """
    labels, scales, negatives, smooths = (), (), (), ()
    for i in tl.static_range(BLOCK_W * BLOCK_H):
        x, y = x_begin + i % BLOCK_W, y_begin + i // BLOCK_W
        mask = is_within(x, W) & is_within(y, H)
        if WIDE:
            y = y.to(tl.int64)
        label, _, log2_sum_exp, upstream_nll, upstream_smooth = load_pixels(
            grad_nll, grad_smooth, grad_loss_sum, grad_smooth_sum, class_weight, target, log_sums, y * W + x, mask,
            SMOOTHING,
        )  # fmt: skip
        labels, negatives = labels + (label,), negatives + (upstream_nll * -UPSCALE,)
        if SMOOTHING:
            upstream_nll += upstream_smooth * tl.load(smoothing_sum)
            smooths = smooths + (upstream_smooth * UPSCALE,)
        scales = scales + (upstream_nll * tl.exp2(-log2_sum_exp),)
    return labels, scales, negatives, smooths


@kernel
def differentiate_blocks(
    grad_nll, grad_smooth, grad_loss_sum, grad_smooth_sum, class_weight, logits, max_logit, target, log_sums,
    smoothing_weight, smoothing_sum, gradient, channels, height, width, chunks, strips, bands, band_rows,
    stride_n, stride_c, stride_h, stride_w, grad_stride_n, grad_stride_c, grad_stride_h, grad_stride_w,
    SCALE: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_H: tl.constexpr,
    SMOOTHING: tl.constexpr, WIDE: tl.constexpr, CLASSES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write the gradient for an integer scale, from exponentials in progressions.

    Wrong beside pixels that were left to float64: :func:`differentiate_cells` writes there once more.
    """
    COLUMNS: tl.constexpr = SCALE // BLOCK_W  # of blocks in a cell
    ROWS: tl.constexpr = SCALE // BLOCK_H
    PIXELS: tl.constexpr = BLOCK_W * BLOCK_H
    chunk, n, band, column, is_owner = locate_lane(
        tl.program_id(0), chunks, strips, (width + 1) * COLUMNS, bands, COLUMNS, LANES
    )
    first_class, cell_x = chunk * CLASSES, column // COLUMNS
    left, right = neighbours(cell_x, width)
    logits, max_logit, gradient = logits + n * stride_n, max_logit + n * height * width, gradient + n * grad_stride_n
    owned_column = tl.minimum(cell_x, width - 1)
    if WIDE:
        owned_column = owned_column.to(tl.int64)
    gradient += owned_column * grad_stride_w
    store_mask = is_owner & (cell_x < width) & (column % COLUMNS == 0)
    image = n * height * width * SCALE * SCALE
    target, log_sums = target + image, log_sums + image
    if grad_nll is not None:  # here, since functions of older versions of Triton cannot return None among others
        grad_nll += image
    if grad_smooth is not None:
        grad_smooth += image
    x_begin = column * BLOCK_W - (SCALE + 1) // 2
    x_first = first_in_cell(x_begin, cell_x, SCALE, BLOCK_W)
    x_fractions = ()
    for i in tl.static_range(BLOCK_W):
        x_fractions = x_fractions + (edge_fraction((x_first + i) * (1.0 / SCALE), cell_x, width),)

    above_row = zeros(2 * CLASSES, LANES)
    for step in range(band_rows + 1):
        cell_y = band * band_rows + step
        above, below = neighbours(tl.minimum(cell_y, height), height)
        offsets = corner_offsets(above, below, left, right, stride_h, stride_w, WIDE)
        maxima = load_maxima(max_logit, above, below, left, right, width, WIDE)
        sums = zeros(4 * CLASSES, LANES)
        for block_row in range(ROWS):
            y_begin = cell_y * SCALE + block_row * BLOCK_H - (SCALE + 1) // 2
            y_first = first_in_cell(y_begin, cell_y, SCALE, BLOCK_H)
            y_fractions = ()
            for i in tl.static_range(BLOCK_H):
                y_fractions = y_fractions + (edge_fraction((y_first + i) * (1.0 / SCALE), cell_y, height),)
            labels, scales, negatives, smooths = _load_block(
                grad_nll, grad_smooth, grad_loss_sum, grad_smooth_sum, class_weight, target, log_sums, smoothing_sum,
                x_begin, y_begin, SCALE * width, SCALE * height, BLOCK_W, BLOCK_H, SMOOTHING, WIDE,
            )  # fmt: skip
            if SMOOTHING:
                smooth_sums = _to_corners(smooths, x_fractions, y_fractions, BLOCK_W, BLOCK_H)
            new_sums = ()
            for k in tl.static_range(CLASSES):
                c = tl.minimum(first_class + k, channels - 1)
                corners = masked(load_corners(logits + c.to(tl.int64) * stride_c, offsets, maxima))
                powers = block_exponentials(corners, x_first, y_first, SCALE, BLOCK_W, BLOCK_H)
                values = ()
                for i in tl.static_range(PIXELS):
                    values = values + (powers[i] * scales[i] + tl.where(labels[i] == c, negatives[i], 0.0),)
                added = _to_corners(values, x_fractions, y_fractions, BLOCK_W, BLOCK_H)
                for i in tl.static_range(4):
                    value = added[i]
                    if SMOOTHING:
                        value -= smooth_sums[i] * tl.load(smoothing_weight + c)
                    new_sums = new_sums + (sums[4 * k + i] + value * DOWNSCALE,)
            sums = new_sums
        row = tl.minimum(tl.maximum(cell_y - 1, 0), height - 1)
        if WIDE:
            row = row.to(tl.int64)
        above_row = store_row(
            gradient, sums, above_row, first_class, channels, row,
            store_mask & (cell_y > band * band_rows) & (cell_y <= height), grad_stride_c, grad_stride_h,
            COLUMNS, CLASSES, LANES,
        )  # fmt: skip


@triton.jit
def _logit_gradient(
    z, c, label, valid, log2_sum_exp, upstream_nll, upstream_smooth, smoothing_weight, smoothing_sum,
    SMOOTHING: tl.constexpr,
):  # fmt: skip
    """Return the gradient of the logit z of class c.

    d nll / dz = softmax - one-hot, d smooth / dz = softmax * sum(w) - w.
    """
    softmax = tl.exp2(z - log2_sum_exp)
    # softmax - 1 before scaling keeps digits where softmax is nearly 1
    value = tl.where(label == c, softmax - 1, softmax) * upstream_nll
    if SMOOTHING:
        value += (softmax * tl.load(smoothing_sum) - tl.load(smoothing_weight + c)) * upstream_smooth
    return tl.where(valid, value, 0.0)  # not a product: 0 * NaN of an ignored pixel is NaN


@triton.jit
def _add_column(sums, column_sums, x_fraction, CLASSES: tl.constexpr):
    """Add the upper and lower sums of a column of pixels to the four of its cell, for every class."""
    new_sums = ()
    for k in tl.static_range(CLASSES):
        upper, lower = column_sums[2 * k], column_sums[2 * k + 1]
        new_sums = new_sums + (
            sums[4 * k] + (1 - x_fraction) * upper,
            sums[4 * k + 1] + x_fraction * upper,
            sums[4 * k + 2] + (1 - x_fraction) * lower,
            sums[4 * k + 3] + x_fraction * lower,
        )
    return new_sums


@triton.jit
def _is_needed(log_sums, x_begin, x_end, y_begin, y_end, W, rows, LANES: tl.constexpr):
    """Return whether a pixel was left to float64, or its block to kernels for any scale.

    Looks at some rows and columns of pixels, different ones in each lane.
    """
    found = tl.zeros([LANES], tl.int32)
    for i in range(rows):
        for j in range(tl.max(x_end - x_begin, 0)):
            y, x = y_begin + i, x_begin + j
            log2_sum_exp = tl.load(log_sums + y.to(tl.int64) * W + x, mask=(y < y_end) & (x < x_end), other=INF)
            found |= ((log2_sum_exp > -INF) == 0).to(tl.int32)  # -inf or NaN
    return tl.max(found, 0) > 0


@kernel
def differentiate_cells(
    grad_nll, grad_smooth, grad_loss_sum, grad_smooth_sum, class_weight, logits, max_logit, target, log_sums, origins,
    fine_log_sums, flag, smoothing_weight, smoothing_sum, gradient, channels, height, width, H, W, cell_rows,
    cell_columns, chunks, strips, bands, band_rows, stride_n, stride_c, stride_h, stride_w,
    grad_stride_n, grad_stride_c, grad_stride_h, grad_stride_w,
    row_step, row_shift, row_denominator, row_inverse, column_step, column_shift, column_denominator, column_inverse,
    SMOOTHING: tl.constexpr, FINE: tl.constexpr, WIDE: tl.constexpr, CLASSES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write the gradient for any scale.

    With FINE, only by programs with pixels that another kernel left to this one; their softmax is computed in float64.
    """
    if FINE:  # noqa: SIM102 (Triton computes both sides of an `and`)
        if tl.load(flag) == 0:
            return
    chunk, n, band, cell_x, is_owner = locate_lane(tl.program_id(0), chunks, strips, width + 1, bands, 1, LANES)
    first_class = chunk * CLASSES
    if WIDE:
        band, cell_x = band.to(tl.int64), cell_x.to(tl.int64)
    left, right = neighbours(cell_x, width)
    logits, max_logit, gradient = logits + n * stride_n, max_logit + n * height * width, gradient + n * grad_stride_n
    gradient += tl.minimum(cell_x, width - 1) * grad_stride_w
    x_begin = first_pixel(cell_x, column_step, column_shift, column_denominator, W)
    x_end = first_pixel(cell_x + 1, column_step, column_shift, column_denominator, W)
    if FINE:
        y_begin = first_pixel(band * band_rows, row_step, row_shift, row_denominator, H)
        y_end = first_pixel((band + 1) * band_rows + 1, row_step, row_shift, row_denominator, H)
        if not _is_needed(log_sums + n * H * W, x_begin, x_end, y_begin, y_end, W, cell_rows * (band_rows + 1), LANES):
            return

    above_row = zeros(2 * CLASSES, LANES)
    for step in range(band_rows + 1):
        cell_y = band * band_rows + step
        above, below = neighbours(tl.minimum(cell_y, height), height)
        offsets = corner_offsets(above, below, left, right, stride_h, stride_w, WIDE)
        maxima = load_maxima(max_logit, above, below, left, right, width, WIDE)
        y_begin = first_pixel(cell_y, row_step, row_shift, row_denominator, H)
        y_end = first_pixel(cell_y + 1, row_step, row_shift, row_denominator, H)
        corners = ()
        for k in tl.static_range(CLASSES):
            c = tl.minimum(first_class + k, channels - 1)
            corners = corners + masked(load_corners(logits + c.to(tl.int64) * stride_c, offsets, maxima))
        sums = zeros(4 * CLASSES, LANES)
        for j in range(cell_columns):
            x = x_begin + j
            _, x_numerator = locate(tl.minimum(x, W - 1), column_step, column_shift, column_denominator)
            x_fraction = to_fraction(x_numerator, column_inverse)
            ends = ()
            for k in tl.static_range(CLASSES):
                ends = ends + (
                    lerp(corners[4 * k], corners[4 * k + 1], x_fraction),
                    lerp(corners[4 * k + 2], corners[4 * k + 3], x_fraction),
                )
            column_sums = zeros(2 * CLASSES, LANES)
            for i in range(cell_rows):
                y = y_begin + i
                _, y_numerator = locate(tl.minimum(y, H - 1), row_step, row_shift, row_denominator)
                y_fraction = to_fraction(y_numerator, row_inverse)
                mask = (y < y_end) & (x < x_end)
                pixel = (n * H + y) * W + x
                label, valid, log2_sum_exp, upstream_nll, upstream_smooth = load_pixels(
                    grad_nll, grad_smooth, grad_loss_sum, grad_smooth_sum, class_weight, target, log_sums, pixel, mask,
                    SMOOTHING,
                )  # fmt: skip
                if FINE:
                    is_fine, valid = log2_sum_exp == -INF, valid & (log2_sum_exp == log2_sum_exp)
                    origin = tl.load(origins + pixel, mask=is_fine, other=0.0)
                    log2_sum_exp = tl.load(fine_log_sums + pixel, mask=is_fine, other=log2_sum_exp)
                    x_float64 = to_fraction_float64(x_numerator, column_denominator, column_inverse)
                    y_float64 = to_fraction_float64(y_numerator, row_denominator, row_inverse)
                weight, new_sums = edge_fraction(y_fraction, cell_y, height), ()
                for k in tl.static_range(CLASSES):
                    c = tl.minimum(first_class + k, channels - 1)
                    z = lerp(ends[2 * k], ends[2 * k + 1], y_fraction)
                    if FINE:
                        class_ptr = logits + c.to(tl.int64) * stride_c
                        z_float64 = bilinear_float64(class_ptr, offsets, is_fine, x_float64, y_float64)
                        z = tl.where(is_fine, (z_float64 - origin.to(tl.float64)).to(tl.float32), z)
                    value = _logit_gradient(
                        z, c, label, valid, log2_sum_exp, upstream_nll, upstream_smooth, smoothing_weight,
                        smoothing_sum, SMOOTHING,
                    )  # fmt: skip
                    new_sums = new_sums + (
                        column_sums[2 * k] + (1 - weight) * value,
                        column_sums[2 * k + 1] + weight * value,
                    )
                column_sums = new_sums
            sums = _add_column(sums, column_sums, edge_fraction(x_fraction, cell_x, width), CLASSES)
        row = tl.minimum(tl.maximum(cell_y - 1, 0), height - 1)
        above_row = store_row(
            gradient, sums, above_row, first_class, channels, row,
            is_owner & (cell_x < width) & (cell_y > band * band_rows) & (cell_y <= height),
            grad_stride_c, grad_stride_h, 1, CLASSES, LANES,
        )  # fmt: skip


@kernel
def differentiate_same_size(
    grad_nll, grad_smooth, grad_loss_sum, grad_smooth_sum, class_weight, logits, max_logit, target, log_sums,
    smoothing_weight, smoothing_sum, gradient, channels, W, tiles,
    stride_n, stride_c, stride_w, grad_stride_n, grad_stride_c, grad_stride_w,
    SMOOTHING: tl.constexpr, CLASSES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write the gradient of some pixels of images of one row that are not resized, for all classes."""
    n, x = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles * LANES + tl.arange(0, LANES)
    mask = x < W
    column = tl.where(mask, x, 0).to(tl.int64)
    label, valid, log2_sum_exp, upstream_nll, upstream_smooth = load_pixels(
        grad_nll, grad_smooth, grad_loss_sum, grad_smooth_sum, class_weight, target, log_sums, n * W + x, mask,
        SMOOTHING,
    )  # fmt: skip
    maximum = tl.load(max_logit + n * W + column)
    logits, gradient = logits + n * stride_n + column * stride_w, gradient + n * grad_stride_n + column * grad_stride_w
    for first in range(0, channels, CLASSES):
        k = first + tl.arange(0, CLASSES)
        class_offset, class_mask = k.to(tl.int64)[:, None], (k < channels)[:, None]
        logit = tl.load(logits[None, :] + class_offset * stride_c, mask=class_mask, other=-INF).to(tl.float32)
        z = (logit - maximum[None, :]) * LOG2_E
        softmax = tl.exp2(tl.where(z < MASKED, MASKED, z) - log2_sum_exp[None, :])
        value = tl.where(k[:, None] == label[None, :], softmax - 1, softmax) * upstream_nll[None, :]
        if SMOOTHING:
            weight = tl.load(smoothing_weight + k, mask=k < channels, other=0.0)
            value += (softmax * tl.load(smoothing_sum) - weight[:, None]) * upstream_smooth[None, :]
        value = tl.where(valid[None, :], value, 0.0)
        pointer = gradient[None, :] + class_offset * grad_stride_c
        tl.store(pointer, value.to(gradient.dtype.element_ty), mask=class_mask & mask[None, :])
