"""Loading logits and interpolating between input pixels, for the kernels."""

import triton
import triton.language as tl
from mmseg_wce.kernels import units

INF, LOG2_E, LN_2 = tl.constexpr(float('inf')), tl.constexpr(units.LOG2_E), tl.constexpr(units.LN_2)
MASKED = tl.constexpr(units.MASKED)
_MASKED_IN_FLOAT64 = tl.constexpr(-1e300)  # below every logit that float32 can hold
# Above it, neighbouring float32 numbers differ by at least 64: logits tie exactly or are far apart.
_LARGE = tl.constexpr(2.0**29)


@triton.jit
def corner_offsets(above, below, left, right, stride_h, stride_w, WIDE: tl.constexpr):
    """Return the offsets of the four corners of cells inside an image, in 64 bits if WIDE."""
    if WIDE:
        above, below, left, right = above.to(tl.int64), below.to(tl.int64), left.to(tl.int64), right.to(tl.int64)
    above, below, left, right = above * stride_h, below * stride_h, left * stride_w, right * stride_w
    return above + left, above + right, below + left, below + right


@triton.jit
def load_maxima(max_logit, above, below, left, right, width, WIDE: tl.constexpr):
    """Load the largest logit at the four corners of cells, in units of log 2."""
    offsets, maxima = corner_offsets(above, below, left, right, width, 1, WIDE), ()
    for i in tl.static_range(4):
        maxima = maxima + (tl.load(max_logit + offsets[i]) * LOG2_E,)
    return maxima


@triton.jit
def load_corners(logits, offsets, maxima):
    """Load the logits of a class at the four corners of cells, relative to their maxima, in units of log 2."""
    corners = ()
    for i in tl.static_range(4):
        # One rounding. That of the maximum is the same for all classes, so it does not matter.
        corners = corners + (tl.fma(tl.load(logits + offsets[i]).to(tl.float32), LOG2_E, -maxima[i]),)
    return corners


@triton.jit
def masked(corners):
    """Replace -inf by a finite number, and NaN: as its maximum is NaN, all classes are masked, and the sum is small."""
    return (
        tl.maximum(corners[0], MASKED),
        tl.maximum(corners[1], MASKED),
        tl.maximum(corners[2], MASKED),
        tl.maximum(corners[3], MASKED),
    )


@triton.jit
def lerp(a, b, fraction):
    """Interpolate; a + fraction * (b - a) would cost a small number its digits next to a large one."""
    return (1 - fraction) * a + fraction * b


@triton.jit
def bilinear(corners, x_fraction, y_fraction):
    """Interpolate between four corners."""
    top = lerp(corners[0], corners[1], x_fraction)
    return lerp(top, lerp(corners[2], corners[3], x_fraction), y_fraction)


@triton.jit
def _load_float64(pointer, mask):
    z = tl.load(pointer, mask=mask, other=-INF).to(tl.float64)
    return tl.where(z < _MASKED_IN_FLOAT64, _MASKED_IN_FLOAT64, z)


@triton.jit
def bilinear_float64(logits, offsets, mask, x_fraction, y_fraction):
    """Load and interpolate in float64, in units of log 2; a masked class is very low or, rounded, -inf.

    Large results are rounded to float32, in which the origin is stored: 2^(z - origin) then neither overflows nor
    vanishes for the largest z.
    """
    top = lerp(_load_float64(logits + offsets[0], mask), _load_float64(logits + offsets[1], mask), x_fraction)
    bottom = lerp(_load_float64(logits + offsets[2], mask), _load_float64(logits + offsets[3], mask), x_fraction)
    z = lerp(top, bottom, y_fraction) * LOG2_E
    return tl.where(tl.abs(z) > _LARGE, z.to(tl.float32).to(tl.float64), z)
