"""What runs on a GPU, in Triton's language: deterministic, without atomics, without full-size logits.

A program of the forward owns the pixels of one row of cells (see :mod:`mmseg_wce.kernels.bilinear`) in some columns and
goes over all classes. A program of the backward owns a tile of nodes for some classes and walks down their cells:
it computes the softmax of every pixel in them again, adds up the rows of a cell, and reduces their columns to nodes in
one matrix product. Cells on the rim of a tile are computed by its neighbours as well.

Logits are in the units of :mod:`mmseg_wce.kernels.units`, relative to the maximum of each node. Where neighbours
disagree so much that this loses digits, pixels are computed once more, finely: from logits as they are, in float64,
relative to an origin of their own. What is kept of a pixel is that origin, infinite where it has none, and log2 of the
sum of 2^z.
"""

import triton
import triton.language as tl
from mmseg_wce.kernels.units import LARGEST_LOSS, LN_2, LOG2_E, MASKED, SMALLEST_SUM

_LN_2, _LOG2_E, _INF = tl.constexpr(LN_2), tl.constexpr(LOG2_E), tl.constexpr(float('inf'))
_MASKED, _LIMIT = tl.constexpr(MASKED), tl.constexpr(LARGEST_LOSS)
# stays apart from every logit that float32 can hold
_MASKED_IN_FLOAT64, _SMALLEST_SUM = tl.constexpr(-1e300), tl.constexpr(SMALLEST_SUM)
# Beyond it float32 has no digits to lose: logits either tie exactly or lie far apart.
_LARGE = tl.constexpr(2.0**29)


@triton.jit
def _shifted(logit, peak):
    """Relative to the largest logit of its node, in units of log 2. NaN stays NaN."""
    z = (logit.to(tl.float32) - peak) * _LOG2_E
    return tl.where(z < _MASKED, _MASKED, z)


@triton.jit
def _mixed(a, b, share):
    """Not a + share * (b - a): next to a large one, the difference would cost a small number its digits."""
    return (1 - share) * a + share * b


@triton.jit
def _between(at_left, at_right, some, peak_left, peak_right, along):
    """A row of nodes, interpolated to columns of pixels: (channels, columns)."""
    left = _shifted(tl.load(at_left, mask=some, other=-_INF), peak_left[None, :])
    right = _shifted(tl.load(at_right, mask=some, other=-_INF), peak_right[None, :])
    return _mixed(left, right, along[None, :])


@triton.jit
def _fine(at, some):
    z = tl.load(at, mask=some, other=-_INF).to(tl.float64)
    return tl.where(z < _MASKED_IN_FLOAT64, _MASKED_IN_FLOAT64, z)


@triton.jit
def _interpolate_finely(above_left, above_right, below_left, below_right, some, along, down):
    """From pointers; -inf where a class is masked. An origin in float32 is then near enough that 2^z has a value."""
    left, right = _fine(above_left, some), _fine(above_right, some)
    top = _mixed(left, right, along)
    left, right = _fine(below_left, some), _fine(below_right, some)
    z = _mixed(top, _mixed(left, right, along), down) * _LOG2_E
    return tl.where(tl.abs(z) > _LARGE, z.to(tl.float32).to(tl.float64), z)


@triton.jit
def _sweep_finely(
    logits, smoothing_weight, channels, above_left, above_right, below_left, below_right, along, down, stride_c,
    SMOOTHING: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of some pixels: origin, sum of 2^(z - origin), the lowest class with the largest z, weighted z - origin."""
    lane = tl.arange(0, CHANNELS)[:, None]
    largest = tl.full([CHANNELS, COLUMNS], -_INF, tl.float64)
    chunk = tl.zeros([CHANNELS, COLUMNS], tl.int32)
    for c in range(0, channels, CHANNELS):
        some, at = c + lane < channels, logits + (c + lane).to(tl.int64) * stride_c
        z = _interpolate_finely(at + above_left, at + above_right, at + below_left, at + below_right, some, along, down)
        larger = z > largest
        largest, chunk = tl.where(larger, z, largest), tl.where(larger, c, chunk)
    peak = tl.max(largest, 0)
    winner = tl.min(tl.where(largest == peak[None, :], chunk + lane, channels), 0)

    origin = peak.to(tl.float32)
    sums = tl.zeros([CHANNELS, COLUMNS], tl.float32)
    means = tl.zeros([CHANNELS, COLUMNS], tl.float32)
    for c in range(0, channels, CHANNELS):
        some, at = c + lane < channels, logits + (c + lane).to(tl.int64) * stride_c
        z = _interpolate_finely(at + above_left, at + above_right, at + below_left, at + below_right, some, along, down)
        z = (z - origin.to(tl.float64)[None, :]).to(tl.float32)
        sums += tl.exp2(z)
        if SMOOTHING:
            weight = tl.load(smoothing_weight + c + lane, mask=some, other=0.0)
            means += tl.where(weight == 0, 0.0, weight * z)
    return origin, tl.sum(sums, 0), winner, tl.sum(means, 0)


@triton.jit
def _sweep(
    logits, peak, smoothing_weight, channels, above, below, left, right, down, along, width,
    stride_c, stride_h, stride_w, RESIZED: tl.constexpr, SMOOTHING: tl.constexpr,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Over the classes of (rows, columns): sum of 2^z, the lowest class with the largest z, weighted z.

    Each lane of classes keeps its own; they meet in the end. Without RESIZED, the one row's columns are ``left``.
    """
    lane, step = tl.arange(0, CHANNELS), tl.cast(CHANNELS, tl.int64) * stride_c
    at = logits + lane[:, None].to(tl.int64) * stride_c
    above_left, above_right = above * stride_h + left * stride_w, above * stride_h + right * stride_w
    below_left, below_right = below * stride_h + left * stride_w, below * stride_h + right * stride_w
    above_left, above_right = at + above_left[None, :], at + above_right[None, :]
    below_left, below_right = at + below_left[None, :], at + below_right[None, :]
    peak_above_left, peak_above_right = tl.load(peak + above * width + left), tl.load(peak + above * width + right)
    peak_below_left, peak_below_right = tl.load(peak + below * width + left), tl.load(peak + below * width + right)

    largest = tl.full([CHANNELS, ROWS, COLUMNS], -_INF, tl.float32)
    chunk = tl.zeros([CHANNELS, ROWS, COLUMNS], tl.int32)
    sums = tl.zeros([CHANNELS, ROWS, COLUMNS], tl.float32)
    means = tl.zeros([CHANNELS, ROWS, COLUMNS], tl.float32)
    for c in range(0, channels, CHANNELS):
        some = (c + lane < channels)[:, None]
        if RESIZED:
            top = _between(above_left, above_right, some, peak_above_left, peak_above_right, along)
            bottom = _between(below_left, below_right, some, peak_below_left, peak_below_right, along)
            z = _mixed(top[:, None, :], bottom[:, None, :], down[None, :, None])
            above_right += step
            below_left += step
            below_right += step
        else:
            raw = tl.load(above_left, mask=some, other=-_INF)
            z = _shifted(raw, peak_above_left[None, :])[:, None, :]
        above_left += step
        sums += tl.exp2(z)
        larger = z > largest
        largest, chunk = tl.where(larger, z, largest), tl.where(larger, c, chunk)
        if SMOOTHING:
            weight = tl.load(smoothing_weight + c + lane, mask=c + lane < channels, other=0.0)[:, None, None]
            if not RESIZED:
                z = tl.where((raw == -_INF)[:, None, :], -_INF, z)
            means += tl.where(weight == 0, 0.0, weight * z)
    peak_z = tl.max(largest, 0)
    winner = tl.min(tl.where(largest == peak_z[None], chunk + lane[:, None, None], channels), 0)
    return tl.sum(sums, 0), winner, tl.sum(means, 0)


@triton.jit
def measure(
    logits, peak, target, smoothing_weight, smoothing_sum,
    row_fraction, row_start, column_cell, column_fraction,
    nll, smooth, correct, origins, log_sums,
    ignore_index, channels, height, width, H, W, stride_n, stride_c, stride_h, stride_w,
    RESIZED: tl.constexpr, SMOOTHING: tl.constexpr,
    CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The maps of the pixels in one row of cells. Those that are to be computed finely get an origin that is finite."""
    tiles, program = tl.cdiv(W, COLUMNS), tl.program_id(0)
    x = (program % tiles).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    some_columns = x < W
    if RESIZED:
        cell, n = (program // tiles % (height + 1)).to(tl.int64), (program // tiles // (height + 1)).to(tl.int64)
        begin, end = tl.load(row_start + cell), tl.load(row_start + cell + 1)
        above, below = tl.maximum(cell - 1, 0), tl.minimum(cell, height - 1)
        column = tl.load(column_cell + x, mask=some_columns, other=0).to(tl.int64)
        along = tl.load(column_fraction + x, mask=some_columns, other=0.0)
        left, right = tl.maximum(column - 1, 0), tl.minimum(column, width - 1)
    else:
        n = (program // tiles).to(tl.int64)
        above = n * 0
        below, begin, end = above, 0, 1
        along = tl.zeros([COLUMNS], tl.float32)
        left = tl.where(some_columns, x, 0)
        right = left
    logits, peak = logits + n * stride_n, peak + n * height * width

    for first in range(begin, end, ROWS):
        y = first + tl.arange(0, ROWS)
        inside = (y < end)[:, None] & some_columns[None, :]
        down = tl.zeros([ROWS], tl.float32)
        if RESIZED:
            down = tl.load(row_fraction + y, mask=y < end, other=0.0)
        pixel = (n * H + y.to(tl.int64))[:, None] * W + x[None, :]
        label = tl.load(target + pixel, mask=inside, other=ignore_index)
        counted = label != ignore_index
        valid = counted & (label >= 0) & (label < channels)
        label = tl.where(valid, label, 0)

        # z is at most 0, so that 2^z needs no running maximum.
        sum_z, winner, mean = _sweep(
            logits, peak, smoothing_weight, channels, above, below, left, right, down, along, width,
            stride_c, stride_h, stride_w, RESIZED, SMOOTHING, CHANNELS, ROWS, COLUMNS,
        )  # fmt: skip
        lse, at = tl.log2(sum_z), logits + label * stride_c
        if RESIZED:
            above_left = tl.load(at + above * stride_h + left[None, :] * stride_w)
            above_right = tl.load(at + above * stride_h + right[None, :] * stride_w)
            below_left = tl.load(at + below * stride_h + left[None, :] * stride_w)
            below_right = tl.load(at + below * stride_h + right[None, :] * stride_w)
            a = _shifted(above_left, tl.load(peak + above * width + left)[None, :])
            b = _shifted(above_right, tl.load(peak + above * width + right)[None, :])
            top = _mixed(a, b, along[None, :])
            a = _shifted(below_left, tl.load(peak + below * width + left)[None, :])
            b = _shifted(below_right, tl.load(peak + below * width + right)[None, :])
            own = _mixed(top, _mixed(a, b, along[None, :]), down[:, None])
            far = (sum_z < _SMALLEST_SUM) | (own < -_LIMIT) | (mean < -_LIMIT)
            tl.store(origins + pixel, tl.where(far & valid, 0.0, _INF), mask=inside)
        else:
            own = tl.load(at + left[None, :] * stride_w).to(tl.float32) - tl.load(peak + left)[None, :]
            own *= _LOG2_E  # of any size
        loss = (lse - own) * _LN_2
        loss = tl.where(loss < 0, 0.0, loss)  # of rounding
        refused = tl.where(counted, float('nan'), 0.0)
        tl.store(nll + pixel, tl.where(valid, loss, refused), mask=inside)
        tl.store(log_sums + pixel, lse, mask=inside)
        tl.store(correct + pixel, valid & (winner == label) & (lse == lse), mask=inside)
        if SMOOTHING:
            loss = (lse * tl.load(smoothing_sum) - mean) * _LN_2
            tl.store(smooth + pixel, tl.where(valid, loss, refused), mask=inside)


@triton.jit
def measure_finely(
    logits, target, smoothing_weight, smoothing_sum,
    fine_row_fraction, row_start, column_cell, fine_column_fraction,
    nll, smooth, correct, origins, log_sums,
    channels, height, width, H, W, stride_n, stride_c, stride_h, stride_w,
    SMOOTHING: tl.constexpr, CHANNELS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The maps of those pixels that :func:`measure` has left to this: as a rule there are none."""
    tiles, program = tl.cdiv(W, COLUMNS), tl.program_id(0)
    place = tl.arange(0, ROWS * COLUMNS)
    x = (program % tiles).to(tl.int64) * COLUMNS + place % COLUMNS
    cell, n = (program // tiles % (height + 1)).to(tl.int64), (program // tiles // (height + 1)).to(tl.int64)
    end = tl.load(row_start + cell + 1)
    for first in range(tl.load(row_start + cell), end, ROWS):
        y = first + place // COLUMNS
        pixel = (n * H + y) * W + x
        far = tl.load(origins + pixel, mask=(x < W) & (y < end), other=_INF) < _INF
        if tl.max(far.to(tl.int32), 0) > 0:
            column = tl.load(column_cell + x, mask=far, other=0).to(tl.int64)
            along = tl.load(fine_column_fraction + x, mask=far, other=0.0)[None, :]
            down = tl.load(fine_row_fraction + y, mask=far, other=0.0)[None, :]
            left, right = tl.maximum(column - 1, 0) * stride_w, tl.minimum(column, width - 1) * stride_w
            above, below = tl.maximum(cell - 1, 0) * stride_h, tl.minimum(cell, height - 1) * stride_h
            above_left, above_right = (above + left)[None, :], (above + right)[None, :]
            below_left, below_right = (below + left)[None, :], (below + right)[None, :]
            image = logits + n * stride_n
            origin, sum_z, winner, mean = _sweep_finely(
                image, smoothing_weight, channels, above_left, above_right, below_left, below_right, along, down,
                stride_c, SMOOTHING, CHANNELS, ROWS * COLUMNS,
            )  # fmt: skip
            lse, label = tl.log2(sum_z), tl.load(target + pixel, mask=far, other=0)
            at, some = image + (label * stride_c)[None, :], far[None, :]
            own = _interpolate_finely(
                at + above_left, at + above_right, at + below_left, at + below_right, some, along, down
            )  # fmt: skip
            own = tl.sum((own - origin.to(tl.float64)[None, :]).to(tl.float32), 0)
            loss = (lse - own) * _LN_2
            tl.store(nll + pixel, tl.where(loss < 0, 0.0, loss), mask=far)
            tl.store(correct + pixel, (winner == label) & (lse == lse), mask=far)
            tl.store(origins + pixel, origin, mask=far)
            tl.store(log_sums + pixel, lse, mask=far)
            if SMOOTHING:
                tl.store(smooth + pixel, (lse * tl.load(smoothing_sum) - mean) * _LN_2, mask=far)


@triton.jit
def _of_pixels(grad_nll, grad_smooth, target, log_sums, pixel, inside, ignore_index, channels, SMOOTHING: tl.constexpr):
    """What the gradient of some pixels needs to know; nothing comes from labels that do not count."""
    label = tl.load(target + pixel, mask=inside, other=ignore_index)
    valid = inside & (label != ignore_index) & (label >= 0) & (label < channels)
    lse = tl.load(log_sums + pixel, mask=valid, other=0.0)
    of_nll = tl.load(grad_nll + pixel, mask=valid, other=0.0)
    of_smooth = of_nll * 0.0
    if SMOOTHING:
        of_smooth = tl.load(grad_smooth + pixel, mask=valid, other=0.0)
    return label.to(tl.int32), valid, lse, of_nll, of_smooth


@triton.jit
def _gradient(
    z, channel, channels, label, valid, lse, of_nll, of_smooth, smoothing_weight, smoothing_sum,
    SMOOTHING: tl.constexpr,
):  # fmt: skip
    """d nll / dz = softmax - one-hot;  d smooth / dz = softmax * sum(w) - w. Of logits (channels, columns)."""
    is_label = channel[:, None] == label[None, :]
    softmax = tl.exp2(z - lse[None, :])
    # softmax - 1 before scaling keeps digits where softmax is nearly 1
    gradient = tl.where(is_label, softmax - 1, softmax) * of_nll[None, :]
    if SMOOTHING:
        weight = tl.load(smoothing_weight + channel, mask=channel < channels, other=0.0)
        gradient += (softmax * tl.load(smoothing_sum) - weight[:, None]) * of_smooth[None, :]
    return tl.where(valid[None, :], gradient, 0.0)  # 0 * NaN of a logit under an ignored pixel


@triton.jit
def _to_nodes(pixels, weight, poisoned, PRECISION: tl.constexpr, NODES: tl.constexpr):
    """(channels, columns) x (columns, nodes). One NaN among the pixels would reach every node in a matrix product."""
    if poisoned:
        nodes = tl.zeros([pixels.shape[0], NODES], tl.float32)
        node = tl.arange(0, NODES)
        for i in range(NODES):
            of_node = tl.sum(tl.where((node == i)[None, :], weight, 0.0), 1)
            value = tl.sum(tl.where((of_node != 0)[None, :], pixels * of_node[None, :], 0.0), 1)
            nodes = tl.where((node == i)[None, :], value[:, None], nodes)
    else:
        nodes = tl.dot(pixels, weight, input_precision=PRECISION)
    return nodes


@triton.jit
def differentiate_resized(
    grad_nll, grad_smooth, logits, peak, target, origins, log_sums, smoothing_weight, smoothing_sum,
    row_fraction, row_start, column_cell, column_fraction, column_start, gradient,
    lowest_origin, fine_row_fraction, fine_column_fraction,
    ignore_index, channels, height, width, H, W, owned, rows_of_nodes, stride_n, stride_c, stride_h, stride_w,
    SMOOTHING: tl.constexpr, FINE: tl.constexpr, PRECISION: tl.constexpr,
    CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, NODES: tl.constexpr,
):  # fmt: skip
    """The gradient of ``owned`` nodes in each of some rows of nodes, for some classes.

    With FINE, only where rows of pixels next to them have a finite origin: there it is computed anew.
    """
    program, chunks, tiles = tl.program_id(0), tl.cdiv(channels, CHANNELS), tl.cdiv(width, owned)
    channel = program % chunks * CHANNELS + tl.arange(0, CHANNELS)
    program, some = program // chunks, (channel < channels)[:, None]
    first_node = program % tiles * owned
    node, program = first_node + tl.arange(0, NODES), program // tiles
    bands = tl.cdiv(height, rows_of_nodes)
    first, n = program % bands * rows_of_nodes, (program // bands).to(tl.int64)
    last = tl.minimum(first + rows_of_nodes, height)
    x_begin = tl.load(column_start + first_node)
    x_end = tl.load(column_start + tl.minimum(first_node + owned, width) + 1)
    logits, peak = logits + n * stride_n + channel[:, None].to(tl.int64) * stride_c, peak + n * height * width
    gradient += (n * channels + channel)[:, None] * height * width + node[None, :]
    owns = some & (node < tl.minimum(first_node + owned, width))[None, :]
    if FINE:
        origin_of_rows = tl.full([], _INF, tl.float32)
        for y in range(tl.load(row_start + first), tl.load(row_start + last + 1)):
            origin_of_rows = tl.minimum(origin_of_rows, tl.load(lowest_origin + n * H + y))
        last = tl.where(origin_of_rows < _INF, last, first - 1)  # no row at all

    of_above = tl.zeros([CHANNELS, NODES], tl.float32)
    for cell in range(first, last + 1):  # between the nodes cell - 1 and cell
        of_below = tl.zeros([CHANNELS, NODES], tl.float32)
        begin, end = tl.load(row_start + cell), tl.load(row_start + cell + 1)
        above, below = tl.maximum(cell - 1, 0).to(tl.int64), tl.minimum(cell, height - 1).to(tl.int64)
        for start in range(x_begin, tl.where(begin < end, x_end, x_begin), COLUMNS):
            x = start + tl.arange(0, COLUMNS)
            some_columns = x < x_end
            column = tl.load(column_cell + x, mask=some_columns, other=0)
            along = tl.load(column_fraction + x, mask=some_columns, other=0.0)
            left, right = tl.maximum(column - 1, 0), tl.minimum(column, width - 1)
            left_in_row = (left.to(tl.int64) * stride_w)[None, :]
            right_in_row = (right.to(tl.int64) * stride_w)[None, :]
            top = _between(
                logits + above * stride_h + left_in_row, logits + above * stride_h + right_in_row, some,
                tl.load(peak + above * width + left), tl.load(peak + above * width + right), along,
            )  # fmt: skip
            bottom = _between(
                logits + below * stride_h + left_in_row, logits + below * stride_h + right_in_row, some,
                tl.load(peak + below * width + left), tl.load(peak + below * width + right), along,
            )  # fmt: skip
            upper = tl.zeros([CHANNELS, COLUMNS], tl.float32)
            lower = tl.zeros([CHANNELS, COLUMNS], tl.float32)
            poison = tl.zeros([COLUMNS], tl.float32)
            for y in range(begin, end):
                down = tl.load(row_fraction + y)
                pixel = (n * H + y) * W + x
                label, valid, lse, of_nll, of_smooth = _of_pixels(
                    grad_nll, grad_smooth, target, log_sums, pixel, some_columns, ignore_index, channels, SMOOTHING
                )
                poison += (lse + of_nll + of_smooth) * 0.0
                z = _mixed(top, bottom, down)
                if FINE:
                    origin = tl.load(origins + pixel, mask=valid, other=_INF)[None, :]
                    at_above, at_below = logits + above * stride_h, logits + below * stride_h
                    fine = _interpolate_finely(
                        at_above + left_in_row, at_above + right_in_row,
                        at_below + left_in_row, at_below + right_in_row, some,
                        tl.load(fine_column_fraction + x, mask=some_columns, other=0.0)[None, :],
                        tl.load(fine_row_fraction + y),
                    )  # fmt: skip
                    z = tl.where(origin < _INF, (fine - origin.to(tl.float64)).to(tl.float32), z)
                of_pixels = _gradient(
                    z, channel, channels, label, valid, lse, of_nll, of_smooth,
                    smoothing_weight, smoothing_sum, SMOOTHING,
                )  # fmt: skip
                upper += (1 - down) * of_pixels
                lower += down * of_pixels
            weight = tl.where(left[:, None] == node[None, :], 1 - along[:, None], 0.0)
            weight += tl.where(right[:, None] == node[None, :], along[:, None], 0.0)
            weight = tl.where(some_columns[:, None], weight, 0.0)
            poisoned = tl.sum((poison != 0).to(tl.int32), 0) > 0
            of_above += _to_nodes(upper, weight, poisoned, PRECISION, NODES)
            of_below += _to_nodes(lower, weight, poisoned, PRECISION, NODES)
        # Nodes outside the image repeat its edge.
        if cell == 0:
            of_below += of_above
        if cell == height:
            of_above += of_below
        if cell > first:
            tl.store(gradient + above * width, of_above.to(gradient.dtype.element_ty), mask=owns)
        of_above = of_below


@triton.jit
def differentiate_same_size(
    grad_nll, grad_smooth, logits, peak, target, log_sums, smoothing_weight, smoothing_sum, gradient,
    ignore_index, channels, W, stride_n, stride_c, stride_w,
    SMOOTHING: tl.constexpr, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of some pixels, all classes."""
    tiles, program = tl.cdiv(W, COLUMNS), tl.program_id(0)
    x, n = (program % tiles).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS), (program // tiles).to(tl.int64)
    inside = x < W
    at = tl.where(inside, x, 0)
    label, valid, lse, of_nll, of_smooth = _of_pixels(
        grad_nll, grad_smooth, target, log_sums, n * W + x, inside, ignore_index, channels, SMOOTHING
    )
    largest = tl.load(peak + n * W + at)[None, :]
    for c in range(0, channels, CHANNELS):
        channel = c + tl.arange(0, CHANNELS)
        some, class_offset = (channel < channels)[:, None], channel[:, None].to(tl.int64)
        z = tl.load(logits + n * stride_n + class_offset * stride_c + at[None, :] * stride_w, mask=some, other=-_INF)
        of_logits = _gradient(
            _shifted(z, largest), channel, channels, label, valid, lse, of_nll, of_smooth,
            smoothing_weight, smoothing_sum, SMOOTHING,
        )  # fmt: skip
        to = gradient + (n * channels + class_offset) * W + x[None, :]
        tl.store(to, of_logits.to(gradient.dtype.element_ty), mask=some & inside[None, :])
