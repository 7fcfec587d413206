"""The OpenMMLab stack on today's PyTorch and Python: small fixes, each with the condition under which it is needed.

A fix does nothing where its condition does not hold, so it disappears by itself when the stack is upgraded. None of
them hides a missing feature: an op that is not there raises when it is called, and says how to get it.
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
    """mmcv-lite: make ``import mmcv.ops`` (and with it ``import mmseg.models``) work without the compiled ops.

    Condition: mmcv has no compiled extension, and is older than 2.3, whose maintained fork guards missing ops itself.
    ``mmcv._ext`` itself stays absent: mmengine probes it to learn whether mmcv is complete.
    """
    import mmcv
    from mmcv.utils import ext_loader

    if importlib.util.find_spec('mmcv._ext') is None and Version(mmcv.__version__) < Version('2.3'):
        ext_loader.load_ext = _load_missing_ext


def _load_missing_ext(name: str, funcs: list[str]) -> SimpleNamespace:
    """Stand-in for ``mmcv.utils.ext_loader.load_ext``: the ops exist by name, and calling one raises."""
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
    """mmengine and mmcv ask ``pkgutil.find_loader`` whether mmcv has compiled ops, mmengine in every training.

    Condition: Python 3.14 or later, which no longer has this function.
    """
    from mmcv.utils import ext_loader
    from mmengine.utils.dl_utils import misc

    if not hasattr(pkgutil, 'find_loader'):
        misc.pkgutil = ext_loader.pkgutil = SimpleNamespace(find_loader=importlib.util.find_spec)


def _let_checkpoints_load_safely() -> None:
    """Let ``torch.load(weights_only=True)`` read all that mmengine stores in its checkpoints, and execute none of them.

    The allowed classes can only hold numbers, see :mod:`mmseg_wce.safe_io.pickled_arrays`; all others are refused.
    Files from an address, and with the fork all files that are refused, would otherwise be loaded without
    ``weights_only``.

    Condition: torch >= 2.6, where weights_only became the default.
    """
    from mmengine.logging.history_buffer import HistoryBuffer
    from mmengine.runner import checkpoint

    if torch.__version__ < torch.torch_version.TorchVersion('2.6'):
        return
    torch.serialization.add_safe_globals([HistoryBuffer, (_history_statistic, 'builtins.getattr'), *SAFE_GLOBALS])
    checkpoint.load_url = _load_from_address
    if hasattr(checkpoint, '_safe_torch_load'):  # of the fork
        checkpoint._safe_torch_load = _load_safely


def _load_from_address(url: str, **options: Any) -> Any:
    return torch.hub.load_state_dict_from_url(url, **options, weights_only=True)


def _load_safely(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    return torch.load(file, map_location=map_location, weights_only=True)


def _history_statistic(owner: type, name: str) -> Any:
    """What ``getattr`` may do in a checkpoint: name the statistics of mmengine's HistoryBuffer, and nothing else."""
    from mmengine.logging.history_buffer import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('current', 'max', 'mean', 'min'):
        raise pickle.UnpicklingError(f'a checkpoint may not ask for attribute {name!r} of {owner!r}')
    return getattr(owner, name)


def _let_checkpoints_bring_no_config() -> None:
    """mmengine: to resume, it executes the config that a checkpoint may hold as ``meta['config']``, for its gpu_ids.

    Condition: none; mmengine itself has written it under another name since its first version.
    """
    from mmengine.runner.checkpoint import CheckpointLoader

    load = CheckpointLoader.load_checkpoint.__func__
    if not hasattr(load, '__wrapped__'):
        CheckpointLoader.load_checkpoint = classmethod(_without_config(load))


def _without_config(load: Callable) -> Callable:
    @wraps(load)
    def load_checkpoint(cls: type, *args: Any, **options: Any) -> Any:
        checkpoint = load(cls, *args, **options)
        meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
        if isinstance(meta, dict):
            meta.pop('config', None)
        return checkpoint

    return load_checkpoint


def _let_configs_inherit_from_the_fork() -> None:
    """``_base_ = 'mmseg::...'``: mmengine looks for the configs in the distribution ``mmsegmentation``.

    Condition: that is not installed, and its maintained fork, which holds the same configs under another name, is.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    fork = 'onedl-mmsegmentation'
    if MODULE2PACKAGE['mmseg'] == 'mmsegmentation' and not _is_installed('mmsegmentation') and _is_installed(fork):
        MODULE2PACKAGE['mmseg'] = fork


def _is_installed(distribution: str) -> bool:
    return any(metadata.distributions(name=distribution))


def _name_samples_that_fail() -> None:
    """A data set of mmseg: say which sample could not be read, or transformed, in the middle of an epoch.

    Condition: mmseg does not do so itself (no version up to 1.2.2, nor the fork's 1.4.2, does). A file that cannot be
    decoded is otherwise an AttributeError of None.
    """
    from mmengine.dataset import BaseDataset
    from mmseg.datasets import BaseCDDataset, BaseSegDataset

    for kind in (BaseSegDataset, BaseCDDataset):
        if kind.prepare_data is BaseDataset.prepare_data:
            kind.prepare_data = _prepare_named


def _prepare_named(dataset: Any, index: int) -> Any:
    """``prepare_data`` of :class:`mmengine.dataset.BaseDataset` with the sample's files in the message."""
    info = dataset.get_data_info(index)
    paths = {kind: info[kind] for kind in ('img_path', 'img_path2', 'seg_map_path') if info.get(kind)}
    try:
        return dataset.pipeline(info)
    except Exception as error:  # transforms raise anything
        files = ', '.join(f'{kind} {path!r}' for kind, path in paths.items())
        raise RuntimeError(
            f'sample {index} of {type(dataset).__name__} cannot be used: {files or "no file"}: '
            f'{type(error).__name__}: {error}'
        ) from error


def _silence_pkg_resources() -> None:
    """mmengine imports pkg_resources for every `mmseg::` config, which warns three times about what no user can change.

    Condition: setuptools < 82, which still has pkg_resources (newer ones do not, and mmengine needs it).
    """
    if importlib.util.find_spec('pkg_resources') is not None:
        warnings.filterwarnings('ignore', message='pkg_resources is deprecated', category=UserWarning)
