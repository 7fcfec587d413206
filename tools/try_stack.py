"""Try users' commands and one model of every family that mmseg ships on the installed OpenMMLab stack.

Prints the results. With --write it adds this stack's column to docs/stacks.json and rewrites the tables of
docs/install.md; run it on each stack. Takes 5 minutes on two cores.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import mmseg
import mmseg_wce  # noqa: F401  (makes the stack work on today's PyTorch)
import torch
from base_configs import MMSEG_CONFIGS
from benchmark_training import training_data
from convert_config import convert
from marked_tables import Table, markdown, record
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg_wce.config_walk import nodes
from mmseg_wce.datasets.demo_scenes import generate_demo_scenes
from mmseg_wce.fused_heads import fuse_decode_heads
from mmseg_wce.model_walk import main_head
from mmseg_wce.training.preflight import load_config
from rich.console import Console
from rich.progress import track
from semantics_table import installed, mmseg_name
from subprocess_runner import free_port

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'docs/stacks.json'
DEMO = ROOT / 'configs/demo/fast_scnn_1xb4-wce-400_demo-192x256.py'
NOTHING = 'nothing to convert'
SMALL = ['train_dataloader.batch_size=2', 'train_cfg.val_interval=9', 'default_hooks.logger.interval=1']
SMALL += ['default_hooks.checkpoint.interval=1']


def stack_name() -> str:
    """Return names and versions of the installed mmseg and mmcv."""
    return f'{mmseg_name()}, {installed("mmcv", "mmcv-lite", "onedl-mmcv")}'


def outcome(trial: Callable[[], str | None]) -> str:
    """Run a trial; return 'yes', or the text that it returns, or the first line of its error."""
    try:
        return trial() or 'yes'
    except subprocess.SubprocessError as error:
        return str(error)
    except Exception as error:
        lines = str(error).strip().splitlines()
        return f'{type(error).__name__}: {lines[0] if lines else ""}'


def run(*arguments: str, folder: Path, **environment: str) -> None:
    """Run a command; raise SubprocessError with the last error message of its output if it fails."""
    process = subprocess.run(
        arguments, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if process.returncode != 0:
        errors = re.findall(r'^(?:\w+(?:Error|Exception)|error): .*', process.stdout + process.stderr, re.MULTILINE)
        raise subprocess.SubprocessError(errors[-1] if errors else process.stderr[-200:])


def command_trials(folder: Path) -> dict[str, Callable[[], None]]:
    """Return the trials of users' commands by name, to be run in this order: some resume the training of another."""
    generate_demo_scenes(folder / 'data/demo_scenes', num_training=8, num_validation=2)
    (folder / 'data/demo_scenes/class_weight.json').write_text(json.dumps([1.0 + c for c in range(10)]))

    def command(*arguments: str | Path, **environment: str) -> Callable[[], None]:
        return lambda: run(*map(str, arguments), folder=folder, **environment)

    def train(*launch: str | Path, work_dir: str, iterations: int, **environment: str) -> Callable[[], None]:
        settings = ['--cfg-options', *SMALL, f'train_cfg.max_iters={iterations}']
        return command(*launch, '--work-dir', work_dir, *settings, **environment)

    ours = sys.executable, ROOT / 'tools/train.py', DEMO
    built_in = sys.executable, MMSEG_CONFIGS.parent / 'tools/train.py', DEMO
    two = ROOT / 'tools/dist_train.sh', DEMO, '2'
    on_cpu = dict(PYTHON=sys.executable, PORT=str(free_port()), CUDA_VISIBLE_DEVICES='')
    return {
        '`import mmseg.models`': command(sys.executable, '-c', 'import mmseg.models'),
        '`import mmseg_wce, mmseg.models`': command(sys.executable, '-c', 'import mmseg_wce, mmseg.models'),
        '`tools/train.py`, a config over `mmseg::`': train(*ours, work_dir='ours', iterations=1),
        '`tools/train.py --resume`': train(*ours, '--resume', work_dir='ours', iterations=2),
        '`tools/dist_train.sh` on two CPU processes': train(*two, work_dir='two', iterations=1, **on_cpu),
        "mmseg's own `tools/train.py`, a config over `mmseg::`": train(*built_in, work_dir='mmseg', iterations=1),
        "mmseg's own `tools/train.py --resume`": train(*built_in, '--resume', work_dir='mmseg', iterations=2),
        'deformable convolution (mmcv op)': deformable_convolution,
    }


def deformable_convolution() -> None:
    """Run forward and backward of an op of mmcv."""
    from mmcv.ops import ModulatedDeformConv2dPack

    ModulatedDeformConv2dPack(4, 4, 3, padding=1)(torch.rand(1, 4, 8, 8)).sum().backward()


def family_configs() -> dict[str, Path]:
    """Return one config of each model family of mmseg: for ADE20K if there is one, and with a small backbone."""
    small = ('r18', 'r50', 'mit-b0', 'tiny', '-t_', '-s_', 'hr18', 'vit-b')

    def rank(file: Path) -> tuple:
        name = file.stem
        return 'ade20k' not in name, 'voc' in name, not any(part in name for part in small), len(name)

    files = sorted(MMSEG_CONFIGS.glob('[!_]*/*.py'))
    return {folder.name: min(configs, key=rank) for folder, configs in groupby(files, lambda file: file.parent)}


def train_step(config: Config, size: int, fuse: bool = False) -> None:
    """Build a config's model without pretrained weights, and compute loss and gradients of two random images.

    A quarter of the pixels is ignored. Raises FloatingPointError if the loss is not finite.
    """
    init_default_scope('mmseg')
    torch.manual_seed(0)
    for node in nodes(config.model):
        node.update({key: None for key in ('init_cfg', 'pretrained') if key in node})
        if 'img_size' in node:  # for position encodings
            node['img_size'] = (size, size)
    preprocessor = config.model.setdefault('data_preprocessor', dict(type='SegDataPreProcessor'))
    preprocessor.update(dict(size_divisor=size) if preprocessor.get('size') is None else dict(size=(size, size)))
    model = revert_sync_batchnorm(MODELS.build(config.model))
    for parameter in getattr(model, 'text_encoder', torch.nn.Module()).parameters():
        torch.nn.init.normal_(parameter, std=0.02)  # some are uninitialized without pretrained weights
    if fuse:
        fuse_decode_heads(model)
    label = torch.randint(0, main_head(model).num_classes, (2, 1, size, size))
    label[..., : size // 4] = 255
    data = training_data(model, label)
    loss, _ = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    loss.backward()
    if not loss.isfinite():
        raise FloatingPointError(f'the loss is {loss.item()}')


def try_family(file: Path, folder: Path) -> dict[str, str]:
    """Return the outcomes of a training step with a config as mmseg ships it, and converted and fused."""
    out = folder / 'converted' / file.name

    def converted() -> str:
        losses = convert(f'mmseg::{file.relative_to(MMSEG_CONFIGS)}', file, out)
        if out.exists():
            train_step(load_config(str(out), import_custom_modules=False), size, fuse=True)
            return ''
        return f'{NOTHING} ({losses[0].type if losses else "no loss"})'

    size = 512 if file.parent.name == 'mobilenet_v3' else 128  # its pooling windows are 49 pixels at stride 8
    shipped = outcome(lambda: train_step(load_config(str(file), import_custom_modules=False), size))
    return {'as shipped': shipped, 'converted': outcome(converted)}


def cell(result: str, length: int = 90) -> str:
    """Return a result as the text of a table cell: without bars, at most ``length`` characters and ' ...'."""
    result = result.replace('|', '/')
    return result if len(result) <= length else result[:length].rsplit(' ', 1)[0] + ' ...'


def commands_table(results: dict) -> list[str]:
    """Return the Markdown table with the result of each command on each stack."""
    stacks = sorted(results)
    rows = [['torch', *(results[stack]['torch'] for stack in stacks)]]
    for command in results[stacks[0]]['commands']:
        rows.append([command, *(cell(results[stack]['commands'][command]) for stack in stacks)])
    return markdown(['', *stacks], rows)


def families_table(results: dict) -> list[str]:
    """Return the Markdown table with the numbers of families that train, and every family that fails on a stack."""
    stacks, variants = sorted(results), ('as shipped', 'converted')
    families = sorted({family for stack in stacks for family in results[stack]['families']})
    rows = []
    for variant in variants:
        numbers = []
        for stack in stacks:
            outcomes = [family[variant] for family in results[stack]['families'].values()]
            outcomes = [result for result in outcomes if not result.startswith(NOTHING)]
            numbers.append(f'{outcomes.count("yes")} of {len(outcomes)}')
        rows.append([f'families that train, {variant}', *numbers])
    for family in families:
        by_stack = [results[stack]['families'].get(family, dict.fromkeys(variants, 'not shipped')) for stack in stacks]
        by_variant = {f'{family}, {variant}': [outcomes[variant] for outcomes in by_stack] for variant in variants}
        shipped, converted = by_variant.values()
        for name, row in ({family: shipped} if shipped == converted else by_variant).items():
            if any(result != 'yes' and not result.startswith(NOTHING) for result in row):
                rows.append([name, *map(cell, row)])
    return markdown(['', *stacks], rows)


def tables(results: dict) -> list[Table]:
    """Return all tables in the docs."""
    page = ROOT / 'docs/install.md'
    return [(page, 'stacks', commands_table(results)), (page, 'families', families_table(results))]


def main(arguments: list[str] | None = None) -> None:
    """Run the trials, and print or write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--families', nargs='*', help='only these, by their folder in the configs of mmseg [all]')
    parser.add_argument('--write', action='store_true', help='write docs/stacks.json and the tables')
    args = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    chosen = {k: v for k, v in family_configs().items() if args.families is None or k in args.families}
    console.print(f'[bold]{stack_name()}[/], mmseg {mmseg.__version__}, torch {torch.__version__}')
    with tempfile.TemporaryDirectory() as folder:
        commands, families = {}, {}
        trials = command_trials(Path(folder))
        for command, trial in track(trials.items(), 'Commands', console=console, transient=True):
            commands[command] = outcome(trial)
            console.print(f'{command}: {cell(commands[command])}', markup=False)
        for family, file in track(chosen.items(), 'Models', console=console, transient=True):
            families[family] = try_family(file, Path(folder))
            for variant, result in families[family].items():
                console.print(f'{family}, {variant}: {cell(result)}', markup=False)
    if args.write:
        measured = {stack_name(): dict(torch=torch.__version__, commands=commands, families=families)}
        record(RESULTS, measured, tables)


if __name__ == '__main__':
    main()
