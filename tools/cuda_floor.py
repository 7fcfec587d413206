"""The least time of a loss step on a GPU, from rates that are measured on it: of a copy, and of exponentials."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from benchmark_cases import Case
from cuda_timing import clocks_under_load, device_timer

EXPONENTIALS_PER_CELL = 4  # inside a cell e^z follows from four of them by products
SWEEPS = 2  # forward and backward
COPY_BYTES = 1 << 30
ROUNDS, BLOCK, PROGRAMS_PER_MULTIPROCESSOR = 2048, 1024, 16


class Rates(NamedTuple):
    """Rates of the device, per second: bytes of a copy, read and written ones counted, and float32 exponentials."""

    copied_bytes: float
    exponentials: float


@triton.jit
def _repeat_exp2(out, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = (offsets % 32).to(tl.float32) / 32
    for _ in range(ROUNDS):
        x = tl.exp2(-x)
    tl.store(out + offsets, x)


def repeat_exp2(out: torch.Tensor) -> None:
    """Write x = 2^-x, ``ROUNDS`` times, to a float32 vector of a multiple of ``BLOCK`` numbers; x stays in registers.

    At the start x is the position modulo 32, divided by 32.
    """
    _repeat_exp2[(out.numel() // BLOCK,)](out, ROUNDS=ROUNDS, BLOCK=BLOCK, num_warps=4)


def measure_rates(device: str, samples: int = 7) -> tuple[Rates, dict[str, str] | str]:
    """Return the rates, from the medians of several samples, and the clocks while exponentials are computed.

    Of two ways to move bytes the faster one counts.
    """
    free, _ = torch.cuda.mem_get_info()
    source = torch.randn(min(COPY_BYTES, free // 8) // 4, device=device)
    copy = torch.empty_like(source)
    multiprocessors = torch.cuda.get_device_properties().multi_processor_count
    out = torch.empty(multiprocessors * PROGRAMS_PER_MULTIPROCESSOR * BLOCK, device=device)
    copies = (lambda: copy.copy_(source)), (lambda: torch.neg(source, out=copy))
    copy_seconds = min(_median_seconds(function, samples) for function in copies)
    exponential_seconds = _median_seconds(lambda: repeat_exp2(out), samples)
    rates = Rates(2 * source.nbytes / copy_seconds, ROUNDS * out.numel() / exponential_seconds)
    return rates, clocks_under_load(lambda: repeat_exp2(out))


def _median_seconds(function: Callable[[], object], samples: int) -> float:
    function()
    timer = device_timer(function)
    return statistics.median(timer.sample() for _ in range(samples))


def bytes_to_move(case: Case) -> dict[str, dict[str, int]]:
    """Return the bytes that the forward and the backward have to read and to write, by the tensor."""
    logits = case.images * case.classes * case.nodes[0] * case.nodes[1] * getattr(torch, case.dtype).itemsize
    pixels = case.images * case.pixels[0] * case.pixels[1]
    maps = dict(labels=pixels * torch.int64.itemsize, normaliser=pixels * torch.float32.itemsize)
    return dict(forward=dict(logits=logits, **maps), backward=dict(logits=logits, gradient=logits, **maps))


def floor(case: Case, rates: Rates) -> dict:
    """Return the least seconds of a step: those of its exponentials or of its bytes, whichever take longer."""
    exponentials = SWEEPS * min(EXPONENTIALS_PER_CELL * case.cells(), case.pairs())
    moved = bytes_to_move(case)
    total = sum(sum(tensors.values()) for tensors in moved.values())
    seconds = dict(exponentials=exponentials / rates.exponentials, bytes=total / rates.copied_bytes)
    return dict(seconds=max(seconds.values()), seconds_of=seconds, exponentials=exponentials, bytes=moved)
