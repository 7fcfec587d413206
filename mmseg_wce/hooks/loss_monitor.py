"""Log the per-class composition of the loss, and stop a training whose loss or parameters are not finite."""

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
from mmseg_wce.hooks.batches import sample_paths
from mmseg_wce.hooks.class_report import ClassReport
from mmseg_wce.hooks.class_tally import ClassFigures, ClassTally
from mmseg_wce.hooks.nan_guard import LossHistory, explain, finite_flags
from mmseg_wce.losses import WeightedCrossEntropyLoss
from mmseg_wce.model_walk import losses_of, main_head, unwrap_model

__all__ = ['LossMonitorHook']

_DEFAULT_INTERVAL = 50


@HOOKS.register_module()
class LossMonitorHook(Hook):
    """Hook that logs the per-class composition of the loss and stops a training with non-finite loss or parameters.

    ``custom_hooks = [dict(type='LossMonitorHook')]``

    Monitors the first ``WeightedCrossEntropyLoss`` of the model's ``decode_head`` (the last one of a cascade). Sums
    stay on the device and are read, and added over the ranks, only when they are logged. ``docs/monitoring.md``
    explains the logged values and the warnings. A head with one channel has two classes, separated by its threshold.

    Args:
        interval: iterations between two log entries; by default the LoggerHook's interval.

    Raises:
        ValueError: the interval is below 1; or, when training starts, a CheckpointHook would run before this hook.
        FloatingPointError: in training, on every rank, before a checkpoint is written: a loss or a parameter is not
            finite.

    Example:
        >>> import mmseg_wce
        >>> from mmseg.registry import HOOKS
        >>> HOOKS.build(dict(type='LossMonitorHook', interval=100)).interval
        100
    """

    # after the LoggerHook, and before a CheckpointHook replaces the last good checkpoint
    priority = 'LOW'

    def __init__(self, interval: int | None = None) -> None:
        if interval is not None and (isinstance(interval, bool) or not isinstance(interval, int) or interval < 1):
            raise ValueError(f'LossMonitorHook: interval must be a positive number of iterations, got {interval!r}')
        self.interval = interval
        self._history: LossHistory | None = None  # only during training
        self._loss: WeightedCrossEntropyLoss | None = None

    def before_train(self, runner: Runner) -> None:
        self._check_order(runner)
        self._model = unwrap_model(runner)
        self._device = next(self._model.parameters()).device
        self._interval = self.interval or next(
            (hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)), _DEFAULT_INTERVAL
        )
        self._history = LossHistory()
        self._new_samples = self._samples = 0
        self._last_log_step = runner.iter
        self._observe(runner)

    def _check_order(self, runner: Runner) -> None:
        before = runner.hooks[: runner.hooks.index(self)]
        if any(isinstance(hook, CheckpointHook) for hook in before):
            raise ValueError(
                'LossMonitorHook: a CheckpointHook acts before this hook, so it could replace a good checkpoint by a '
                "bad one: leave priority out of both, or give this hook priority='LOW'"
            )

    def _observe(self, runner: Runner) -> None:
        head = main_head(self._model)
        self._loss = next((loss for loss in losses_of(head) if isinstance(loss, WeightedCrossEntropyLoss)), None)
        if self._loss is None:
            runner.logger.info(
                'LossMonitorHook: decode_head has no WeightedCrossEntropyLoss, so no per-class figures are logged; '
                'losses and parameters are checked for non-finite values'
            )
            return
        num_classes = max(getattr(head, 'out_channels', 0), 2)
        if getattr(head, 'threshold', None) is not None:
            self._loss.threshold = head.threshold
        dataset = runner.train_dataloader.dataset
        names = _class_names(dataset, num_classes)
        self._report = ClassReport(names, _num_samples(dataset), weighted=self._loss.class_weight is not None)
        self._tally = ClassTally(num_classes, self._device)
        self._loss.observer = self._tally.add

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        images = [str(path or 'an image without a path') for path in sample_paths(data_batch, 'img_path')]
        self._new_samples += len(images)
        assert self._history is not None
        self._history.record(runner.iter + 1, (outputs or {}).get('loss'), images)
        log = self.every_n_train_iters(runner, self._interval)
        saves = any(_will_save(hook, runner) for hook in runner.hooks if isinstance(hook, CheckpointHook))
        if log or saves:
            self._check_and_log(runner, runner.iter + 1, log=log, parameters=saves)

    def after_train_epoch(self, runner: Runner) -> None:
        self._check_and_log(runner, runner.iter, parameters=True)  # a checkpoint or the end of training may follow

    def before_val(self, runner: Runner) -> None:
        if self._history is not None:
            self._check_and_log(runner, runner.iter, parameters=True)  # a best checkpoint may follow

    def after_train(self, runner: Runner) -> None:
        if runner.iter > self._last_log_step:
            self._check_and_log(runner, runner.iter, log=True)
        self._end()

    def _end(self) -> None:
        self._history = None
        if self._loss is not None:
            self._loss.observer = None

    def _check_and_log(self, runner: Runner, step: int, *, log: bool = False, parameters: bool = False) -> None:
        """Sum over the ranks in one all-reduce, read once, then stop or log. Every rank calls it at the same steps."""
        history = self._history
        assert history is not None
        bad_losses = history.num_bad(self._device)
        bad_parameters = torch.zeros_like(bad_losses)
        if parameters:
            bad_parameters = finite_flags(self._model.parameters()).logical_not().count_nonzero()
        values = [torch.stack([bad_losses, bad_parameters])]
        if log and self._loss is not None:
            samples = torch.full((1,), self._new_samples, dtype=self._tally.sums.dtype, device=self._device)
            values += [samples, self._tally.sums.flatten()]
        summed = torch.cat([part.to(values[-1].dtype) for part in values])
        dist.all_reduce(summed)
        num_bad_losses, num_bad_parameters, *sums = summed.tolist()
        if num_bad_losses or num_bad_parameters:
            self._stop(runner, history)
        history.clear()
        if log:
            self._log(runner, step, sums)

    def _stop(self, runner: Runner, history: LossHistory) -> None:
        findings = dist.all_gather_object(history.findings(dist.get_rank(), self._model.named_parameters()))
        self._end()
        written = [hook.last_ckpt for hook in runner.hooks if isinstance(hook, CheckpointHook) and hook.last_ckpt]
        message = ['']
        if dist.is_main_process():
            last = written[-1] if written else None
            message = [explain(findings, last, _resumed_from(runner), _dumped_config(runner))]
        dist.broadcast_object_list(message)
        raise FloatingPointError(message[0])

    def _log(self, runner: Runner, step: int, sums: list[float]) -> None:
        self._last_log_step, self._new_samples = step, 0
        if self._loss is None:
            return
        self._samples += round(sums[0])
        figures = ClassFigures.from_sums(torch.tensor(sums[1:], dtype=torch.float64).view(4, -1).numpy())
        self._tally.clear()
        runner.visualizer.add_scalars(self._report.scalars(figures), step=step)
        runner.logger.info(f'LossMonitorHook: {self._report.line(figures)}')
        for warning in self._report.warnings(figures, self._samples):
            runner.logger.warning(f'LossMonitorHook: {warning}')


def _resumed_from(runner: Runner) -> str | None:
    """Return the local checkpoint that the training was resumed from; None if it was not resumed."""
    path = runner._load_from if runner._resume else None
    return path if path and osp.exists(path) else None


def _dumped_config(runner: Runner) -> str | None:
    """Return the config with all settings that mmengine wrote into the work dir; None if it does not exist."""
    name = osp.basename(runner.cfg.filename) if runner.cfg.filename else f'{runner.timestamp}.py'
    path = osp.join(runner.work_dir, name)
    if not osp.exists(path):
        return None
    relative = osp.relpath(path)
    return path if relative.startswith('..') else relative


def _class_names(dataset: Any, num_classes: int) -> Sequence[str]:
    """Return the data set's class names if there is one per class, else numbers; one name of two is the foreground."""
    names = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
    if num_classes == 2 and len(names) == 1:
        names = ('background', *names)
    return names if len(set(names)) == len(names) == num_classes else [str(i) for i in range(num_classes)]


def _num_samples(dataset: Sized) -> int:
    """Return the number of different samples; some configs repeat a small data set 10,000 times."""
    while isinstance(dataset, RepeatDataset):
        dataset = dataset.dataset
    return len(dataset)


def _will_save(hook: CheckpointHook, runner: Runner) -> bool:
    """Return True if a CheckpointHook writes a checkpoint after this iteration."""
    if hook.by_epoch:
        return False
    saves_last = hook.save_last and hook.is_last_train_iter(runner)
    return saves_last or hook.every_n_train_iters(runner, hook.interval, hook.save_begin)
