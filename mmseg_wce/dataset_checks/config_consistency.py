"""Whether the parts of a config agree on classes, on the ignored label and on reduce_zero_label."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from mmseg_wce.class_weights import LabelStatistics, load_statistics
from mmseg_wce.config_parts import heads_of, leaf_datasets, nodes
from mmseg_wce.dataset_checks.discovery import is_loading
from mmseg_wce.dataset_checks.findings import Finding, Severity
from mmseg_wce.dataset_checks.label_files import LabelFiles

__all__ = ['check_classes', 'check_config', 'check_weights']

_SPLITS = ('train', 'val', 'test')
_IGNORED = ('ignore_index', 'ignore_label', 'seg_pad_val')
# What ignores 255 where it says nothing else.
_BY_DEFAULT = {'RandomCrop': 'ignore_index', 'RandomRotate': 'seg_pad_val', 'IoUMetric': 'ignore_index'}


def check_config(config: Config) -> list[Finding]:
    """Contradictions that show without reading a label.

    Example:
        >>> from mmengine.config import Config
        >>> from mmseg_wce.dataset_checks import check_config
        >>> head = dict(type='FCNHead', loss_decode=dict(type='WeightedCrossEntropyLoss', ignore_index=0))
        >>> (finding,) = check_config(Config(dict(model=dict(decode_head=head))))
        >>> finding.what[:86]
        'the label that does not count differs: 0 in model.decode_head.loss_decode.ignore_index'
    """
    init_default_scope(config.get('default_scope', 'mmseg'))
    return [*_ignored_label(config), *_reduce_zero_label(config)]


def check_classes(config: Config, parts: list[LabelFiles], split: str = 'train') -> list[Finding]:
    """Whether every head, and every statistics that class weights are made of, has the classes of the data set.

    Args:
        config: of a segmentor.
        parts: label files of the data set.
        split: that they are of.

    Returns:
        What does not fit; empty where all does.
    """
    found, classes = [], parts[0].classes
    for place, head in heads_of(config):
        if head.get('num_classes') not in (None, 1, len(classes)):  # 1: a sigmoid for the foreground
            what = f'{place} has num_classes={head["num_classes"]}, but {parts[0].dataset} has {len(classes)} classes'
            found.append(Finding(Severity.ERROR, f'{what} ({split}_dataloader)', 'make them the same'))
    return found + check_weights(config.get('model', {}), parts)


def check_weights(model: dict, parts: list[LabelFiles]) -> list[Finding]:
    """Whether the statistics that class weights are made of are of the data set's classes.

    Args:
        model: config of a segmentor.
        parts: label files of the data set.

    Returns:
        What does not fit; empty where all does.
    """
    sources = {str(weights['statistics']) for node in nodes(model) if (weights := _by_scheme(node))}
    found = []
    for source in sorted(sources):
        try:
            theirs = load_statistics(source)
        except ValueError as error:
            found.append(Finding(Severity.ERROR, str(error), 'write it, or give its path'))
        else:
            found += _compared(source, theirs, parts)
    return found


def _by_scheme(node: dict) -> dict | None:
    weights = node.get('class_weight')
    return weights if isinstance(weights, dict) and 'statistics' in weights else None


def _compared(source: str, theirs: LabelStatistics, parts: list[LabelFiles]) -> Iterator[Finding]:
    part, numbered = parts[0], tuple(str(c) for c in range(len(theirs.classes)))
    names = [tuple(name.strip().lower() for name in classes) for classes in (theirs.classes, part.classes)]
    change = 'give the statistics of this data set: tools/class_weights.py writes them'
    if len(theirs.classes) != len(part.classes):
        what = f'class_weight: {source!r} has {len(theirs.classes)} classes, {part.dataset} has {len(part.classes)}'
        yield Finding(Severity.ERROR, what, change)
    elif names[0] != names[1] and numbered not in names:
        pairs = enumerate(zip(*names, strict=True))
        i, (one, other) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
        sorted_alike = set(names[0]) == set(names[1])
        what = f'class_weight: class {i} is {one!r} in {source!r}, and {other!r} in {part.dataset}'
        yield Finding(Severity.ERROR if sorted_alike else Severity.WARNING, what, change)
    elif part.convention not in theirs.conventions:
        what = f'class_weight: {source!r} is of labels with {theirs.conventions[0]}, not with {part.convention}'
        yield Finding(Severity.WARNING, what, change)


def _ignored_label(config: Config) -> Iterator[Finding]:
    places: dict[Any, list[str]] = {}
    for place, value in dict.fromkeys(_places_of_ignored_label(config)):
        places.setdefault(value, []).append(place)
    if len(places) > 1:
        most = max(places, key=lambda value: len(places[value]))
        listed = '; '.join(f'{value} in {", ".join(where)}' for value, where in places.items() if value != most)
        yield Finding(
            Severity.ERROR,
            f'the label that does not count differs: {listed}; {most} everywhere else ({len(places[most])} places)',
            f'give all the same: {most}, or what reduce_zero_label and padding really write',
        )


def _places_of_ignored_label(config: Config) -> Iterator[tuple[str, int]]:
    for place, head in heads_of(config):
        yield f'{place}.ignore_index', head.get('ignore_index', 255)
        for loss in nodes(head.get('loss_decode', {})):
            for key in _IGNORED:
                if loss.get(key) is not None:
                    yield f'{place}.loss_decode.{key}', loss[key]
    preprocessor = config.get('model', {}).get('data_preprocessor') or config.get('data_preprocessor')
    if preprocessor:
        yield 'data_preprocessor.seg_pad_val', preprocessor.get('seg_pad_val', 255)
    for split in _SPLITS:
        loader = config.get(f'{split}_dataloader')
        if loader is None:
            continue
        for dataset in leaf_datasets(loader['dataset']):
            yield f'{split}_dataloader.dataset.ignore_index', dataset.get('ignore_index', 255)
        yield from _in_steps(f'{split}_dataloader', loader['dataset'])
        yield from _in_steps(f'{split}_evaluator', config.get(f'{split}_evaluator') or {})


def _in_steps(where: str, config: Any) -> Iterator[tuple[str, int]]:
    """Transforms and metrics."""
    for step in nodes(config):
        kind = step.get('type')
        name = kind.__name__ if isinstance(kind, type) else str(kind).split('.')[-1]
        if 'pipeline' in step or 'dataset' in step:
            continue
        for key in _IGNORED:
            if step.get(key) is not None:
                yield f'{where}: {name}.{key}', step[key]
        if name in _BY_DEFAULT and step.get(_BY_DEFAULT[name]) is None:
            yield f'{where}: {name}.{_BY_DEFAULT[name]}', 255
        if isinstance(step.get('pad_val'), dict) and 'seg' in step['pad_val']:
            yield f'{where}: {name}.pad_val.seg', step['pad_val']['seg']


def _reduce_zero_label(config: Config) -> Iterator[Finding]:
    said: dict[str, dict[bool, str]] = {}
    for split in _SPLITS:
        loader = config.get(f'{split}_dataloader')
        for dataset in leaf_datasets(loader['dataset']) if loader else ():
            own = _default_of(dataset)
            value = bool(dataset.get('reduce_zero_label', own))
            place = f'{split}_dataloader'
            kind = str(dataset.get('type'))
            said.setdefault(kind, {}).setdefault(value, place)
            for step in nodes(dataset.get('pipeline') or []):
                loading = is_loading(step.get('type')) and step.get('reduce_zero_label') is not None
                if loading and bool(step['reduce_zero_label']) != value:
                    yield Finding(
                        Severity.ERROR,
                        f'{place}: the dataset says reduce_zero_label={value}, its LoadAnnotations '
                        f'{step["reduce_zero_label"]}: mmseg refuses the first image',
                        'give both the same',
                    )
            if own and not value:
                yield Finding(
                    Severity.WARNING,
                    f'{place}: reduce_zero_label=False, but for {kind} raw 0 is "other" (its own default is True)',
                    'set reduce_zero_label=True in the dataset and in LoadAnnotations, unless the masks were made anew',
                )
    for kind, values in said.items():
        if len(values) > 1:
            yield Finding(
                Severity.ERROR,
                f'{kind}: reduce_zero_label is True in {values[True]} and False in {values[False]}',
                'give all the same: what is learnt is not what is measured',
            )


def _default_of(dataset: dict) -> bool:
    kind = dataset.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if kind is None:
        return False
    parameter = inspect.signature(kind).parameters.get('reduce_zero_label')
    return bool(parameter is not None and parameter.default is True)
