"""Loading logits and interpolating between input pixels, for the kernels."""

import triton
import triton.language as tl
from mmseg_wce.kernels import units

INF, LOG2_E = tl.constexpr(float('inf')), tl.constexpr(units.LOG2_E)
_MASKED = tl.constexpr(units.MASKED)
_MASKED_IN_FLOAT64 = tl.constexpr(-1e300)  # below every logit that float32 can hold
# Above it, neighbouring float32 numbers differ by at least 64: logits tie exactly or are far apart.
_LARGE = tl.constexpr(2.0**29)


@triton.jit
def subtract_max(logit, max_logit):
    """Return a logit relative to the largest of its input pixel, in units of log 2. NaN stays NaN."""
    z = (logit.to(tl.float32) - max_logit) * LOG2_E
    return tl.where(z < _MASKED, _MASKED, z)


@triton.jit
def lerp(a, b, fraction):
    """Interpolate; a + fraction * (b - a) would cost a small number its digits next to a large one."""
    return (1 - fraction) * a + fraction * b


@triton.jit
def interpolate_row(left_ptr, right_ptr, mask, max_left, max_right, x_fraction):
    """Interpolate a row of input pixels to output columns: (channels, columns)."""
    left = subtract_max(tl.load(left_ptr, mask=mask, other=-INF), max_left[None, :])
    right = subtract_max(tl.load(right_ptr, mask=mask, other=-INF), max_right[None, :])
    return lerp(left, right, x_fraction[None, :])


@triton.jit
def load_row(row_ptr, max_ptr, left, right, stride_w, mask, x_fraction):
    """Load the input pixels left and right of output columns from one row, and interpolate: (channels, columns)."""
    left_ptr = row_ptr + (left.to(tl.int64) * stride_w)[None, :]
    right_ptr = row_ptr + (right.to(tl.int64) * stride_w)[None, :]
    return interpolate_row(left_ptr, right_ptr, mask, tl.load(max_ptr + left), tl.load(max_ptr + right), x_fraction)


@triton.jit
def _load_float64(pointer, mask):
    z = tl.load(pointer, mask=mask, other=-INF).to(tl.float64)
    return tl.where(z < _MASKED_IN_FLOAT64, _MASKED_IN_FLOAT64, z)


@triton.jit
def interpolate_float64(pointer, above, below, left, right, mask, x_fraction, y_fraction):
    """Interpolate from offsets of rows and columns, in units of log 2; a masked class is very low or, rounded, -inf.

    Large results are rounded to float32, in which the origin is stored: 2^(z - origin) then neither overflows nor
    vanishes for the largest z.
    """
    above, below = pointer + above, pointer + below
    top = lerp(_load_float64(above + left, mask), _load_float64(above + right, mask), x_fraction)
    bottom = lerp(_load_float64(below + left, mask), _load_float64(below + right, mask), x_fraction)
    z = lerp(top, bottom, y_fraction) * LOG2_E
    return tl.where(tl.abs(z) > _LARGE, z.to(tl.float32).to(tl.float64), z)
