"""Fixed jobs on a few threads that each compute alone: the result does not depend on their number, and a busy
neighbour slows down one of them instead of all that would wait for each other inside every small operation.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor

Job = TypeVar('Job')
Result = TypeVar('Result')

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_scratch = threading.local()


def run(function: Callable[[Job], Result], jobs: Iterable[Job], device: torch.device, spread: bool) -> list[Result]:
    """``[function(job) for job in jobs]``, without gradients and autocast.

    Args:
        function: what to do.
        jobs: what to do it with.
        device: where it computes.
        spread: over ``torch.get_num_threads()`` threads of one core each; else in the calling thread.
    """
    if not spread:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return [function(job) for job in jobs]
    jobs = list(jobs)
    results, index = [None] * len(jobs), itertools.count()

    def work() -> None:  # takes jobs until there are none: a result each would wake the calling thread each time
        with torch.inference_mode():  # a state of the thread, like grad mode
            while (i := next(index)) < len(jobs):
                results[i] = function(jobs[i])

    pool, size = _threads()
    for done in [pool.submit(work) for _ in range(min(size, len(jobs)))]:
        done.result()
    return results


@lru_cache
def script(function: Callable) -> Callable:
    """The same function, run without Python's global lock.

    Threads with many small operations spend a third of their time waiting for each other's lock. TorchScript runs a
    sequence of operations without it. PyTorch calls it deprecated but has no other way to do this; where it is
    switched off (PYTORCH_JIT=0), the function itself gives the same bits, later.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)
        try:
            return torch.jit.script(function)
        except Exception as error:  # PyTorch has several kinds of error for what it cannot compile
            cause = str(error).strip().splitlines()[-1]
    warnings.warn(f'TorchScript does not take {function.__name__}, which will be slower: {cause}', stacklevel=2)
    return function


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of this thread that lives on from job to job: fresh pages cost as much as the arithmetic on them.

    What a name held before is overwritten. Threads that are not ours, and accelerators, keep none.
    """
    if device.type != 'cpu' or not getattr(_scratch, 'ours', False):
        return torch.empty(shape, dtype=dtype, device=device)
    buffers = _scratch.__dict__.setdefault('buffers', {})
    size, key = math.prod(shape), (name, dtype)
    if key not in buffers or buffers[key].numel() < size:
        buffers[key] = torch.empty(size, dtype=dtype)
    return buffers[key][:size].view(shape)


def _threads() -> tuple[ThreadPoolExecutor, int]:
    global _pool, _pool_size
    with _lock:
        size = torch.get_num_threads()
        if _pool is None or _pool_size != size:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool, _pool_size = _start(size), size
        return _pool, _pool_size


def _start(size: int) -> ThreadPoolExecutor:
    """Start every thread, then undo the one thing they change for others."""
    all_started = threading.Barrier(size)

    def prepare() -> None:
        _scratch.ours = True
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread's first look at the number for all, which would else come after its own
        torch.set_flush_denormal(True)  # a state of the thread; denormals cost fifteen times
        all_started.wait()

    pool = ThreadPoolExecutor(size, thread_name_prefix='mmseg_wce', initializer=prepare)
    for started in [pool.submit(int) for _ in range(size)]:
        started.result()
    torch.set_num_threads(size)  # set_num_threads(1) also holds for threads that start later
    return pool


def _forget_threads() -> None:
    """A forked child has the pool, the buffers and perhaps the lock, but not the threads."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget_threads)
