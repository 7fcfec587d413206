"""Compilation of the kernels with Numba, each for one signature, with a cache of the machine code on disk."""

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

# contract: multiply and add with one rounding. Nothing here reorders sums or assumes the absence of NaN.
_FAST_MATH = {'contract', 'nsz'}
_OPTIONS: dict[str, Any] = dict(error_model='numpy', no_cfunc_wrapper=True)
_INNER_OPTIONS: dict[str, Any] = dict(_OPTIONS, no_cpython_wrapper=True)  # called by kernels only


class _NoAliasCompiler(Compiler):
    """A compiler that tells LLVM that no two arguments share memory, which it would check before every inner loop."""

    def define_pipelines(self) -> Any:
        self.state.flags.noalias = True
        return super().define_pipelines()


# Without reference counting (_nrt), whose atomic additions at every slice of an array took half of the time. Such
# functions cannot allocate memory or return an array to a function that counts references.
_FAST_OPTIONS: dict[str, Any] = dict(_INNER_OPTIONS, fastmath=_FAST_MATH, _nrt=False, pipeline_class=_NoAliasCompiler)
_njit: Callable[..., Callable] = numba.njit
fast_function = _njit(**_FAST_OPTIONS)
inlined_function = _njit(forceinline=True, **_FAST_OPTIONS)
# Every operation is rounded separately, as in PyTorch. By default, the fastmath of the caller would apply.
exact_function = _njit(_nrt=False, fastmath=False, **_INNER_OPTIONS)
allocating_function = _njit(**_INNER_OPTIONS)


class Kernel:
    """A function for threads to run, compiled for one signature on first use.

    Its first arguments are the first and one past the last piece of work, and the table of all pieces.

    Args:
        signature: types of the other arguments. The type of logits covers all strides and dtypes.
    """

    def __init__(self, *signature: types.Type) -> None:
        self.signature = (types.int64, types.int64, types.int64[:, ::1], *signature)

    def __call__(self, function: Callable[..., None]) -> Kernel:
        """Decorate the function."""
        self.dispatcher = numba.njit(nogil=True, fastmath=_FAST_MATH, **_OPTIONS)(function)
        return self

    @lru_cache  # noqa: B019  (one entry per kernel)
    def compiled(self) -> Callable[..., None]:
        """Return the compiled function; the first call compiles it or loads it from the cache."""
        try:
            self.dispatcher._cache = _Cache(self.dispatcher.py_func)
        except RuntimeError:  # no writable folder
            _log('Numba has no writable cache folder, so every process compiles the CPU kernels: set NUMBA_CACHE_DIR')
            _log_compilation()
        try:
            self.dispatcher.compile(self.signature)
        except RuntimeError:
            if not self.dispatcher.overloads:
                raise
            # otherwise another thread has compiled it meanwhile and disabled further compilation
        self.dispatcher.disable_compile()
        # not the dispatcher, which takes 0.03 ms to look up the types
        return next(iter(self.dispatcher.overloads.values())).entry_point


class _Cache(FunctionCache):
    """A Numba cache that notices edits of every source file of the kernels, not just of the kernel's own file."""

    def _index_key(self, sig: Any, codegen: Any) -> tuple:
        return (*super()._index_key(sig, codegen), _source_digest(Path(self._py_func.__code__.co_filename).parent))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            overload = super().load_overload(sig, target_context)
        except Exception:  # broken, or written by a version of this package with other classes
            overload = None
            with contextlib.suppress(OSError):
                self.flush()
        if overload is None:
            _log_compilation()
        return overload

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:  # a full disk, or a broken index that cannot be written
            warnings.warn(f'the compiled CPU kernels of mmseg_wce cannot be cached: {error}', stacklevel=2)


@lru_cache
def _source_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in [*sorted(folder.glob('*.py')), Path(units.__file__)]:  # its constants are in the machine code
        digest.update(path.read_bytes())
    return digest.hexdigest()


@lru_cache
def _log_compilation() -> None:
    _log('compiling the CPU kernels, which takes up to 30 seconds')


@lru_cache
def _log(message: str) -> None:
    print(f'mmseg_wce: {message}', file=sys.stderr, flush=True)
