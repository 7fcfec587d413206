"""What a training's loss is made of, class by class, while it runs; and an end to it when it is not finite."""

from __future__ import annotations

import os.path as osp
from collections.abc import Sequence, Sized
from typing import Any

import torch
from mmengine import dist
from mmengine.dataset import RepeatDataset
from mmengine.hooks import CheckpointHook, Hook, LoggerHook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from mmseg_wce.hooks.batches import paths
from mmseg_wce.hooks.class_report import ClassReport
from mmseg_wce.hooks.class_tally import ClassFigures, ClassTally
from mmseg_wce.hooks.models import main_head, unwrapped
from mmseg_wce.hooks.nan_guard import FiniteWatch, explain, finite_flags
from mmseg_wce.losses import WeightedCrossEntropyLoss
from torch import Tensor, nn

__all__ = ['LossMonitorHook']

_DEFAULT_INTERVAL = 50


@HOOKS.register_module()
class LossMonitorHook(Hook):
    """Logs what the loss is made of, class by class, and stops a training whose loss or parameters are not finite.

    ``custom_hooks = [dict(type='LossMonitorHook')]``

    Watches the first ``WeightedCrossEntropyLoss`` of the model's ``decode_head`` (of a cascade, the last). Sums are
    kept on the device and read at logging points only, where the ranks add them up once. ``docs/monitoring.md`` says
    what is logged and what the warnings mean. A head with one channel has two classes, which its threshold divides.

    Args:
        interval: iterations from one logging point to the next; by default the LoggerHook's.

    Raises:
        ValueError: an interval below 1; or, when a training begins, a CheckpointHook that would act before this hook.
        FloatingPointError: in training, on every rank, before a checkpoint is written: a loss or a parameter is not
            finite.

    Example:
        >>> import mmseg_wce
        >>> from mmseg.registry import HOOKS
        >>> HOOKS.build(dict(type='LossMonitorHook', interval=100)).interval
        100
    """

    # after the LoggerHook, whose line comes first, and before a CheckpointHook removes the last good checkpoint
    priority = 'LOW'

    def __init__(self, interval: int | None = None) -> None:
        if interval is not None and (isinstance(interval, bool) or not isinstance(interval, int) or interval < 1):
            raise ValueError(f'LossMonitorHook: interval must be a positive number of iterations, got {interval!r}')
        self.interval = interval
        self._watch: FiniteWatch | None = None  # until a training begins
        self._loss: WeightedCrossEntropyLoss | None = None

    def before_train(self, runner: Runner) -> None:
        self._check_order(runner)
        self._model = unwrapped(runner)
        self._device = next(self._model.parameters()).device
        self._every = self.interval or next(
            (hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), _DEFAULT_INTERVAL
        )
        self._watch = FiniteWatch()
        self._new_samples = self._samples = 0
        self._last_log = runner.iter
        self._observe(runner)

    def _check_order(self, runner: Runner) -> None:
        before = runner.hooks[: runner.hooks.index(self)]
        if any(isinstance(hook, CheckpointHook) for hook in before):
            raise ValueError(
                'LossMonitorHook: a CheckpointHook acts before this hook, so that it could write a bad checkpoint over '
                "a good one: leave priority out of both, or give this hook priority='LOW'"
            )

    def _observe(self, runner: Runner) -> None:
        head, self._loss = _watched(self._model)
        if self._loss is None:
            runner.logger.info(
                'LossMonitorHook: decode_head has no WeightedCrossEntropyLoss, so there are no figures of classes; '
                'losses and parameters are watched for values that are not finite'
            )
            return
        num_classes = max(getattr(head, 'out_channels', 0), 2)
        if getattr(head, 'threshold', None) is not None:
            self._loss.threshold = head.threshold
        dataset = runner.train_dataloader.dataset
        names = _class_names(dataset, num_classes)
        self._report = ClassReport(names, _size(dataset), weighted=self._loss.class_weight is not None)
        self._tally = ClassTally(num_classes, self._device)
        self._loss.observer = self._tally.add

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        images = [str(path or 'an image without a path') for path in paths(data_batch, 'img_path')]
        self._new_samples += len(images)
        assert self._watch is not None
        self._watch.record(runner.iter + 1, (outputs or {}).get('loss'), images)
        log = self.every_n_train_iters(runner, self._every)
        saves = any(_saves_now(hook, runner) for hook in runner.hooks if isinstance(hook, CheckpointHook))
        if log or saves:
            self._point(runner, runner.iter + 1, log=log, parameters=saves)

    def after_train_epoch(self, runner: Runner) -> None:
        self._point(runner, runner.iter, parameters=True)  # a checkpoint may follow, or the end

    def before_val(self, runner: Runner) -> None:
        if self._watch is not None:
            self._point(runner, runner.iter, parameters=True)  # a best checkpoint may follow

    def after_train(self, runner: Runner) -> None:
        if runner.iter > self._last_log:
            self._point(runner, runner.iter, log=True)
        self._end()

    def _end(self) -> None:
        self._watch = None
        if self._loss is not None:
            self._loss.observer = None

    def _point(self, runner: Runner, step: int, *, log: bool = False, parameters: bool = False) -> None:
        """Add up over the ranks, once; read, once; stop or go on. Every rank comes here at the same iterations."""
        watch = self._watch
        assert watch is not None
        numbers = [self._verdict(watch, parameters)]
        if log and self._loss is not None:
            samples = torch.full((1,), self._new_samples, dtype=self._tally.sums.dtype, device=self._device)
            numbers += [samples, self._tally.sums.flatten()]
        summed = torch.cat([part.to(numbers[-1].dtype) for part in numbers])
        dist.all_reduce(summed)
        bad_losses, bad_parameters, *rest = summed.tolist()
        if bad_losses or bad_parameters:
            self._stop(runner, watch)
        watch.clear()
        if log:
            self._log(runner, step, rest)

    def _verdict(self, watch: FiniteWatch, parameters: bool) -> Tensor:
        """(2,): losses that are not finite since the last check, and parameters that are not, where that is asked."""
        bad_losses = watch.num_bad(self._device)
        if not parameters:
            return torch.stack([bad_losses, torch.zeros_like(bad_losses)])
        return torch.stack([bad_losses, finite_flags(self._model.parameters()).logical_not().count_nonzero()])

    def _stop(self, runner: Runner, watch: FiniteWatch) -> None:
        findings = dist.all_gather_object(watch.findings(dist.get_rank(), self._model.named_parameters()))
        self._end()
        written = [hook.last_ckpt for hook in runner.hooks if isinstance(hook, CheckpointHook) and hook.last_ckpt]
        message = ['']
        if dist.is_main_process():
            last = written[-1] if written else None
            message = [explain(findings, last, _resumed_from(runner), _dumped_config(runner))]
        dist.broadcast_object_list(message)
        raise FloatingPointError(message[0])

    def _log(self, runner: Runner, step: int, rest: list[float]) -> None:
        self._last_log, self._new_samples = step, 0
        if self._loss is None:
            return
        self._samples += round(rest[0])
        figures = ClassFigures.of(torch.tensor(rest[1:], dtype=torch.float64).view(4, -1).numpy())
        self._tally.clear()
        runner.visualizer.add_scalars(self._report.scalars(figures), step=step)
        runner.logger.info(f'LossMonitorHook: {self._report.line(figures)}')
        for warning in self._report.warnings(figures, self._samples):
            runner.logger.warning(f'LossMonitorHook: {warning}')


def _watched(model: nn.Module) -> tuple[Any, WeightedCrossEntropyLoss | None]:
    """The head whose loss is watched, and the loss."""
    head = main_head(model)
    losses = getattr(head, 'loss_decode', None)
    losses = losses if isinstance(losses, nn.ModuleList) else [losses]
    return head, next((loss for loss in losses if isinstance(loss, WeightedCrossEntropyLoss)), None)


def _resumed_from(runner: Runner) -> str | None:
    """Return the local checkpoint that the training went on from; None where it began anew."""
    path = runner._load_from if runner._resume else None
    return path if path and osp.exists(path) else None


def _dumped_config(runner: Runner) -> str | None:
    """Return the config file with all settings that mmengine has written into the work dir."""
    name = osp.basename(runner.cfg.filename) if runner.cfg.filename else f'{runner.timestamp}.py'
    path = osp.join(runner.work_dir, name)
    shorter = osp.relpath(path)
    return None if not osp.exists(path) else path if shorter.startswith('..') else shorter


def _class_names(dataset: Any, num_classes: int) -> Sequence[str]:
    """Names of the data set, where it has one for each class; of two, its only name is that of the foreground."""
    names = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
    if num_classes == 2 and len(names) == 1:
        names = ('background', *names)
    return names if len(set(names)) == len(names) == num_classes else [str(i) for i in range(num_classes)]


def _size(dataset: Sized) -> int:
    """Samples that are different: some configs repeat a small data set by the ten thousands."""
    while isinstance(dataset, RepeatDataset):
        dataset = dataset.dataset
    return len(dataset)


def _saves_now(hook: CheckpointHook, runner: Runner) -> bool:
    """Whether a CheckpointHook writes after this iteration."""
    if hook.by_epoch:
        return False
    last = hook.save_last and hook.is_last_train_iter(runner)
    return last or hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
