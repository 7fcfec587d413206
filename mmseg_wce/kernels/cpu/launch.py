"""The op on the CPU: from tensors to the arrays of the kernels."""

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
_NO_SINGLE, _NO_HALF = np.zeros((0, 0, 0, 0), np.float32), np.zeros((0, 0, 0, 0), np.int16)
_NO_WEIGHT = np.zeros(0, np.float32)


def _as_arrays(x: Tensor) -> Logits:
    """None of them a copy."""
    x = x.detach()
    if x.dtype != torch.float32:
        return Logits(_NO_SINGLE, _NO_SINGLE, x.view(torch.int16).numpy(), _KINDS[x.dtype])
    if x.is_contiguous():
        return Logits(x.numpy(), _NO_SINGLE, _NO_HALF, FLOAT32)
    return Logits(_NO_SINGLE, x.numpy(), _NO_HALF, STRIDED)


def _as_rows(x: Tensor) -> Tensor:
    """(N, C, ...) as (N, C, rows, columns), the fewest rows that need no copy."""
    for rows in (x.unsqueeze(2), x):
        try:
            return rows.view(*rows.shape[:3], -1)
        except RuntimeError:  # not in this order in memory
            pass
    return x.flatten(2).unsqueeze(2)  # of more dimensions than two


class _Problem(NamedTuple):
    """The arguments of a sweep as kernels take them."""

    logits: Tensor  # (N, C, h, w)
    target: Tensor  # (N, H, W)
    pieces: np.ndarray
    work: int  # numbers to read or to take the exponential of
    arguments: tuple  # of every kernel
    is_resized: bool


def _problem(
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
        rows = _as_rows(logits)
        logits, target = rows, target.reshape(images, *rows.shape[2:])
        pieces = blocks(images, classes, *rows.shape[2:])
    weight = np.ones(classes, np.float32) if class_weight is None else class_weight.contiguous().numpy()
    smoothing = _NO_WEIGHT if smoothing_weight is None else smoothing_weight.contiguous().numpy()
    task = Task(_as_arrays(logits), target.numpy(), ignore_index, weight, smoothing, float(smoothing.sum()), EXP2)
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
    """Maps of :func:`mmseg_wce.kernels.pixel_nll`, what :func:`backward` needs of each pixel, and sums.

    Args:
        logits: (N, C, h, w), or (N, C, ...) of the target's size; float32, bfloat16 or float16, any strides, not empty.
        target: (N, H, W) or (N, ...), int64, any strides.
        ignore_index: the label that does not count.
        class_weight: (C,), float32, of the sums; None for ones.
        smoothing_weight: (C,), float32, or None.
        align_corners: of the interpolation.

    Returns:
        nll, smooth, correct, of the target's shape; what the backward needs, of that shape or (N, 2, ...); and
        (NUM_SUMS,), float64, see :mod:`mmseg_wce.kernels.cpu.task`.
    """
    problem = _problem(logits, target, ignore_index, class_weight, smoothing_weight, align_corners)
    shape = problem.target.shape
    nll, correct = np.empty(shape, np.float32), np.empty(shape, np.bool_)
    smooth = np.empty(shape if smoothing_weight is not None else (*shape[:2], 0), np.float32)
    total = np.empty(shape if problem.is_resized else (shape[0], 2, *shape[1:]), np.float32)
    sums = np.empty((*shape[:2], NUM_SUMS) if problem.is_resized else (len(problem.pieces), NUM_SUMS))
    kernel = (resized_forward if problem.is_resized else same_size).forward.compiled()
    maps = Maps(nll, smooth, correct, total, sums)
    run(lambda first, last: kernel(first, last, *problem.arguments, maps), len(problem.pieces), problem.work)
    kept = torch.from_numpy(total).view(target.shape if problem.is_resized else (target.shape[0], 2, *target.shape[1:]))
    summed = torch.from_numpy(sums.reshape(-1, NUM_SUMS).sum(0))
    if smoothing_weight is None:
        summed[1] = 0
    of_nll, of_smooth, of_correct = (torch.from_numpy(x) for x in (nll, smooth, correct))
    smoothed = None if smoothing_weight is None else of_smooth.view(target.shape)
    return of_nll.view(target.shape), smoothed, of_correct.view(target.shape), kept, summed


def backward(
    grad_nll: Tensor | None,
    grad_smooth: Tensor | None,
    loss_slope: float,
    smooth_slope: float,
    logits: Tensor,
    target: Tensor,
    total: Tensor,
    ignore_index: int,
    class_weight: Tensor | None,
    smoothing_weight: Tensor | None,
    align_corners: bool,
) -> Tensor:
    """Gradient of the logits, from that of the maps and of the sums of losses.

    Args:
        grad_nll: of the target's shape, any strides, or None for zeros.
        grad_smooth: of the target's shape, any strides, or None for zeros.
        loss_slope: gradient of the sum of weighted losses.
        smooth_slope: gradient of the sum of smoothed losses.
        logits: as in :func:`forward`.
        target: as in :func:`forward`.
        total: what :func:`forward` returned for it.
        ignore_index: as in :func:`forward`.
        class_weight: as in :func:`forward`.
        smoothing_weight: as in :func:`forward`.
        align_corners: as in :func:`forward`.

    Returns:
        Of the shape and dtype of the logits, contiguous.
    """
    problem = _problem(logits, target, ignore_index, class_weight, smoothing_weight, align_corners)
    no_map = np.zeros((*problem.target.shape[:2], 0), np.float32)
    of_nll, of_smooth = (
        no_map if g is None else g.reshape(problem.target.shape).numpy() for g in (grad_nll, grad_smooth)
    )
    upstream = Upstream(of_nll, of_smooth, loss_slope, smooth_slope)
    # NumPy's memory: PyTorch's is handed out page by page as it is written
    half = logits.dtype != torch.float32
    out = torch.from_numpy(np.empty(logits.shape, np.int16 if half else np.float32)).view(logits.dtype)
    single, _, bits, kind = _as_arrays(out.view(problem.logits.shape))
    gradient, edges = Gradient(single, bits, kind), None
    results: tuple = upstream, gradient
    if problem.is_resized:
        per_band = 2 if half else 1  # what is added has not been rounded
        edges = np.empty((len(problem.pieces), logits.shape[1], per_band, logits.shape[3]), np.float32)
        results = *results, Gradient(edges, _NO_HALF, FLOAT32)
    kept = total.numpy() if problem.is_resized else total.numpy().reshape(len(logits), 2, *problem.target.shape[1:])
    kernel = (resized_backward if problem.is_resized else same_size).backward.compiled()
    run(lambda first, last: kernel(first, last, *problem.arguments, kept, *results), len(problem.pieces), problem.work)
    if edges is not None:
        resized_backward.join.compiled()(0, len(problem.pieces), problem.pieces, gradient, edges)
    return out
