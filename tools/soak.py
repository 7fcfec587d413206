"""Train for many iterations with the hooks, and check that memory does not grow and the loss stays finite.

FastSCNN on generated scenes, all heads fused. Memory is the resident set of the training process after each iteration.
"""

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path

import mmseg_wce  # noqa: F401  (registers the loss and the hooks)
import numpy as np
from memory import resident
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg_wce.config_walk import heads_of
from mmseg_wce.datasets.demo_scenes import generate_demo_scenes

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / 'configs' / 'demo' / 'fast_scnn_1xb4-wce-400_demo-192x256.py'
WARM_UP = 0.5  # share of the iterations, in which pools, caches and logs fill up


class SoakHook(Hook):
    """Hook that records the loss and the memory in MB after every iteration."""

    def __init__(self) -> None:
        self.megabytes: list[float] = []
        self.losses: list[float] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.losses.append(float(outputs['loss']))
        self.megabytes.append(resident('VmRSS'))


def build_config(folder: Path, iterations: int) -> Config:
    """Generate the data in a folder, and return the config of the training."""
    data = folder / 'data'
    generate_demo_scenes(data, num_training=32, num_validation=4)
    config = Config.fromfile(CONFIG)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.dataset.data_root = str(data)
    for _, head in heads_of(config):
        head.loss_decode.class_weight = np.linspace(0.5, 3, 10).tolist()
    config.train_dataloader.batch_size = 2
    config.train_cfg.update(max_iters=iterations, val_interval=max(iterations // 4, 1))
    config.default_hooks.checkpoint.interval = max(iterations // 10, 1)
    config.custom_hooks = [dict(type=name) for name in ('FusedLossHook', 'LossMonitorHook')]
    config.work_dir = str(folder / 'work_dir')
    return config


def slope(megabytes: list[float]) -> float:
    """Return the growth in MB per 1,000 iterations after the warm-up, by least squares."""
    measured = np.asarray(megabytes[int(WARM_UP * len(megabytes)) :])
    return 1000 * float(np.polyfit(np.arange(len(measured)), measured, 1)[0])


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0, or 1 if memory grows beyond the limit or a loss is not finite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--iterations', type=int, default=2000, help='iterations [%(default)s]')
    parser.add_argument(
        '--limit', type=float, default=2.0, help='allowed growth in MB per 1,000 iterations [%(default)s]'
    )
    parser.add_argument('--out', type=Path, help='JSON file for the values of every iteration')
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix='soak_') as name:
        runner = Runner.from_cfg(build_config(Path(name), args.iterations))
        soak = SoakHook()
        runner.register_hook(soak)
        runner.train()
    finite, growth = all(map(math.isfinite, soak.losses)), slope(soak.megabytes)
    if args.out is not None:
        args.out.write_text(json.dumps(dict(megabytes=soak.megabytes, losses=soak.losses)))
    tenth = max(args.iterations // 10, 1)
    print(
        f'{args.iterations:,} iterations: loss {np.mean(soak.losses[:tenth]):.3f} at first, '
        f'{np.mean(soak.losses[-tenth:]):.3f} at last, {"always" if finite else "NOT always"} finite; memory '
        f'{soak.megabytes[int(WARM_UP * args.iterations)]:.0f} MB half way, {soak.megabytes[-1]:.0f} MB at the '
        f'end: {growth:+.2f} MB per 1,000 iterations'
    )
    return 0 if finite and growth <= args.limit else 1


if __name__ == '__main__':
    sys.exit(main())
