"""Base configs: their files and their names for ``_base_``, and the first lines of a config that inherits from one."""

from fnmatch import fnmatch
from pathlib import Path

import mmseg
import mmseg_wce  # noqa: F401  (makes the stack work on today's PyTorch)
from mmengine.config import Config, ConfigDict
from mmseg_wce.training.preflight import PreflightError

MMSEG_CONFIGS = Path(mmseg.__file__).parent / '.mim/configs'


def find_configs(pattern: str) -> list[tuple[str, Path]]:
    """Return name for ``_base_`` and file of a config: of a path, or of each that ``mmseg::PATTERN`` names in mmseg."""
    if not pattern.startswith('mmseg::'):
        return [(pattern, Path(pattern))]
    pattern = pattern.removeprefix('mmseg::')
    names = sorted(path.relative_to(MMSEG_CONFIGS).as_posix() for path in MMSEG_CONFIGS.glob('[!_]*/*.py'))
    matches = [name for name in names if pattern in (name, name.removesuffix('.py')) or fnmatch(name, pattern)]
    if not matches:
        raise PreflightError(f'mmseg ships no config {pattern!r} (looked in {MMSEG_CONFIGS})')
    return [(f'mmseg::{name}', MMSEG_CONFIGS / name) for name in matches]


def check_style(file: Path) -> None:
    """Raise PreflightError for a config of the new style, which a config with ``_base_`` cannot inherit from."""
    if Config._is_lazy_import(str(file)):
        raise PreflightError(
            f'config file {str(file)!r} is of the new style (imports, read_base()): change its losses there'
        )


def header(base: str, config: Config) -> list[str]:
    """Return the first lines of a config that inherits from another; the next lines may change its ``model``."""
    imports = config.get('custom_imports', {})
    names = [name for name in imported_modules(imports) if name != 'mmseg_wce']
    options = ''.join(f', {key}={value!r}' for key, value in imports.items() if key != 'imports')
    return [
        f'_base_ = {base!r}',
        f'custom_imports = dict(imports={[*names, "mmseg_wce"]!r}{options})',
        'model = _base_.model',
    ]


def evaluators(config: Config, split: str) -> list[ConfigDict]:
    """Return the metrics of a split; a config has one of them or a list."""
    evaluator = config[f'{split}_evaluator']
    return list(evaluator) if isinstance(evaluator, list) else [evaluator]


def imported_modules(imports: ConfigDict) -> list[str]:
    """Return the module names in ``custom_imports``."""
    names = imports.get('imports', [])
    return [names] if isinstance(names, str) else list(names)
