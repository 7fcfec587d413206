"""The op in plain PyTorch without full-size logits, for any device: two sweeps over tiles that fit a core's cache.

Forward keeps one number per pixel, the normaliser of its softmax. Backward computes the logits of a tile again, turns
them into their gradient and pushes it through the transpose of the interpolation. Nothing that exists at once grows
with H x W x C.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from mmseg_wce.kernels import resized, same_size
from mmseg_wce.kernels.bilinear import Grid, grid
from mmseg_wce.kernels.maps import Image
from mmseg_wce.kernels.workers import run, scratch, script
from torch import Tensor

_TILE_BYTES = 5 << 18  # of logits in work, per thread: what a core's cache holds
_BAND_BYTES = 3 << 20  # of what tiles are made from, per thread
_NUMBERS_PER_PIXEL = 12  # in work besides the logits
_FEWEST_ROWS = 4  # of cells in a band: neighbouring bands both compute what they share, and hand it over
# With so few channels and nothing to resize, starting threads costs more than they save: PyTorch's own share each
# operation on larger tiles. (Of a matrix product they would not give the same bits for any number of threads.)
_FEW_CHANNELS = 4
_LARGER_FOR_FEW = 12
_LARGER_ON_ACCELERATORS = 64  # there a launch costs more than memory

Band = tuple[int, int, int]  # image, first and one past the last row of cells, or column


class _Plan(NamedTuple):
    """Set by shapes and device alone, so that results do not depend on the number of threads."""

    cells: Grid | None  # None where nothing is resized: then images are single rows of pixels
    dtype: torch.dtype  # of tiles and maps: float32, or float64 for float64 logits
    bands: list[Band]
    tile_rows: int
    spread: bool  # bands over threads


def _plan(logits: Tensor, target: Tensor, align_corners: bool) -> _Plan:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    images, channels, *nodes = logits.shape
    on_cpu, fits = logits.device.type == 'cpu', tuple(nodes) == target.shape[1:]
    few = fits and channels <= _FEW_CHANNELS
    scale = _LARGER_ON_ACCELERATORS if not on_cpu else _LARGER_FOR_FEW if few else 1

    def rows_within(budget: int, numbers: int) -> int:
        return scale * budget // (numbers * dtype.itemsize)

    if fits:
        cells, size, tile_rows = None, target[0].numel(), 1
        step = max(32, rows_within(_TILE_BYTES, channels + _NUMBERS_PER_PIXEL))
    else:
        cells = grid(tuple(nodes), tuple(target.shape[1:]), align_corners, dtype, logits.device)
        size, pixels = nodes[0] + 1, target[0].numel()
        tile_rows = max(1, rows_within(_TILE_BYTES, cells.slots * channels * cells.cells))
        numbers = 2 * channels * cells.cells + _NUMBERS_PER_PIXEL * pixels // size
        step = max(_FEWEST_ROWS, rows_within(_BAND_BYTES, numbers) - 1)
    bands = [(n, first, min(first + step, size)) for n in range(images) for first in range(0, size, step)]
    return _Plan(cells, dtype, bands, tile_rows, spread=on_cpu and not few)


def forward(
    logits: Tensor, target: Tensor, ignore_index: int, smoothing_weight: Tensor | None, align_corners: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Maps of :func:`mmseg_wce.kernels.pixel_nll` and, for :func:`backward`, the normaliser of each pixel.

    Args:
        logits: (N, C, h, w), any floating dtype and strides, not empty.
        target: (N, H, W), int64, not empty.
        ignore_index: the label that does not count.
        smoothing_weight: (C,), float32, or float64 for float64 logits.
        align_corners: of the interpolation.
    """
    plan = _plan(logits, target, align_corners)
    nll, total = (torch.empty(target.shape, dtype=plan.dtype, device=target.device) for _ in range(2))
    smooth = None if smoothing_weight is None else torch.empty_like(nll)
    correct = torch.empty(target.shape, dtype=torch.bool, device=target.device)
    measure = _for(logits.device, same_size.measure_columns if plan.cells is None else resized.measure_band)

    def job(band: Band) -> None:
        n, first, last = band
        image = Image(logits[n], target[n], ignore_index, smoothing_weight, nll[n], _of(smooth, n), total[n])
        room = _room(logits, plan, band)
        if plan.cells is None:
            measure(_in_one_row(image), correct[n].view(1, -1), first, last, *room)
        else:
            measure(image, correct[n], plan.cells, first, last, plan.tile_rows, *room)

    run(job, plan.bands, logits.device, plan.spread)
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
    """Gradient of the logits, (N, C, h, w), from that of the maps, (N, H, W); the rest as in :func:`forward`."""
    plan = _plan(logits, target, align_corners)
    if grad_nll is None:
        grad_nll = torch.zeros((), dtype=plan.dtype, device=target.device).expand(target.shape)
    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    sweep = same_size.differentiate_columns if plan.cells is None else resized.differentiate_band
    differentiate = _for(logits.device, sweep)

    def job(band: Band) -> tuple[Tensor, Tensor] | None:
        n, first, last = band
        image = Image(logits[n], target[n], ignore_index, smoothing_weight, grad_nll[n], _of(grad_smooth, n), total[n])
        room = _room(logits, plan, band)
        if plan.cells is None:
            in_one_row = gradient[n].view(logits.shape[1], 1, -1)
            return differentiate(_in_one_row(image), in_one_row, first, last, *room)
        of_corners = scratch('gradient of corners', room[0].shape, plan.dtype, logits.device)
        return differentiate(image, gradient[n], plan.cells, first, last, plan.tile_rows, *room, of_corners)

    edges = run(job, plan.bands, logits.device, plan.spread)
    if plan.cells is not None:
        _join(gradient, plan.bands, [edge for edge in edges if edge is not None])
    return gradient


def _for(device: torch.device, function: Callable) -> Callable:
    return script(function) if device.type == 'cpu' else function  # elsewhere no threads wait for each other's lock


def _in_one_row(image: Image) -> Image:
    def row(map_: Tensor) -> Tensor:
        return map_.reshape(1, -1)

    return image._replace(
        logits=image.logits.flatten(1).unsqueeze(1),
        target=row(image.target),
        nll=row(image.nll),
        smooth=None if image.smooth is None else row(image.smooth),
        total=row(image.total),
    )


def _of(map_: Tensor | None, image: int) -> Tensor | None:
    return None if map_ is None else map_[image]


def _room(logits: Tensor, plan: _Plan, band: Band) -> list[Tensor]:
    """For the tile, and in front of it for the corners of the band's cells where there are any."""
    (_, first, last), channels, cells = band, logits.shape[1], plan.cells
    if cells is None:
        return [scratch('tile', (channels, last - first), plan.dtype, logits.device)]
    corners = (last - first + 1, 2, channels, cells.cells)
    tile = (plan.tile_rows, cells.slots, channels, cells.cells)
    return [scratch(name, shape, plan.dtype, logits.device) for name, shape in (('corners', corners), ('tile', tile))]


def _join(gradient: Tensor, bands: list[Band], edges: list[tuple[Tensor, Tensor]]) -> None:
    """Add up the rows of nodes that two bands share."""
    for (image, first, _), (top, _), (_, bottom) in zip(bands, edges, [edges[-1], *edges[:-1]], strict=True):
        if first > 0:
            gradient[image, :, first - 1] = top + bottom
