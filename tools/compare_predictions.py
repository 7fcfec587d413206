r"""Compare time, memory and predictions of a validation by mmseg, with FusedPredictHook, and with ValidationLoss, too.

python tools/compare_predictions.py configs/camvid/segformer_mit-b0_1xb8-4k_camvid-352x480.py
python tools/compare_predictions.py my_config.py --checkpoint work_dirs/mine/iter_160000.pth --images 20
python tools/compare_predictions.py mmseg::fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512.py \
    --cfg-options val_dataloader.dataset.data_root=data/ade/ADEChallengeData2016

Without a checkpoint the weights are random, and scaled so that many classes are predicted for the first image.
Each implementation runs in a separate process, one after the other.
"""

import argparse
import copy
import hashlib
import json
import subprocess
import sys
import time

import mmseg_wce  # noqa: F401  (makes the stack work on today's PyTorch)
import torch
from base_configs import evaluators, find_configs
from memory import HAS_HIGH_WATER_MARK, reset_high_water_mark, resident
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint
from mmseg.registry import MODELS
from mmseg_wce.fused_heads.predict_hook import add_validation_loss, fuse_predict
from mmseg_wce.model_walk import main_head
from mmseg_wce.training.launch import ConfigOptions
from mmseg_wce.training.preflight import PreflightError, check_checkpoint, check_data, check_losses, load_config
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

IMPLEMENTATIONS = ('mmseg', 'FusedPredictHook', 'and ValidationLoss')


def build_model(config: Config, checkpoint: str | None) -> nn.Module:
    """Build the segmentor on the CPU, in evaluation mode; with random weights if there is no checkpoint."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    if checkpoint is None:
        config.model.backbone.init_cfg = config.model.pretrained = None
    model = revert_sync_batchnorm(MODELS.build(config.model))
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, map_location='cpu')
    return model.eval()


def spread_logits(model: nn.Module, batch: dict) -> None:
    """Change random weights so that every channel of the logits has mean 0 and standard deviation 1 on a batch."""
    logits = {}
    for layer in main_head(model).modules():
        if isinstance(layer, nn.Conv2d) and layer.out_channels == model.out_channels and layer.bias is not None:
            nn.init.normal_(layer.weight)
            layer.register_forward_hook(lambda layer, _, output: logits.setdefault(layer, output))
    model.val_step(copy.deepcopy(batch))
    for layer, output in logits.items():
        layer._forward_hooks.clear()
        deviation, mean = torch.std_mean(output, dim=(0, 2, 3))
        layer.weight.data /= deviation.view(-1, 1, 1, 1)
        layer.bias.data = (layer.bias.data - mean) / deviation


def validate(implementation: str, config: Config, checkpoint: str | None, images: int | None) -> dict:
    """Run one implementation over ``images`` batches of the validation set; random weights without a checkpoint."""
    model, loader = build_model(config, checkpoint), Runner.build_dataloader(config.val_dataloader, seed=0)
    metrics = [metric for metric in evaluators(config, 'val') if metric.type != 'ValidationLoss']
    batches = iter(loader)
    batch = next(batches)
    if checkpoint is None:
        spread_logits(model, batch)
    if implementation != 'mmseg':
        line = fuse_predict(model)
        if line.startswith('left alone'):
            sys.exit(f'{implementation}: {line}')
    if implementation == 'and ValidationLoss':
        add_validation_loss(model)
        metrics.append(dict(type='ValidationLoss'))
    evaluator = Evaluator(metrics)
    evaluator.dataset_meta = loader.dataset.metainfo
    number, hashes, classes, elapsed = min(images or len(loader), len(loader)), [], set(), 0.0
    before = reset_high_water_mark() if HAS_HIGH_WATER_MARK else None
    for i in track(range(number), implementation, console=Console(stderr=True), transient=True):
        start = time.perf_counter()
        samples = model.val_step(batch)
        elapsed += time.perf_counter() - start
        evaluator.process(data_samples=samples, data_batch=batch)
        for sample in samples:
            prediction = sample.pred_sem_seg.data
            content = f'{tuple(prediction.shape)} {prediction.dtype} '.encode() + prediction.numpy().tobytes()
            hashes.append(hashlib.sha256(content).hexdigest())
            classes.update(prediction.unique().tolist())
        batch = next(batches) if i + 1 < number else None
    megabytes = None if before is None else resident('VmHWM') - before
    values = {name: float(value) for name, value in evaluator.evaluate(len(hashes)).items()}
    return dict(hashes=hashes, classes=len(classes), seconds=elapsed, megabytes=megabytes, metrics=values)


def run_in_process(implementation: str, arguments: list[str]) -> dict:
    """Return the result of :func:`validate` from a separate process, so that only its memory is measured."""
    command = [sys.executable, '-W', 'ignore', __file__, *arguments, '--way', implementation]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if process.returncode:
        sys.exit(1)  # the process has said why
    return json.loads(process.stdout.splitlines()[-1])


def report(config: str, results: dict[str, dict]) -> None:
    """Print a table with a row for each implementation."""
    base = results[IMPLEMENTATIONS[0]]
    table = Table(title=f'{config}, {len(base["hashes"])} images')
    table.add_column('implementation')
    for column in ('differ', 'classes', 'time', 'extra memory', 'mIoU', 'loss'):
        table.add_column(column, justify='right')
    for name, result in results.items():
        different = sum(a != b for a, b in zip(result['hashes'], base['hashes'], strict=True))
        memory = '' if result['megabytes'] is None else f'{result["megabytes"]:.0f} MB'
        metrics = result['metrics']
        mean_iou = f'{metrics["mIoU"]:.2f}' if 'mIoU' in metrics else ''
        losses = ', '.join(f'{value:.4f}' for key, value in metrics.items() if key.startswith('val/loss'))
        table.add_row(
            name, str(different), str(result['classes']), f'{result["seconds"]:.1f} s', memory, mean_iou, losses
        )
    Console(soft_wrap=True).print(table)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0, or 1 if a prediction differs."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help="config file; or 'mmseg::' and the name of one it ships")
    parser.add_argument('--checkpoint', help='weights')
    parser.add_argument('--images', type=int, help='number of images [all]')
    parser.add_argument('--cfg-options', nargs='+', action=ConfigOptions, help='settings that override the config')
    parser.add_argument('--way', choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.images is not None and args.images < 1:
        parser.error(f'--images must be at least 1, got {args.images}')
    try:
        (_, file), *others = find_configs(args.config)
        if others:
            raise PreflightError(f'{args.config!r} is the name of {1 + len(others)} configs: choose one')
        config = load_config(str(file), args.cfg_options)
        check_losses(config)
        check_data(config, 'val')
        if args.checkpoint is not None:
            check_checkpoint(args.checkpoint)
    except PreflightError as error:
        sys.exit(f'error: {error}')
    if args.way is not None:
        print(json.dumps(validate(args.way, config, args.checkpoint, args.images)))
        return 0
    results = {name: run_in_process(name, arguments) for name in IMPLEMENTATIONS}
    report(args.config, results)
    return int(any(result['hashes'] != results[IMPLEMENTATIONS[0]]['hashes'] for result in results.values()))


if __name__ == '__main__':
    sys.exit(main())
