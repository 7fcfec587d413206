"""Launch of the CPU kernels: tensors become the arrays that kernels take."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from mmseg_wce.kernels.cpu import focal, resized_backward, resized_forward, same_size
from mmseg_wce.kernels.cpu.input_rows import BFLOAT16, FLOAT16, FLOAT32, STRIDED, Gradient, Logits
from mmseg_wce.kernels.cpu.layout import axes, bands, blocks
from mmseg_wce.kernels.cpu.scalars import EXP2
from mmseg_wce.kernels.cpu.task import NUM_SUMS, Maps, Task, Upstream
from mmseg_wce.kernels.cpu.threads import run
from mmseg_wce.kernels.inputs import Inputs
from torch import Tensor

_KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
_EMPTY_FLOAT32, _EMPTY_HALF = np.zeros((0, 0, 0, 0), np.float32), np.zeros((0, 0, 0, 0), np.int16)
_NO_SMOOTHING = _NO_WEIGHT = np.zeros(0, np.float32)


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
    """The inputs of a sweep in the form that kernels take."""

    logits: Tensor  # (N, C, h, w)
    shape: torch.Size  # N, H, W
    pieces: np.ndarray
    work: int  # numbers to read, or exponentials to compute
    arguments: tuple  # first arguments of every kernel


def _prepare(inputs: Inputs) -> _Problem:
    logits, target, ignore_index, smoothing_weight, class_weight, align_corners = inputs
    images, classes = logits.shape[:2]
    tables: tuple = ()
    if inputs.is_resized:
        sizes = tuple(logits.shape[2:]), tuple(target.shape[1:])
        pieces, tables = bands(images, classes, *sizes), (axes(*sizes, align_corners),)
    else:
        logits = _to_rows(logits)
        target = target.reshape(images, *logits.shape[2:])
        pieces = blocks(images, classes, *logits.shape[2:])
    weight = np.ones(classes, np.float32) if class_weight is None else class_weight.contiguous().numpy()
    smoothing = _NO_SMOOTHING if smoothing_weight is None else smoothing_weight.contiguous().numpy()
    task = Task(_to_logits(logits), target.numpy(), ignore_index, weight, smoothing, float(smoothing.sum()), EXP2)
    work = max(logits.numel(), classes * target.numel())
    return _Problem(logits, target.shape, pieces, work, (pieces, task, *tables))


def forward(inputs: Inputs) -> tuple[Tensor | None, ...]:
    """Return nll, smooth, correct, statistics for the backward, and sums: see ``mmseg_wce::pixel_nll``."""
    problem, is_resized, is_smoothed = _prepare(inputs), inputs.is_resized, inputs.smoothing_weight is not None
    shape, outputs = problem.shape, inputs.target.shape
    nll, correct = np.empty(shape, np.float32), np.empty(shape, np.bool_)
    smooth = np.empty(shape if is_smoothed else (*shape[:2], 0), np.float32)
    softmax_stats = np.empty(shape if is_resized else (shape[0], 2, *shape[1:]), np.float32)
    sums = np.empty((*shape[:2], NUM_SUMS) if is_resized else (len(problem.pieces), NUM_SUMS))
    kernel = (resized_forward if is_resized else same_size).forward.compiled()
    maps = Maps(nll, smooth, correct, softmax_stats, sums)
    run(lambda first, last: kernel(first, last, *problem.arguments, maps), len(problem.pieces), problem.work)
    nll_map, correct_map = (torch.from_numpy(x).view(outputs) for x in (nll, correct))
    smooth_map = torch.from_numpy(smooth).view(outputs) if is_smoothed else None
    stats = torch.from_numpy(softmax_stats).view(outputs if is_resized else (outputs[0], 2, *outputs[1:]))
    totals = torch.from_numpy(sums.reshape(-1, NUM_SUMS).sum(0))
    if not is_smoothed:
        totals[1] = 0
    return nll_map, smooth_map, correct_map, stats, totals[0].float(), totals[1].float(), totals[2:].clone()


def backward(
    inputs: Inputs,
    softmax_stats: Tensor,
    grad_nll: Tensor | None,
    grad_smooth: Tensor | None,
    grad_loss_sum: float,
    grad_smooth_sum: float,
) -> Tensor:
    """Return the gradient of the logits, contiguous.

    Args:
        inputs: those of :func:`forward`.
        softmax_stats: statistics returned by :func:`forward`.
        grad_nll: gradient of the map, any strides, or None for zeros.
        grad_smooth: gradient of the map, any strides, or None for zeros.
        grad_loss_sum: gradient of the sum of weighted losses.
        grad_smooth_sum: gradient of the sum of smoothed losses.

    Returns:
        (N, C, ...), of the shape and dtype of the logits.
    """
    problem, logits = _prepare(inputs), inputs.logits
    empty_map = np.zeros((*problem.shape[:2], 0), np.float32)
    nll_gradient, smooth_gradient = (
        empty_map if g is None else g.reshape(problem.shape).numpy() for g in (grad_nll, grad_smooth)
    )
    upstream = Upstream(nll_gradient, smooth_gradient, grad_loss_sum, grad_smooth_sum)
    # memory of NumPy: that of PyTorch is mapped page by page while it is written
    is_half = logits.dtype != torch.float32
    out = torch.from_numpy(np.empty(logits.shape, np.int16 if is_half else np.float32)).view(logits.dtype)
    single, _, bits, kind = _to_logits(out.view(problem.logits.shape))
    gradient, stats = Gradient(single, bits, kind), softmax_stats.numpy()
    results: tuple = upstream, gradient
    if inputs.is_resized:
        edges_per_band = 2 if is_half else 1  # rows are added before they are rounded
        edges = np.empty((len(problem.pieces), logits.shape[1], edges_per_band, logits.shape[3]), np.float32)
        results = *results, Gradient(edges, _EMPTY_HALF, FLOAT32)
    else:
        stats = stats.reshape(len(logits), 2, *problem.shape[1:])
    kernel = (resized_backward if inputs.is_resized else same_size).backward.compiled()
    run(lambda first, last: kernel(first, last, *problem.arguments, stats, *results), len(problem.pieces), problem.work)
    if inputs.is_resized:
        resized_backward.join.compiled()(0, len(problem.pieces), problem.pieces, gradient, edges)
    return out


def focal_sum(
    nll: Tensor, target: Tensor, ignore_index: int, num_classes: int, class_weight: Tensor | None, gamma: float
) -> tuple[Tensor, Tensor]:
    """Return the sum of the weighted focal losses of the valid pixels, and its derivative for each nll.

    Args:
        nll: any shape, float32, contiguous.
        target: labels of the same shape, int64.
        ignore_index: label of the pixels to ignore.
        num_classes: C.
        class_weight: (C,), float32, contiguous, or None for ones.
        gamma: above 0.

    Returns:
        Scalar and a tensor of the shape of ``nll``, float32.
    """
    number, weight = nll.numel(), _NO_WEIGHT if class_weight is None else class_weight.numpy()
    starts = np.arange(0, number, focal.PIECE)
    pieces = np.stack([starts, np.minimum(starts + focal.PIECE, number)], 1)
    slope, sums = np.empty(number, np.float32), np.zeros(len(pieces))
    pixels = nll.reshape(-1).numpy(), target.reshape(-1).numpy()
    arguments = pieces, *pixels, ignore_index, num_classes, weight, gamma, EXP2, slope, sums
    kernel = focal.add_up.compiled()
    run(lambda first, last: kernel(first, last, *arguments), len(pieces), number)
    return torch.tensor(sums.sum(), dtype=torch.float32), torch.from_numpy(slope).view(nll.shape)
