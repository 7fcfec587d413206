"""Exponentials as geometric progressions, for integer scales.

Between four input pixels, z(row, column) is bilinear: z = a + b column + row (d + g column). So is

    2^z = A B^column (D G^column)^row,  with A = 2^a, B = 2^b, D = 2^d, G = 2^g,

and four exponentials suffice for all pixels of a cell; the rest are multiplications. Cells are cut into blocks of at
most 16 pixels, one per thread, which keeps progressions short (each step rounds) and registers few.

A block whose logits differ by more than ``MAX_RANGE`` would lose digits: its first exponential may underflow while its
last one matters. Such blocks are computed again in float64.
"""

import triton
import triton.language as tl

# Exponentials are 2^64 times as large as they should be: those of classes that are low at the first pixel of a block
# must not underflow while the last pixel still counts.
UPSCALE, DOWNSCALE = tl.constexpr(2.0**64), tl.constexpr(2.0**-64)
_UPSCALE_DIGITS = tl.constexpr(64.0)
# In binary digits. 2^(z - MAX_RANGE) UPSCALE is a normal number for every z that counts in a sum of at least 2^-57.
MAX_RANGE = tl.constexpr(100.0)


@triton.jit
def first_in_cell(begin, cell, SCALE: tl.constexpr, BLOCK: tl.constexpr):
    """Return how many pixels the first pixel of a block lies behind the first input pixel of its cell.

    Pixels of even scales lie half a pixel beside an input pixel, some of odd ones on it.
    """
    HALF: tl.constexpr = 0.5 if SCALE % 2 == 0 else 0.0
    if BLOCK == SCALE:
        return HALF
    else:
        return (begin - cell * SCALE) * 1.0 + ((SCALE + 1) // 2 + HALF)


@triton.jit
def block_exponentials(
    corners, x_first, y_first, SCALE: tl.constexpr, BLOCK_W: tl.constexpr, BLOCK_H: tl.constexpr
):  # fmt: skip
    """Compute 2^z for the pixels of a block.

    Args:
        corners: z at the four input pixels around the block.
        x_first: columns between the left input pixels and the first pixel of the block.
        y_first: rows between the upper input pixels and the first pixel of the block.
        SCALE: output pixels per input pixel.
        BLOCK_W: columns of the block.
        BLOCK_H: rows of the block.

    Returns:
        UPSCALE times 2^z of each pixel, row by row, and last the steps from one pixel to the next in the first row, the
        first column and the last column.
    """
    above_left, above_right, below_left, below_right = corners
    per_pixel: tl.constexpr = 1.0 / SCALE
    top_step, bottom_step = (above_right - above_left) * per_pixel, (below_right - below_left) * per_pixel
    top, bottom = above_left + x_first * top_step, below_left + x_first * bottom_step
    y_step, twist = (bottom - top) * per_pixel, (bottom_step - top_step) * per_pixel
    first, x_step = top + y_first * y_step, top_step + y_first * twist
    last_y_step = y_step + (BLOCK_W - 1) * twist

    is_low = first < -_UPSCALE_DIGITS  # adding the digits to a small number would cost it its own
    corner = tl.exp2(tl.where(is_low, first + _UPSCALE_DIGITS, first))
    power = (corner * tl.where(is_low, 1.0, UPSCALE),)
    if BLOCK_W > 1:
        x_ratio = tl.exp2(x_step)
        for i in tl.static_range(1, BLOCK_W):
            power = power + (power[i - 1] * x_ratio,)
    if BLOCK_H > 1:
        y_ratio = (tl.exp2(y_step),)
        if BLOCK_W == 2:
            y_ratio = y_ratio + (tl.exp2(last_y_step),)
        if BLOCK_W > 2:
            ratio_ratio = tl.exp2(twist)
            for i in tl.static_range(1, BLOCK_W):
                y_ratio = y_ratio + (y_ratio[i - 1] * ratio_ratio,)
        for i in tl.static_range(BLOCK_W, BLOCK_W * BLOCK_H):
            power = power + (power[i - BLOCK_W] * y_ratio[i % BLOCK_W],)
    return power + (x_step, y_step, last_y_step)


@triton.jit
def block_is_safe(worst_x_step, worst_y_step, BLOCK_W: tl.constexpr, BLOCK_H: tl.constexpr):
    """Return whether the steps of all classes stay within MAX_RANGE."""
    return (BLOCK_W - 1) * worst_x_step + (BLOCK_H - 1) * worst_y_step <= MAX_RANGE
