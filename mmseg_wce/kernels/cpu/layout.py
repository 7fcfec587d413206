"""Place the pixels of an output row between the input pixels, and cut the work into pieces.

Cell k of an axis is the space between the input pixels k - 1 and k, for k = 0 to size; those outside the image repeat
its edge. The columns of an output row are rearranged: slot (p, k) holds the p-th pixel of cell k, or none, so that a
loop over the cells takes neighbours in memory and meets each of them in the same way. An input row is held in places:
the pixel on the left of cell k at place k, the one on its right at place k + shift. Where columns are upscaled, cells
touch and share them (shift 1); where they are downscaled, only cells that have a pixel are held, both sides apart.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels.bilinear import cells_and_fractions
from numba import types

__all__ = ['Axes', 'axes', 'bands', 'blocks']

VECTOR = 16  # cells are padded to a multiple of what the widest instruction takes

Array = np.ndarray


class Axes(NamedTuple):
    """Both axes of one resize, as kernels look them up. S slots for each of K cells, P places for an input row."""

    start: Array  # (h + 2,), int64: cell i of the rows holds the output rows start[i] to start[i + 1]
    row_weights: Array  # (H, 2), float32, of the input pixels above and below
    row_fraction: Array  # (H,), float64, the weight below
    slot_weights: Array  # (2, S, K), float32, of the input pixels left and right
    pixel: Array  # (S, K), int32, output column in each slot, -1 for none
    slot: Array  # (W, 2), int64, p and k of each output column
    column_fraction: Array  # (W,), float64, the weight on the right
    width: int  # w
    padded: int  # P
    shift: int
    column: Array  # (P,), int64, input pixel in each place; (0,) where pixel j is at j + 1, with the edges repeated

    @classmethod
    def signature(cls) -> types.Type:
        i, i32, f, d = types.int64, types.int32, types.float32, types.float64
        fields = i[::1], f[:, ::1], d[::1], f[:, :, ::1], i32[:, ::1], i[:, ::1], d[::1], i, i, i, i[::1]
        return types.NamedTuple(fields, cls)


@lru_cache(maxsize=32)
def axes(inputs: tuple[int, int], outputs: tuple[int, int], align_corners: bool) -> Axes:
    """Make the tables for one pair of sizes, (h, w) and (H, W)."""
    (row, down), (column, right) = (
        (cell.numpy(), fraction.numpy())
        for cell, fraction in (
            cells_and_fractions(*sizes, align_corners) for sizes in zip(inputs, outputs, strict=True)
        )
    )
    used, index, count = np.unique(column, return_inverse=True, return_counts=True)
    within = np.arange(len(column)) - (count.cumsum() - count)[index]  # among the pixels of its cell
    slots = int(count.max())
    fractions = np.unique(right)
    if len(fractions) == slots:  # an integer scale: the slots have one fraction each
        within = np.searchsorted(fractions, right)
    is_sparse = outputs[1] < inputs[1]
    if not is_sparse:
        used, index = np.arange(inputs[1] + 1), column
    cells = -(-len(used) // VECTOR) * VECTOR
    column_in: Array = np.zeros(0, np.int64)
    if is_sparse:  # only the cells with a pixel
        left = np.pad(used, (0, cells - len(used)), mode='edge')
        column_in = np.concatenate([np.maximum(left - 1, 0), np.minimum(left, inputs[1] - 1)])
    weights, pixel = _aligned(2, slots, cells), np.full((slots, cells), -1, np.int32)
    weights[0], weights[1] = 1, 0
    weights[:, within, index] = np.stack([1 - right, right])
    pixel[within, index] = np.arange(len(column))
    return Axes(
        start=np.searchsorted(row, np.arange(inputs[0] + 2)),
        row_weights=np.stack([1 - down, down], 1).astype(np.float32),
        row_fraction=down,
        slot_weights=weights,
        pixel=pixel,
        slot=np.stack([within, index], 1),
        column_fraction=right,
        width=inputs[1],
        padded=2 * cells if is_sparse else VECTOR + cells,
        shift=cells if is_sparse else 1,
        column=column_in,
    )


def _aligned(*shape: int) -> Array:
    """Float32 numbers from a multiple of 64 bytes on: the widest load that crosses one takes twice as long."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)


_NUMBERS_IN_A_BAND = 1 << 21  # a millisecond of work, so that threads end together
_FEWEST_BANDS = 8  # of all images, so that there is work for some threads
_FEWEST_ROWS = 4  # of cells: bands that touch both read the input row between them


@lru_cache(maxsize=32)
def bands(images: int, classes: int, inputs: tuple[int, int], outputs: tuple[int, int]) -> Array:
    """Cut the rows of cells of every image, (bands, 3): image, first and one past the last row of cells.

    By shapes alone, so that results do not depend on the number of threads.
    """
    rows, numbers = inputs[0] + 1, classes * max(math.prod(inputs), math.prod(outputs))
    wanted = min(_NUMBERS_IN_A_BAND, images * numbers // _FEWEST_BANDS) * rows // numbers
    number = max(1, rows // max(_FEWEST_ROWS, wanted))
    cuts = [i * rows // number for i in range(number + 1)]
    return np.array([(n, *ends) for n in range(images) for ends in pairwise(cuts)], np.int64)


_NUMBERS_IN_A_BLOCK = 96 << 10  # logits of a block stay in the cache of a core
_MOST_COLUMNS = 8192


@lru_cache(maxsize=32)
def blocks(images: int, classes: int, rows: int, columns: int) -> Array:
    """Cut rows of pixels that are not resized, (blocks, 4): image, row, first and one past the last column."""
    step = max(4 * VECTOR, min(_MOST_COLUMNS, _NUMBERS_IN_A_BLOCK // classes) // VECTOR * VECTOR)
    cut = [
        (n, i, k, min(k + step, columns)) for n in range(images) for i in range(rows) for k in range(0, columns, step)
    ]
    return np.array(cut, np.int64)
