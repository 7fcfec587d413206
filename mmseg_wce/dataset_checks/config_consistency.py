"""Checks that a config's parts agree on classes, channels, the ignored label and ``reduce_zero_label``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, TRANSFORMS
from mmseg_wce.class_weights import LabelStatistics, load_statistics
from mmseg_wce.config_walk import class_of, has_one_channel, heads_of, leaf_datasets, main_head, nodes, type_name
from mmseg_wce.dataset_checks.class_names import find_difference, normalize
from mmseg_wce.dataset_checks.findings import Finding, Severity
from mmseg_wce.dataset_checks.known_transforms import Effect, effect_of, reads_as_load_annotations
from mmseg_wce.dataset_checks.label_files import LabelFiles

__all__ = [
    'check_classes',
    'check_config',
    'check_head_classes',
    'check_heads',
    'check_joined_classes',
    'check_weights',
]

_CROSS_ENTROPIES = ('CrossEntropyLoss', 'WeightedCrossEntropyLoss')
_DEFAULT_IGNORE_INDEX = 255
_IGNORE_KEYS = ('ignore_index', 'ignore_label', 'seg_pad_val')
_HEADS_WITHOUT_OUT_CHANNELS = ('DAHead', 'PointHead', 'SegmenterMaskTransformerHead')  # they ignore out_channels
# Options that are 255 by default.
_DEFAULT_KEYS = {
    'IoUMetric': 'ignore_index',
    'RandomCrop': 'ignore_index',
    'RandomMosaic': 'seg_pad_val',
    'RandomRotate': 'seg_pad_val',
}
_PADS = ('CenterCrop', 'Pad')  # pad labels with 255 by default


def check_config(config: Config) -> list[Finding]:
    """Check for contradictions in a config that do not need the labels.

    Example:
        >>> from mmengine.config import Config
        >>> from mmseg_wce.dataset_checks import check_config
        >>> head = dict(type='FCNHead', loss_decode=dict(type='WeightedCrossEntropyLoss', ignore_index=0))
        >>> (finding,) = check_config(Config(dict(model=dict(decode_head=head))))
        >>> finding.what[:74]
        'the ignored label differs: 0 in model.decode_head.loss_decode.ignore_index'
    """
    init_default_scope(config.get('default_scope', 'mmseg'))
    return [*check_heads(config), *_check_ignored_label(config), *_check_reduce_zero_label(config)]


def check_heads(config: Config) -> list[Finding]:
    """Check that number of classes, channels and losses of each head of a segmentor agree."""
    return [finding for place, head in heads_of(config) for finding in _check_head(place, head)]


def _check_head(place: str, head: dict) -> Iterator[Finding]:
    losses = head.get('loss_decode', dict(type='CrossEntropyLoss'))
    entropies = [loss for loss in nodes(losses) if type_name(loss) in _CROSS_ENTROPIES]
    binary = (
        'for background and foreground set num_classes=2 in every head, with out_channels=1 and use_sigmoid=True in '
        'the loss, or with two channels and a softmax (without out_channels), and name both classes'
    )
    if has_one_channel(head):
        if type_name(head) in _HEADS_WITHOUT_OUT_CHANNELS and head.get('num_classes') != 1:
            what = (
                f'{place}: {type_name(head)} makes num_classes={head.get("num_classes")} channels, not out_channels=1'
            )
            yield Finding(Severity.ERROR, what, 'leave out_channels out, and use a softmax (without use_sigmoid)')
        elif any(not loss.get('use_sigmoid') and not loss.get('use_mask') for loss in entropies):
            what = f'{place} has one channel and a softmax, which is constant over one channel: nothing is learnt'
            yield Finding(Severity.ERROR, what, binary)
        elif entropies and head.get('num_classes') == 1:
            what = f"{place} has num_classes=1: mmseg's IoUMetric counts background as a hit with one class"
            yield Finding(Severity.WARNING, what, binary)
    classes = head.get('num_classes') or 0
    if 'ignore_index' not in head and classes > _DEFAULT_IGNORE_INDEX:
        yield Finding(
            Severity.WARNING,
            f'{place} has num_classes={classes} and ignores class {_DEFAULT_IGNORE_INDEX}, the default of heads',
            f'set ignore_index to a label that is not a class ({classes} or -1, for example) in the head, data sets, '
            'padding and IoUMetric; or set ignore_index=255 in the head if this is intended',
        )


def check_classes(config: Config, parts: list[LabelFiles], split: str = 'train') -> list[Finding]:
    """Check that heads and the statistics for class weights have the classes of the data set.

    Args:
        config: config of a segmentor.
        parts: label files of the data set.
        split: split of these files.

    Returns:
        The findings; empty if all agree.
    """
    findings = [f for place, head in heads_of(config) for f in check_head_classes(place, head, parts, split)]
    return [*findings, *check_joined_classes(parts), *check_weights(config.get('model', {}), parts)]


def check_head_classes(place: str, head: dict, parts: list[LabelFiles], split: str = 'train') -> Iterator[Finding]:
    """Check that a head has the classes of the data set.

    Args:
        place: path of the head in the config.
        head: config of the head, with ``num_classes`` and ``out_channels``.
        parts: label files of the data set.
        split: split of these files.

    Yields:
        The findings.
    """
    num_classes = head.get('num_classes')
    for part in parts:
        number = len(part.named_classes)
        if has_one_channel(head):
            if number not in (0, 2, num_classes):  # num_classes=1 has its own finding
                what = f'{place} has one channel for background and foreground, but {part.dataset} names {number} class'
                change = "name both: metainfo=dict(classes=('background', 'foreground'))"
                severity = Severity.WARNING if number == 1 else Severity.ERROR
                yield Finding(severity, f'{what}{"es" * (number != 1)} ({split}_dataloader)', change)
        elif num_classes is not None and number not in (0, num_classes):
            what = f'{place} has num_classes={num_classes}, but {part.dataset} has {number} classes'
            # a part of a joined data set may lack classes
            severity = Severity.WARNING if len(parts) > 1 and number < num_classes else Severity.ERROR
            yield Finding(severity, f'{what} ({split}_dataloader)', 'make them the same')


def check_joined_classes(parts: list[LabelFiles]) -> list[Finding]:
    """Check that joined data sets have the same classes in the same order, ignoring case and separators."""
    findings, first = [], parts[0]
    for number, part in enumerate(parts[1:], 2):
        names, others = first.named_classes, part.named_classes
        if len(names) != len(others) or (difference := find_difference(names, others)) is None:
            continue
        i = difference.first
        where = f'{names[i]!r} in the first, and {others[i]!r} in data set {number}'
        detail = f'class {i} is {where} ({part.dataset}, {part.common_folder})'
        if difference.is_order:
            what = f'joined data sets have their classes in another order: {detail}'
            change = f'labels are indices, so the order has to be the same: {", ".join(names)}'
            has_transforms = not (first.reads_raw_values and part.reads_raw_values)  # which may correct the order
            findings.append(Finding(Severity.WARNING if has_transforms else Severity.ERROR, what, change))
        else:
            what = f'joined data sets name their classes differently: {detail}'
            findings.append(Finding(Severity.NOTE, what, 'check that the labels mean the same'))
    return list(dict.fromkeys(findings))


def check_weights(model: dict, parts: list[LabelFiles]) -> list[Finding]:
    """Check that the statistics for class weights have the classes of the data set.

    Args:
        model: config of a segmentor.
        parts: label files of the data set.

    Returns:
        The findings; empty if all agree.
    """
    weights = [node.get('class_weight') for node in nodes(model)]
    sources = {str(w['statistics']) for w in weights if isinstance(w, dict) and 'statistics' in w}
    findings = []
    for source in sorted(sources):
        try:
            statistics = load_statistics(source)
        except ValueError as error:
            findings.append(Finding(Severity.ERROR, str(error), 'write the file, or give its path'))
        else:
            findings += _compare_statistics(source, statistics, parts)
    return findings


def _compare_statistics(source: str, statistics: LabelStatistics, parts: list[LabelFiles]) -> Iterator[Finding]:
    part, numbered = parts[0], tuple(str(c) for c in range(len(statistics.classes)))
    names = [tuple(map(normalize, classes)) for classes in (statistics.classes, part.classes)]
    change = 'give the statistics of this data set: tools/class_weights.py writes them'
    if len(statistics.classes) != len(part.classes):
        what = f'class_weight: {source!r} has {len(statistics.classes)} classes, {part.dataset} has {len(part.classes)}'
        yield Finding(Severity.ERROR, what, change)
    elif names[0] != names[1] and numbered not in names:
        pairs = enumerate(zip(*names, strict=True))
        i, (one, other) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
        same_names = set(names[0]) == set(names[1])
        what = f'class_weight: class {i} is {one!r} in {source!r}, and {other!r} in {part.dataset}'
        yield Finding(Severity.ERROR if same_names else Severity.WARNING, what, change)
    elif part.convention not in statistics.conventions:
        what = f'class_weight: {source!r} describes labels with {statistics.conventions[0]}, not with {part.convention}'
        yield Finding(Severity.WARNING, what, change)


def _check_ignored_label(config: Config) -> Iterator[Finding]:
    places: dict[Any, list[str]] = {}
    for place, value in dict.fromkeys(_find_ignored_labels(config)):
        places.setdefault(value, []).append(place)
    if len(places) > 1:
        most = max(places, key=lambda value: len(places[value]))
        listed = '; '.join(f'{value} in {", ".join(where)}' for value, where in places.items() if value != most)
        yield Finding(
            Severity.ERROR,
            f'the ignored label differs: {listed}; {most} everywhere else ({len(places[most])} places)',
            f'set all to {most}, or to the value that reduce_zero_label and padding write',
        )


def _find_ignored_labels(config: Config) -> Iterator[tuple[str, int]]:
    if 'Depth' in type_name(main_head(config)):  # its labels are distances
        return
    for place, head in heads_of(config):
        yield f'{place}.ignore_index', head.get('ignore_index', 255)
        for loss in nodes(head.get('loss_decode', {})):
            for key in _IGNORE_KEYS:
                if loss.get(key) is not None:
                    yield f'{place}.loss_decode.{key}', loss[key]
    preprocessor = config.get('model', {}).get('data_preprocessor') or config.get('data_preprocessor')
    if preprocessor:
        yield 'data_preprocessor.seg_pad_val', preprocessor.get('seg_pad_val', 255)
    for split, wrapped in _datasets(config):
        for dataset in leaf_datasets(wrapped):
            if (ignored := _get_setting(dataset, 'ignore_index')) is not None:
                yield f'{split}_dataloader.dataset.ignore_index', ignored
        number = main_head(config).get('num_classes') or 0
        yield from _find_ignored_in_steps(f'{split}_dataloader', wrapped, number)
        yield from _find_ignored_in_steps(f'{split}_evaluator', config.get(f'{split}_evaluator') or {}, number)


def _datasets(config: Config) -> Iterator[tuple[str, dict]]:
    """Yield the splits that have a data set, each with its config."""
    for split in ('train', 'val', 'test'):
        if dataset := (config.get(f'{split}_dataloader') or {}).get('dataset'):
            yield split, dataset


def _find_ignored_in_steps(where: str, config: Any, num_classes: int) -> Iterator[tuple[str, int]]:
    """Yield the labels that transforms and metrics ignore, or write into padding."""
    loaded = False  # a pad before the labels are loaded writes none
    for step in nodes(config):
        name = type_name(step)
        if 'pipeline' in step or 'dataset' in step:
            loaded = False
            continue
        kind = class_of(step, TRANSFORMS)
        loaded = loaded or (isinstance(kind, type) and effect_of(kind) is Effect.LABELS)
        for key in _IGNORE_KEYS:
            if step.get(key) is not None:
                yield f'{where}: {name}.{key}', step[key]
        crops_anything = name == 'RandomCrop' and step.get('cat_max_ratio', 1.0) >= 1  # then it ignores nothing
        if name in _DEFAULT_KEYS and step.get(_DEFAULT_KEYS[name]) is None and not crops_anything:
            yield f'{where}: {name}.{_DEFAULT_KEYS[name]}', 255
        if loaded and name in _PADS and (name == 'Pad' or step.get('auto_pad')):
            padded = step.get('pad_val')
            yield f'{where}: {name}.pad_val.seg', padded.get('seg', 255) if isinstance(padded, dict) else 255
        if step.get('seg_fill_in') is not None and step['seg_fill_in'] >= num_classes:
            yield f'{where}: {name}.seg_fill_in', step['seg_fill_in']


def _check_reduce_zero_label(config: Config) -> Iterator[Finding]:
    settings: dict[str, dict[str, set[tuple[bool, str]]]] = {}
    for split, wrapped in _datasets(config):
        for dataset in leaf_datasets(wrapped):
            setting = _get_setting(dataset, 'reduce_zero_label')
            if setting is None:
                continue
            value = bool(setting)
            class_default = _get_setting({**dataset, 'reduce_zero_label': None}, 'reduce_zero_label')
            place, kind = f'{split}_dataloader', type_name(dataset)
            settings.setdefault(kind, {}).setdefault(place, set()).add((value, str(dataset.get('data_root'))))
            for step in nodes(dataset.get('pipeline') or []):
                step_setting = step.get('reduce_zero_label')
                differs = step_setting is not None and bool(step_setting) != value
                if differs and reads_as_load_annotations(class_of(step, TRANSFORMS)):
                    yield Finding(
                        Severity.ERROR,
                        f'{place}: the dataset says reduce_zero_label={value}, its LoadAnnotations '
                        f'{step_setting}: mmseg refuses the first image',
                        'set both to the same value',
                    )
            if class_default and not value:
                yield Finding(
                    Severity.WARNING,
                    f'{place}: reduce_zero_label=False, but for {kind} raw 0 is "other" (it defaults to True)',
                    'set reduce_zero_label=True in the dataset and in LoadAnnotations, unless the masks were changed',
                )
    for kind, places in settings.items():
        yield from _compare_splits(kind, places)


def _compare_splits(kind: str, places: dict[str, set[tuple[bool, str]]]) -> Iterator[Finding]:
    """Compare ``reduce_zero_label`` of data sets of one type in all splits, first of those in the same folder."""
    settings = sorted((root, value, place) for place, entries in places.items() for value, root in entries)
    is_joined = any(len(entries) > 1 for entries in places.values())
    for folder in (*dict.fromkeys(root for root, *_ in settings), None):  # None: all folders
        values = {value: place for root, value, place in settings if folder in (root, None)}
        if len(values) < 2 or values[True] == values[False] or (folder is None and is_joined):
            continue
        what = f'{kind}: reduce_zero_label is True in {values[True]} and False in {values[False]}'
        different = 'otherwise training and validation use different labels'
        if folder is not None:
            yield Finding(Severity.ERROR, what, f'set all to the same value: {different}')
            return
        change = f'check that the files of both are stored this way: {different}'
        yield Finding(Severity.WARNING, f'{what}, in other folders', change)


def _get_setting(dataset: dict, name: str) -> Any:
    """Return a setting from a data set's config or its class's default; None if custom code may set it."""
    if dataset.get(name) is not None:
        return dataset[name]
    kind = class_of(dataset, DATASETS)
    if not isinstance(kind, type):
        return None
    for base in kind.__mro__:
        if '__init__' not in vars(base):
            continue
        parameter = inspect.signature(base).parameters.get(name)
        if parameter is not None:
            return parameter.default
        if base.__module__.partition('.')[0] not in ('mmengine', 'mmseg', 'mmseg_wce'):
            return None
    return None
