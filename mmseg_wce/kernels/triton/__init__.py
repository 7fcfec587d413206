"""The op on CUDA: launches the kernels of :mod:`mmseg_wce.kernels.triton.kernels`.

Tile sizes depend on shapes alone, without tuning at run time, so the results have the same bits in every process.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from mmseg_wce.kernels.bilinear import Axis, axis
from mmseg_wce.kernels.inputs import Inputs
from mmseg_wce.kernels.triton.kernels import differentiate_resized, differentiate_same_size, measure, measure_finely
from torch import Tensor


class Tiles(NamedTuple):
    """Tile sizes of a program: powers of two unless stated, and at least 16 in the backward for ``tl.dot``."""

    lanes: int = 8  # forward: classes times output rows; one thread holds them all and adds them up alone
    forward_columns: int = 128
    fine_rows: int = 1  # output rows of ``measure_finely``
    channels: int = 32  # backward, like the following
    columns: int = 64
    input_columns: int = 16  # input pixels in a row
    input_rows: int = 16  # not necessarily a power of two


TILES = Tiles()
_MAX_ROWS_AT_ONCE = 8
_CORNERS = 2  # cost of loading the corners of a cell, in output rows
_REGISTERS = 128  # per thread: inner loops fit, and 16 warps per multiprocessor hide each other's latency


class _Problem(NamedTuple):
    """The inputs of a sweep in the form that kernels take. If nothing is resized, images are single rows."""

    axes: tuple[Axis, Axis] | None  # rows, columns; None if nothing is resized
    tables: tuple[Tensor | None, ...]  # of both axes
    logits: Tensor  # (N, C, h, w)
    max_logit: Tensor  # (N, h, w), float32
    target: Tensor  # (N, H, W), contiguous
    weights: tuple[Tensor | None, Tensor | None]  # smoothing_weight (C,) and its sum (), float32


def _prepare(inputs: Inputs) -> _Problem:
    logits, target, _, smoothing_weight, _, align_corners = inputs
    axes = None
    tables: tuple[Tensor | None, ...] = (None,) * 4
    if inputs.is_resized:
        rows = axis(logits.shape[2], target.shape[1], align_corners, logits.device)
        columns = axis(logits.shape[3], target.shape[2], align_corners, logits.device)
        axes, tables = (rows, columns), (rows.fraction, rows.start, columns.cell, columns.fraction)
    else:
        logits, target = logits.flatten(2).unsqueeze(2), target.flatten(1).unsqueeze(1)
    weight = None if smoothing_weight is None else smoothing_weight.contiguous()
    weights = weight, None if weight is None else weight.sum()
    return _Problem(axes, tables, logits, logits.amax(1).float(), target.contiguous(), weights)


def forward(inputs: Inputs) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Compute :func:`mmseg_wce.kernels.slabs.forward` for float32, float16 and bfloat16 logits."""
    tiles, (axes, tables, z, max_logit, target, weights) = TILES, _prepare(inputs)
    nll = torch.empty(inputs.target.shape, dtype=torch.float32, device=target.device)
    # origins if resized, then log2_sum_exp
    softmax_stats = nll.new_empty(2 if inputs.is_resized else 1, *nll.shape)
    smooth = None if inputs.smoothing_weight is None else torch.empty_like(nll)
    correct = torch.empty_like(nll, dtype=torch.bool)
    (height, width), (H, W), rows_at_once = z.shape[2:], target.shape[1:], 1
    if inputs.is_resized:
        rows_at_once = _rows_at_once(height, H, inputs.align_corners, min(tiles.lanes, _MAX_ROWS_AT_ONCE))
    programs = z.shape[0] * (height + 1 if inputs.is_resized else 1) * triton.cdiv(W, tiles.forward_columns)
    sizes = z.shape[1], height, width, H, W, *z.stride()
    with torch.cuda.device_of(z):
        measure[(programs,)](
            z, max_logit, target, *weights, *tables,
            nll, smooth, correct, softmax_stats[0], softmax_stats[-1], inputs.ignore_index, *sizes,
            RESIZED=inputs.is_resized, SMOOTHING=smooth is not None,
            CHANNELS=tiles.lanes // rows_at_once, ROWS=rows_at_once, COLUMNS=tiles.forward_columns,
            **launch_options(warps=4),
        )  # fmt: skip
        if axes is not None:
            rows, columns = axes
            measure_finely[(programs,)](
                z, target, *weights, rows.fraction_float64, rows.start, columns.cell, columns.fraction_float64,
                nll, smooth, correct, *softmax_stats, *sizes,
                SMOOTHING=smooth is not None, CHANNELS=min(tiles.lanes, triton.next_power_of_2(z.shape[1])),
                ROWS=tiles.fine_rows, COLUMNS=tiles.forward_columns, **launch_options(warps=4),
            )  # fmt: skip
    return nll, smooth, correct, softmax_stats


def backward(inputs: Inputs, softmax_stats: Tensor, grad_nll: Tensor | None, grad_smooth: Tensor | None) -> Tensor:
    """Compute :func:`mmseg_wce.kernels.slabs.backward`."""
    tiles, (axes, tables, z, max_logit, target, weights) = TILES, _prepare(inputs)
    gradient = torch.empty(inputs.logits.shape, dtype=z.dtype, device=z.device)
    grad_nll = torch.zeros_like(softmax_stats[0]) if grad_nll is None else grad_nll.contiguous()
    grad_smooth = None if grad_smooth is None else grad_smooth.contiguous()
    (images, channels, height, width), (H, W) = z.shape, target.shape[1:]
    maps, is_smoothed = (grad_nll, grad_smooth, z, max_logit, target), grad_smooth is not None
    with torch.cuda.device_of(z):
        if axes is None:
            differentiate_same_size[(images * triton.cdiv(W, tiles.forward_columns),)](
                *maps, softmax_stats[0], *weights, gradient, inputs.ignore_index, channels, W,
                z.stride(0), z.stride(1), z.stride(3), SMOOTHING=is_smoothed, CHANNELS=tiles.lanes,
                COLUMNS=tiles.forward_columns, **launch_options(warps=4),
            )  # fmt: skip
        else:
            channels_at_once = min(tiles.channels, max(16, triton.next_power_of_2(channels)))
            owned_columns = _owned_columns(width, W, inputs.align_corners, tiles.input_columns, tiles.columns)
            programs = triton.cdiv(channels, channels_at_once) * triton.cdiv(width, owned_columns)
            programs *= triton.cdiv(height, tiles.input_rows) * images
            # TF32 suffices for a bfloat16 gradient, but few AMD GPUs have it
            precision = 'tf32' if z.dtype == torch.bfloat16 and not torch.version.hip else 'ieee'
            lowest_origin, (rows, columns) = softmax_stats[0].amin(-1), axes
            for in_float64 in (False, True):
                differentiate_resized[(programs,)](
                    *maps, *softmax_stats, *weights, *tables, columns.start,
                    gradient, lowest_origin, rows.fraction_float64, columns.fraction_float64,
                    inputs.ignore_index, channels, height, width, H, W, owned_columns, tiles.input_rows, *z.stride(),
                    SMOOTHING=is_smoothed, FINE=in_float64, PRECISION=precision,
                    CHANNELS=channels_at_once, COLUMNS=tiles.columns, INPUT_COLUMNS=tiles.input_columns,
                    **launch_options(backward_warps(channels_at_once, tiles.columns)),
                )  # fmt: skip
    return gradient


def backward_warps(channels: int, columns: int) -> int:
    """Return the number of warps of the backward: eight numbers of a tile per thread."""
    return channels * columns // 256


def launch_options(warps: int) -> dict[str, int]:
    """Return the keyword arguments of a launch that concern the compiler."""
    options = dict(num_warps=warps, enable_fp_fusion=True)
    return options if torch.version.hip else dict(options, maxnreg=_REGISTERS)  # only NVIDIA's compiler takes a limit


@lru_cache(maxsize=64)
def _rows_at_once(inputs: int, outputs: int, align_corners: bool, max_rows: int) -> int:
    """Return how many output rows share the corners of their cell, so that few computed rows lie beyond the cell."""
    heights = axis(inputs, outputs, align_corners, torch.device('cpu')).start.diff()

    def cost(rows: int) -> int:
        return int((-(-heights // rows)).sum()) * (rows + _CORNERS)

    return min((2**i for i in range(max_rows.bit_length())), key=cost)


@lru_cache(maxsize=64)
def _owned_columns(inputs: int, outputs: int, align_corners: bool, max_owned: int, columns: int) -> int:
    """Return how many input columns a program owns, for the fewest blocks of output columns, halos included."""
    start = axis(inputs, outputs, align_corners, torch.device('cpu')).start

    def blocks(owned: int) -> int:
        first = torch.arange(0, inputs, owned, device='cpu')
        spans = start[(first + owned).clamp(max=inputs) + 1] - start[first]
        return int((-(-spans // columns)).sum())

    return min(range(max_owned, 0, -1), key=blocks)
