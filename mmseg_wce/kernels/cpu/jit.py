"""Compile the kernels with Numba, each for one signature, and keep the machine code on disk."""

from __future__ import annotations

import contextlib
import hashlib
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba
from mmseg_wce.kernels import units
from numba import types
from numba.core.caching import FunctionCache
from numba.core.compiler import Compiler

__all__ = ['Kernel', 'allocating_function', 'exact_function', 'fast_function', 'inlined_function']

# contract: multiply and add in one rounding. Nothing that reorders sums or assumes that there is no NaN.
_FAST = {'contract', 'nsz'}
_OPTIONS: dict[str, Any] = dict(error_model='numpy', no_cfunc_wrapper=True)
_INNER: dict[str, Any] = dict(_OPTIONS, no_cpython_wrapper=True)  # called by kernels alone


class _WithoutAliases(Compiler):
    """Promises LLVM that no two arguments share memory: it would look before every inner loop."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


# Without reference counts (_nrt), which are atomic additions at every slice of an array: they took half of the time.
# Such functions cannot allocate memory, nor return an array to one that counts.
_FASTER: dict[str, Any] = dict(_INNER, fastmath=_FAST, _nrt=False, pipeline_class=_WithoutAliases)
_njit: Callable[..., Callable] = numba.njit
fast_function = _njit(**_FASTER)
inlined_function = _njit(forceinline=True, **_FASTER)
# Every operation is rounded on its own, as PyTorch rounds. Without a word about it, the caller's fastmath would hold.
exact_function = _njit(_nrt=False, fastmath=False, **_INNER)
allocating_function = _njit(**_INNER)


class Kernel:
    """A function for threads to run, compiled for one signature when it is first used.

    Its first arguments are the first and one past the last piece of work, and the table of all pieces.

    Args:
        signature: types of the other arguments. Those of logits fit all strides, and all dtypes.
    """

    def __init__(self, *signature: types.Type) -> None:
        self.signature = (types.int64, types.int64, types.int64[:, ::1], *signature)

    def __call__(self, function: Callable[..., None]) -> Kernel:
        """Decorate the function."""
        self.dispatcher = numba.njit(nogil=True, fastmath=_FAST, **_OPTIONS)(function)
        return self

    @lru_cache  # noqa: B019  (as many as there are kernels)
    def compiled(self) -> Callable[..., None]:
        """Return what takes the arguments; compiles it, or loads it from the cache, the first time."""
        try:
            self.dispatcher._cache = _Cache(self.dispatcher.py_func)
        except RuntimeError:  # there is no folder to write to
            _say('no folder for the cache of Numba can be written, so each process compiles: set NUMBA_CACHE_DIR')
            _say_that_it_compiles()
        try:
            self.dispatcher.compile(self.signature)
        except RuntimeError:
            if not self.dispatcher.overloads:
                raise
            # else another thread has compiled it in the meantime, and switched compiling off
        self.dispatcher.disable_compile()
        # not the dispatcher, which takes 0.03 ms to find out the types
        return next(iter(self.dispatcher.overloads.values())).entry_point


class _Cache(FunctionCache):
    """Numba's, which looks at the file of the kernel alone: this one notices an edit of any function it calls."""

    def _index_key(self, sig: Any, codegen: Any) -> tuple:
        return (*super()._index_key(sig, codegen), _digest_of_sources(Path(self._py_func.__code__.co_filename).parent))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
        except Exception:  # kept by another version of this package, whose classes are not the same, or broken
            found = None
            with contextlib.suppress(OSError):
                self.flush()
        if found is None:
            _say_that_it_compiles()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:  # a full disk, or an index that is broken and cannot be written
            warnings.warn(f'the compiled CPU kernels of mmseg_wce are not kept: {error}', stacklevel=2)


@lru_cache
def _digest_of_sources(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in [*sorted(folder.glob('*.py')), Path(units.__file__)]:  # whose constants are in the machine code
        digest.update(path.read_bytes())
    return digest.hexdigest()


@lru_cache
def _say_that_it_compiles() -> None:
    _say('compiling the CPU kernels, which takes up to half a minute')


@lru_cache
def _say(message: str) -> None:
    print(f'mmseg_wce: {message}', file=sys.stderr, flush=True)
