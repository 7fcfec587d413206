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
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

Job = TypeVar('Job')
Result = TypeVar('Result')

_lock = threading.Lock()
_pool: dict[int, ThreadPoolExecutor] = {}  # the one of as many threads as PyTorch uses
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
    index, stopped = itertools.count(), threading.Event()
    results: list[Any] = [None] * len(jobs)

    def work() -> None:  # takes jobs until there are none: a result each would wake the calling thread each time
        with torch.inference_mode():  # a state of the thread, like grad mode
            while not stopped.is_set() and (i := next(index)) < len(jobs):
                try:
                    results[i] = function(jobs[i])
                except BaseException:
                    stopped.set()
                    raise

    try:
        for done in _submit(work, len(jobs)):
            done.result()
    finally:
        stopped.set()  # an interrupted caller leaves no work behind
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


def _submit(work: Callable[[], None], most: int) -> list[Future]:
    """Have as many threads as PyTorch uses do ``work``, but not more than ``most``."""
    with _lock:
        size = torch.get_num_threads()
        if size not in _pool:
            new = _start(size)
            for old in _pool.values():
                old.shutdown(wait=False)  # finishes what it was given
            _pool.clear()
            _pool[size] = new
        return [_pool[size].submit(work) for _ in range(min(size, most))]


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
    try:
        for started in [pool.submit(int) for _ in range(size)]:
            started.result()
    except BaseException:
        all_started.abort()  # a thread could not start: those that wait for it end
        pool.shutdown(wait=False)
        raise
    finally:
        torch.set_num_threads(size)  # set_num_threads(1) also holds for threads that start later
    return pool


def _forget_threads() -> None:
    """A forked child has the pool and the lock, but not the threads."""
    _pool.clear()
    _lock.release()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_forget_threads)
