"""Layout of the pixels of an output row between the input pixels, and of the work in pieces.

Cell k of an axis is the space between the input pixels k - 1 and k, for k = 0 to size; neighbours outside the image
repeat its edge. The columns of an output row are rearranged by phase: entry (p, k) holds the p-th pixel of cell k, or
none, so that a loop over the cells reads consecutive memory and treats every cell alike. An input row is stored at
positions: the pixel left of cell k at position k, the one right of it at position k + shift. If columns are upscaled,
neighbouring cells share positions (shift 1). If they are downscaled, only cells with a pixel are stored, first all left
and then all right pixels.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels.bilinear import cells_and_fractions
from numba import types

VECTOR = 16  # float32 numbers in the widest vector register; the number of cells is padded to a multiple

Array = np.ndarray


class Axes(NamedTuple):
    """Lookup tables of both axes of one resize: S phases in each of K cells, P positions in an input row."""

    start: Array  # (h + 2,), int64; row i of the cells holds the output rows start[i] to start[i + 1]
    row_weights: Array  # (H, 2), float32, of the input pixels above and below
    row_fraction: Array  # (H,), float64, weight of the input pixel below
    phase_weights: Array  # (2, S, K), float32, of the input pixels left and right
    output_column: Array  # (S, K), int32, output column of each phase and cell, -1 for none
    phase_and_cell: Array  # (W, 2), int64, p and k of each output column
    column_fraction: Array  # (W,), float64, weight of the input pixel on the right
    width: int  # w
    num_positions: int  # P
    shift: int
    input_column: Array  # (P,), int64, input pixel at each position; (0,) if pixel j is at j + 1, with repeated edges

    @classmethod
    def signature(cls) -> types.Type:
        i, i32, f, d = types.int64, types.int32, types.float32, types.float64
        fields = i[::1], f[:, ::1], d[::1], f[:, :, ::1], i32[:, ::1], i[:, ::1], d[::1], i, i, i, i[::1]
        return types.NamedTuple(fields, cls)


@lru_cache(maxsize=32)
def axes(inputs: tuple[int, int], outputs: tuple[int, int], align_corners: bool) -> Axes:
    """Return the tables for a resize from (h, w) to (H, W)."""
    (row, lower_weight), (column, right_weight) = (
        (cell.numpy(), fraction.numpy())
        for cell, fraction in (
            cells_and_fractions(*sizes, align_corners) for sizes in zip(inputs, outputs, strict=True)
        )
    )
    used_cells, index, count = np.unique(column, return_inverse=True, return_counts=True)
    phase = np.arange(len(column)) - (count.cumsum() - count)[index]  # index among the pixels of its cell
    num_phases = int(count.max())
    fractions = np.unique(right_weight)
    if len(fractions) == num_phases:  # an integer scale: one fraction per phase
        phase = np.searchsorted(fractions, right_weight)
    is_sparse = outputs[1] < inputs[1]
    if not is_sparse:
        used_cells, index = np.arange(inputs[1] + 1), column
    num_cells = -(-len(used_cells) // VECTOR) * VECTOR
    input_column: Array = np.zeros(0, np.int64)
    if is_sparse:  # only cells with a pixel
        left = np.pad(used_cells, (0, num_cells - len(used_cells)), mode='edge')
        input_column = np.concatenate([np.maximum(left - 1, 0), np.minimum(left, inputs[1] - 1)])
    phase_weights = _aligned_empty(2, num_phases, num_cells)
    output_column = np.full((num_phases, num_cells), -1, np.int32)
    phase_weights[0], phase_weights[1] = 1, 0
    phase_weights[:, phase, index] = np.stack([1 - right_weight, right_weight])
    output_column[phase, index] = np.arange(len(column))
    return Axes(
        start=np.searchsorted(row, np.arange(inputs[0] + 2)),
        row_weights=np.stack([1 - lower_weight, lower_weight], 1).astype(np.float32),
        row_fraction=lower_weight,
        phase_weights=phase_weights,
        output_column=output_column,
        phase_and_cell=np.stack([phase, index], 1),
        column_fraction=right_weight,
        width=inputs[1],
        num_positions=2 * num_cells if is_sparse else VECTOR + num_cells,
        shift=num_cells if is_sparse else 1,
        input_column=input_column,
    )


def _aligned_empty(*shape: int) -> Array:
    """Return float32 memory aligned to 64 bytes: the widest load takes twice as long across such a boundary."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)


_LOGITS_PER_BAND = 1 << 21  # 1 ms of work, so that threads finish together
_MIN_BANDS = 8  # of all images, so that several threads have work
_MIN_ROWS_PER_BAND = 4  # of cells: neighbouring bands both read the input row between them


@lru_cache(maxsize=32)
def bands(images: int, classes: int, inputs: tuple[int, int], outputs: tuple[int, int]) -> Array:
    """Cut the rows of cells of every image into bands, (bands, 3): image, first and one past the last row of cells.

    The cut depends on shapes alone, so that results do not depend on the number of threads.
    """
    rows, num_logits = inputs[0] + 1, classes * max(math.prod(inputs), math.prod(outputs))
    rows_per_band = min(_LOGITS_PER_BAND, images * num_logits // _MIN_BANDS) * rows // num_logits
    num_bands = max(1, rows // max(_MIN_ROWS_PER_BAND, rows_per_band))
    cuts = [i * rows // num_bands for i in range(num_bands + 1)]
    return np.array([(n, *ends) for n in range(images) for ends in pairwise(cuts)], np.int64)


_LOGITS_PER_BLOCK = 96 << 10  # they fit in the cache of a core
_MAX_COLUMNS_PER_BLOCK = 8192


@lru_cache(maxsize=32)
def blocks(images: int, classes: int, rows: int, columns: int) -> Array:
    """Cut rows of pixels that are not resized, (blocks, 4): image, row, first and one past the last column."""
    step = max(4 * VECTOR, min(_MAX_COLUMNS_PER_BLOCK, _LOGITS_PER_BLOCK // classes) // VECTOR * VECTOR)
    table = [
        (n, i, k, min(k + step, columns)) for n in range(images) for i in range(rows) for k in range(0, columns, step)
    ]
    return np.array(table, np.int64)
