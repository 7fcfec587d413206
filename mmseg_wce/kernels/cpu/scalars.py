"""Arithmetic on single float32 numbers, in forms that LLVM vectorises."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmseg_wce.kernels import units
from mmseg_wce.kernels.cpu.jit import inlined_function
from numba import float32
from numba.extending import intrinsic

LOG2_E, LN_2 = np.float32(units.LOG2_E), np.float32(units.LN_2)
_ONE = np.float32(1)

# Coefficients of q in 2^r = 1 + r q(r) for |r| <= 1/2, with a relative error of 1.1e-7 (least squares, reweighted to
# minimise the largest error); the number whose addition rounds to an integer and adds the bias of the exponent; the
# exponent below which the result is 0, and 2 to that exponent. Kernels take them as an argument: LLVM loads constants
# that it knows from memory in every iteration of a loop.
_LOWEST = -90.0
EXP2 = tuple(
    np.float32(x)
    for x in (0.693147, 0.24022242, 0.05550734, 0.009671513, 0.0013264727, 1.5 * 2**23 + 127, _LOWEST, 2**_LOWEST)
)


@inlined_function
def exp2(z, constants):
    """Return 2^z for z <= 0, exactly 0 for z <= -90: denormal results would be slow."""
    c1, c2, c3, c4, c5, rounder, lowest, smallest = constants
    z = lowest if z < lowest else z
    rounded = z + rounder
    r = z - (rounded - rounder)
    mantissa = _ONE + r * (c1 + r * (c2 + r * (c3 + r * (c4 + r * c5))))
    power = np.int32(np.float32(rounded).view(np.int32) << np.int32(23)).view(np.float32)
    return mantissa * power - smallest


_BITS_OF_SQRT_HALF = np.int32(0x3F3504F3)
# log2(m) = sum over odd k of 2 / (k log 2) s^k with s = (m - 1) / (m + 1)
_L1, _L3, _L5, _L7, _L9 = (np.float32(2 / (k * units.LN_2)) for k in (1, 3, 5, 7, 9))


@inlined_function
def log2(x):
    """Return the logarithm of a positive number that is neither denormal nor infinite."""
    bits = np.float32(x).view(np.int32)
    exponent = np.int32(bits - _BITS_OF_SQRT_HALF) >> np.int32(23)
    mantissa = np.int32(bits - np.int32(exponent << np.int32(23))).view(np.float32)
    s = (mantissa - _ONE) / (mantissa + _ONE)
    t = s * s
    return np.float32(exponent) + s * (_L1 + t * (_L3 + t * (_L5 + t * (_L7 + t * _L9))))


@intrinsic
def maximum(typing_context: Any, a: Any, b: Any) -> tuple:
    """Return the larger number, b if one is NaN, in one instruction: a Python comparison becomes a masked store."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered('>', *arguments), *arguments)

    return float32(float32, float32), generate


# On a CPU Numba supports neither float16 nor bfloat16: their bits are passed as int16.
_BIAS_TO_SINGLE = np.int32(112 << 23)  # difference of the exponents' biases
_SMALLEST_HALF, _SMALLEST_NORMAL_BITS, _INFINITY_BITS = np.float32(2.0**-24), np.int32(0x400), np.int32(0x7C00)
_INFINITY = np.int32(0x7F800000)
_SMALLEST_NORMAL_HALF = np.float32(2.0**-14)
_OVERFLOWS_HALF = np.float32(65520)


@inlined_function
def from_bfloat16(bits):
    """Convert the bits of a bfloat16 to float32."""
    return np.int32(np.int32(bits) << np.int32(16)).view(np.float32)


@inlined_function
def to_bfloat16(x):
    """Return the bits of the nearest bfloat16, the even one at a tie."""
    bits = np.float32(x).view(np.int32)
    rounded = np.int32(bits + np.int32(0x7FFF) + np.int32(np.int32(bits >> np.int32(16)) & np.int32(1)))
    kept = np.int32(bits | np.int32(0x400000)) if x != x else rounded  # a NaN must not round to infinity
    return np.int16(kept >> np.int32(16))


@inlined_function
def from_float16(bits):
    """Convert the bits of a float16 to float32."""
    wide = np.int32(bits)
    magnitude = np.int32(wide & np.int32(0x7FFF))
    value = np.int32(np.int32(magnitude << np.int32(13)) + _BIAS_TO_SINGLE).view(np.float32)
    # denormal numbers are computed from the integer, as the processor may be set to flush them to zero
    value = np.float32(magnitude) * _SMALLEST_HALF if magnitude < _SMALLEST_NORMAL_BITS else value
    value = np.float32(value).view(np.int32)
    value = np.int32(value | _INFINITY) if magnitude >= _INFINITY_BITS else value
    return np.int32(value | np.int32(np.int32(wide & np.int32(0x8000)) << np.int32(16))).view(np.float32)


@inlined_function
def to_float16(x):
    """Return the bits of the nearest float16, the even one at a tie."""
    bits = np.float32(x).view(np.int32)
    sign = np.int32(np.int32(bits >> np.int32(16)) & np.int32(0x8000))
    magnitude = np.int32(bits & np.int32(0x7FFFFFFF))
    value = magnitude.view(np.float32)
    is_odd = np.int32(np.int32(magnitude >> np.int32(13)) & np.int32(1))
    normal = np.int32(np.int32(magnitude + np.int32(0xFFF) + is_odd - np.int32(112 << 23)) >> np.int32(13))
    # adding one half rounds a small number to the spacing of float16
    small = np.int32(np.float32(value + np.float32(0.5)).view(np.int32) - np.int32(0x3F000000))
    half = small if value < _SMALLEST_NORMAL_HALF else normal
    half = np.int32(0x7C00) if value >= _OVERFLOWS_HALF else half
    half = np.int32(0x7E00) if x != x else half
    return np.int16(np.int32(half | sign))
