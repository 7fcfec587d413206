"""Check some labels before the training starts."""

from __future__ import annotations

import time
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from mmseg_wce.config_walk import has_one_channel, preprocessor_of_others
from mmseg_wce.dataset_checks import (
    Finding,
    LabelConflict,
    LabelFiles,
    Severity,
    check_head_classes,
    check_heads,
    check_joined_classes,
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
    """Check some labels of the training data set: invalid ones stop the run, what looks odd is logged.

    ``default_hooks = dict(label_check=dict(type='LabelCheckHook'))``. Labels are what the data set's own pipeline makes
    of them, with the transforms of the user's own. ``tools/check_labels.py`` reads all of them and checks more. While
    the training runs, a label that the loss refuses is named with its file.

    Args:
        num_files: how many label files to read, evenly spread over the data set.

    Raises:
        ValueError: on every rank, before the first iteration, where a file cannot be read, holds a label that is
            neither a class of the decode head nor ignored, or has an image of another size; where the data set
            contradicts its transforms or the head, or class weights are made of statistics of other classes; when it is
            built, for fewer than one file.

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
        outcome: list[Any] = [self._check(runner) if is_main_process() else None]
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

    def _check(self, runner: Runner) -> tuple[list[str], list[str]]:
        """Return what is wrong, and what is only odd."""
        head = main_head(unwrapped(runner))
        channels = dict(
            num_classes=getattr(head, 'num_classes', None), out_channels=getattr(head, 'out_channels', None)
        )
        ignore_index, dataset = getattr(head, 'ignore_index', 255), runner.train_dataloader.dataset
        parts: list[LabelFiles] = []
        wrong: list[str] = []
        doubts: list[str] = []
        found: list[Finding] = []
        try:
            found += check_heads(runner.cfg)
            parts = from_dataset(
                dataset, channels['num_classes'], ignore_index, has_one_channel(channels), most=self.num_files
            )
            found += check_head_classes('decode_head', channels, parts)
            found += check_joined_classes(parts)
            found += check_weights(runner.cfg.get('model', {}), parts)
            found += _check_files(parts, self.num_files, preprocessor_of_others(runner.cfg))
        except LabelConflict as error:
            wrong.append(str(error))
        except Exception as error:  # data sets of other kinds; the other ranks wait for an answer
            doubts.append(f'labels are not checked: {error}')
        wrong += [str(finding) for finding in found if finding.severity == Severity.ERROR]
        doubts += [str(finding) for finding in found if finding.severity == Severity.WARNING]
        return wrong, [*dict.fromkeys(note for part in parts for note in part.notes), *doubts]


def _check_files(parts: list[LabelFiles], num_files: int, changed_later_by: str) -> list[Finding]:
    chosen = evenly(parts, num_files)
    if not chosen:
        raise ValueError('the data set has no label files')
    found = []
    for part in parts:
        indices = [i for other, i in chosen if other is part]
        if indices:
            found += check_statistics(part.statistics(indices, with_images=True), changed_later_by)
    return found
