"""Write the weighted version of mmseg configs: a config over each whose softmax losses are ours, and nothing else.

python tools/convert_config.py mmseg::pspnet/pspnet_r50-d8_4xb4-160k_ade20k-512x512.py --out my_config.py
python tools/convert_config.py 'mmseg::*ade20k*' --out converted/
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import mmseg
import mmseg_wce  # noqa: F401  (makes the stack work on today's PyTorch)
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from mmseg_wce.preflight import PreflightError, load_config
from rich.console import Console
from rich.progress import track

OURS = 'WeightedCrossEntropyLoss'
SHIPPED = Path(mmseg.__file__).parent / '.mim/configs'


@dataclass(frozen=True)
class Loss:
    """A loss of a config: where it stands, what it is, and why it stays; empty where it is to be replaced."""

    place: str
    type: str
    stays: str


def losses(config: Config) -> list[Loss]:
    """Every loss on pixels, and a line for each head that has none."""
    init_default_scope('mmseg')
    found = []
    for name in ('decode_head', 'auxiliary_head'):
        for place, head in _listed(f'model.{name}', config.model.get(name)):
            found += list(_of_head(place, head))
    return found


def _listed(place: str, value) -> Iterator[tuple[str, ConfigDict]]:
    if isinstance(value, list | tuple):
        yield from ((f'{place}[{i}]', element) for i, element in enumerate(value))
    elif value is not None:
        yield place, value


def _of_head(place: str, head: ConfigDict) -> Iterator[Loss]:
    inner = [(key, value) for key, value in head.items() if isinstance(value, dict) and 'loss_decode' in value]
    for key, value in inner:  # K-Net keeps a head of its own in it
        yield from _of_head(f'{place}.{key}', value)
    if 'loss_decode' in head:
        for at, loss in _listed(f'{place}.loss_decode', head.loss_decode):
            yield Loss(at, loss.type, _stays(head, loss))
    elif not inner:
        kind = MODELS.get(head.type)
        standard = isinstance(kind, type) and issubclass(kind, BaseDecodeHead)
        if standard and kind.loss_by_feat is BaseDecodeHead.loss_by_feat:
            yield Loss(f'{place}.loss_decode', "mmseg's default", '')
        else:
            yield Loss(place, head.type, 'it has no loss on pixels')


def _stays(head: ConfigDict, loss: ConfigDict) -> str:
    if loss.type.removeprefix('mmseg.') != 'CrossEntropyLoss':
        return 'already ours' if loss.type == OURS else 'another loss'
    if loss.get('use_sigmoid'):
        return 'use_sigmoid=True: a binary cross-entropy for each class'
    if loss.get('use_mask'):
        return 'use_mask=True: a loss on masks'
    if head.type == 'SideAdapterCLIPHead':
        return 'it classifies masks, not pixels'
    return 'one channel is no softmax' if head.get('out_channels') == 1 else ''


def converted(base: str, config: Config, found: list[Loss]) -> str:
    """The text of the new config."""
    imports = config.get('custom_imports', {})
    names = imports.get('imports', [])
    names = [names] if isinstance(names, str) else list(names)
    options = ''.join(f', {key}={value!r}' for key, value in imports.items() if key != 'imports')
    lines = [
        f'_base_ = {base!r}',
        f'custom_imports = dict(imports={[*names, "mmseg_wce"]!r}{options})',
        'model = _base_.model',
    ]
    for loss in found:
        if not loss.stays:
            by_default = loss.type == "mmseg's default"
            lines.append(f'{loss.place} = dict(type={OURS!r})' if by_default else f'{loss.place}.type = {OURS!r}')
    return '\n'.join(lines) + '\n'


def named(pattern: str) -> list[tuple[str, Path]]:
    """Configs by their name for ``_base_`` and their file; those of mmseg by a pattern."""
    if not pattern.startswith('mmseg::'):
        return [(pattern, Path(pattern))]
    wanted = pattern.removeprefix('mmseg::')
    names = sorted(str(p.relative_to(SHIPPED)) for p in SHIPPED.glob('[!_]*/*.py'))
    found = [name for name in names if name == wanted or fnmatch(name, wanted)]
    if not found:
        raise PreflightError(f'mmseg ships no config {wanted!r} (looked in {SHIPPED})')
    return [(f'mmseg::{name}', SHIPPED / name) for name in found]


def convert(base: str, file: Path, out: Path) -> list[Loss]:
    """Write ``out`` unless nothing in the config is to be replaced, and read it again."""
    config = load_config(str(file), import_custom_modules=False)  # mmpretrain or mmdet need not be installed
    if 'model' not in config:
        raise PreflightError(f'config file {str(file)!r} has no model')
    found = losses(config)
    if all(loss.stays for loss in found):
        return found
    if not base.startswith('mmseg::'):
        base = os.path.relpath(file.resolve(), out.resolve().parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(converted(base, config, found))
    load_config(str(out), import_custom_modules=False)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='+', help="config file, or 'mmseg::' and the name or pattern of one it ships")
    parser.add_argument('--out', type=Path, required=True, help='config file to write; a folder for several')
    args = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    try:
        configs = [pair for pattern in args.config for pair in named(pattern)]
        results = {}
        several = len(configs) > 1
        progress = track(configs, 'Converting', console=console, transient=True) if several else configs
        for base, file in progress:
            in_folder = several or args.out.suffix != '.py'
            results[base] = convert(base, file, args.out / file.name if in_folder else args.out)
    except PreflightError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    report(console, results)
    return 0 if any(not loss.stays for found in results.values() for loss in found) else 1


def report(console: Console, results: dict[str, list[Loss]]) -> None:
    """Every loss of one config; of several, how many became ours and what stayed."""
    if len(results) == 1:
        for loss in next(iter(results.values())):
            what = f'left alone, {loss.stays}' if loss.stays else OURS
            console.print(f'{loss.place}: {loss.type} -> {what}', highlight=False)
        return
    written = [base for base, found in results.items() if any(not loss.stays for loss in found)]
    replaced = sum(not loss.stays for found in results.values() for loss in found)
    console.print(f'{len(written)} of {len(results)} configs written, {replaced} losses replaced', highlight=False)
    stayed = Counter(f'{loss.type}: {loss.stays}' for found in results.values() for loss in found if loss.stays)
    for what, number in stayed.most_common():
        console.print(f'{number:5} left alone, {what}', highlight=False)
    for base in sorted(set(results) - set(written)):
        console.print(f'      nothing to replace in {base}', highlight=False)


if __name__ == '__main__':
    sys.exit(main())
