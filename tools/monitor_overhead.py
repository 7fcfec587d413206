"""Measure the cost of LossMonitorHook in a training iteration of SegFormer-B0: steps with and without it, in turn.

On a shared machine the difference is smaller than the noise of the steps, so the work of the hook is also timed alone.
"""

import argparse
import logging
import statistics
import tempfile
from collections.abc import Callable
from types import SimpleNamespace

import torch
from benchmark_training import TrainingStep
from mmengine.visualization import LocalVisBackend
from mmseg_wce.fused_heads import fuse_decode_heads
from mmseg_wce.hooks import LossMonitorHook
from mmseg_wce.losses import WeightedCrossEntropyLoss
from rich.progress import track
from timing import median_seconds, seconds


class MonitoredStep:
    """A step with the fused, weighted loss, and a stub of the Runner with the attributes that the hook reads."""

    def __init__(self, device: str, crop: int, interval: int, folder: str) -> None:
        self.step = TrainingStep('SegFormer-B0', 'built-in', device, crop)
        model = self.step.model
        self.loss = WeightedCrossEntropyLoss(class_weight=torch.linspace(0.5, 2, 150).tolist()).to(device)
        model.decode_head.loss_decode = self.loss
        fuse_decode_heads(model)
        self.hook = LossMonitorHook(interval)
        self.runner = SimpleNamespace(
            model=model,
            hooks=[self.hook],
            iter=0,
            train_dataloader=SimpleNamespace(dataset=[None] * 10**6),
            visualizer=LocalVisBackend(folder),
            logger=logging.getLogger('monitor'),
        )
        self.hook.before_train(self.runner)
        self.observer = self.loss.observer

    def plain(self) -> None:
        """Run a step without the hook."""
        self.loss.observer = None
        self.step.run()

    def monitored(self) -> None:
        self.loss.observer = self.observer
        self.step.run()
        self.after()

    def after(self) -> None:
        outputs = dict(loss=self.step.loss)
        self.hook.after_train_iter(self.runner, 0, dict(data_samples=self.step.data['data_samples']), outputs)
        self.runner.iter += 1

    def parts(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """Return two functions: the work of the hook in an iteration, and at a logging point."""
        observed = []
        self.loss.observer = observed.append
        self.step.forward()

        def iteration() -> None:
            self.observer(observed[0])
            self.after()

        def point() -> None:
            self.observer(observed[0])
            self.hook._check_and_log(self.runner, self.runner.iter, log=True)

        return iteration, point


def ratio_to_plain(rounds: list[dict[str, float]], name: str) -> str:
    """Format median and quartiles of the ratio to the plain step."""
    low, median, high = statistics.quantiles([times[name] / times['plain'] for times in rounds], n=4)
    return f'{median:.4f} (quartiles {low:.3f}, {high:.3f})'


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--rounds', type=int, default=20, help='interleaved rounds [%(default)s]')
    parser.add_argument('--crop', type=int, default=512, help='crop size [%(default)s]')
    parser.add_argument('--interval', type=int, default=50, help='iterations between logging points [%(default)s]')
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        step = MonitoredStep(args.device, args.crop, args.interval, folder)
        # the plain step once more: the noise of the machine
        functions, rounds = [('plain', step.plain), ('monitored', step.monitored), ('again', step.plain)], []
        for _ in track(range(args.rounds + 1), 'Steps', transient=True):
            functions.append(functions.pop(0))  # rotate: none is always first
            rounds.append({name: seconds(function, args.device) for name, function in functions})
        iteration, point = (1e3 * median_seconds(part, 50, args.device) for part in step.parts())
    alone = iteration + point / args.interval
    plain = statistics.median(times['plain'] for times in rounds[1:])
    monitored, again = (ratio_to_plain(rounds[1:], name) for name in ('monitored', 'again'))
    print(f'step without the hook: {plain:.3f} s; with it {monitored} times that; without it once more: {again}')
    print(
        f'alone: {iteration:.2f} ms an iteration, {point:.2f} ms a logging point every {args.interval}: '
        f'{alone:.2f} ms, {0.1 * alone / plain:.2f} % of a step'
    )


if __name__ == '__main__':
    main()
