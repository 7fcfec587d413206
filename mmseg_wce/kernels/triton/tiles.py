"""Cut an image into programs, and choose the numbers that kernels are launched with.

Everything depends on shapes alone, without tuning at run time: the results have the same bits in every process.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import torch

__all__ = [
    'TILES',
    'Tiles',
    'axis_numbers',
    'band_rows',
    'block_shape',
    'classes_at_once',
    'options',
    'rows_at_once',
]


class Tiles(NamedTuple):
    """Sizes of programs. Lanes are powers of two; on a GPU a thread has one of 32 to 128, and several of more.

    Attributes:
        lanes: of kernels whose threads have little work: four warps.
        block_lanes: of the forward in progressions: one warp, so that little is computed beyond the image.
        registers: per thread there, at most: 16 warps fit on a multiprocessor.
        rows: of pixels that share the corners of a cell in the forward for any scale, at most.
        loads: classes that are loaded at once by kernels that mostly read, to hide the latency of memory.
        pixels: that a program looks at for those to be computed in float64.
        backward_lanes: one warp, so that columns are exchanged by shuffles, without shared memory and barriers.
        backward_registers: per thread there, at most: 12 warps fit on a multiprocessor.
        classes: of a program of the backward, at most. What is loaded per pixel serves all of them, and their
            unfinished rows fit into registers beside the pixels of a block.
        tall_classes: the same where a cell has several rows of blocks: input pixels stay in registers from row to row.
        programs: of the backward that run at a time: 12 warps on each of the 132 multiprocessors of an H200.
        band: rows of input pixels in a band, at least, unless there are fewer; one more is computed twice.
        sum_lanes: pixels that are added up side by side, eight per thread.
        sum_rounds: of these in a program: fewer, and adding up the lanes would take as long as the pixels.
    """

    lanes: int = 128
    block_lanes: int = 32
    registers: int = 128
    rows: int = 8
    loads: int = 8
    pixels: int = 2048
    backward_lanes: int = 32
    backward_registers: int = 168
    classes: int = 10
    tall_classes: int = 6
    programs: int = 1584
    band: int = 8
    sum_lanes: int = 1024
    sum_rounds: int = 8


class Axis(NamedTuple):
    """Integers by which kernels place the output pixels of an axis between its input pixels."""

    step: int
    shift: int
    denominator: int
    inverse: int  # the bits of 1 / denominator in float32: all arguments of kernels are integers and addresses


TILES = Tiles()
_MAX_BLOCK = 16  # pixels; more do not fit into registers with their sums, largest powers and classes
_CORNERS = 2  # cost of loading the corners of a cell, in output rows
_WARP = 32


def options(lanes: int, registers: int | None = None) -> dict[str, Any]:
    """Return the keyword arguments of a launch for programs of some lanes, with a limit of registers per thread."""
    found = dict(LANES=lanes, num_warps=min(max(lanes // _WARP, 1), 4))
    if registers is not None and not torch.version.hip:  # only NVIDIA's compiler takes a limit
        found['maxnreg'] = registers
    return found


def block_shape(height: int, width: int, H: int, W: int, align_corners: bool) -> tuple[int, int, int] | None:
    """Return the scale, and the columns and rows of a block of progressions; None if kernels for any scale are needed.

    The scale must be an integer, the same for both axes. A block divides a cell, into one, two or four columns.
    """
    scale = H // height
    if align_corners or scale < 2 or scale * height != H or scale * width != W:
        return None
    divisors = [n for n in range(1, scale + 1) if scale % n == 0]
    shapes = [(w, h) for w in divisors for h in divisors if w * h <= _MAX_BLOCK and scale // w in (1, 2, 4)]
    if not shapes:
        return None
    return (scale, *max(shapes, key=lambda shape: (shape[0] * shape[1], -abs(shape[0] - shape[1]))))


def axis_numbers(inputs: int, outputs: int, align_corners: bool) -> Axis:
    """Return the numbers of :mod:`mmseg_wce.kernels.triton.coordinates` for a resize along one axis."""
    step, shift, denominator = 2 * inputs, inputs + outputs, 2 * outputs
    if align_corners:
        step, denominator = (inputs - 1, max(outputs - 1, 1)) if inputs > 1 else (1, outputs + 1)
        shift = denominator
    (bits,) = struct.unpack('<i', struct.pack('<f', 1 / denominator))
    return Axis(step, shift, denominator, bits)


def pixels_per_cell(axis: Axis) -> int:
    """Return how many output pixels a cell has at most."""
    return -(-axis.denominator // axis.step)


def rows_at_once(pixels: int, most: int) -> int:
    """Return how many output rows share the corners of their cell of ``pixels`` rows, for the least work."""
    return min((2**i for i in range(most.bit_length())), key=lambda rows: -(-pixels // rows) * (rows + _CORNERS))


def classes_at_once(channels: int, most: int) -> int:
    """Return how many classes a program of the backward takes, so that few computed ones do not exist."""
    return min(range(min(channels, most), 0, -1), key=lambda n: -(-channels // n) * (n + 1))


def band_rows(height: int, programs_per_band: int, programs: int, least: int) -> int:
    """Return the input rows of a band, at least some, so that the last program ends soon.

    So many programs run at a time, and each computes one row more than it owns.
    """

    def rows(bands: int) -> int:
        return -(-height // bands)

    def duration(bands: int) -> int:
        return -(-bands * programs_per_band // programs) * (rows(bands) + 1)

    return rows(min(range(1, max(height // least, 1) + 1), key=duration))


def is_wide(*numbers: int) -> bool:
    """Return whether 32 bits are too few for one of these numbers."""
    return any(n >= 2**31 for n in numbers)


def extent(x: Any, first_dimension: int) -> int:
    """Return the distance between the first and the last element of a tensor's dimensions from the given one on."""
    return sum((n - 1) * s for n, s in zip(x.shape[first_dimension:], x.stride()[first_dimension:], strict=True))
