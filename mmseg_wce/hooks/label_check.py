"""A look at some label files before the training starts."""

from __future__ import annotations

import time
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from mmseg_wce.dataset_checks import (
    Finding,
    LabelConflict,
    Severity,
    check_statistics,
    check_weights,
    evenly,
    from_dataset,
)
from mmseg_wce.hooks.batches import paths
from mmseg_wce.hooks.models import main_head, unwrapped
from mmseg_wce.targets import name_sources

__all__ = ['LabelCheckHook']


@HOOKS.register_module()
class LabelCheckHook(Hook):
    """Reads some label files through the training data set: illegal values stop the run, what looks odd is logged.

    ``default_hooks = dict(label_check=dict(type='LabelCheckHook'))``. ``tools/check_labels.py`` reads all of them and
    checks more. While the training runs, a label that the loss refuses is named with its file.

    Args:
        num_files: how many label files to read, evenly spread over the data set.

    Raises:
        ValueError: on every rank, before the first iteration, where a file cannot be read, holds a label that is
            neither a class of the decode head nor ignored, the data set contradicts its transforms, or class weights
            are made of statistics of other classes; when it is built, for fewer than one file.

    Example:
        >>> import mmseg_wce
        >>> from mmseg.registry import HOOKS
        >>> HOOKS.build(dict(type='LabelCheckHook', num_files=64)).num_files
        64
    """

    def __init__(self, num_files: int = 16) -> None:
        if num_files < 1:
            raise ValueError(f'LabelCheckHook: num_files must be at least 1, got {num_files}')
        self.num_files = num_files

    def before_train(self, runner: Runner) -> None:
        start = time.perf_counter()
        outcome: list[Any] = [self._look(runner) if is_main_process() else None]
        broadcast_object_list(outcome)
        wrong, doubts = outcome[0]
        seconds = time.perf_counter() - start
        runner.logger.info(f'LabelCheckHook: looked at up to {self.num_files} label files in {seconds:.2f} s')
        for line in doubts:
            runner.logger.warning(f'LabelCheckHook: {line}')
        if wrong:
            raise ValueError('LabelCheckHook: ' + '\n'.join(wrong))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        names = paths(data_batch, 'seg_map_path')
        known = [name for name in names if name]
        name_sources(known if len(known) == len(names) else ())

    def before_val(self, runner: Runner) -> None:
        name_sources(())

    def after_train(self, runner: Runner) -> None:
        name_sources(())

    def _look(self, runner: Runner) -> tuple[list[str], list[str]]:
        """What is wrong, and what is only odd."""
        head = main_head(unwrapped(runner))
        num_classes, ignore_index = getattr(head, 'num_classes', None), getattr(head, 'ignore_index', 255)
        try:
            parts = from_dataset(runner.train_dataloader.dataset, num_classes, ignore_index, most=self.num_files)
            number = len(parts[0].classes)
            if num_classes not in (None, 1, number):
                return [f'decode_head has num_classes={num_classes}, but {parts[0].dataset} has {number} classes'], []
            found = [*_findings(parts, self.num_files), *check_weights(runner.cfg.get('model', {}), parts)]
        except LabelConflict as error:
            return [str(error)], []
        except Exception as error:  # data sets of other kinds; the other ranks wait for an answer
            return [], [f'labels are not checked: {error}']
        return (
            [str(finding) for finding in found if finding.severity == Severity.ERROR],
            [str(finding) for finding in found if finding.severity == Severity.WARNING],
        )


def _findings(parts: list, num_files: int) -> list[Finding]:
    total = None
    for part, i in evenly(parts, num_files):
        statistics = part.statistics([part.files[i]])
        total = statistics if total is None else total + statistics
    if total is None:
        raise ValueError('the data set has no label files')
    return check_statistics(total)
