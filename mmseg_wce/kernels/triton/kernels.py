"""Triton kernels: deterministic, without atomics and without full-size logits.

A program of the forward owns the pixels of one row of cells (see :mod:`mmseg_wce.kernels.bilinear`) in some columns and
loops over all classes. A program of the backward owns a tile of input pixels for some classes and loops over their
cells from top to bottom: it computes the softmax of every pixel again, adds up the rows of a cell and reduces the
columns to input pixels in one matrix product. Cells at the border of a tile are computed by the neighbouring tile too.

Logits are in the units of :mod:`mmseg_wce.kernels.units`, relative to the maximum of each input pixel. Where
neighbouring input pixels differ so much that this loses digits, output pixels are computed again in float64, from the
logits without that shift and relative to an origin per output pixel. The forward stores this origin, which is infinite
elsewhere, and log2_sum_exp, the log2 of the sum of 2^z.
"""

import triton
import triton.language as tl
from mmseg_wce.kernels.triton.interpolation import (
    INF,
    LOG2_E,
    interpolate_float64,
    interpolate_row,
    lerp,
    load_row,
    subtract_max,
)
from mmseg_wce.kernels.units import LARGEST_LOSS, LN_2, SMALLEST_SUM

_LN_2, _LIMIT, _SMALLEST_SUM = tl.constexpr(LN_2), tl.constexpr(LARGEST_LOSS), tl.constexpr(SMALLEST_SUM)


@triton.jit
def _sweep_float64(
    logits, smoothing_weight, channels, above, below, left, right, x_fraction, y_fraction,
    stride_c, SMOOTHING: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Return origin, sum of 2^(z - origin), the lowest class with the largest z, and weighted sum of z - origin."""
    lane = tl.arange(0, CHANNELS)[:, None]
    largest = tl.full([CHANNELS, COLUMNS], -INF, tl.float64)
    chunk = tl.zeros([CHANNELS, COLUMNS], tl.int32)
    for c in range(0, channels, CHANNELS):
        mask, class_ptr = c + lane < channels, logits + (c + lane).to(tl.int64) * stride_c
        z = interpolate_float64(class_ptr, above, below, left, right, mask, x_fraction, y_fraction)
        larger = z > largest
        largest, chunk = tl.where(larger, z, largest), tl.where(larger, c, chunk)
    max_z = tl.max(largest, 0)
    argmax = tl.min(tl.where(largest == max_z[None, :], chunk + lane, channels), 0)

    origin = max_z.to(tl.float32)
    sum_exp = tl.zeros([CHANNELS, COLUMNS], tl.float32)
    means = tl.zeros([CHANNELS, COLUMNS], tl.float32)
    for c in range(0, channels, CHANNELS):
        mask, class_ptr = c + lane < channels, logits + (c + lane).to(tl.int64) * stride_c
        z = interpolate_float64(class_ptr, above, below, left, right, mask, x_fraction, y_fraction)
        z = (z - origin.to(tl.float64)[None, :]).to(tl.float32)
        sum_exp += tl.exp2(z)
        if SMOOTHING:
            weight = tl.load(smoothing_weight + c + lane, mask=mask, other=0.0)
            means += tl.where(weight == 0, 0.0, weight * z)
    return origin, tl.sum(sum_exp, 0), argmax, tl.sum(means, 0)


@triton.jit
def _sweep(
    logits, max_logit, smoothing_weight, channels, above, below, left, right, y_fraction, x_fraction, width,
    stride_c, stride_h, stride_w, RESIZED: tl.constexpr, SMOOTHING: tl.constexpr,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Return, for (rows, columns): sum of 2^z, the lowest class with the largest z, and weighted sum of z.

    Lanes of classes are combined at the end. Without RESIZED, ``left`` are the columns of the only row.
    """
    lane, step = tl.arange(0, CHANNELS), tl.cast(CHANNELS, tl.int64) * stride_c
    class_ptr = logits + lane[:, None].to(tl.int64) * stride_c
    above_left, above_right = above * stride_h + left * stride_w, above * stride_h + right * stride_w
    below_left, below_right = below * stride_h + left * stride_w, below * stride_h + right * stride_w
    above_left, above_right = class_ptr + above_left[None, :], class_ptr + above_right[None, :]
    below_left, below_right = class_ptr + below_left[None, :], class_ptr + below_right[None, :]
    max_above, max_below = max_logit + above * width, max_logit + below * width
    above_left_max, above_right_max = tl.load(max_above + left), tl.load(max_above + right)
    below_left_max, below_right_max = tl.load(max_below + left), tl.load(max_below + right)

    largest = tl.full([CHANNELS, ROWS, COLUMNS], -INF, tl.float32)
    chunk = tl.zeros([CHANNELS, ROWS, COLUMNS], tl.int32)
    sum_exp = tl.zeros([CHANNELS, ROWS, COLUMNS], tl.float32)
    means = tl.zeros([CHANNELS, ROWS, COLUMNS], tl.float32)
    for c in range(0, channels, CHANNELS):
        mask = (c + lane < channels)[:, None]
        if RESIZED:
            top = interpolate_row(above_left, above_right, mask, above_left_max, above_right_max, x_fraction)
            bottom = interpolate_row(below_left, below_right, mask, below_left_max, below_right_max, x_fraction)
            z = lerp(top[:, None, :], bottom[:, None, :], y_fraction[None, :, None])
            above_right += step
            below_left += step
            below_right += step
        else:
            raw = tl.load(above_left, mask=mask, other=-INF)
            z = subtract_max(raw, above_left_max[None, :])[:, None, :]
        above_left += step
        sum_exp += tl.exp2(z)
        larger = z > largest
        largest, chunk = tl.where(larger, z, largest), tl.where(larger, c, chunk)
        if SMOOTHING:
            weight = tl.load(smoothing_weight + c + lane, mask=c + lane < channels, other=0.0)[:, None, None]
            if not RESIZED:
                z = tl.where((raw == -INF)[:, None, :], -INF, z)
            means += tl.where(weight == 0, 0.0, weight * z)
    max_z = tl.max(largest, 0)
    argmax = tl.min(tl.where(largest == max_z[None], chunk + lane[:, None, None], channels), 0)
    return tl.sum(sum_exp, 0), argmax, tl.sum(means, 0)


@triton.jit
def measure(
    logits, max_logit, target, smoothing_weight, smoothing_sum,
    row_fraction, row_start, column_cell, column_fraction,
    nll, smooth, correct, origins, log_sums,
    ignore_index, channels, height, width, H, W, stride_n, stride_c, stride_h, stride_w,
    RESIZED: tl.constexpr, SMOOTHING: tl.constexpr,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the maps of the pixels in one row of cells. Pixels that need float64 get a finite origin."""
    num_tiles, program = tl.cdiv(W, COLUMNS), tl.program_id(0)
    x = (program % num_tiles).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    column_mask = x < W
    if RESIZED:
        cell = (program // num_tiles % (height + 1)).to(tl.int64)
        n = (program // num_tiles // (height + 1)).to(tl.int64)
        begin, end = tl.load(row_start + cell), tl.load(row_start + cell + 1)
        above, below = tl.maximum(cell - 1, 0), tl.minimum(cell, height - 1)
        column = tl.load(column_cell + x, mask=column_mask, other=0).to(tl.int64)
        x_fraction = tl.load(column_fraction + x, mask=column_mask, other=0.0)
        left, right = tl.maximum(column - 1, 0), tl.minimum(column, width - 1)
    else:
        n = (program // num_tiles).to(tl.int64)
        above = n * 0
        below, begin, end = above, 0, 1
        x_fraction = tl.zeros([COLUMNS], tl.float32)
        left = tl.where(column_mask, x, 0)
        right = left
    logits, max_logit = logits + n * stride_n, max_logit + n * height * width

    for first in range(begin, end, ROWS):
        y = first + tl.arange(0, ROWS)
        pixel_mask = (y < end)[:, None] & column_mask[None, :]
        y_fraction = tl.zeros([ROWS], tl.float32)
        if RESIZED:
            y_fraction = tl.load(row_fraction + y, mask=y < end, other=0.0)
        pixel = (n * H + y.to(tl.int64))[:, None] * W + x[None, :]
        label = tl.load(target + pixel, mask=pixel_mask, other=ignore_index)
        not_ignored = label != ignore_index
        valid = not_ignored & (label >= 0) & (label < channels)
        label = tl.where(valid, label, 0)

        # z is at most 0, so 2^z needs no running maximum
        sum_exp, argmax, mean = _sweep(
            logits, max_logit, smoothing_weight, channels, above, below, left, right, y_fraction, x_fraction, width,
            stride_c, stride_h, stride_w, RESIZED, SMOOTHING, CHANNELS, ROWS, COLUMNS,
        )  # fmt: skip
        log2_sum_exp, label_ptr = tl.log2(sum_exp), logits + label * stride_c
        if RESIZED:
            above_ptr, below_ptr = label_ptr + above * stride_h, label_ptr + below * stride_h
            max_above, max_below = max_logit + above * width, max_logit + below * width
            top = load_row(above_ptr, max_above, left, right, stride_w, pixel_mask, x_fraction)
            bottom = load_row(below_ptr, max_below, left, right, stride_w, pixel_mask, x_fraction)
            label_logit = lerp(top, bottom, y_fraction[:, None])
            needs_float64 = (sum_exp < _SMALLEST_SUM) | (label_logit < -_LIMIT) | (mean < -_LIMIT)
            tl.store(origins + pixel, tl.where(needs_float64 & valid, 0.0, INF), mask=pixel_mask)
        else:
            label_logit = tl.load(label_ptr + left[None, :] * stride_w).to(tl.float32)
            label_logit -= tl.load(max_logit + left)[None, :]
            label_logit *= LOG2_E  # not clipped at _MASKED
        loss = (log2_sum_exp - label_logit) * _LN_2
        loss = tl.where(loss < 0, 0.0, loss)  # rounding error
        fill_value = tl.where(not_ignored, float('nan'), 0.0)
        tl.store(nll + pixel, tl.where(valid, loss, fill_value), mask=pixel_mask)
        tl.store(log_sums + pixel, log2_sum_exp, mask=pixel_mask)
        tl.store(correct + pixel, valid & (argmax == label) & (log2_sum_exp == log2_sum_exp), mask=pixel_mask)
        if SMOOTHING:
            loss = (log2_sum_exp * tl.load(smoothing_sum) - mean) * _LN_2
            tl.store(smooth + pixel, tl.where(valid, loss, fill_value), mask=pixel_mask)


@triton.jit
def measure_finely(
    logits, target, smoothing_weight, smoothing_sum,
    row_fraction_float64, row_start, column_cell, column_fraction_float64,
    nll, smooth, correct, origins, log_sums,
    channels, height, width, H, W, stride_n, stride_c, stride_h, stride_w,
    SMOOTHING: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the maps of the pixels to which :func:`measure` gave a finite origin; usually there are none."""
    num_tiles, program = tl.cdiv(W, COLUMNS), tl.program_id(0)
    index = tl.arange(0, ROWS * COLUMNS)
    x = (program % num_tiles).to(tl.int64) * COLUMNS + index % COLUMNS
    cell, n = (program // num_tiles % (height + 1)).to(tl.int64), (program // num_tiles // (height + 1)).to(tl.int64)
    end = tl.load(row_start + cell + 1)
    for first in range(tl.load(row_start + cell), end, ROWS):
        y = first + index // COLUMNS
        pixel = (n * H + y) * W + x
        needs_float64 = tl.load(origins + pixel, mask=(x < W) & (y < end), other=INF) < INF
        if tl.max(needs_float64.to(tl.int32), 0) > 0:
            column = tl.load(column_cell + x, mask=needs_float64, other=0).to(tl.int64)
            x_fraction = tl.load(column_fraction_float64 + x, mask=needs_float64, other=0.0)[None, :]
            y_fraction = tl.load(row_fraction_float64 + y, mask=needs_float64, other=0.0)[None, :]
            left = (tl.maximum(column - 1, 0) * stride_w)[None, :]
            right = (tl.minimum(column, width - 1) * stride_w)[None, :]
            above, below = tl.maximum(cell - 1, 0) * stride_h, tl.minimum(cell, height - 1) * stride_h
            image = logits + n * stride_n
            origin, sum_exp, argmax, mean = _sweep_float64(
                image, smoothing_weight, channels, above, below, left, right, x_fraction, y_fraction,
                stride_c, SMOOTHING, CHANNELS, ROWS * COLUMNS,
            )  # fmt: skip
            log2_sum_exp, label = tl.log2(sum_exp), tl.load(target + pixel, mask=needs_float64, other=0)
            label_ptr, mask = image + (label * stride_c)[None, :], needs_float64[None, :]
            label_logit = interpolate_float64(label_ptr, above, below, left, right, mask, x_fraction, y_fraction)
            label_logit = tl.sum((label_logit - origin.to(tl.float64)[None, :]).to(tl.float32), 0)
            loss = (log2_sum_exp - label_logit) * _LN_2
            tl.store(nll + pixel, tl.where(loss < 0, 0.0, loss), mask=needs_float64)
            tl.store(correct + pixel, (argmax == label) & (log2_sum_exp == log2_sum_exp), mask=needs_float64)
            tl.store(origins + pixel, origin, mask=needs_float64)
            tl.store(log_sums + pixel, log2_sum_exp, mask=needs_float64)
            if SMOOTHING:
                tl.store(smooth + pixel, (log2_sum_exp * tl.load(smoothing_sum) - mean) * _LN_2, mask=needs_float64)


@triton.jit
def _load_pixels(
    grad_nll, grad_smooth, target, log_sums, pixel, pixel_mask, ignore_index, channels, SMOOTHING: tl.constexpr
):
    """Load labels, log2_sum_exp and upstream gradients of some pixels; zeros at labels that are not valid."""
    label = tl.load(target + pixel, mask=pixel_mask, other=ignore_index)
    valid = pixel_mask & (label != ignore_index) & (label >= 0) & (label < channels)
    log2_sum_exp = tl.load(log_sums + pixel, mask=valid, other=0.0)
    upstream_nll = tl.load(grad_nll + pixel, mask=valid, other=0.0)
    upstream_smooth = upstream_nll * 0.0
    if SMOOTHING:
        upstream_smooth = tl.load(grad_smooth + pixel, mask=valid, other=0.0)
    return label.to(tl.int32), valid, log2_sum_exp, upstream_nll, upstream_smooth


@triton.jit
def _logit_gradient(
    z, channel, channels, label, valid, log2_sum_exp, upstream_nll, upstream_smooth, smoothing_weight, smoothing_sum,
    SMOOTHING: tl.constexpr,
):  # fmt: skip
    """Return the gradient of logits (channels, columns).

    d nll / dz = softmax - one-hot, d smooth / dz = softmax * sum(w) - w.
    """
    is_label = channel[:, None] == label[None, :]
    softmax = tl.exp2(z - log2_sum_exp[None, :])
    # softmax - 1 before scaling keeps digits where softmax is nearly 1
    gradient = tl.where(is_label, softmax - 1, softmax) * upstream_nll[None, :]
    if SMOOTHING:
        weight = tl.load(smoothing_weight + channel, mask=channel < channels, other=0.0)
        gradient += (softmax * tl.load(smoothing_sum) - weight[:, None]) * upstream_smooth[None, :]
    return tl.where(valid[None, :], gradient, 0.0)  # not a product: 0 * NaN of an ignored pixel is NaN


@triton.jit
def _to_input_columns(pixels, weight, has_nonfinite, PRECISION: tl.constexpr, INPUT_COLUMNS: tl.constexpr):
    """Multiply (channels, columns) by (columns, input columns), without spreading NaN to input columns of weight 0."""
    if has_nonfinite:
        sums = tl.zeros([pixels.shape[0], INPUT_COLUMNS], tl.float32)
        input_column = tl.arange(0, INPUT_COLUMNS)
        for i in range(INPUT_COLUMNS):
            column_weight = tl.sum(tl.where((input_column == i)[None, :], weight, 0.0), 1)
            value = tl.sum(tl.where((column_weight != 0)[None, :], pixels * column_weight[None, :], 0.0), 1)
            sums = tl.where((input_column == i)[None, :], value[:, None], sums)
    else:
        sums = tl.dot(pixels, weight, input_precision=PRECISION)
    return sums


@triton.jit
def differentiate_resized(
    grad_nll, grad_smooth, logits, max_logit, target, origins, log_sums, smoothing_weight, smoothing_sum,
    row_fraction, row_start, column_cell, column_fraction, column_start, gradient,
    lowest_origin, row_fraction_float64, column_fraction_float64,
    ignore_index, channels, height, width, H, W, owned_columns, input_rows, stride_n, stride_c, stride_h, stride_w,
    SMOOTHING: tl.constexpr, FINE: tl.constexpr, PRECISION: tl.constexpr,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, INPUT_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the gradient of ``owned_columns`` input pixels in each of ``input_rows`` rows, for some classes.

    With FINE, only if a row of output pixels next to them has a finite origin; the gradient is then computed again.
    """
    program, num_chunks, num_tiles = tl.program_id(0), tl.cdiv(channels, CHANNELS), tl.cdiv(width, owned_columns)
    channel = program % num_chunks * CHANNELS + tl.arange(0, CHANNELS)
    program, channel_mask = program // num_chunks, (channel < channels)[:, None]
    first_column = program % num_tiles * owned_columns
    input_column, program = first_column + tl.arange(0, INPUT_COLUMNS), program // num_tiles
    num_bands = tl.cdiv(height, input_rows)
    first, n = program % num_bands * input_rows, (program // num_bands).to(tl.int64)
    last = tl.minimum(first + input_rows, height)
    x_begin = tl.load(column_start + first_column)
    x_end = tl.load(column_start + tl.minimum(first_column + owned_columns, width) + 1)
    logits, max_logit = logits + n * stride_n + channel[:, None].to(tl.int64) * stride_c, max_logit + n * height * width
    gradient += (n * channels + channel)[:, None] * height * width + input_column[None, :]
    store_mask = channel_mask & (input_column < tl.minimum(first_column + owned_columns, width))[None, :]
    if FINE:
        origin_of_rows = tl.full([], INF, tl.float32)
        for y in range(tl.load(row_start + first), tl.load(row_start + last + 1)):
            origin_of_rows = tl.minimum(origin_of_rows, tl.load(lowest_origin + n * H + y))
        last = tl.where(origin_of_rows < INF, last, first - 1)  # an empty range of rows

    grad_above = tl.zeros([CHANNELS, INPUT_COLUMNS], tl.float32)
    for cell in range(first, last + 1):  # between the input rows cell - 1 and cell
        grad_below = tl.zeros([CHANNELS, INPUT_COLUMNS], tl.float32)
        begin, end = tl.load(row_start + cell), tl.load(row_start + cell + 1)
        above, below = tl.maximum(cell - 1, 0).to(tl.int64), tl.minimum(cell, height - 1).to(tl.int64)
        above_ptr, below_ptr = logits + above * stride_h, logits + below * stride_h
        max_above, max_below = max_logit + above * width, max_logit + below * width
        for start in range(x_begin, tl.where(begin < end, x_end, x_begin), COLUMNS):
            x = start + tl.arange(0, COLUMNS)
            column_mask = x < x_end
            column = tl.load(column_cell + x, mask=column_mask, other=0)
            x_fraction = tl.load(column_fraction + x, mask=column_mask, other=0.0)
            left, right = tl.maximum(column - 1, 0), tl.minimum(column, width - 1)
            top = load_row(above_ptr, max_above, left, right, stride_w, channel_mask, x_fraction)
            bottom = load_row(below_ptr, max_below, left, right, stride_w, channel_mask, x_fraction)
            grad_top = tl.zeros([CHANNELS, COLUMNS], tl.float32)
            grad_bottom = tl.zeros([CHANNELS, COLUMNS], tl.float32)
            nonfinite = tl.zeros([COLUMNS], tl.float32)
            for y in range(begin, end):
                y_fraction = tl.load(row_fraction + y)
                pixel = (n * H + y) * W + x
                label, valid, log2_sum_exp, upstream_nll, upstream_smooth = _load_pixels(
                    grad_nll, grad_smooth, target, log_sums, pixel, column_mask, ignore_index, channels, SMOOTHING
                )
                nonfinite += (log2_sum_exp + upstream_nll + upstream_smooth) * 0.0
                z = lerp(top, bottom, y_fraction)
                if FINE:
                    origin = tl.load(origins + pixel, mask=valid, other=INF)[None, :]
                    z_float64 = interpolate_float64(
                        logits, above * stride_h, below * stride_h,
                        (left.to(tl.int64) * stride_w)[None, :], (right.to(tl.int64) * stride_w)[None, :], channel_mask,
                        tl.load(column_fraction_float64 + x, mask=column_mask, other=0.0)[None, :],
                        tl.load(row_fraction_float64 + y),
                    )  # fmt: skip
                    z = tl.where(origin < INF, (z_float64 - origin.to(tl.float64)).to(tl.float32), z)
                logit_gradient = _logit_gradient(
                    z, channel, channels, label, valid, log2_sum_exp, upstream_nll, upstream_smooth,
                    smoothing_weight, smoothing_sum, SMOOTHING,
                )  # fmt: skip
                grad_top += (1 - y_fraction) * logit_gradient
                grad_bottom += y_fraction * logit_gradient
            weight = tl.where(left[:, None] == input_column[None, :], 1 - x_fraction[:, None], 0.0)
            weight += tl.where(right[:, None] == input_column[None, :], x_fraction[:, None], 0.0)
            weight = tl.where(column_mask[:, None], weight, 0.0)
            has_nonfinite = tl.sum((nonfinite != 0).to(tl.int32), 0) > 0
            grad_above += _to_input_columns(grad_top, weight, has_nonfinite, PRECISION, INPUT_COLUMNS)
            grad_below += _to_input_columns(grad_bottom, weight, has_nonfinite, PRECISION, INPUT_COLUMNS)
        # input rows outside the image repeat its edge
        if cell == 0:
            grad_below += grad_above
        if cell == height:
            grad_above += grad_below
        if cell > first:
            tl.store(gradient + above * width, grad_above.to(gradient.dtype.element_ty), mask=store_mask)
        grad_above = grad_below


@triton.jit
def differentiate_same_size(
    grad_nll, grad_smooth, logits, max_logit, target, log_sums, smoothing_weight, smoothing_sum, gradient,
    ignore_index, channels, W, stride_n, stride_c, stride_w,
    SMOOTHING: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the gradient of some pixels, for all classes."""
    num_tiles, program = tl.cdiv(W, COLUMNS), tl.program_id(0)
    x, n = (program % num_tiles).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS), (program // num_tiles).to(tl.int64)
    pixel_mask = x < W
    column = tl.where(pixel_mask, x, 0)
    label, valid, log2_sum_exp, upstream_nll, upstream_smooth = _load_pixels(
        grad_nll, grad_smooth, target, log_sums, n * W + x, pixel_mask, ignore_index, channels, SMOOTHING
    )
    pixel_max = tl.load(max_logit + n * W + column)[None, :]
    for c in range(0, channels, CHANNELS):
        channel = c + tl.arange(0, CHANNELS)
        channel_mask, class_offset = (channel < channels)[:, None], channel[:, None].to(tl.int64)
        z = tl.load(
            logits + n * stride_n + class_offset * stride_c + column[None, :] * stride_w, mask=channel_mask, other=-INF
        )
        logit_gradient = _logit_gradient(
            subtract_max(z, pixel_max), channel, channels, label, valid, log2_sum_exp, upstream_nll, upstream_smooth,
            smoothing_weight, smoothing_sum, SMOOTHING,
        )  # fmt: skip
        output_ptr = gradient + (n * channels + class_offset) * W + x[None, :]
        tl.store(output_ptr, logit_gradient.to(gradient.dtype.element_ty), mask=channel_mask & pixel_mask[None, :])
