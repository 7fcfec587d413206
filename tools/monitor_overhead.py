"""What LossMonitorHook adds to a training iteration of SegFormer-B0: steps with and without it in turn, in one process.

The difference of two long steps drowns in a shared machine's noise, so what the hook does is also timed alone.
"""

import argparse
import logging
import statistics
import tempfile
from collections.abc import Callable
from types import SimpleNamespace

import torch
from benchmark import seconds
from benchmark_ways import TrainingStep
from mmengine.visualization import LocalVisBackend
from mmseg_wce.fused_heads import fuse_decode_heads
from mmseg_wce.hooks import LossMonitorHook
from mmseg_wce.losses import WeightedCrossEntropyLoss
from rich.progress import track


class MonitoredStep:
    """A step with the fused, weighted loss, and as much of a Runner around it as the hook looks at."""

    def __init__(self, device: str, crop: int, interval: int, folder: str) -> None:
        self.step, self.device = TrainingStep('SegFormer-B0', 'built-in', device, crop), device
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
        self.loss.observer = None
        self.step.forward()
        self.step.backward()

    def plain_again(self) -> None:
        """What the noise of the machine makes of no difference at all."""
        self.plain()

    def monitored(self) -> None:
        self.loss.observer = self.observer
        self.step.forward()
        self.step.backward()
        self.after()

    def after(self) -> None:
        outputs = dict(loss=self.step.loss)
        self.hook.after_train_iter(self.runner, 0, dict(data_samples=self.step.data['data_samples']), outputs)
        self.runner.iter += 1

    def parts(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """What an iteration adds, and what one with a logging point does."""
        shown = []
        self.loss.observer = shown.append
        self.step.forward()

        def iteration() -> None:
            self.observer(shown[0])
            self.after()

        def point() -> None:
            self.observer(shown[0])
            self.hook._check_and_log(self.runner, self.runner.iter, log=True)

        return iteration, point


def milliseconds(function: Callable[[], None], device: str, rounds: int) -> float:
    times = [seconds(function, device) for _ in range(rounds + 1)][1:]
    return 1e3 * statistics.median(times)


def compared(rounds: list[dict[str, float]], way: str) -> str:
    low, median, high = statistics.quantiles([times[way] / times['plain'] for times in rounds], n=4)
    return f'{median:.4f} (quartiles {low:.3f}, {high:.3f})'


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--rounds', type=int, default=20, help='interleaved rounds [%(default)s]')
    parser.add_argument('--crop', type=int, default=512, help='[%(default)s]')
    parser.add_argument('--interval', type=int, default=50, help='from one logging point to the next [%(default)s]')
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        step = MonitoredStep(args.device, args.crop, args.interval, folder)
        ways, rounds = [step.plain, step.monitored, step.plain_again], []
        for _ in track(range(args.rounds + 1), 'Steps', transient=True):
            ways.append(ways.pop(0))  # each has every place in the round
            rounds.append({way.__name__: seconds(way, args.device) for way in ways})
        iteration, point = (milliseconds(part, args.device, 50) for part in step.parts())
    alone = iteration + point / args.interval
    plain = statistics.median(times['plain'] for times in rounds[1:])
    monitored, again = (compared(rounds[1:], way) for way in ('monitored', 'plain_again'))
    print(f'step without the hook: {plain:.3f} s; with it {monitored} times that; without it once more: {again}')
    print(
        f'alone: {iteration:.2f} ms an iteration, {point:.2f} ms a logging point every {args.interval}: '
        f'{alone:.2f} ms, {0.1 * alone / plain:.2f} % of a step'
    )


if __name__ == '__main__':
    main()
