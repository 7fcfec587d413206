"""Write configs that inherit from mmseg's and replace their cross-entropies by ours, and nothing else.

python tools/convert_config.py mmseg::pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py --out my_config.py
python tools/convert_config.py 'mmseg::*ade20k*' --out converted/ --fused
"""

import argparse
import os
import sys
import warnings
from collections import Counter
from pathlib import Path

import mmseg_wce  # noqa: F401  (makes the stack work on today's PyTorch)
from base_configs import check_style, find_configs, header, imported_modules
from config_losses import OURS, Loss, losses
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings
from mmseg_wce.training.preflight import PreflightError, load_config
from rich.console import Console
from rich.progress import track

HOOKS = "default_hooks = dict(fused_loss=dict(type='FusedLossHook'), fused_predict=dict(type='FusedPredictHook'))"


def has_changes(config_losses: list[Loss], fused: bool) -> bool:
    """Return True if there is anything to change in a config with these losses."""
    return fused or any(not loss.skip_reason for loss in config_losses)


def converted(base: str, config: Config, config_losses: list[Loss], fused: bool) -> str:
    """Return the text of the new config."""
    lines = header(base, config)
    for loss in config_losses:
        if not loss.skip_reason:
            is_default = loss.type == "mmseg's default"
            lines.append(f'{loss.place} = dict(type={OURS!r})' if is_default else f'{loss.place}.type = {OURS!r}')
    if fused:
        lines.append(HOOKS)
    return '\n'.join(lines) + '\n'


def planned(patterns: list[str], out: Path) -> list[tuple[str, Path, Path]]:
    """Return the name for ``_base_``, the file, and the file to write, for each config; refuse two for one file."""
    pairs = [pair for pattern in patterns for pair in find_configs(pattern)]
    if len(pairs) == 1 and out.suffix == '.py' and not out.is_dir():
        return [(*pairs[0], out)]
    if not out.is_dir() and (len(pairs) == 1 or out.suffix == '.py' or out.exists()):
        raise PreflightError(f'--out {str(out)!r}: one config needs a .py file or a folder, several need a folder')
    plan = [(base, file, out / f'{file.stem}.py') for base, file in pairs]
    for target, number in Counter(target for *_, target in plan).items():
        if number > 1:
            raise PreflightError(f'{number} configs would be written to {str(target)!r}: convert them one by one')
    return plan


def convert(base: str, file: Path, out: Path, fused: bool = False) -> list[Loss]:
    """Write a config that inherits from another, unless there is nothing to change.

    The new text is loaded as a config before it becomes ``out``.
    """
    config = load_config(str(file), import_custom_modules=False)  # mmpretrain or mmdet need not be installed
    place = f'config file {str(file)!r}'
    if not isinstance(config.get('model'), dict):
        raise PreflightError(f'{place} has no model')
    check_style(file)
    if not isinstance(config.get('custom_imports', {}), dict):
        raise PreflightError(f'{place}: custom_imports must be dict(imports=[...])')
    _try_custom_imports(config)
    config_losses = losses(config)
    if not has_changes(config_losses, fused):
        return config_losses
    if not base.startswith('mmseg::'):
        base = Path(os.path.relpath(file.resolve(), out.resolve().parent)).as_posix()
    text = converted(base, config, config_losses, fused)
    if os.path.lexists(out) and (not out.is_file() or out.read_text() != text):
        raise PreflightError(f'{str(out)!r} exists and differs: remove it, or choose another --out')
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = out.with_name(f'.draft_of_{out.name}')
    try:
        draft.write_text(text)
        load_config(str(draft), import_custom_modules=False)
        draft.replace(out)
    finally:
        draft.unlink(missing_ok=True)
    return config_losses


def _try_custom_imports(config: Config) -> None:
    """Import the custom modules, which register heads, and skip those that cannot be imported."""
    for name in imported_modules(config.get('custom_imports', {})):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try:
                import_modules_from_strings(name)
            except Exception:  # a custom module may raise anything
                continue


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0; 1 if there was nothing to replace; 2 if a file could not be read or written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='+', help="config file, or 'mmseg::' and the name or a pattern of one it ships")
    parser.add_argument('--out', type=Path, required=True, help='config file to write; a folder for several')
    parser.add_argument(
        '--fused',
        action='store_true',
        help='add FusedLossHook and FusedPredictHook, which build no full-size logits',
    )
    args = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False, markup=False)  # names in a config may contain brackets
    results, errors = {}, []
    try:
        plan = planned(args.config, args.out)
    except PreflightError as error:
        plan, errors = [], [str(error)]
    progress = track(plan, 'Converting', console=console, transient=True) if len(plan) > 1 else plan
    for base, file, out in progress:
        try:
            results[base] = convert(base, file, out, args.fused)
        except (PreflightError, OSError) as error:
            errors.append(str(error))
    report(console, results, args.fused)
    for error in errors:
        print(f'error: {error}', file=sys.stderr)
    if errors:
        return 2
    return 0 if any(has_changes(config_losses, args.fused) for config_losses in results.values()) else 1


def report(console: Console, results: dict[str, list[Loss]], fused: bool) -> None:
    """Print every loss of one config; for several configs, the number of replaced losses and the kept ones by kind."""
    if not results:
        return
    if len(results) == 1:
        for loss in next(iter(results.values())):
            result = f'left alone, {loss.skip_reason}' if loss.skip_reason else OURS
            console.print(f'{loss.place}: {loss.type} -> {result}')
        if fused:
            console.print('default_hooks: FusedLossHook and FusedPredictHook added')
        return
    written = [base for base, config_losses in results.items() if has_changes(config_losses, fused)]
    all_losses = [loss for config_losses in results.values() for loss in config_losses]
    replaced = sum(not loss.skip_reason for loss in all_losses)
    console.print(f'{len(written)} of {len(results)} configs written, {replaced} losses replaced')
    kept = Counter(f'{loss.type}: {loss.skip_reason}' for loss in all_losses if loss.skip_reason)
    for loss, number in kept.most_common():
        console.print(f'{number:5} left alone, {loss}')
    for base in sorted(set(results) - set(written)):
        console.print(f'      nothing to replace in {base}')


if __name__ == '__main__':
    sys.exit(main())
