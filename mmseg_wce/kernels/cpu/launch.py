"""Launch of the CPU kernels: tensors become the arrays that kernels take."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from mmseg_wce.kernels.cpu import resized_backward, resized_forward, same_size
from mmseg_wce.kernels.cpu.input_rows import BFLOAT16, FLOAT16, FLOAT32, STRIDED, Gradient, Logits
from mmseg_wce.kernels.cpu.layout import axes, bands, blocks
from mmseg_wce.kernels.cpu.scalars import EXP2
from mmseg_wce.kernels.cpu.task import NUM_SUMS, Maps, Task, Upstream
from mmseg_wce.kernels.cpu.threads import run
from torch import Tensor

__all__ = ['backward', 'forward']

_KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
_EMPTY_FLOAT32, _EMPTY_HALF = np.zeros((0, 0, 0, 0), np.float32), np.zeros((0, 0, 0, 0), np.int16)
_NO_SMOOTHING = np.zeros(0, np.float32)


def _to_logits(x: Tensor) -> Logits:
    """View a tensor as the arrays of the kernels, without a copy."""
    x = x.detach()
    if x.dtype != torch.float32:
        return Logits(_EMPTY_FLOAT32, _EMPTY_FLOAT32, x.view(torch.int16).numpy(), _KINDS[x.dtype])
    if x.is_contiguous():
        return Logits(x.numpy(), _EMPTY_FLOAT32, _EMPTY_HALF, FLOAT32)
    return Logits(_EMPTY_FLOAT32, x.numpy(), _EMPTY_HALF, STRIDED)


def _to_rows(x: Tensor) -> Tensor:
    """Reshape (N, C, ...) to (N, C, rows, columns), with as few rows as possible without a copy."""
    for rows in (x.unsqueeze(2), x):
        try:
            return rows.view(*rows.shape[:3], -1)
        except RuntimeError:  # not contiguous in this order
            pass
    return x.flatten(2).unsqueeze(2)  # more than two spatial dimensions


class _Problem(NamedTuple):
    """The arguments of a sweep in the form that kernels take."""

    logits: Tensor  # (N, C, h, w)
    target: Tensor  # (N, H, W)
    pieces: np.ndarray
    work: int  # numbers to read, or exponentials to compute
    arguments: tuple  # first arguments of every kernel
    is_resized: bool


def _prepare(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    class_weight: Tensor | None,
    smoothing_weight: Tensor | None,
    align_corners: bool,
) -> _Problem:
    is_resized = logits.shape[2:] != target.shape[1:]
    (images, classes), outputs = logits.shape[:2], tuple(target.shape[1:])
    tables: tuple = ()
    if is_resized:
        inputs = tuple(logits.shape[2:])
        pieces, tables = bands(images, classes, inputs, outputs), (axes(inputs, outputs, align_corners),)
    else:
        rows = _to_rows(logits)
        logits, target = rows, target.reshape(images, *rows.shape[2:])
        pieces = blocks(images, classes, *rows.shape[2:])
    weight = np.ones(classes, np.float32) if class_weight is None else class_weight.contiguous().numpy()
    smoothing = _NO_SMOOTHING if smoothing_weight is None else smoothing_weight.contiguous().numpy()
    task = Task(_to_logits(logits), target.numpy(), ignore_index, weight, smoothing, float(smoothing.sum()), EXP2)
    work = max(logits.numel(), classes * target.numel())
    return _Problem(logits, target, pieces, work, (pieces, task, *tables), is_resized)


def forward(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    class_weight: Tensor | None,
    smoothing_weight: Tensor | None,
    align_corners: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    """Compute the maps of :func:`mmseg_wce.kernels.pixel_nll`, statistics for :func:`backward`, and sums.

    Args:
        logits: (N, C, h, w), or (N, C, ...) of the target's size; float32, bfloat16 or float16, any strides, not empty.
        target: (N, H, W) or (N, ...), int64, any strides.
        ignore_index: label of the pixels to ignore.
        class_weight: (C,), float32, for the sums; None for ones.
        smoothing_weight: (C,), float32, or None.
        align_corners: of the interpolation.

    Returns:
        nll, smooth and correct, of the target's shape; the softmax statistics for the backward, of that shape or
        (N, 2, ...); and the sums (NUM_SUMS,), float64, see :mod:`mmseg_wce.kernels.cpu.task`.
    """
    problem = _prepare(logits, target, ignore_index, class_weight, smoothing_weight, align_corners)
    shape = problem.target.shape
    nll, correct = np.empty(shape, np.float32), np.empty(shape, np.bool_)
    smooth = np.empty(shape if smoothing_weight is not None else (*shape[:2], 0), np.float32)
    softmax_stats = np.empty(shape if problem.is_resized else (shape[0], 2, *shape[1:]), np.float32)
    sums = np.empty((*shape[:2], NUM_SUMS) if problem.is_resized else (len(problem.pieces), NUM_SUMS))
    kernel = (resized_forward if problem.is_resized else same_size).forward.compiled()
    maps = Maps(nll, smooth, correct, softmax_stats, sums)
    run(lambda first, last: kernel(first, last, *problem.arguments, maps), len(problem.pieces), problem.work)
    stats_shape = target.shape if problem.is_resized else (target.shape[0], 2, *target.shape[1:])
    stats = torch.from_numpy(softmax_stats).view(stats_shape)
    totals = torch.from_numpy(sums.reshape(-1, NUM_SUMS).sum(0))
    if smoothing_weight is None:
        totals[1] = 0
    nll_map, smooth_map, correct_map = (torch.from_numpy(x) for x in (nll, smooth, correct))
    smooth_result = None if smoothing_weight is None else smooth_map.view(target.shape)
    return nll_map.view(target.shape), smooth_result, correct_map.view(target.shape), stats, totals


def backward(
    grad_nll: Tensor | None,
    grad_smooth: Tensor | None,
    grad_loss_sum: float,
    grad_smooth_sum: float,
    logits: Tensor,
    target: Tensor,
    softmax_stats: Tensor,
    ignore_index: int,
    class_weight: Tensor | None,
    smoothing_weight: Tensor | None,
    align_corners: bool,
) -> Tensor:
    """Return the gradient of the logits, given that of the maps and of the sums of losses.

    Args:
        grad_nll: of the target's shape, any strides, or None for zeros.
        grad_smooth: of the target's shape, any strides, or None for zeros.
        grad_loss_sum: gradient of the sum of weighted losses.
        grad_smooth_sum: gradient of the sum of smoothed losses.
        logits: as in :func:`forward`.
        target: as in :func:`forward`.
        softmax_stats: as returned by :func:`forward`.
        ignore_index: as in :func:`forward`.
        class_weight: as in :func:`forward`.
        smoothing_weight: as in :func:`forward`.
        align_corners: as in :func:`forward`.

    Returns:
        Gradient of the shape and dtype of the logits, contiguous.
    """
    problem = _prepare(logits, target, ignore_index, class_weight, smoothing_weight, align_corners)
    empty_map = np.zeros((*problem.target.shape[:2], 0), np.float32)
    nll_gradient, smooth_gradient = (
        empty_map if g is None else g.reshape(problem.target.shape).numpy() for g in (grad_nll, grad_smooth)
    )
    upstream = Upstream(nll_gradient, smooth_gradient, grad_loss_sum, grad_smooth_sum)
    # memory of NumPy: that of PyTorch is mapped page by page while it is written
    is_half = logits.dtype != torch.float32
    out = torch.from_numpy(np.empty(logits.shape, np.int16 if is_half else np.float32)).view(logits.dtype)
    single, _, bits, kind = _to_logits(out.view(problem.logits.shape))
    gradient, edges = Gradient(single, bits, kind), None
    results: tuple = upstream, gradient
    if problem.is_resized:
        edges_per_band = 2 if is_half else 1  # rows are added before they are rounded
        edges = np.empty((len(problem.pieces), logits.shape[1], edges_per_band, logits.shape[3]), np.float32)
        results = *results, Gradient(edges, _EMPTY_HALF, FLOAT32)
    stats = softmax_stats.numpy()
    if not problem.is_resized:
        stats = stats.reshape(len(logits), 2, *problem.target.shape[1:])
    kernel = (resized_backward if problem.is_resized else same_size).backward.compiled()
    run(lambda first, last: kernel(first, last, *problem.arguments, stats, *results), len(problem.pieces), problem.work)
    if edges is not None:
        resized_backward.join.compiled()(0, len(problem.pieces), problem.pieces, gradient, edges)
    return out
