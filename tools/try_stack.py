"""Try what users do on the installed OpenMMLab stack, and one model of every family that mmseg ships.

Prints what works and what does not. With --write it enters this stack's column into docs/stacks.json and writes the
tables of docs/install.md anew; run it on each stack. Some 5 minutes on two cores.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import mmseg
import mmseg_wce  # noqa: F401  (makes the stack work on today's PyTorch)
import torch
from base_configs import SHIPPED
from convert_config import convert
from marked_tables import Table, markdown, record
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_wce.config_walk import nodes
from mmseg_wce.datasets.demo_scenes import generate_demo_scenes
from mmseg_wce.fused_heads import fuse_decode_heads
from mmseg_wce.training.preflight import load_config
from rich.console import Console
from rich.progress import track
from semantics_table import built_in_name, installed

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'docs/stacks.json'
DEMO = ROOT / 'configs/demo/fast_scnn_1xb4-wce-400_demo-192x256.py'
NOTHING = 'nothing to convert'
SMALL = ['train_dataloader.batch_size=2', 'train_cfg.val_interval=9', 'default_hooks.logger.interval=1']
SMALL += ['default_hooks.checkpoint.interval=1']


def stack_name() -> str:
    """Of the installed distributions, with the versions that matter."""
    return f'{built_in_name()}, {installed("mmcv", "mmcv-lite", "onedl-mmcv")}'


def outcome(trial: Callable[[], str | None]) -> str:
    """'yes', or what the trial returned in its place, or the first line of what it raised."""
    try:
        return trial() or 'yes'
    except subprocess.SubprocessError as error:
        return str(error)
    except Exception as error:
        lines = str(error).strip().splitlines()
        return f'{type(error).__name__}: {lines[0] if lines else ""}'


def run(*arguments: str, folder: Path, **environment: str) -> None:
    """Run a command; raise what its last line says where it fails."""
    process = subprocess.run(
        arguments, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if process.returncode != 0:
        said = re.findall(r'^(?:\w+(?:Error|Exception)|error): .*', process.stdout + process.stderr, re.MULTILINE)
        raise subprocess.SubprocessError(said[-1] if said else process.stderr[-200:])


def of_the_command_line(folder: Path) -> dict[str, Callable[[], None]]:
    """What a user starts, by what it is. Trainings of the same work dir stand in their order."""
    generate_demo_scenes(folder / 'data/demo_scenes', num_training=8, num_validation=2)
    (folder / 'data/demo_scenes/class_weight.json').write_text(json.dumps([1.0 + c for c in range(10)]))

    def python(code: str) -> Callable[[], None]:
        return lambda: run(sys.executable, '-c', code, folder=folder)

    def train(tool: Path, iterations: int, *options: str) -> Callable[[], None]:
        settings = ['--cfg-options', *SMALL, f'train_cfg.max_iters={iterations}']
        work_dir = ['--work-dir', f'of_{"mmseg" if SHIPPED.parent in tool.parents else "ours"}']
        return lambda: run(sys.executable, str(tool), str(DEMO), *work_dir, *options, *settings, folder=folder)

    def on_two_processes() -> None:
        script = [str(ROOT / 'tools/dist_train.sh'), str(DEMO), '2', '--work-dir', 'two']
        settings = ['--cfg-options', *SMALL, 'train_cfg.max_iters=1']
        run(*script, *settings, folder=folder, PYTHON=sys.executable, PORT='29611', CUDA_VISIBLE_DEVICES='')

    ours, mmsegs = ROOT / 'tools/train.py', SHIPPED.parent / 'tools/train.py'
    return {
        '`import mmseg.models`': python('import mmseg.models'),
        '`import mmseg_wce, mmseg.models`': python('import mmseg_wce, mmseg.models'),
        '`tools/train.py`, a config over `mmseg::`': train(ours, 1),
        '`tools/train.py --resume`': train(ours, 2, '--resume'),
        '`tools/dist_train.sh` on two CPU processes': on_two_processes,
        "mmseg's own `tools/train.py`, a config over `mmseg::`": train(mmsegs, 1),
        "mmseg's own `tools/train.py --resume`": train(mmsegs, 2, '--resume'),
        'deformable convolution (mmcv op)': deformable_convolution,
    }


def deformable_convolution() -> None:
    from mmcv.ops import ModulatedDeformConv2dPack

    ModulatedDeformConv2dPack(4, 4, 3, padding=1)(torch.rand(1, 4, 8, 8)).sum().backward()


def of_each_family() -> dict[str, Path]:
    """A config of each of mmseg's families of models: of ADE20K where there is one, and small."""
    small = ('r18', 'r50', 'mit-b0', 'tiny', '-t_', '-s_', 'hr18', 'vit-b')
    files: dict[str, list[Path]] = {}
    for file in sorted(SHIPPED.glob('[!_]*/*.py')):
        files.setdefault(file.parent.name, []).append(file)

    def rank(file: Path) -> tuple:
        name = file.stem
        return 'ade20k' not in name, 'voc' in name, not any(part in name for part in small), len(name)

    return {family: min(found, key=rank) for family, found in files.items()}


def an_iteration(config: Config, size: int, fuse: bool = False) -> None:
    """Build a config's model without pretrained weights; loss and gradient of two random images, a quarter ignored."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    for node in nodes(config.model):
        node.update({key: None for key in ('init_cfg', 'pretrained') if key in node})
        if 'img_size' in node:  # of position encodings
            node['img_size'] = (size, size)
    preprocessor = config.model.setdefault('data_preprocessor', dict(type='SegDataPreProcessor'))
    preprocessor.update(dict(size_divisor=size) if preprocessor.get('size') is None else dict(size=(size, size)))
    model = revert_sync_batchnorm(MODELS.build(config.model))
    for parameter in getattr(model, 'text_encoder', torch.nn.Module()).parameters():
        torch.nn.init.normal_(parameter, std=0.02)  # some are memory that only pretrained weights fill
    if fuse:
        fuse_decode_heads(model)
    head = model.decode_head[-1] if isinstance(model.decode_head, torch.nn.ModuleList) else model.decode_head
    label = torch.randint(0, head.num_classes, (2, 1, size, size))
    label[..., : size // 4] = 255
    shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (size, size))
    samples = [
        SegDataSample(metainfo=shapes, gt_sem_seg=PixelData(data=y), gt_edge_map=PixelData(data=(y == 0).long()))
        for y in label
    ]
    images = list(torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8))
    data = model.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
    loss, _ = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    loss.backward()
    if not loss.isfinite():
        raise FloatingPointError(f'the loss is {loss.item()}')


def of_a_family(file: Path, folder: Path) -> dict[str, str]:
    """Whether its model takes a training step as mmseg ships it, and converted and fused."""
    out = folder / 'converted' / file.name

    def converted() -> str:
        found = convert(f'mmseg::{file.relative_to(SHIPPED)}', file, out)
        if out.exists():
            an_iteration(load_config(str(out), import_custom_modules=False), size, fuse=True)
            return ''
        return f'{NOTHING} ({found[0].type if found else "no loss"})'

    size = 512 if file.parent.name == 'mobilenet_v3' else 128  # its pooling windows are 49 pixels at stride 8
    shipped = outcome(lambda: an_iteration(load_config(str(file), import_custom_modules=False), size))
    return {'as shipped': shipped, 'converted': outcome(converted)}


def cell(result: str, length: int = 90) -> str:
    """For a table: one line without what ends its cells."""
    result = result.replace('|', '/')
    return result if len(result) <= length else result[:length].rsplit(' ', 1)[0] + ' ...'


def table_of_commands(results: dict) -> list[str]:
    """Markdown lines: what each stack does with each command."""
    stacks = sorted(results)
    rows = [['torch', *(results[stack]['torch'] for stack in stacks)]]
    for what in results[stacks[0]]['commands']:
        rows.append([what, *(cell(results[stack]['commands'][what]) for stack in stacks)])
    return markdown(['', *stacks], rows)


def table_of_families(results: dict) -> list[str]:
    """How many train, then every family that does not on some stack."""
    stacks, ways = sorted(results), ('as shipped', 'converted')
    families = sorted({family for stack in stacks for family in results[stack]['families']})
    rows = []
    for way in ways:
        numbers = []
        for stack in stacks:
            found = [family[way] for family in results[stack]['families'].values()]
            found = [result for result in found if not result.startswith(NOTHING)]
            numbers.append(f'{found.count("yes")} of {len(found)}')
        rows.append([f'families that train, {way}', *numbers])
    for family in families:
        of_stacks = [results[stack]['families'].get(family, dict.fromkeys(ways, 'not shipped')) for stack in stacks]
        found = {f'{family}, {way}': [of_stack[way] for of_stack in of_stacks] for way in ways}
        shipped, converted = found.values()
        for what, row in ({family: shipped} if shipped == converted else found).items():
            if any(result != 'yes' and not result.startswith(NOTHING) for result in row):
                rows.append([what, *map(cell, row)])
    return markdown(['', *stacks], rows)


def tables(results: dict) -> list[Table]:
    """Every table in the project's text."""
    page = ROOT / 'docs/install.md'
    return [(page, 'stacks', table_of_commands(results)), (page, 'families', table_of_families(results))]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--families', nargs='*', help='only these, by their folder among the configs of mmseg')
    parser.add_argument('--write', action='store_true', help='write docs/stacks.json and the tables')
    args = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    chosen = {k: v for k, v in of_each_family().items() if args.families is None or k in args.families}
    console.print(f'[bold]{stack_name()}[/], mmseg {mmseg.__version__}, torch {torch.__version__}')
    with tempfile.TemporaryDirectory() as folder:
        commands, families = {}, {}
        trials = of_the_command_line(Path(folder))
        for what, trial in track(trials.items(), 'Commands', console=console, transient=True):
            commands[what] = outcome(trial)
            console.print(f'{what}: {cell(commands[what])}', markup=False)
        for family, file in track(chosen.items(), 'Models', console=console, transient=True):
            families[family] = of_a_family(file, Path(folder))
            for way, result in families[family].items():
                console.print(f'{family}, {way}: {cell(result)}', markup=False)
    if args.write:
        measured = {stack_name(): dict(torch=torch.__version__, commands=commands, families=families)}
        record(RESULTS, measured, tables)


if __name__ == '__main__':
    main()
