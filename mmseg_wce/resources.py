"""Configs and tools of the package, in its folder ``.mim``, or next to it in a checkout."""

from __future__ import annotations

import ast
import os
import shutil
from pathlib import Path

__all__ = ['ROOT', 'configs', 'copy_config', 'find_config']

_PACKAGE = Path(__file__).resolve().parent
ROOT: Path = _PACKAGE / '.mim' if (_PACKAGE / '.mim').is_dir() else _PACKAGE.parent
"""Folder that holds ``configs/`` and ``tools/``."""


def configs() -> list[str]:
    """Return all configs that can be trained, relative to ``ROOT / 'configs'``."""
    folder = ROOT / 'configs'
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob('[!_]*/*.py'))


def find_config(name: str) -> str:
    """Return the config with this name, or the only one whose name contains it, ignoring case.

    Raises:
        LookupError: no config matches, or several do.

    Example:
        >>> from mmseg_wce.resources import find_config
        >>> find_config('segnext')
        'ade20k/segnext_mscan-t_1xb16-adamw-wce-160k_ade20k-512x512.py'
    """
    stem = name.removesuffix('.py')
    exact = [config for config in configs() if stem in (config.removesuffix('.py'), Path(config).stem)]
    matches = exact or [config for config in configs() if stem.lower() in config]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise LookupError(f'{name!r} is in the names of {len(matches)} configs: {", ".join(matches)}')
    raise LookupError(f'no config has {name!r} in its name; python -m mmseg_wce configs lists all {len(configs())}')


def copy_config(config: str, out: Path) -> list[Path]:
    """Copy a config and its local base files, keeping their relative paths.

    Args:
        config: relative to ``ROOT / 'configs'``.
        out: folder; created if missing.

    Returns:
        The new files, the config first.

    Raises:
        NotADirectoryError: ``out`` is a file.
        FileExistsError: a file exists with other content; nothing has been copied.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f'{str(out)!r} is not a folder')
    sources = _with_bases(ROOT / 'configs' / config)
    common = os.path.commonpath([source.parent for source in sources])
    targets = [out / source.relative_to(common) for source in sources]
    for source, target in zip(sources, targets, strict=True):
        if os.path.lexists(target) and not (target.is_file() and target.read_bytes() == source.read_bytes()):
            raise FileExistsError(f'{str(target)!r} exists and differs: choose another folder, or remove it')
    for source, target in zip(sources, targets, strict=True):
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return targets


def _with_bases(config: Path) -> list[Path]:
    """Return a config and its local base files, recursively; ``mmseg::`` bases are part of mmseg."""
    files = [config]
    for base in _bases(config):
        if '::' not in base:
            files += _with_bases((config.parent / base).resolve())
    return list(dict.fromkeys(files))


def _bases(config: Path) -> list[str]:
    for node in ast.parse(config.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) == '_base_':
            bases = ast.literal_eval(node.value)
            return [bases] if isinstance(bases, str) else list(bases)
    return []
