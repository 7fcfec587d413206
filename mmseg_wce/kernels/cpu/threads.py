"""Pieces of work on a few threads; which thread takes which piece changes nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

__all__ = ['run']

_WORTH_A_THREAD = 1 << 18  # exponentials: 0.05 ms, which starting another thread takes
_PIECES_A_THREAD = 8  # taken at a time, so that a thread slowed down by a neighbour takes fewer


def run(kernel: Callable[[int, int], None], pieces: int, work: int) -> None:
    """Call ``kernel(first, last)`` until all pieces are done, on ``torch.get_num_threads()`` threads.

    The calling thread is one of them. Numba's own threads are not used: they kill a forked child, or abort where two
    threads use them at once.

    Args:
        kernel: works on the pieces first to last, without Python's global lock.
        pieces: how many there are.
        work: exponentials, or numbers to read, in all of them.
    """
    threads = min(torch.get_num_threads(), pieces, max(1, work // _WORTH_A_THREAD))
    if threads == 1:
        kernel(0, pieces)
        return
    step = -(-pieces // (_PIECES_A_THREAD * threads))
    starts, failed = itertools.count(0, step), False

    def take() -> None:
        nonlocal failed
        try:
            while not failed and (first := next(starts)) < pieces:
                kernel(first, min(first + step, pieces))
        except BaseException:
            failed = True
            raise

    pool, others = _pool(os.getpid(), torch.get_num_threads() - 1), []
    with contextlib.suppress(RuntimeError):  # no thread starts while the interpreter ends, or beyond the system's limit
        for _ in range(threads - 1):
            others.append(pool.submit(take))
    try:
        take()
    finally:
        failed = failed or any(other.exception() is not None for other in others)  # waits
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(process: int, size: int) -> ThreadPoolExecutor:
    """A forked child has another process id, and starts its own: it has its parent's pool, but not the threads."""
    return ThreadPoolExecutor(size, thread_name_prefix='mmseg_wce')
