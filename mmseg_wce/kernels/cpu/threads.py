"""A thread pool for pieces of work, whose results do not depend on which thread runs which piece."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

_MIN_WORK_PER_THREAD = 1 << 18  # exponentials: they take 0.05 ms, as long as starting a thread
_STEPS_PER_THREAD = 8  # several steps each, so that a slowed-down thread takes fewer of them


def run(kernel: Callable[[int, int], None], pieces: int, work: int) -> None:
    """Call ``kernel(first, last)`` until all pieces are done, on up to ``torch.get_num_threads()`` threads.

    The calling thread is one of them. Numba's own threads are not used: they kill a forked child, and abort if two
    threads use them at once.

    Args:
        kernel: works on the pieces first to last and releases Python's global lock.
        pieces: number of pieces.
        work: number of exponentials, or of numbers to read, in all pieces.
    """
    num_threads = min(torch.get_num_threads(), pieces, max(1, work // _MIN_WORK_PER_THREAD))
    if num_threads == 1:
        kernel(0, pieces)
        return
    step = -(-pieces // (_STEPS_PER_THREAD * num_threads))
    starts, has_failed = itertools.count(0, step), False

    def run_pieces() -> None:
        nonlocal has_failed
        try:
            while not has_failed and (first := next(starts)) < pieces:
                kernel(first, min(first + step, pieces))
        except BaseException:
            has_failed = True
            raise

    pool, futures = _pool(os.getpid(), torch.get_num_threads() - 1), []
    with contextlib.suppress(RuntimeError):  # no thread can start at interpreter exit or beyond the system's limit
        for _ in range(num_threads - 1):
            futures.append(pool.submit(run_pieces))
    try:
        run_pieces()
    finally:
        has_failed = has_failed or any(future.exception() is not None for future in futures)  # waits
    for future in futures:
        future.result()


@lru_cache(maxsize=1)
def _pool(process: int, size: int) -> ThreadPoolExecutor:
    """Return the pool of a process. A forked child, which inherits a pool without threads, gets a new one."""
    return ThreadPoolExecutor(size, thread_name_prefix='mmseg_wce')
