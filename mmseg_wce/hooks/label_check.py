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
from mmseg_wce.hooks.batches import sample_paths
from mmseg_wce.model_walk import main_head, unwrap_model
from mmseg_wce.targets import name_sources

__all__ = ['LabelCheckHook']


@HOOKS.register_module()
class LabelCheckHook(Hook):
    """Hook that checks some labels of the training data set; invalid labels stop the run, suspicious ones are logged.

    ``default_hooks = dict(label_check=dict(type='LabelCheckHook'))``. Labels are read through the data set's own
    pipeline, including the user's own transforms. ``tools/check_labels.py`` reads all of them and checks more. During
    training, the error of the loss for an invalid label names the label file.

    Args:
        num_files: number of label files to read, evenly spread over the data set.

    Raises:
        ValueError: on every rank, before the first iteration: a file cannot be read, holds a label that is neither a
            class of the decode head nor ignored, or has an image of another size; the data set contradicts its
            transforms or the head; or class weights come from statistics of other classes. When the hook is built:
            ``num_files`` is below 1.

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
        result: list[Any] = [self._check(runner) if is_main_process() else None]
        broadcast_object_list(result)
        errors, warnings = result[0]
        seconds = time.perf_counter() - start
        runner.logger.info(f'LabelCheckHook: looked at up to {self.num_files} label files in {seconds:.2f} s')
        for line in warnings:
            runner.logger.warning(f'LabelCheckHook: {line}')
        if errors:
            raise ValueError('LabelCheckHook: ' + '\n'.join(errors))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        paths = sample_paths(data_batch, 'seg_map_path')
        known = [path for path in paths if path]
        name_sources(known if len(known) == len(paths) else ())

    def before_val(self, runner: Runner) -> None:
        name_sources(())

    def after_train(self, runner: Runner) -> None:
        name_sources(())

    def _check(self, runner: Runner) -> tuple[list[str], list[str]]:
        """Return errors and warnings."""
        head = main_head(unwrap_model(runner))
        channels = dict(
            num_classes=getattr(head, 'num_classes', None), out_channels=getattr(head, 'out_channels', None)
        )
        ignore_index, dataset = getattr(head, 'ignore_index', 255), runner.train_dataloader.dataset
        parts: list[LabelFiles] = []
        errors: list[str] = []
        warnings: list[str] = []
        findings: list[Finding] = []
        try:
            findings += check_heads(runner.cfg)
            parts = from_dataset(
                dataset, channels['num_classes'], ignore_index, has_one_channel(channels), most=self.num_files
            )
            findings += check_head_classes('decode_head', channels, parts)
            findings += check_joined_classes(parts)
            findings += check_weights(runner.cfg.get('model', {}), parts)
            findings += _check_files(parts, self.num_files, preprocessor_of_others(runner.cfg))
        except LabelConflict as error:
            errors.append(str(error))
        except Exception as error:  # data sets of other kinds; the other ranks wait for the result
            warnings.append(f'labels are not checked: {error}')
        errors += [str(finding) for finding in findings if finding.severity == Severity.ERROR]
        warnings += [str(finding) for finding in findings if finding.severity == Severity.WARNING]
        return errors, [*dict.fromkeys(note for part in parts for note in part.notes), *warnings]


def _check_files(parts: list[LabelFiles], num_files: int, changed_later_by: str) -> list[Finding]:
    selection = evenly(parts, num_files)
    if not selection:
        raise ValueError('the data set has no label files')
    findings = []
    for part in parts:
        indices = [i for other, i in selection if other is part]
        if indices:
            findings += check_statistics(part.statistics(indices, with_images=True), changed_later_by)
    return findings
