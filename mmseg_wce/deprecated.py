"""Old import names: they work, with a DeprecationWarning that says the new one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ['install', 'old_module', 'renamed_attribute']

_MODULES = {
    'mmseg_wce.fusion': 'mmseg_wce.fused_heads',
    'mmseg_wce.head_losses': 'mmseg_wce.fused_heads.head_losses',
    'mmseg_wce.binary': 'mmseg_wce.functional',
    'mmseg_wce.recovery': 'mmseg_wce.training.checkpoints',
    'mmseg_wce.preflight': 'mmseg_wce.training.preflight',
    'mmseg_wce.resuming': 'mmseg_wce.training.resuming',
    'mmseg_wce.launch': 'mmseg_wce.training.launch',
    'mmseg_wce.config_parts': 'mmseg_wce.config_walk',
    'mmseg_wce.shipped': 'mmseg_wce.resources',
    'mmseg_wce.environment': 'mmseg_wce.collect_env',
    'mmseg_wce.labels': 'mmseg_wce.targets',
    'mmseg_wce.label_files': 'mmseg_wce.dataset_checks',
    'mmseg_wce.label_files.agreement': 'mmseg_wce.dataset_checks.config_consistency',
    'mmseg_wce.label_files.listing': 'mmseg_wce.dataset_checks.discovery',
    'mmseg_wce.label_files.scanning': 'mmseg_wce.dataset_checks.scanning',
    'mmseg_wce.label_files.statistics_checks': 'mmseg_wce.dataset_checks.statistics_checks',
}
_NAMES = {
    'in_folder': 'from_folder',
    'of_config': 'from_config',
    'of_dataset': 'from_dataset',
}
_ATTRIBUTES = {
    'mmseg_wce.class_weights.Convention': 'LabelEncoding',
    'mmseg_wce.class_weights.statistics.Convention': 'LabelEncoding',
    # in pickles of fused heads
    'mmseg_wce.fused_heads.head_losses.standard': 'base_loss_by_feat',
    'mmseg_wce.fused_heads.head_losses.of_pid_head': 'pid_loss_by_feat',
    'mmseg_wce.fused_heads.head_losses.of_ddr_head': 'ddr_loss_by_feat',
}


class _Alias(ModuleType):
    """A module under its old name; names inside it are looked up in the module that took its place."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__') and name != '__all__':
            raise AttributeError(name)
        return getattr(import_module(_MODULES[self.__name__]), _NAMES.get(name, name))


class _AliasFinder(MetaPathFinder, Loader):
    """Find the old modules after everything else has failed to."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=name == 'mmseg_wce.label_files') if name in _MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Alias(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        new = _MODULES[module.__name__]
        warnings.warn(f'{module.__name__} is now {new}', DeprecationWarning, stacklevel=2)
        import_module(new)


def install() -> None:
    """Make the old names importable."""
    if not any(isinstance(finder, _AliasFinder) for finder in sys.meta_path):
        sys.meta_path.append(_AliasFinder())


def old_module(name: str) -> ModuleType:
    """Import a module of the package under its old name, for ``mmseg_wce.NAME`` after ``import mmseg_wce``.

    Args:
        name: the attribute that the package lacks.

    Raises:
        AttributeError: the name is not that of an old module.
    """
    if f'mmseg_wce.{name}' not in _MODULES:
        raise AttributeError(f"module 'mmseg_wce' has no attribute {name!r}")
    return import_module(f'mmseg_wce.{name}')


def renamed_attribute(module: str, name: str) -> Any:
    """Return the attribute that replaced an old name, with a DeprecationWarning.

    Args:
        module: name of the module whose ``__getattr__`` calls this.
        name: the attribute that the module lacks.

    Returns:
        The attribute of that module under its new name.

    Raises:
        AttributeError: the name is not a renamed one.
    """
    new = _ATTRIBUTES.get(f'{module}.{name}')
    if new is None:
        raise AttributeError(f'module {module!r} has no attribute {name!r}')
    warnings.warn(f'{module}.{name} is now {module}.{new}', DeprecationWarning, stacklevel=3)
    return getattr(import_module(module), new)
