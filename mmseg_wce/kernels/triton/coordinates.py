"""Place output pixels between input pixels, from integers inside the kernels.

As in :mod:`mmseg_wce.kernels.bilinear`, cell k lies between the input pixels k - 1 and k of an axis, for k = 0 to size.
An output pixel p of an axis lies at ``(p * step + shift) / denominator - 1`` in units of input pixels:
:func:`mmseg_wce.kernels.triton.tiles.axis_numbers` computes these integers.
"""

import triton
import triton.language as tl


@triton.jit
def is_within(index, size):
    """Return whether 0 <= index < size, in one comparison."""
    if index.dtype == tl.int64:
        return index.to(tl.uint64, bitcast=True) < tl.cast(size, tl.uint64)
    else:
        return index.to(tl.uint32, bitcast=True) < tl.cast(size, tl.uint32)


@triton.jit
def locate(pixel, step, shift, denominator):
    """Return the cells of output pixels, and by how many ``1 / denominator`` they lie behind its first input pixel."""
    position = pixel * step + shift
    cell = position // denominator
    return cell, position - cell * denominator


@triton.jit
def first_pixel(cell, step, shift, denominator, pixels):
    """Return the first output pixel in a cell or behind it; ``pixels`` if there is none."""
    return tl.minimum((tl.maximum(cell * denominator - shift, 0) + step - 1) // step, pixels)


@triton.jit
def neighbours(cell, size):
    """Return the input pixels before and behind a cell; outside the image its edge is repeated."""
    return tl.maximum(cell - 1, 0), tl.minimum(cell, size - 1)


@triton.jit
def _from_bits(inverse):
    return tl.full([], inverse, tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def to_fraction(numerator, inverse):
    """Return numerator / denominator, from the bits of 1 / denominator in float32."""
    return numerator.to(tl.float32) * _from_bits(inverse)


@triton.jit
def to_fraction_float64(numerator, denominator, inverse):
    """Return numerator / denominator in float64, from integers below 2^24 and the bits of 1 / denominator."""
    denominator, exact = tl.full([], denominator, tl.float32).to(tl.float64), _from_bits(inverse).to(tl.float64)
    for _ in tl.static_range(2):  # Newton's method doubles the number of correct digits
        exact = exact * (2.0 - denominator * exact)
    return numerator.to(tl.float32).to(tl.float64) * exact
