"""Time of a loss step's exponentials alone: a lower bound for every implementation of softmax and its gradient."""

import numpy as np
from mmseg_wce.kernels.cpu.input_rows import aligned_empty
from mmseg_wce.kernels.cpu.jit import Kernel, fast_function
from mmseg_wce.kernels.cpu.scalars import EXP2, exp2
from mmseg_wce.kernels.cpu.threads import run
from numba import types
from timing import median_seconds

_PIECE_SIZE = 1 << 12  # float32 numbers that fit into a core's L1 cache, twice


@fast_function
def _add(z, total, constants):
    for j in range(z.shape[0]):
        total[j] += exp2(z[j], constants)


@Kernel(types.UniTuple(types.float32, len(EXP2)), types.float32[::1])
def _add_up(first, last, pieces, constants, out):
    z, total = aligned_empty(_PIECE_SIZE), aligned_empty(_PIECE_SIZE)
    for j in range(z.shape[0]):
        z[j], total[j] = np.float32(-j % 20), np.float32(0)
    for _ in range(first, last):
        _add(z, total, constants)
    out[first % out.shape[0]] = total[1]


def seconds_on_cpu(number: int, rounds: int) -> float:
    """Return the median time of ``number`` float32 exponentials, with the arithmetic and threads of the CPU kernels."""
    kernel, pieces, out = _add_up.compiled(), np.zeros((1, 1), np.int64), np.zeros(64, np.float32)

    def once() -> None:
        run(lambda first, last: kernel(first, last, pieces, EXP2, out), -(-number // _PIECE_SIZE), number)

    return median_seconds(once, rounds)
