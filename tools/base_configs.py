"""Configs that another is written over: what they are called, and how such a config begins."""

from fnmatch import fnmatch
from pathlib import Path

import mmseg
import mmseg_wce  # noqa: F401  (makes the stack work on today's PyTorch)
from mmengine.config import Config, ConfigDict
from mmseg_wce.training.preflight import PreflightError

SHIPPED = Path(mmseg.__file__).parent / '.mim/configs'


def named(pattern: str) -> list[tuple[str, Path]]:
    """Configs by their name for ``_base_`` and their file; those of mmseg by a pattern, ``.py`` or not."""
    if not pattern.startswith('mmseg::'):
        return [(pattern, Path(pattern))]
    wanted = pattern.removeprefix('mmseg::')
    names = sorted(path.relative_to(SHIPPED).as_posix() for path in SHIPPED.glob('[!_]*/*.py'))
    found = [name for name in names if wanted in (name, name.removesuffix('.py')) or fnmatch(name, wanted)]
    if not found:
        raise PreflightError(f'mmseg ships no config {wanted!r} (looked in {SHIPPED})')
    return [(f'mmseg::{name}', SHIPPED / name) for name in found]


def check_style(file: Path) -> None:
    """Raise PreflightError where a config is one that no file with ``_base_`` can inherit from."""
    if Config._is_lazy_import(str(file)):
        raise PreflightError(
            f'config file {str(file)!r} is of the new style (imports, read_base()): change its losses there'
        )


def header(base: str, config: Config) -> list[str]:
    """First lines of a config over another, whose ``model`` the next ones change."""
    imports = config.get('custom_imports', {})
    names = [name for name in imported(imports) if name != 'mmseg_wce']
    options = ''.join(f', {key}={value!r}' for key, value in imports.items() if key != 'imports')
    return [
        f'_base_ = {base!r}',
        f'custom_imports = dict(imports={[*names, "mmseg_wce"]!r}{options})',
        'model = _base_.model',
    ]


def imported(imports: ConfigDict) -> list[str]:
    names = imports.get('imports', [])
    return [names] if isinstance(names, str) else list(names)
