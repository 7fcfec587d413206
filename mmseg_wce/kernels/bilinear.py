"""Bilinear interpolation seen from its cells: the squares between four neighbouring low-resolution pixels, the nodes.

Cell j of an axis lies between the nodes j - 1 and j, for j = 0..size; nodes outside the image repeat its edge. Every
output pixel lies in one cell, at a fraction of it. The same S places recur in every cell where the scale is an integer
(and ``align_corners`` is False), so one small matrix then interpolates a whole row of cells; elsewhere each cell has
its own fractions. All positions are computed in integers: no rounding decides which cell a pixel belongs to.

``Grid`` and the functions on it are TorchScript, see :mod:`mmseg_wce.kernels.workers`.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

# Reductions over the channels are vectorised over so many cells; fewer are computed one by one.
_VECTOR = 32


class Grid(NamedTuple):
    """How rows of nodes become rows of pixels.

    The columns of an output row are rearranged into K cells of S slots, slot s of cell k at s * K + k; a slot holds one
    output column or none. Tiles of pixels are (rows, S, C, K), maps of them (rows, S, 1, K).
    """

    nodes: tuple[int, int]  # h, w
    slots: int  # S
    cells: int  # K, repetitions of the last one included
    starts: list[int]  # row i of cells holds the output rows starts[i] to starts[i + 1]; h + 2 entries
    cell_of_row: Tensor  # (H,)
    row_weight: Tensor  # (H, 2), of the nodes above and below
    cell_of_column: Tensor | None  # (K,), where cells without any pixel were left out
    column_weight: Tensor  # (S, 2, 1, K), of the nodes left and right; with corner_weight (S, 2, 1, 1)
    corner_weight: Tensor | None  # (H, S, 4), where all cells share the fractions: above left, above right, below ...
    pixel: Tensor  # (S * K,), output column in each slot; W where there is none
    place: Tensor  # (W,), slot of each output column
    fine_row_weight: Tensor  # as row_weight and column_weight, in float64
    fine_column_weight: Tensor


def _cells_and_remainders(nodes: int, pixels: int, align_corners: bool) -> tuple[Tensor, Tensor, int]:
    """Cell of every output pixel and, over the returned denominator, its fraction. As F.interpolate places them."""
    pixel = torch.arange(pixels, dtype=torch.int64)
    if align_corners:
        position, denominator = pixel * (nodes - 1), max(pixels - 1, 1)
    else:
        position, denominator = (2 * pixel + 1) * nodes - pixels, 2 * pixels
    cell = torch.div(position, denominator, rounding_mode='floor') + 1
    return cell, torch.remainder(position, denominator), denominator


class Axis(NamedTuple):
    """The cells along one axis, as kernels look them up."""

    cell: Tensor  # (pixels,), int32
    fraction: Tensor  # (pixels,), float32, the weight of the second of its two nodes
    start: Tensor  # (nodes + 2,), int32, first pixel of each cell
    fine_fraction: Tensor  # as fraction, in float64


@lru_cache(maxsize=64)
def axis(nodes: int, pixels: int, align_corners: bool, device: torch.device) -> Axis:
    """From nodes to pixels, made once per size."""
    cell, remainder, denominator = _cells_and_remainders(nodes, pixels, align_corners)
    return Axis(
        cell.int().to(device),
        (remainder.double() / denominator).float().to(device),
        torch.searchsorted(cell, torch.arange(nodes + 2)).int().to(device),
        (remainder.double() / denominator).to(device),
    )


def _padded(cells: int) -> int:
    """More cells where that is cheaper than a remainder of channels reduced one by one."""
    remainder = cells % _VECTOR
    return cells if remainder <= _VECTOR // 3 else cells - remainder + _VECTOR


def _complement(right: Tensor, dim: int) -> Tensor:
    return torch.stack([1 - right, right], dim)


@lru_cache(maxsize=32)
def grid(
    nodes: tuple[int, int], pixels: tuple[int, int], align_corners: bool, dtype: torch.dtype, device: torch.device
) -> Grid:
    """The grid from (h, w) nodes to (H, W) pixels, made once per size."""
    cell_of_row, remainder, denominator = _cells_and_remainders(nodes[0], pixels[0], align_corners)
    row_weight = _complement(remainder.double() / denominator, 1)

    cell, remainder, denominator = _cells_and_remainders(nodes[1], pixels[1], align_corners)
    used, index, count = cell.unique_consecutive(return_inverse=True, return_counts=True)
    slots, recurring = int(count.max()), remainder.unique()
    if shared := len(recurring) == slots:
        slot = torch.searchsorted(recurring, remainder)
    else:
        slot = torch.arange(pixels[1]) - (count.cumsum(0) - count)[index]
    if dense := pixels[1] >= nodes[1]:
        used, index = torch.arange(nodes[1] + 1), cell
    cells = _padded(len(used))
    place = slot * cells + index
    pixel = torch.full((slots * cells,), pixels[1])
    pixel[place] = torch.arange(pixels[1])
    if shared:
        column_weight = _complement(recurring.double() / denominator, 1)
        corner_weight = torch.einsum('ya,sb->ysab', row_weight, column_weight).flatten(2)
        column_weight = column_weight[..., None, None]
    else:
        right = torch.zeros(slots * cells, dtype=torch.float64)
        right[place] = remainder.double() / denominator
        column_weight, corner_weight = _complement(right.view(slots, 1, cells), 1), None

    def moved(tensor: Tensor, dtype: torch.dtype = dtype) -> Tensor:
        return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype).contiguous()

    return Grid(
        nodes=nodes,
        slots=slots,
        cells=cells,
        starts=torch.searchsorted(cell_of_row, torch.arange(nodes[0] + 2)).tolist(),
        cell_of_row=moved(cell_of_row),
        row_weight=moved(row_weight),
        cell_of_column=None if dense else moved(torch.cat([used, used[-1:].expand(cells - len(used))])),
        column_weight=moved(column_weight),
        corner_weight=None if corner_weight is None else moved(corner_weight),
        pixel=moved(pixel),
        place=moved(place),
        fine_row_weight=moved(row_weight, torch.float64),
        fine_column_weight=moved(column_weight, torch.float64),
    )


def to_slots(pixels: Tensor, grid: Grid) -> Tensor:
    """(rows, W) -> (rows, S, 1, K), 0 in slots that hold no pixel."""
    wide = torch.nn.functional.pad(pixels, [0, 1])
    return wide.index_select(1, grid.pixel).view(pixels.shape[0], grid.slots, 1, grid.cells)


def to_pixels(slots: Tensor, grid: Grid, out: Tensor) -> None:
    """(rows, S, 1, K) -> (rows, W)."""
    torch.index_select(slots.flatten(1), 1, grid.place, out=out)


def spread(nodes: Tensor, grid: Grid, corners: Tensor) -> None:
    """From rows of nodes to the nodes left and right of every cell.

    Args:
        nodes: (rows, C, w).
        corners: (rows, 2, C, K), overwritten.
    """
    left, right, width = corners[:, 0], corners[:, 1], grid.nodes[1]
    cell = grid.cell_of_column
    if cell is not None:
        left.copy_(nodes.index_select(-1, (cell - 1).clamp(min=0)))
        right.copy_(nodes.index_select(-1, cell.clamp(max=width - 1)))
    else:
        left[..., 1 : width + 1] = nodes
        right[..., :width] = nodes
        left[..., :1] = nodes[..., :1]
        left[..., width + 1 :] = nodes[..., -1:]
        right[..., width:] = nodes[..., -1:]


def gather(corners: Tensor, grid: Grid) -> Tensor:
    """Transpose of :func:`spread`: gradient of the nodes from that of their corners, which it uses up.

    Args:
        corners: (rows, 2, C, K).

    Returns:
        (rows, C, w).
    """
    left, right, width = corners[:, 0], corners[:, 1], grid.nodes[1]
    cell = grid.cell_of_column
    if cell is not None:
        nodes = torch.zeros([corners.shape[0], corners.shape[2], width], dtype=corners.dtype, device=corners.device)
        nodes.index_add_(-1, (cell - 1).clamp(min=0), left)
        nodes.index_add_(-1, cell.clamp(max=width - 1), right)
    else:
        nodes = right[..., :width]
        nodes.add_(left[..., 1 : width + 1])
        nodes[..., :1].add_(left[..., :1])
        nodes[..., -1:].add_(right[..., width : width + 1])
    return nodes


def _pairs(corners: Tensor, rows: int) -> Tensor:
    """What stands above and below each of n rows of cells: (n, m, numbers), m = 4 corners or 2 rows of nodes."""
    number, numbers = corners.shape[0] - 1, corners.stride(0)
    return corners.as_strided([number, rows, 2 * numbers // rows], [numbers, 2 * numbers // rows, 1])


def expand(corners: Tensor, grid: Grid, begin: int, end: int, out: Tensor) -> None:
    """Interpolate some output rows of one row of cells, or all those of several rows of cells with equally many.

    Args:
        corners: (n + 1, 2, C, K), contiguous: nodes above and below n rows of cells, left and right of each cell.
        begin, end: the output rows.
        out: (rows, S, C, K), contiguous, overwritten.
    """
    number, corner_weight = corners.shape[0] - 1, grid.corner_weight
    if corner_weight is not None:
        weight = corner_weight[begin:end].view(number, -1, 4)
        torch.bmm(weight, _pairs(corners, 4), out=out.view(number, weight.shape[1], -1))
    else:
        at_row = torch.bmm(grid.row_weight[begin:end].view(number, -1, 2), _pairs(corners, 2))
        at_row = at_row.view(end - begin, 1, 2, corners.shape[2], corners.shape[3])
        torch.lerp(at_row[:, :, 0], at_row[:, :, 1], grid.column_weight[:, 1], out=out)


def expand_finely(corners: Tensor, grid: Grid, begin: int, end: int) -> Tensor:
    """As :func:`expand`, in float64 and every channel by the same operations: what is equal stays equal.

    Args:
        corners: (n + 1, 2, C, K), float64.
        begin, end: as in :func:`expand`.

    Returns:
        (rows, S, C, K), float64.
    """
    rows = grid.cell_of_row[begin:end] - grid.cell_of_row[begin]
    down, along = grid.fine_row_weight[begin:end, :, None, None, None], grid.fine_column_weight
    at_row = corners.index_select(0, rows) * down[:, 0] + corners.index_select(0, rows + 1) * down[:, 1]
    return at_row[:, :1] * along[:, 0] + at_row[:, 1:] * along[:, 1]


def reduce(pixels: Tensor, grid: Grid, begin: int, end: int, into: Tensor) -> None:
    """Transpose of :func:`expand`: add the gradient of pixels to that of their corners.

    Args:
        pixels: (rows, S, C, K), contiguous.
        begin, end: as in :func:`expand`.
        into: (n + 1, 2, C, K), contiguous.
    """
    number, corner_weight = into.shape[0] - 1, grid.corner_weight
    if corner_weight is not None:
        weight = corner_weight[begin:end].view(number, -1, 4).transpose(1, 2)
        flat, pairs = pixels.view(number, weight.shape[2], -1), _pairs(into, 4)
        for parity in range(min(number, 2)):  # cells next to each other share nodes
            pairs[parity::2].baddbmm_(weight[parity::2], flat[parity::2])
    else:
        weight = grid.row_weight[begin:end].view(number, -1, 2).transpose(1, 2)
        vertical = torch.bmm(weight, pixels.view(number, weight.shape[2], -1))
        vertical = vertical.view(number, 2, grid.slots, into.shape[2], into.shape[3])
        for below in range(2):
            nodes = into[below : below + number]
            for slot in range(grid.slots):
                for side in range(2):
                    nodes[:, side].addcmul_(vertical[:, below, slot], grid.column_weight[slot, side])


def at(corners: Tensor, grid: Grid, first: int, row: Tensor, slot: Tensor, cell: Tensor) -> Tensor:
    """Interpolate n single pixels, every channel by the same operations in the same order.

    Args:
        corners: (rows, 2, C, K).
        first: the row of cells below the first row of corners.
        row: (n,), output row.
        slot: (n,).
        cell: (n,).

    Returns:
        (n, C).
    """
    weight = grid.column_weight.expand(-1, -1, -1, grid.cells)[slot, :, 0, cell]  # (n, 2)
    by_pixel, top = corners.permute(0, 3, 1, 2), grid.cell_of_row[row] - first
    total = torch.zeros([row.shape[0], corners.shape[2]], dtype=corners.dtype, device=corners.device)
    for below in range(2):
        sides = by_pixel[top + below, cell]  # (n, 2, C)
        inner = sides[:, 0] * weight[:, :1] + sides[:, 1] * weight[:, 1:]
        total = total + grid.row_weight[row, below].unsqueeze(1) * inner
    return total
