"""What a bug report has to say of an installation, also of one that is broken."""

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
_RANDOM = 'numpy_random_seed'  # mmengine gives one


def collect_env() -> dict[str, str]:
    """Versions, back ends, GPUs and threads: what mmengine's ``collect_env`` finds, and what this package depends on.

    Returns:
        Texts by name. What cannot be found out says why; nothing raises.

    Example:
        >>> import mmseg_wce
        >>> from mmseg_wce.collect_env import collect_env
        >>> collect_env()['mmseg_wce'] == mmseg_wce.__version__
        True
    """
    return {
        **_of_mmengine(),
        'mmseg_wce': mmseg_wce.__version__,
        'registered with mmseg': _registered(),
        **{name: _installed(name) for name in _DISTRIBUTIONS},
        "mmcv's compiled ops": _answer(_compiled_ops),
        'back end on CPU': _answer(lambda: _backend('cpu')),
        'back end on CUDA': _answer(lambda: _backend('cuda')),
        'GPUs': _answer(_gpus),
        'threads': _answer(_threads),
        'set in the environment': ', '.join(f'{v}={os.environ[v]}' for v in _VARIABLES if v in os.environ) or 'nothing',
    }


def _answer(question: Callable[[], str]) -> str:
    try:
        return question()
    except Exception as error:  # a report of a broken installation is what this is for
        return f'unknown ({in_one_line(error)})'


def _of_mmengine() -> dict[str, str]:
    try:
        found = import_module('mmengine.utils.dl_utils').collect_env()
    except Exception as error:
        return {
            'sys.platform': sys.platform,
            'Python': ' '.join(sys.version.split()),
            'PyTorch': torch.__version__,
            "mmengine's collect_env": f'failed ({in_one_line(error)})',
        }
    return {name: str(value).strip() for name, value in found.items() if name != _RANDOM}


def _registered() -> str:
    if mmseg_wce.why_not_registered is None:
        return 'yes'
    return f'no ({mmseg_wce.why_not_registered})'


def _installed(name: str) -> str:
    """Name and version of every distribution that has this import name."""
    found = ((d, installed) for d in _DISTRIBUTIONS[name] for installed in metadata.distributions(name=d))
    versions = [f'{d} {_answer(partial(getattr, installed, "version"))}' for d, installed in found]
    return ', '.join(dict.fromkeys(versions)) or 'not installed'


def _compiled_ops() -> str:
    try:
        import_module('mmcv._ext')
    except Exception as error:  # not there, or made for another torch
        return f'no ({in_one_line(error)})'
    return 'yes'


def _backend(device: str) -> str:
    if device == 'cuda' and not (torch.version.cuda or torch.version.hip):
        return 'none (PyTorch was built without CUDA)'
    return chosen_backend(None, torch.device(device), torch.float32)


def _gpus() -> str:
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    listed = (f'{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}' for gpu in found)
    return '; '.join(listed) or 'none'


def _threads() -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return f'{torch.get_num_threads()} of PyTorch, {torch.get_num_interop_threads()} between operations; {cores} cores'
