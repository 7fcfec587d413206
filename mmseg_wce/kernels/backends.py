"""Choice of the back end that computes :func:`mmseg_wce.kernels.pixel_nll`."""

from __future__ import annotations

import logging
import os
import warnings
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec

import torch

__all__ = [
    'BACKENDS',
    'ENVIRONMENT_VARIABLE',
    'OLDEST_CAPABILITY',
    'can_use_triton',
    'chosen_backend',
    'has_triton',
    'prefers_triton',
]

BACKENDS = ('cpu', 'slabs', 'triton', 'reference')
ENVIRONMENT_VARIABLE = 'MMSEG_WCE_BACKEND'
_VARIABLE_AT_IMPORT = os.environ.get(ENVIRONMENT_VARIABLE)  # old versions of torch.compile cannot trace os.environ
_COMPILED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # of Numba and Triton
_OLDEST_TRITON = (3, 3)
OLDEST_CAPABILITY = (8, 0)  # of NVIDIA's GPUs: older ones have no bfloat16, and the kernels were not tried there
_MAX_REFERENCE_LOGITS = 1 << 20  # up to here the reference is faster than slabs, each of which takes twenty operations


def _interpreted() -> bool:
    return os.environ.get('TRITON_INTERPRET') == '1'


@lru_cache
def has_triton() -> bool:
    """Look for a Triton version that compiles the kernels; not imported if this build of PyTorch cannot use it."""
    if not (torch.version.cuda or torch.version.hip or _interpreted()):
        return False
    try:
        import triton
    except Exception:  # a broken installation counts as missing
        return False
    return tuple(int(part) for part in triton.__version__.split('.')[:2]) >= _OLDEST_TRITON


def _has_numba() -> bool:
    """Look for Numba without importing it, which takes a second."""
    try:
        is_installed = find_spec('numba') is not None
    except ValueError:  # sys.modules['numba'] is None
        is_installed = False
    return is_installed and os.environ.get('NUMBA_DISABLE_JIT', '0') in ('', '0')


@lru_cache
def _numba_works() -> bool:
    try:
        return not import_module('numba').config.DISABLE_JIT
    except Exception as error:  # Numba rejects versions of NumPy that it does not know
        warnings.warn(f'Numba cannot be used, so the loss uses a slower back end on the CPU: {error}', stacklevel=5)
        return False


_verdicts: dict[int, bool] = {}  # whether Triton works, by CUDA device


def _try_triton(device: int) -> bool:
    """Compile and run the smallest kernel on a CUDA device; say in the log why another back end is taken."""
    try:
        if not torch.version.hip and torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
            raise RuntimeError(f'compute capability is below {".".join(map(str, OLDEST_CAPABILITY))}')
        import_module('mmseg_wce.kernels.triton').run_smallest_kernel(torch.device('cuda', device))
        torch.cuda.synchronize(device)  # once in a process: a kernel that fails says so no sooner
    except torch.cuda.OutOfMemoryError:
        raise  # this says nothing about Triton
    except Exception as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        logging.getLogger(__name__).warning(
            'The loss uses a slower back end on cuda:%d, because Triton cannot be used there: %s', device, first_line
        )
        return False
    return True


@torch.compiler.assume_constant_result
def can_use_triton(index: int | None) -> bool:
    """Return whether Triton works on a CUDA device; torch.compile asks while it traces."""
    if not has_triton():
        return False
    index = torch.cuda.current_device() if index is None else index
    if index not in _verdicts:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return True  # nothing can be tried now: kernels run before they are captured
        _verdicts[index] = _try_triton(index)
    return _verdicts[index]


def prefers_triton(index: int | None) -> bool:
    """Return whether Triton works on a CUDA device, and the environment asks for no other back end."""
    return os.environ.get(ENVIRONMENT_VARIABLE) in (None, '', 'triton') and can_use_triton(index)


_HAS_NUMBA = _has_numba()


def chosen_backend(backend: str | None, device: torch.device, dtype: torch.dtype, numbers: int = 2**63) -> str:
    """Return the back end that computes :func:`pixel_nll`.

    Args:
        backend: its argument. 'strips', a deprecated name, means 'cpu' on CPU and 'slabs' elsewhere.
        device: of the logits.
        dtype: of the logits.
        numbers: number of full-size logits; with few of them the reference is faster than 'slabs'.

    Returns:
        One of ``BACKENDS``.

    Raises:
        ValueError: the back end does not exist or does not support these logits.
    """
    from_environment = _VARIABLE_AT_IMPORT if torch.compiler.is_compiling() else os.environ.get(ENVIRONMENT_VARIABLE)
    chosen = backend or from_environment or _default_backend(device, dtype, numbers)
    origin = 'backend' if backend else ENVIRONMENT_VARIABLE
    if chosen == 'strips':
        chosen = 'cpu' if device.type == 'cpu' else 'slabs'
        _warn_about_strips(origin, chosen)
    if chosen not in BACKENDS:
        raise ValueError(f'{origin} must be one of {BACKENDS}, got {chosen!r}')
    if chosen == 'triton':
        _check_triton(origin, device, dtype)
    if chosen == 'cpu':
        if device.type != 'cpu':
            raise ValueError(f"{origin}='cpu' needs logits on the CPU, got {device}: use 'slabs'")
        return 'cpu' if _can_use_numba(dtype) else 'slabs'
    return chosen


@lru_cache
def _warn_about_strips(origin: str, new_name: str) -> None:
    warnings.warn(f"{origin}='strips' is now called {new_name!r}", DeprecationWarning, stacklevel=4)


def _can_use_numba(dtype: torch.dtype) -> bool:
    return dtype in _COMPILED_DTYPES and _HAS_NUMBA and (torch.compiler.is_compiling() or _numba_works())


def _default_backend(device: torch.device, dtype: torch.dtype, numbers: int) -> str:
    if device.type == 'meta':
        return 'reference'
    if device.type == 'cuda' and dtype in _COMPILED_DTYPES and can_use_triton(device.index):
        return 'triton'
    if device.type == 'cpu' and _can_use_numba(dtype):
        return 'cpu'
    return 'slabs' if numbers > _MAX_REFERENCE_LOGITS else 'reference'


def _check_triton(origin: str, device: torch.device, dtype: torch.dtype) -> None:
    if device.type != 'cuda' and not _interpreted():
        raise ValueError(f"{origin}='triton' needs logits on a CUDA device, got {device}: use 'slabs'")
    if not has_triton():
        raise ValueError(f"{origin}='triton' needs the package triton, 3.3 or later: pip install triton")
    if dtype not in _COMPILED_DTYPES:
        raise ValueError(f"{origin}='triton' takes float32, float16 and bfloat16 logits, got {dtype}: use 'slabs'")
