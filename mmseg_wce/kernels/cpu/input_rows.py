"""Reading and writing logits of any dtype and strides, without converting all of them at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mmseg_wce.kernels import units
from mmseg_wce.kernels.cpu.jit import allocating_function, exact_function, fast_function
from mmseg_wce.kernels.cpu.scalars import LOG2_E, from_bfloat16, from_float16, to_bfloat16, to_float16
from numba import types

FLOAT32, STRIDED, BFLOAT16, FLOAT16 = range(4)


class Logits(NamedTuple):
    """Logits (N, C, h, w) in one of three arrays, so that a kernel compiled once takes all dtypes and strides."""

    single: np.ndarray  # float32, contiguous: inner loops can read it directly
    strided: np.ndarray  # float32, of any strides
    half: np.ndarray  # int16, the bits of bfloat16 or float16, of any strides
    kind: int


LOGITS = types.NamedTuple(
    (types.float32[:, :, :, ::1], types.float32[:, :, :, :], types.int16[:, :, :, :], types.int64), Logits
)


class Gradient(NamedTuple):
    """Gradient (N, C, h, w), contiguous, in one of two arrays, the other empty."""

    single: np.ndarray
    half: np.ndarray
    kind: int


GRADIENT = types.NamedTuple((types.float32[:, :, :, ::1], types.int16[:, :, :, ::1], types.int64), Gradient)


_ZERO, _MASKED = np.float32(0), np.float32(units.MASKED)


@allocating_function
def aligned_empty(size):
    """Return uninitialised memory for ``size`` float32 numbers, aligned for the widest vector instruction."""
    memory = np.empty(size + 16, np.float32)
    offset = (-(memory.ctypes.data >> 2)) & 15
    return memory[offset : offset + size]


@fast_function
def read_columns(logits, n, c, i, begin, out):
    """Copy columns ``begin`` and following of one row of one class to ``out``, in float32."""
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
    """Copy values to columns ``begin`` and following of a contiguous gradient, rounded to its dtype."""
    end = begin + values.shape[0]
    if gradient.kind == BFLOAT16:
        bits = gradient.half[n, c, i, begin:end]
        for j in range(values.shape[0]):
            bits[j] = to_bfloat16(values[j])
    elif gradient.kind == FLOAT16:
        bits = gradient.half[n, c, i, begin:end]
        for j in range(values.shape[0]):
            bits[j] = to_float16(values[j])
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
    """Read one row of one class, each pixel to its positions (P,); line (w,) is overwritten."""
    width = axes.width
    if axes.input_column.shape[0] > 0:
        values = logits.single[n, c, i] if logits.kind == FLOAT32 else line
        if logits.kind != FLOAT32:
            read_columns(logits, n, c, i, 0, line)
        for j in range(row.shape[0]):
            row[j] = values[axes.input_column[j]]
    else:
        read_columns(logits, n, c, i, 0, row[1 : width + 1])
        row[0] = row[1]
        for j in range(width + 1, row.shape[0]):
            row[j] = row[width]


@fast_function
def fill_row(logits, n, i, axes, undefined_value, max_logit, line, out):
    """Read one row of logits for the resize, in units of log 2, each pixel to its positions in out (C, P).

    The maximum over the classes is subtracted from each pixel. The subtracted maxima interpolate to an upper bound of
    the maximum everywhere, and an offset common to all logits of a pixel costs no digits.

    Args:
        undefined_value: replacement for a logit of NaN or +inf, and for -inf if all classes of the pixel are at -inf.
        max_logit: (P,), overwritten.
        line: (w,), overwritten.
    """
    for c in range(out.shape[0]):
        read_row(logits, n, c, i, axes, line, out[c])
        if c == 0:
            for j in range(max_logit.shape[0]):
                max_logit[j] = out[c, j]
        for j in range(max_logit.shape[0]):
            max_logit[j] = out[c, j] if out[c, j] > max_logit[j] else max_logit[j]
    for c in range(out.shape[0]):
        for j in range(max_logit.shape[0]):
            z = (out[c, j] - max_logit[j]) * LOG2_E
            z = _MASKED if z < _MASKED else z
            out[c, j] = undefined_value if z != z else z


@fast_function
def clear_rows(gradient, n, c, begin, end):
    """Set some rows of one class to zero."""
    if gradient.kind == FLOAT32:
        gradient.single[n, c, begin:end] = _ZERO
    else:
        gradient.half[n, c, begin:end] = np.int16(0)


@fast_function
def write_row(row, axes, line, gradient, n, c, i):
    """Write one row of one class, adding up the positions (P,) of each pixel. Overwrites row and line (w,)."""
    width = axes.width
    if axes.input_column.shape[0] > 0:
        line[:] = _ZERO
        for j in range(row.shape[0]):
            line[axes.input_column[j]] += row[j]
        write_columns(line, gradient, n, c, i, 0)
    else:
        row[1] += row[0]
        row[width] += row[width + 1]
        write_columns(row[1 : width + 1], gradient, n, c, i, 0)
