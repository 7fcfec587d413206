"""Small fixes that make the OpenMMLab stack work with current PyTorch and Python, each with its condition.

A fix does nothing unless its condition holds, so it becomes inactive when the stack is upgraded. No fix hides a missing
feature: a missing op raises an error when it is called, which says how to install it.
"""

from __future__ import annotations

import importlib.util
import pickle
import pkgutil
import warnings
from collections.abc import Callable
from functools import wraps
from importlib import metadata
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from mmseg_wce.safe_io.pickled_arrays import SAFE_GLOBALS
from packaging.version import Version

__all__ = ['apply']


def apply() -> None:
    """Apply every fix that this environment needs. Safe to call more than once."""
    _let_mmcv_lite_import()
    _let_mmengine_look_for_compiled_ops()
    _let_checkpoints_load_safely()
    _let_checkpoints_bring_no_config()
    _let_configs_inherit_from_the_fork()
    _name_samples_that_fail()
    _silence_pkg_resources()


def _let_mmcv_lite_import() -> None:
    """Make ``import mmcv.ops``, and with it ``import mmseg.models``, work with mmcv-lite, without compiled ops.

    Condition: mmcv has no compiled extension and is older than 2.3; later versions, by the maintained fork, handle
    missing ops themselves. ``mmcv._ext`` stays absent, because mmengine tests for it to see if mmcv is complete.
    """
    import mmcv
    from mmcv.utils import ext_loader

    if importlib.util.find_spec('mmcv._ext') is None and Version(mmcv.__version__) < Version('2.3'):
        ext_loader.load_ext = _load_missing_ext


def _load_missing_ext(name: str, funcs: list[str]) -> SimpleNamespace:
    """Replace ``mmcv.utils.ext_loader.load_ext``: return ops that raise an error when called."""
    return SimpleNamespace(**{func: _missing_op(func) for func in funcs})


def _missing_op(op: str) -> Callable[..., NoReturn]:
    def raise_missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            f'mmcv op {op!r} is compiled code, which mmcv-lite does not have. To use models that need it, replace '
            f'mmcv-lite by compiled mmcv: pip uninstall mmcv-lite, then pip install "mmseg_wce[full]"'
        )

    raise_missing.__name__ = op
    return raise_missing


def _let_mmengine_look_for_compiled_ops() -> None:
    """Provide ``pkgutil.find_loader``, which mmcv and, in every training, mmengine call to look for compiled ops.

    Condition: Python 3.14 or later, which removed this function.
    """
    from mmcv.utils import ext_loader
    from mmengine.utils.dl_utils import misc

    if not hasattr(pkgutil, 'find_loader'):
        misc.pkgutil = ext_loader.pkgutil = SimpleNamespace(find_loader=importlib.util.find_spec)


def _let_checkpoints_load_safely() -> None:
    """Make ``torch.load(weights_only=True)`` load mmengine's checkpoints, without executing code in them.

    The allowed classes can only hold numbers, see :mod:`mmseg_wce.safe_io.pickled_arrays`; all others raise an error.
    mmengine would load files from a URL, and the fork all files that raise an error, without ``weights_only``.

    Condition: torch >= 2.6, where weights_only became the default.
    """
    from mmengine.logging.history_buffer import HistoryBuffer
    from mmengine.runner import checkpoint

    if torch.__version__ < torch.torch_version.TorchVersion('2.6'):
        return
    torch.serialization.add_safe_globals([HistoryBuffer, (_history_statistic, 'builtins.getattr'), *SAFE_GLOBALS])
    checkpoint.load_url = _load_from_address
    if hasattr(checkpoint, '_safe_torch_load'):  # the fork
        checkpoint._safe_torch_load = _load_safely


def _load_from_address(url: str, **options: Any) -> Any:
    return torch.hub.load_state_dict_from_url(url, **options, weights_only=True)


def _load_safely(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    return torch.load(file, map_location=map_location, weights_only=True)


def _history_statistic(owner: type, name: str) -> Any:
    """Replace ``getattr`` in checkpoints: return statistics of mmengine's HistoryBuffer, raise for all else."""
    from mmengine.logging.history_buffer import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('current', 'max', 'mean', 'min'):
        raise pickle.UnpicklingError(f'a checkpoint may not ask for attribute {name!r} of {owner!r}')
    return getattr(owner, name)


def _let_checkpoints_bring_no_config() -> None:
    """Remove ``meta['config']`` from loaded checkpoints; to resume, mmengine would execute it to read ``gpu_ids``.

    Condition: none; mmengine itself has always written the config under another key.
    """
    from mmengine.runner.checkpoint import CheckpointLoader

    load = CheckpointLoader.load_checkpoint.__func__

    @wraps(load)
    def load_without_config(cls: type, *args: Any, **options: Any) -> Any:
        checkpoint = load(cls, *args, **options)
        meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
        if isinstance(meta, dict):
            meta.pop('config', None)
        return checkpoint

    if not hasattr(load, '__wrapped__'):
        CheckpointLoader.load_checkpoint = classmethod(load_without_config)


def _let_configs_inherit_from_the_fork() -> None:
    """Make ``_base_ = 'mmseg::...'`` work with the fork; mmengine looks in the distribution ``mmsegmentation``.

    Condition: ``mmsegmentation`` is not installed, but its maintained fork, which has the same configs, is.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    fork = 'onedl-mmsegmentation'
    if MODULE2PACKAGE['mmseg'] == 'mmsegmentation' and not _is_installed('mmsegmentation') and _is_installed(fork):
        MODULE2PACKAGE['mmseg'] = fork


def _is_installed(distribution: str) -> bool:
    return any(metadata.distributions(name=distribution))


def _name_samples_that_fail() -> None:
    """Name the sample of an mmseg data set that cannot be read or transformed.

    Condition: mmseg does not do so itself (up to 1.2.2, and the fork up to 1.4.2, it does not). Otherwise a file that
    cannot be decoded raises an AttributeError of None.
    """
    from mmengine.dataset import BaseDataset
    from mmseg.datasets import BaseCDDataset, BaseSegDataset

    for dataset_class in (BaseSegDataset, BaseCDDataset):
        if dataset_class.prepare_data is BaseDataset.prepare_data:
            dataset_class.prepare_data = _prepare_data


def _prepare_data(dataset: Any, index: int) -> Any:
    """Replace ``mmengine.dataset.BaseDataset.prepare_data``; add the sample's files to the error message."""
    info = dataset.get_data_info(index)
    paths = {key: info[key] for key in ('img_path', 'img_path2', 'seg_map_path') if info.get(key)}
    try:
        return dataset.pipeline(info)
    except Exception as error:  # transforms can raise anything
        files = ', '.join(f'{key} {path!r}' for key, path in paths.items())
        raise RuntimeError(
            f'sample {index} of {type(dataset).__name__} cannot be used: {files or "no file"}: '
            f'{type(error).__name__}: {error}'
        ) from error


def _silence_pkg_resources() -> None:
    """Silence the deprecation warnings of pkg_resources, which mmengine imports for every ``mmseg::`` config.

    Condition: setuptools < 82, which still has pkg_resources (mmengine needs it).
    """
    if importlib.util.find_spec('pkg_resources') is not None:
        warnings.filterwarnings('ignore', message='pkg_resources is deprecated', category=UserWarning)
