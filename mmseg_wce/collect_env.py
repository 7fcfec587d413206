"""Collect the environment for a bug report, also from a broken installation."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata

import mmseg_wce
import torch
from mmseg_wce.kernels.backends import ENVIRONMENT_VARIABLE, chosen_backend
from mmseg_wce.safe_io.errors import in_one_line

__all__ = ['collect_env']

_DISTRIBUTIONS = dict(
    mmseg=('mmsegmentation', 'onedl-mmsegmentation'),
    mmcv=('mmcv', 'mmcv-lite', 'mmcv-full', 'onedl-mmcv'),
    mmengine=('mmengine', 'mmengine-lite', 'onedl-mmengine'),
    numba=('numba',),
    triton=('triton', 'triton-windows', 'pytorch-triton', 'pytorch-triton-rocm'),
)
_VARIABLES = [ENVIRONMENT_VARIABLE, 'NUMBA_DISABLE_JIT', 'NUMBA_CACHE_DIR', 'TRITON_INTERPRET', 'CUDA_VISIBLE_DEVICES']
_VARIABLES += ['OMP_NUM_THREADS', 'MKL_NUM_THREADS']
_RANDOM_SEED = 'numpy_random_seed'  # a key of mmengine's collect_env


def collect_env() -> dict[str, str]:
    """Collect versions, back ends, GPUs and threads: mmengine's ``collect_env`` and the dependencies of this package.

    Returns:
        Texts by name. An entry that cannot be determined holds the reason; nothing raises.

    Example:
        >>> import mmseg_wce
        >>> from mmseg_wce.collect_env import collect_env
        >>> collect_env()['mmseg_wce'] == mmseg_wce.__version__
        True
    """
    reason = mmseg_wce.why_not_registered
    return {
        **_collect_mmengine_env(),
        'mmseg_wce': mmseg_wce.__version__,
        'registered with mmseg': 'yes' if reason is None else f'no ({reason})',
        **{name: _installed_versions(name) for name in _DISTRIBUTIONS},
        "mmcv's compiled ops": _try(_compiled_ops),
        'back end on CPU': _try(lambda: _backend('cpu')),
        'back end on CUDA': _try(lambda: _backend('cuda')),
        'GPUs': _try(_gpus),
        'threads': _try(_threads),
        'set in the environment': ', '.join(f'{v}={os.environ[v]}' for v in _VARIABLES if v in os.environ) or 'nothing',
    }


def _try(query: Callable[[], str]) -> str:
    try:
        return query()
    except Exception as error:  # the installation may be broken
        return f'unknown ({in_one_line(error)})'


def _collect_mmengine_env() -> dict[str, str]:
    try:
        env = import_module('mmengine.utils.dl_utils').collect_env()
    except Exception as error:
        return {
            'sys.platform': sys.platform,
            'Python': ' '.join(sys.version.split()),
            'PyTorch': torch.__version__,
            "mmengine's collect_env": f'failed ({in_one_line(error)})',
        }
    return {name: str(value).strip() for name, value in env.items() if name != _RANDOM_SEED}


def _installed_versions(name: str) -> str:
    """Return name and version of every installed distribution with this import name."""
    distributions = ((d, installed) for d in _DISTRIBUTIONS[name] for installed in metadata.distributions(name=d))
    versions = [f'{d} {_try(partial(getattr, installed, "version"))}' for d, installed in distributions]
    return ', '.join(dict.fromkeys(versions)) or 'not installed'


def _compiled_ops() -> str:
    try:
        import_module('mmcv._ext')
    except Exception as error:  # missing, or built for another torch
        return f'no ({in_one_line(error)})'
    return 'yes'


def _backend(device: str) -> str:
    if device == 'cuda' and not (torch.version.cuda or torch.version.hip):
        return 'none (PyTorch was built without CUDA)'
    return chosen_backend(None, torch.device(device), torch.float32)


def _gpus() -> str:
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    lines = (f'{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}' for gpu in gpus)
    return '; '.join(lines) or 'none'


def _threads() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return f'{torch.get_num_threads()} of PyTorch, {torch.get_num_interop_threads()} between operations; {cores} cores'
