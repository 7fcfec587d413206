"""The exponentials of a loss step alone: what no way of computing a softmax and its gradient gets around."""

import statistics
import time

import numpy as np
import torch
from mmseg_wce.kernels.cpu.input_rows import aligned_empty
from mmseg_wce.kernels.cpu.jit import Kernel, fast_function
from mmseg_wce.kernels.cpu.scalars import EXP2, exp2
from mmseg_wce.kernels.cpu.threads import run
from numba import types

_IN_A_PIECE = 1 << 12  # numbers that stay in a core's first cache


@fast_function
def _add(z, total, constants):
    for j in range(z.shape[0]):
        total[j] += exp2(z[j], constants)


@Kernel(types.UniTuple(types.float32, len(EXP2)), types.float32[::1])
def _add_up(first, last, pieces, constants, out):
    z, total = aligned_empty(_IN_A_PIECE), aligned_empty(_IN_A_PIECE)
    for j in range(z.shape[0]):
        z[j], total[j] = np.float32(-j % 20), np.float32(0)
    for _ in range(first, last):
        _add(z, total, constants)
    out[first % out.shape[0]] = total[1]


def seconds_on_cpu(number: int, rounds: int) -> float:
    """Median time of so many float32 exponentials, in the arithmetic and on the threads of the CPU kernels."""
    kernel, pieces, out = _add_up.compiled(), np.zeros((1, 1), np.int64), np.zeros(64, np.float32)

    def once() -> float:
        start = time.perf_counter()
        run(lambda first, last: kernel(first, last, pieces, EXP2, out), -(-number // _IN_A_PIECE), number)
        return time.perf_counter() - start

    once()
    return statistics.median(once() for _ in range(rounds))


def per_second_on_gpu() -> float | None:
    """Of the whole GPU, at 16 a clock and multiprocessor (CUDA C++ Programming Guide, arithmetic instructions)."""
    properties = torch.cuda.get_device_properties()
    kilohertz = getattr(properties, 'clock_rate', None)
    return kilohertz and 16e3 * properties.multi_processor_count * kilohertz
