"""Share out an image among the programs of the backward, and write rows of input pixels.

A program owns some columns of a band of input rows, for a few classes, and is one warp. Its threads go down columns of
cells (see :mod:`mmseg_wce.kernels.bilinear`), or of blocks in cells. The cells beside and between programs are computed
by both.
"""

import triton
import triton.language as tl


@triton.jit
def locate_lane(program, chunks, strips, columns, bands, COLUMNS_PER_CELL: tl.constexpr, LANES: tl.constexpr):
    """Return chunk of classes, image, band and column of the lanes of a program, and which of them own input pixels.

    The columns of all bands of an image are numbered one after another. The last lanes of a program, one column of
    cells, are the first of the next.
    """
    lane, owned = tl.arange(0, LANES), LANES - COLUMNS_PER_CELL
    index = program // chunks % strips * owned + lane
    exists = index < bands * columns
    index = tl.minimum(index, bands * columns - 1)
    n = (program // chunks // strips).to(tl.int64)
    return program % chunks, n, index // columns, index % columns, exists & (lane < owned)


@triton.jit
def edge_fraction(fraction, cell, size):
    """Return the weight of the second input pixel; at the edges of the image, both are its only one."""
    return tl.where(cell == 0, 1.0, tl.where(cell == size, 0.0, fraction))


@triton.jit
def store_row(
    gradient, sums, above_row, first_class, channels, row, mask, stride_c, stride_h,
    COLUMNS_PER_CELL: tl.constexpr, CLASSES: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """Write a finished row of input pixels, and return what cells give to the next one.

    Four sums per class: those of the upper left, upper right, lower left and lower right input pixel of the lane's
    cell. ``above_row`` holds the lower two of the cell above.
    """
    lane, kept = tl.arange(0, LANES), ()
    next_cell = tl.minimum(lane + COLUMNS_PER_CELL, LANES - 1)
    for i in tl.static_range(CLASSES):
        left, right = sums[4 * i] + above_row[2 * i], sums[4 * i + 1] + above_row[2 * i + 1]
        value = right + tl.gather(left, next_cell, 0)
        if COLUMNS_PER_CELL > 1:
            value += tl.gather(value, lane ^ 1, 0)
        if COLUMNS_PER_CELL > 2:
            value += tl.gather(value, lane ^ 2, 0)
        k = first_class + i
        pointer = gradient + tl.minimum(k, channels - 1).to(tl.int64) * stride_c + row * stride_h
        tl.store(pointer, value.to(gradient.dtype.element_ty), mask=mask & (k < channels))
        kept = kept + (sums[4 * i + 2], sums[4 * i + 3])
    return kept
