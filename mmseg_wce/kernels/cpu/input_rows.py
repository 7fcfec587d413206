"""Reading and writing logits of any dtype and strides, without converting all of them at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels import units
from mmseg_wce.kernels.cpu.jit import allocating_function, exact_function, fast_function
from mmseg_wce.kernels.cpu.scalars import LOG2_E, bfloat16_of, float16_of, from_bfloat16, from_float16
from numba import types

__all__ = [
    'BFLOAT16',
    'FLOAT16',
    'FLOAT32',
    'GRADIENT',
    'LOGITS',
    'STRIDED',
    'Gradient',
    'Logits',
    'clear_rows',
    'fill_row',
    'read_columns',
    'read_one',
    'read_row',
    'room',
    'write_columns',
    'write_row',
]

FLOAT32, STRIDED, BFLOAT16, FLOAT16 = range(4)


class Logits(NamedTuple):
    """(N, C, h, w) as one of three arrays, the others empty: kernels are compiled once for all dtypes and strides."""

    single: np.ndarray  # float32, contiguous: inner loops can read it directly
    strided: np.ndarray  # float32, of any strides
    half: np.ndarray  # int16, the bits of bfloat16 or float16, of any strides
    kind: int


LOGITS = types.NamedTuple(
    (types.float32[:, :, :, ::1], types.float32[:, :, :, :], types.int16[:, :, :, :], types.int64), Logits
)


class Gradient(NamedTuple):
    """(N, C, h, w), contiguous, likewise."""

    single: np.ndarray
    half: np.ndarray
    kind: int


GRADIENT = types.NamedTuple((types.float32[:, :, :, ::1], types.int16[:, :, :, ::1], types.int64), Gradient)


_ZERO, _MASKED = np.float32(0), np.float32(units.MASKED)


@allocating_function
def room(size):
    """Return memory for ``size`` float32 numbers, aligned to what the widest instruction loads."""
    memory = np.empty(size + 16, np.float32)
    offset = (-(memory.ctypes.data >> 2)) & 15
    return memory[offset : offset + size]


@fast_function
def read_columns(logits, n, c, i, begin, out):
    """Copy the columns of one row of one class from ``begin`` on to ``out`` in float32."""
    if logits.kind == FLOAT32:
        values = logits.single[n, c, i, begin : begin + out.shape[0]]
        for j in range(out.shape[0]):
            out[j] = values[j]
    elif logits.kind == STRIDED:
        numbers = logits.strided[n, c, i, begin : begin + out.shape[0]]
        for j in range(out.shape[0]):
            out[j] = numbers[j]
    elif logits.kind == BFLOAT16:
        bits = logits.half[n, c, i, begin : begin + out.shape[0]]
        for j in range(out.shape[0]):
            out[j] = from_bfloat16(bits[j])
    else:
        bits = logits.half[n, c, i, begin : begin + out.shape[0]]
        for j in range(out.shape[0]):
            out[j] = from_float16(bits[j])


@fast_function
def write_columns(values, gradient, n, c, i, begin):
    """Copy numbers to the columns of a contiguous gradient from ``begin`` on, rounded to its dtype."""
    end = begin + values.shape[0]
    if gradient.kind == BFLOAT16:
        bits = gradient.half[n, c, i, begin:end]
        for j in range(values.shape[0]):
            bits[j] = bfloat16_of(values[j])
    elif gradient.kind == FLOAT16:
        bits = gradient.half[n, c, i, begin:end]
        for j in range(values.shape[0]):
            bits[j] = float16_of(values[j])
    else:
        out = gradient.single[n, c, i, begin:end]
        for j in range(values.shape[0]):
            out[j] = values[j]


@exact_function
def read_one(logits, n, c, i, j):
    """Return one logit in float64."""
    if logits.kind == FLOAT32:
        return np.float64(logits.single[n, c, i, j])
    if logits.kind == STRIDED:
        return np.float64(logits.strided[n, c, i, j])
    if logits.kind == BFLOAT16:
        return np.float64(from_bfloat16(logits.half[n, c, i, j]))
    return np.float64(from_float16(logits.half[n, c, i, j]))


@fast_function
def read_row(logits, n, c, i, axes, line, row):
    """Read one row of one class, each pixel to its places (P,); line (w,) is overwritten."""
    width = axes.width
    if axes.column.shape[0] > 0:
        values = logits.single[n, c, i] if logits.kind == FLOAT32 else line
        if logits.kind != FLOAT32:
            read_columns(logits, n, c, i, 0, line)
        for j in range(row.shape[0]):
            row[j] = values[axes.column[j]]
    else:
        read_columns(logits, n, c, i, 0, row[1 : width + 1])
        row[0] = row[1]
        for j in range(width + 1, row.shape[0]):
            row[j] = row[width]


@fast_function
def fill_row(logits, n, i, axes, undefined, peak, line, out):
    """Read one row of logits for the resize, each pixel to its places in out (C, P).

    The maximum over the classes is subtracted from each pixel, which interpolates to an upper bound of the maximum
    everywhere and costs no digits where all logits of a pixel share an offset. Units are those of log 2.

    Args:
        undefined: what a class becomes that is at NaN, at +inf, or at -inf like all others of its pixel.
        peak: (P,), overwritten.
        line: (w,), overwritten.
    """
    for c in range(out.shape[0]):
        read_row(logits, n, c, i, axes, line, out[c])
        if c == 0:
            for j in range(peak.shape[0]):
                peak[j] = out[c, j]
        for j in range(peak.shape[0]):
            peak[j] = out[c, j] if out[c, j] > peak[j] else peak[j]
    for c in range(out.shape[0]):
        for j in range(peak.shape[0]):
            z = (out[c, j] - peak[j]) * LOG2_E
            z = _MASKED if z < _MASKED else z
            out[c, j] = undefined if z != z else z


@fast_function
def clear_rows(gradient, n, c, begin, end):
    """Set some rows of one class to zero."""
    if gradient.kind == FLOAT32:
        gradient.single[n, c, begin:end] = _ZERO
    else:
        gradient.half[n, c, begin:end] = np.int16(0)


@fast_function
def write_row(row, axes, line, gradient, n, c, i):
    """Write one row of one class: the sum of the places (P,) of each pixel. Overwrites row and line (w,)."""
    width = axes.width
    if axes.column.shape[0] > 0:
        line[:] = _ZERO
        for j in range(row.shape[0]):
            line[axes.column[j]] += row[j]
        write_columns(line, gradient, n, c, i, 0)
    else:
        row[1] += row[0]
        row[width] += row[width + 1]
        write_columns(row[1 : width + 1], gradient, n, c, i, 0)
