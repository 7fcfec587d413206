"""Loss and gradient of logits of the labels' size, for all classes of some columns of one row of pixels at a time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels.cpu.exact import is_argmax
from mmseg_wce.kernels.cpu.input_rows import FLOAT32, GRADIENT, aligned_empty, read_columns, write_columns
from mmseg_wce.kernels.cpu.jit import Kernel, allocating_function, exact_function, fast_function
from mmseg_wce.kernels.cpu.scalars import LN_2, LOG2_E, exp2, log2, maximum
from mmseg_wce.kernels.cpu.task import (
    IGNORED,
    INVALID,
    NUM_SUMS,
    TASK,
    UPSTREAM,
    Maps,
    add_sums,
    label_index,
    nll_gradient,
    smooth_gradient,
    upstream_gradients,
)
from numba import types

_ZERO, _ONE, _NAN, _INF = (np.float32(x) for x in (0, 1, np.nan, np.inf))

f32, f64 = types.float32, types.float64


class _Block(NamedTuple):
    """Buffers for the pixels of a block, each (B,), float32 unless stated."""

    y: np.ndarray  # int32, the label, or IGNORED or INVALID
    argmax: np.ndarray  # int32, the lowest class with the largest logit
    max_logit: np.ndarray  # the largest logit
    sum_exp: np.ndarray  # sum of exp(z - max_logit) over the classes
    nll: np.ndarray
    smooth: np.ndarray
    correct: np.ndarray  # 1 or 0
    weight: np.ndarray  # class weight of the label
    lanes: np.ndarray  # (NUM_SUMS, 16), float64
    tile: np.ndarray  # (C * B,)


@allocating_function
def _make_block(classes, blocks):
    size = 0
    for k in range(blocks.shape[0]):
        size = max(size, blocks[k, 3] - blocks[k, 2])
    size = (size + 15) // 16 * 16
    f, i = aligned_empty(6 * size).reshape((6, size)), aligned_empty(2 * size).view(np.int32).reshape((2, size))
    lanes = np.empty((NUM_SUMS, 16))
    return _Block(i[0], i[1], f[0], f[1], f[2], f[3], f[4], f[5], lanes, aligned_empty(classes * size))


@fast_function
def _update_argmax(c, logits, tile_row, argmax, max_logit):
    """Copy the logits of class c to the tile, and update the maximum."""
    for j in range(max_logit.shape[0]):
        tile_row[j] = logits[j]
        argmax[j] = c if logits[j] > max_logit[j] else argmax[j]
        max_logit[j] = maximum(max_logit[j], logits[j])


@fast_function
def _sweep_classes(task, n, i, begin, tile, argmax, max_logit, sum_exp):
    """Fill the tile (C, B), argmax, max_logit and sum_exp (B,) from the classes of columns ``begin`` and following."""
    max_logit[:] = -_INF
    argmax[:] = -1
    for c in range(tile.shape[0]):
        if task.logits.kind == FLOAT32:
            _update_argmax(
                np.int32(c), task.logits.single[n, c, i, begin : begin + max_logit.shape[0]], tile[c], argmax, max_logit
            )
        else:
            read_columns(task.logits, n, c, i, begin, sum_exp)
            _update_argmax(np.int32(c), sum_exp, tile[c], argmax, max_logit)
    sum_exp[:] = _ZERO
    for c in range(tile.shape[0]):
        for j in range(max_logit.shape[0]):
            sum_exp[j] += exp2((tile[c, j] - max_logit[j]) * LOG2_E, task.exp2)


@fast_function
def _compute_losses(task, tile, labels, y, argmax, max_logit, sum_exp, weight, nll, smooth, correct):
    """Compute the losses of the columns; return whether a sum of exponentials is not finite."""
    has_nonfinite = np.int32(0)
    smooth[:] = _ZERO
    for c in range(task.smoothing_weight.shape[0]):
        w = task.smoothing_weight[c]
        if w != _ZERO:  # 0 * -inf of a masked class would be NaN
            for j in range(max_logit.shape[0]):
                smooth[j] += w * (max_logit[j] - tile[c, j])
    for j in range(max_logit.shape[0]):
        y[j] = label_index(task, labels[j])
        weight[j] = task.class_weight[y[j]] if y[j] >= 0 else _ZERO
        nll[j] = max_logit[j] - tile[y[j], j] if y[j] >= 0 else _ZERO
    for j in range(max_logit.shape[0]):
        log_sum_exp = log2(sum_exp[j]) * LN_2 if sum_exp[j] < _INF else _NAN  # log2 takes finite numbers only
        nll[j] += log_sum_exp
        smooth[j] += log_sum_exp * task.weight_sum
        correct[j] = _ONE if argmax[j] == y[j] else _ZERO
        has_nonfinite |= np.int32(not sum_exp[j] < _INF)
    return has_nonfinite != 0


@exact_function
def _recompute_correct(task, n, i, begin, y, sum_exp, correct):
    """Compare the label with every class again at NaN and inf."""
    for j in range(y.shape[0]):
        if y[j] >= 0 and not sum_exp[j] < _INF:
            correct[j] = np.float32(is_argmax(task.logits, n, i, begin + j, y[j], task.class_weight.shape[0]))


@fast_function
def _forward_block(task, k, n, i, begin, end, block, maps):
    """Write the maps and sums of block k: columns ``begin`` to ``end`` of row i of image n."""
    size = end - begin
    padded = (size + 15) // 16 * 16
    tile = block.tile[: task.class_weight.shape[0] * size].reshape((task.class_weight.shape[0], size))
    y, max_logit, sum_exp, weight = block.y[:size], block.max_logit[:size], block.sum_exp[:size], block.weight[:size]
    block.y[size:padded] = IGNORED
    block.weight[size:padded] = _ZERO
    _sweep_classes(task, n, i, begin, tile, block.argmax[:size], max_logit, sum_exp)
    has_nonfinite = _compute_losses(
        task, tile, task.target[n, i, begin:end], y, block.argmax[:size], max_logit, sum_exp, weight, block.nll[:size],
        block.smooth[:size], block.correct[:size],
    )  # fmt: skip
    if has_nonfinite:
        _recompute_correct(task, n, i, begin, y, sum_exp, block.correct[:size])
    nll, smooth, correct = maps.nll[n, i, begin:end], maps.smooth[n, i, begin:end], maps.correct[n, i, begin:end]
    kept_max, kept_sum = maps.softmax_stats[n, 0, i, begin:end], maps.softmax_stats[n, 1, i, begin:end]
    sums = maps.sums[k]
    for j in range(size):
        fill_value = _NAN if y[j] == INVALID else _ZERO
        nll[j] = block.nll[j] if y[j] >= 0 else fill_value
        correct[j] = y[j] >= 0 and block.correct[j] > _ZERO
        kept_max[j], kept_sum[j] = max_logit[j], sum_exp[j]
        if smooth.shape[0] > 0:
            smooth[j] = block.smooth[j] if y[j] >= 0 else fill_value
    sums[:] = 0.0
    add_sums(
        block.y[:padded], block.weight[:padded], block.nll[:padded], block.smooth[:padded], block.correct[:padded],
        block.lanes, sums,
    )  # fmt: skip


@Kernel(TASK, Maps.signature(f32[:, :, :, ::1], f64[:, ::1]))
def forward(first, last, blocks, task, maps):
    """Write the maps of some blocks; ``softmax_stats`` are the maximum and the sum of exponentials."""
    block = _make_block(task.class_weight.shape[0], blocks)
    for k in range(first, last):
        _forward_block(task, k, blocks[k, 0], blocks[k, 1], blocks[k, 2], blocks[k, 3], block, maps)


@fast_function
def _differentiate(task, c, logits, y, max_logit, sum_exp, nll_factor, smooth_factor, out):
    """Write the gradient of class c to ``out`` (B,), given its logits (B,)."""
    label = np.int32(c)
    if task.smoothing_weight.shape[0] > 0:
        w, other_weights = task.smoothing_weight[c], task.weight_sum - task.smoothing_weight[c]
        for j in range(out.shape[0]):
            e = exp2((logits[j] - max_logit[j]) * LOG2_E, task.exp2)
            d = nll_gradient(e, y[j] == label, sum_exp[j], nll_factor[j])
            out[j] = d + smooth_gradient(e, w, other_weights, sum_exp[j], smooth_factor[j])
    else:
        for j in range(out.shape[0]):
            e = exp2((logits[j] - max_logit[j]) * LOG2_E, task.exp2)
            out[j] = nll_gradient(e, y[j] == label, sum_exp[j], nll_factor[j])


@fast_function
def _backward_block(task, upstream, n, i, begin, block, max_logit, sum_exp, gradient):
    """Write the gradient of columns ``begin`` and following of row i of image n, from max_logit and sum_exp (B,)."""
    size, has_nonfinite = max_logit.shape[0], False
    # these buffers have other names in the forward
    y, nll_factor, smooth_factor = block.y[:size], block.weight[:size], block.smooth[:size]
    z, out = block.nll[:size], block.correct[:size]
    for j in range(size):
        y[j] = label_index(task, task.target[n, i, begin + j])
        nll_factor[j] = smooth_factor[j] = _ZERO
        if y[j] >= 0:
            grad_nll, grad_smooth = upstream_gradients(task, upstream, n, i, begin + j, y[j])
            nll_factor[j], smooth_factor[j] = grad_nll / sum_exp[j], grad_smooth / sum_exp[j]
        has_nonfinite |= not sum_exp[j] < _INF
    for c in range(task.class_weight.shape[0]):
        # directly from memory to memory if possible, so that loads overlap with arithmetic
        if task.logits.kind == FLOAT32 and not has_nonfinite:
            _differentiate(
                task, c, task.logits.single[n, c, i, begin : begin + size], y, max_logit, sum_exp, nll_factor,
                smooth_factor, gradient.single[n, c, i, begin : begin + size],
            )  # fmt: skip
            continue
        read_columns(task.logits, n, c, i, begin, z)
        _differentiate(task, c, z, y, max_logit, sum_exp, nll_factor, smooth_factor, out)
        if has_nonfinite:
            for j in range(size):
                out[j] = out[j] if y[j] >= 0 else _ZERO  # not a product: 0 * NaN is NaN
        write_columns(out, gradient, n, c, i, begin)


@Kernel(TASK, f32[:, :, :, ::1], UPSTREAM, GRADIENT)
def backward(first, last, blocks, task, softmax_stats, upstream, gradient):
    """Write the gradient (N, C, H, W) of some blocks."""
    block = _make_block(1, blocks)
    for k in range(first, last):
        n, i, begin, end = blocks[k, 0], blocks[k, 1], blocks[k, 2], blocks[k, 3]
        _backward_block(
            task, upstream, n, i, begin, block, softmax_stats[n, 0, i, begin:end], softmax_stats[n, 1, i, begin:end],
            gradient,
        )  # fmt: skip
