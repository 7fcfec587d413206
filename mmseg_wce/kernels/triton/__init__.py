"""The op on CUDA: launches the programs of :mod:`mmseg_wce.kernels.triton.kernels`.

Sizes of tiles depend on shapes alone, nothing is tuned at run time: bits stay the same from process to process.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from mmseg_wce.kernels.bilinear import Axis, axis
from mmseg_wce.kernels.triton.kernels import (
    differentiate_resized,
    differentiate_same_size,
    measure,
    measure_finely,
)
from torch import Tensor


class Tiles(NamedTuple):
    """How much a program works on at once; powers of two, those of the backward at least 16 for ``tl.dot``."""

    lanes: int = 8  # of the forward: classes times rows of pixels; a thread has them all, and so adds up alone
    forward_columns: int = 128
    fine_rows: int = 1  # of pixels
    channels: int = 32  # of the backward, like the rest
    columns: int = 64
    nodes: int = 16  # in a row
    rows_of_nodes: int = 16  # any number


TILES = Tiles()
_MOST_ROWS = 8
_CORNERS = 2  # what loading the corners of a cell costs, in rows of pixels
_REGISTERS = 128  # a thread: inner loops fit, and 16 warps a multiprocessor hide each other's latency


class _Problem(NamedTuple):
    """What both sweeps make of their arguments."""

    axes: tuple[Axis, Axis] | None  # rows, columns; None where nothing is resized: then images are single rows
    logits: Tensor  # (N, C, h, w)
    peak: Tensor  # (N, h, w), float32
    target: Tensor  # (N, H, W), contiguous
    weight: Tensor | None  # (C,), float32
    weight_sum: Tensor | None  # ()


def _problem(logits: Tensor, target: Tensor, smoothing_weight: Tensor | None, align_corners: bool) -> _Problem:
    axes = None
    if logits.shape[2:] == target.shape[1:]:
        logits, target = logits.flatten(2).unsqueeze(2), target.flatten(1).unsqueeze(1)
    else:
        rows = axis(logits.shape[2], target.shape[1], align_corners, logits.device)
        axes = rows, axis(logits.shape[3], target.shape[2], align_corners, logits.device)
    if smoothing_weight is not None:
        smoothing_weight = smoothing_weight.contiguous()
    weight_sum = None if smoothing_weight is None else smoothing_weight.sum()
    return _Problem(axes, logits, logits.amax(1).float(), target.contiguous(), smoothing_weight, weight_sum)


def forward(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    smoothing_weight: Tensor | None,
    align_corners: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """As :func:`mmseg_wce.kernels.slabs.forward`, for float32, float16 and bfloat16 logits."""
    tiles, problem = TILES, _problem(logits, target, smoothing_weight, align_corners)
    z, axes = problem.logits, problem.axes
    resized = axes is not None
    nll = torch.empty(target.shape, dtype=torch.float32, device=target.device)
    total = nll.new_empty(2 if resized else 1, *target.shape)  # origins where resized, logarithms of sums
    smooth = None if smoothing_weight is None else torch.empty_like(nll)
    correct = torch.empty(target.shape, dtype=torch.bool, device=target.device)
    (height, width), (H, W) = z.shape[2:], problem.target.shape[1:]
    rows_at_once = _rows_at_once(height, H, align_corners, min(tiles.lanes, _MOST_ROWS)) if resized else 1
    programs = z.shape[0] * (height + 1 if resized else 1) * triton.cdiv(W, tiles.forward_columns)
    sizes = z.shape[1], height, width, H, W, *z.stride()
    with torch.cuda.device_of(logits):
        measure[(programs,)](
            z, problem.peak, problem.target, problem.weight, problem.weight_sum,
            *([None] * 4 if axes is None else _look_ups(*axes)),
            nll, smooth, correct, total[0], total[-1], ignore_index, *sizes,
            RESIZED=resized, SMOOTHING=smooth is not None,
            CHANNELS=tiles.lanes // rows_at_once, ROWS=rows_at_once, COLUMNS=tiles.forward_columns,
            **launch_options(warps=4),
        )  # fmt: skip
        if axes is not None:
            rows, columns = axes
            measure_finely[(programs,)](
                z, problem.target, problem.weight, problem.weight_sum,
                rows.fine_fraction, rows.start, columns.cell, columns.fine_fraction,
                nll, smooth, correct, *total, *sizes,
                SMOOTHING=smooth is not None, CHANNELS=min(tiles.lanes, triton.next_power_of_2(z.shape[1])),
                ROWS=tiles.fine_rows, COLUMNS=tiles.forward_columns, **launch_options(warps=4),
            )  # fmt: skip
    return nll, smooth, correct, total


def backward(
    grad_nll: Tensor | None,
    grad_smooth: Tensor | None,
    logits: Tensor,
    target: Tensor,
    total: Tensor,
    ignore_index: int,
    smoothing_weight: Tensor | None,
    align_corners: bool,
) -> Tensor:
    """As :func:`mmseg_wce.kernels.slabs.backward`."""
    tiles, problem = TILES, _problem(logits, target, smoothing_weight, align_corners)
    z, axes = problem.logits, problem.axes
    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    grad_nll = torch.zeros_like(total[0]) if grad_nll is None else grad_nll.contiguous()
    grad_smooth = None if grad_smooth is None else grad_smooth.contiguous()
    (images, channels, height, width), (H, W) = z.shape, problem.target.shape[1:]
    maps, weights = (grad_nll, grad_smooth, z, problem.peak, problem.target), (problem.weight, problem.weight_sum)
    smoothing = grad_smooth is not None
    with torch.cuda.device_of(logits):
        if axes is None:
            differentiate_same_size[(images * triton.cdiv(W, tiles.forward_columns),)](
                *maps, total[0], *weights, gradient, ignore_index, channels, W, z.stride(0), z.stride(1), z.stride(3),
                SMOOTHING=smoothing, CHANNELS=tiles.lanes, COLUMNS=tiles.forward_columns, **launch_options(warps=4),
            )  # fmt: skip
        else:
            at_once = min(tiles.channels, max(16, triton.next_power_of_2(channels)))
            owned = _nodes_to_own(width, W, align_corners, tiles.nodes, tiles.columns)
            programs = triton.cdiv(channels, at_once) * triton.cdiv(width, owned)
            programs *= triton.cdiv(height, tiles.rows_of_nodes) * images
            lowest_origin, (rows, columns) = total[0].amin(-1), axes
            for fine in (False, True):
                differentiate_resized[(programs,)](
                    *maps, *total, *weights, *_look_ups(rows, columns), columns.start,
                    gradient, lowest_origin, rows.fine_fraction, columns.fine_fraction,
                    ignore_index, channels, height, width, H, W, owned, tiles.rows_of_nodes, *z.stride(),
                    SMOOTHING=smoothing, FINE=fine, PRECISION=_precision(z.dtype),
                    CHANNELS=at_once, COLUMNS=tiles.columns, NODES=tiles.nodes,
                    **launch_options(backward_warps(at_once, tiles.columns)),
                )  # fmt: skip
    return gradient


def _look_ups(rows: Axis, columns: Axis) -> tuple[Tensor, ...]:
    return rows.fraction, rows.start, columns.cell, columns.fraction


def _precision(dtype: torch.dtype) -> str:
    """Of the matrix product: a gradient rounded to bfloat16 loses nothing to TF32, which few AMD GPUs have."""
    return 'tf32' if dtype == torch.bfloat16 and not torch.version.hip else 'ieee'


def backward_warps(channels: int, columns: int) -> int:
    return channels * columns // 256  # eight numbers of a tile a thread


def launch_options(warps: int) -> dict[str, int]:
    options = dict(num_warps=warps, enable_fp_fusion=True)
    return options if torch.version.hip else dict(options, maxnreg=_REGISTERS)  # only NVIDIA's compiler takes a limit


@lru_cache(maxsize=64)
def _rows_at_once(nodes: int, pixels: int, align_corners: bool, most: int) -> int:
    """How many rows of pixels share the corners of their cell, so that few computed rows are beyond its last one."""
    heights = axis(nodes, pixels, align_corners, torch.device('cpu')).start.diff()

    def cost(rows: int) -> int:
        return int((-(-heights // rows)).sum()) * (rows + _CORNERS)

    return min((2**i for i in range(most.bit_length())), key=cost)


@lru_cache(maxsize=64)
def _nodes_to_own(nodes: int, pixels: int, align_corners: bool, most: int, columns: int) -> int:
    """How many neighbouring nodes a program takes, so that fewest blocks of pixels are computed, halos included."""
    start = axis(nodes, pixels, align_corners, torch.device('cpu')).start

    def blocks(owned: int) -> int:
        first = torch.arange(0, nodes, owned, device='cpu')
        spans = start[(first + owned).clamp(max=nodes) + 1] - start[first]
        return int((-(-spans // columns)).sum())

    return min(range(most, 0, -1), key=blocks)
