"""Loss and gradient of logits that have the labels' size: some columns of one row of pixels, all classes, at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels.cpu.exact import is_greatest
from mmseg_wce.kernels.cpu.input_rows import FLOAT32, GRADIENT, read_columns, room, write_columns
from mmseg_wce.kernels.cpu.jit import Kernel, allocating_function, exact_function, fast_function
from mmseg_wce.kernels.cpu.scalars import LN_2, LOG2_E, exp2, log2, maximum
from mmseg_wce.kernels.cpu.task import (
    IGNORED,
    INVALID,
    NUM_SUMS,
    TASK,
    UPSTREAM,
    Maps,
    add_up,
    label_of,
    label_slope,
    slopes_of,
    smoothing_slope,
)
from numba import types

__all__ = ['backward', 'forward']

_ZERO, _ONE, _NAN, _INF = (np.float32(x) for x in (0, 1, np.nan, np.inf))

f32, f64 = types.float32, types.float64


class _Block(NamedTuple):
    """Room for the pixels of a block, each (B,); float32 but for the labels."""

    y: np.ndarray  # int32, the label, or IGNORED or INVALID
    first: np.ndarray  # int32, the lowest class with the greatest logit
    peak: np.ndarray  # that logit
    total: np.ndarray  # sum of exp(z - peak) over the classes
    nll: np.ndarray
    smooth: np.ndarray
    correct: np.ndarray  # 1 or 0
    weight: np.ndarray  # of the label
    lanes: np.ndarray  # (NUM_SUMS, 16), float64
    tile: np.ndarray  # (C * B,)


@allocating_function
def _make_block(classes, blocks):
    size = 0
    for k in range(blocks.shape[0]):
        size = max(size, blocks[k, 3] - blocks[k, 2])
    size = (size + 15) // 16 * 16
    f, i = room(6 * size).reshape((6, size)), room(2 * size).view(np.int32).reshape((2, size))
    lanes = np.empty((NUM_SUMS, 16))
    return _Block(i[0], i[1], f[0], f[1], f[2], f[3], f[4], f[5], lanes, room(classes * size))


@fast_function
def _keep_greatest(label, logits, kept, first, peak):
    """Take one more class: copy its logits to the tile, and compare."""
    for j in range(peak.shape[0]):
        kept[j] = logits[j]
        first[j] = label if logits[j] > peak[j] else first[j]
        peak[j] = maximum(peak[j], logits[j])


@fast_function
def _measure(task, n, i, begin, tile, first, peak, total):
    """Sweep over the classes of the columns from ``begin`` on: fills the tile (C, B), first, peak and total (B,)."""
    peak[:] = -_INF
    first[:] = -1
    for c in range(tile.shape[0]):
        if task.logits.kind == FLOAT32:
            _keep_greatest(
                np.int32(c), task.logits.single[n, c, i, begin : begin + peak.shape[0]], tile[c], first, peak
            )
        else:
            read_columns(task.logits, n, c, i, begin, total)
            _keep_greatest(np.int32(c), total, tile[c], first, peak)
    total[:] = _ZERO
    for c in range(tile.shape[0]):
        for j in range(peak.shape[0]):
            total[j] += exp2((tile[c, j] - peak[j]) * LOG2_E, task.exp2)


@fast_function
def _finish(task, tile, labels, y, first, peak, total, weight, nll, smooth, correct):
    """Losses of the columns; returns if one of them needs another look."""
    odd = np.int32(0)
    smooth[:] = _ZERO
    for c in range(task.smoothing_weight.shape[0]):
        w = task.smoothing_weight[c]
        if w != _ZERO:  # 0 * -inf of a masked class would be NaN
            for j in range(peak.shape[0]):
                smooth[j] += w * (peak[j] - tile[c, j])
    for j in range(peak.shape[0]):
        y[j] = label_of(task, labels[j])
        weight[j] = task.class_weight[y[j]] if y[j] >= 0 else _ZERO
        nll[j] = peak[j] - tile[y[j], j] if y[j] >= 0 else _ZERO
    for j in range(peak.shape[0]):
        log_sum = log2(total[j]) * LN_2 if total[j] < _INF else _NAN  # for finite numbers only
        nll[j] += log_sum
        smooth[j] += log_sum * task.weight_sum
        correct[j] = _ONE if first[j] == y[j] else _ZERO
        odd |= np.int32(not total[j] < _INF)
    return odd != 0


@exact_function
def _compare_again(task, n, i, begin, y, total, correct):
    """Find again where the label is the arg-max, at NaN and inf."""
    for j in range(y.shape[0]):
        if y[j] >= 0 and not total[j] < _INF:
            correct[j] = np.float32(is_greatest(task.logits, n, i, begin + j, y[j], task.class_weight.shape[0]))


@fast_function
def _forward_block(task, k, n, i, begin, end, block, maps):
    """Block k: columns ``begin`` to ``end`` of row i of image n."""
    size = end - begin
    padded = (size + 15) // 16 * 16
    tile = block.tile[: task.class_weight.shape[0] * size].reshape((task.class_weight.shape[0], size))
    y, peak, sum_exp, weight = block.y[:size], block.peak[:size], block.total[:size], block.weight[:size]
    block.y[size:padded] = IGNORED
    block.weight[size:padded] = _ZERO
    _measure(task, n, i, begin, tile, block.first[:size], peak, sum_exp)
    odd = _finish(
        task, tile, task.target[n, i, begin:end], y, block.first[:size], peak, sum_exp, weight, block.nll[:size],
        block.smooth[:size], block.correct[:size],
    )  # fmt: skip
    if odd:
        _compare_again(task, n, i, begin, y, sum_exp, block.correct[:size])
    nll, smooth, correct = maps.nll[n, i, begin:end], maps.smooth[n, i, begin:end], maps.correct[n, i, begin:end]
    kept_peak, kept_total, sums = maps.total[n, 0, i, begin:end], maps.total[n, 1, i, begin:end], maps.sums[k]
    for j in range(size):
        instead = _NAN if y[j] == INVALID else _ZERO
        nll[j] = block.nll[j] if y[j] >= 0 else instead
        correct[j] = y[j] >= 0 and block.correct[j] > _ZERO
        kept_peak[j], kept_total[j] = peak[j], sum_exp[j]
        if smooth.shape[0] > 0:
            smooth[j] = block.smooth[j] if y[j] >= 0 else instead
    sums[:] = 0.0
    add_up(
        block.y[:padded], block.weight[:padded], block.nll[:padded], block.smooth[:padded], block.correct[:padded],
        block.lanes, sums,
    )  # fmt: skip


@Kernel(TASK, Maps.signature(f32[:, :, :, ::1], f64[:, ::1]))
def forward(first, last, blocks, task, maps):
    """Write the maps of some blocks; the total is the maximum and the sum of exponentials."""
    block = _make_block(task.class_weight.shape[0], blocks)
    for k in range(first, last):
        _forward_block(task, k, blocks[k, 0], blocks[k, 1], blocks[k, 2], blocks[k, 3], block, maps)


@fast_function
def _differentiate(task, c, logits, y, peak, total, slope, smooth, out):
    """Gradient of one class, from its logits (B,) to ``out`` (B,)."""
    label = np.int32(c)
    if task.smoothing_weight.shape[0] > 0:
        w, rest = task.smoothing_weight[c], task.weight_sum - task.smoothing_weight[c]
        for j in range(out.shape[0]):
            e = exp2((logits[j] - peak[j]) * LOG2_E, task.exp2)
            d = label_slope(e, y[j] == label, total[j], slope[j])
            out[j] = d + smoothing_slope(e, w, rest, total[j], smooth[j])
    else:
        for j in range(out.shape[0]):
            e = exp2((logits[j] - peak[j]) * LOG2_E, task.exp2)
            out[j] = label_slope(e, y[j] == label, total[j], slope[j])


@fast_function
def _backward_block(task, upstream, n, i, begin, block, peak, total, gradient):
    """Gradient of the columns of row i of image n from ``begin`` on; peak and total (B,) are the forward's."""
    size, poisoned = peak.shape[0], False
    # in memory that has another use in the forward
    y, slope, smooth = block.y[:size], block.weight[:size], block.smooth[:size]
    z, out = block.nll[:size], block.correct[:size]
    for j in range(size):
        y[j] = label_of(task, task.target[n, i, begin + j])
        slope[j] = smooth[j] = _ZERO
        if y[j] >= 0:
            of_loss, of_smooth = slopes_of(task, upstream, n, i, begin + j, y[j])
            slope[j], smooth[j] = of_loss / total[j], of_smooth / total[j]
        poisoned |= not total[j] < _INF
    for c in range(task.class_weight.shape[0]):
        # straight from memory to memory where that can be, so that waiting and computing overlap
        if task.logits.kind == FLOAT32 and not poisoned:
            _differentiate(
                task, c, task.logits.single[n, c, i, begin : begin + size], y, peak, total, slope, smooth,
                gradient.single[n, c, i, begin : begin + size],
            )  # fmt: skip
            continue
        read_columns(task.logits, n, c, i, begin, z)
        _differentiate(task, c, z, y, peak, total, slope, smooth, out)
        if poisoned:
            for j in range(size):
                out[j] = out[j] if y[j] >= 0 else _ZERO  # not a product: 0 * NaN is NaN
        write_columns(out, gradient, n, c, i, begin)


@Kernel(TASK, f32[:, :, :, ::1], UPSTREAM, GRADIENT)
def backward(first, last, blocks, task, total, upstream, gradient):
    """Write the gradient (N, C, H, W) of some blocks."""
    block = _make_block(1, blocks)
    for k in range(first, last):
        n, i, begin, end = blocks[k, 0], blocks[k, 1], blocks[k, 2], blocks[k, 3]
        _backward_block(
            task, upstream, n, i, begin, block, total[n, 0, i, begin:end], total[n, 1, i, begin:end], gradient
        )
