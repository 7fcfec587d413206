"""Check that the parts of a config agree on classes, channels, the ignored label and reduce_zero_label."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, TRANSFORMS
from mmseg_wce.class_weights import LabelStatistics, load_statistics
from mmseg_wce.config_walk import class_of, has_one_channel, heads_of, leaf_datasets, main_head, nodes, type_name
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

_SPLITS = ('train', 'val', 'test')
_CROSS_ENTROPIES = ('CrossEntropyLoss', 'WeightedCrossEntropyLoss')
_DEFAULT_IGNORED = 255
_IGNORED = ('ignore_index', 'ignore_label', 'seg_pad_val')
_HEADS_OF_NUM_CLASSES = ('DAHead', 'PointHead', 'SegmenterMaskTransformerHead')  # whatever out_channels says
# What ignores 255 where it says nothing else.
_BY_DEFAULT = {
    'IoUMetric': 'ignore_index',
    'RandomCrop': 'ignore_index',
    'RandomMosaic': 'seg_pad_val',
    'RandomRotate': 'seg_pad_val',
}
_PADS = ('CenterCrop', 'Pad')  # labels with 255, where pad_val says nothing of them


def check_config(config: Config) -> list[Finding]:
    """Check for contradictions that show without reading a label.

    Example:
        >>> from mmengine.config import Config
        >>> from mmseg_wce.dataset_checks import check_config
        >>> head = dict(type='FCNHead', loss_decode=dict(type='WeightedCrossEntropyLoss', ignore_index=0))
        >>> (finding,) = check_config(Config(dict(model=dict(decode_head=head))))
        >>> finding.what[:86]
        'the label that does not count differs: 0 in model.decode_head.loss_decode.ignore_index'
    """
    init_default_scope(config.get('default_scope', 'mmseg'))
    return [*check_heads(config), *_ignored_label(config), *_reduce_zero_label(config)]


def check_heads(config: Config) -> list[Finding]:
    """Check number of classes, channels and losses of every head against each other.

    Args:
        config: of a segmentor.

    Returns:
        What does not fit; empty where all does.
    """
    return [finding for place, head in heads_of(config) for finding in _head(place, head)]


def _head(place: str, head: dict) -> Iterator[Finding]:
    losses = head.get('loss_decode', dict(type='CrossEntropyLoss'))
    entropies = [loss for loss in nodes(losses) if type_name(loss) in _CROSS_ENTROPIES]
    binary = (
        'for background and foreground set num_classes=2 in every head, with out_channels=1 and use_sigmoid=True in '
        'the loss, or with two channels and a softmax (without out_channels), and name both classes'
    )
    if has_one_channel(head):
        if type_name(head) in _HEADS_OF_NUM_CLASSES and head.get('num_classes') != 1:
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
    if 'ignore_index' not in head and classes > _DEFAULT_IGNORED:
        yield Finding(
            Severity.WARNING,
            f'{place} has num_classes={classes} and ignores class {_DEFAULT_IGNORED}, as heads do where they are not '
            'told otherwise',
            f'set ignore_index in the head to a label that is no class ({classes} or -1, say), and in data sets, '
            'padding and IoUMetric; or say ignore_index=255 if it is meant',
        )


def check_classes(config: Config, parts: list[LabelFiles], split: str = 'train') -> list[Finding]:
    """Check that every head, and every statistics that class weights are made of, has the classes of the data set.

    Args:
        config: of a segmentor.
        parts: label files of the data set.
        split: that they are of.

    Returns:
        What does not fit; empty where all does.
    """
    found = [finding for place, head in heads_of(config) for finding in check_head_classes(place, head, parts, split)]
    return [*found, *check_joined_classes(parts), *check_weights(config.get('model', {}), parts)]


def check_head_classes(place: str, head: dict, parts: list[LabelFiles], split: str = 'train') -> Iterator[Finding]:
    """Check that a head has the classes of the data set.

    Args:
        place: of the head.
        head: its ``num_classes`` and ``out_channels``.
        parts: label files of the data set.
        split: that they are of.

    Yields:
        What does not fit.
    """
    num_classes = head.get('num_classes')
    for part in parts:
        number = len(part.named_classes)
        if has_one_channel(head):
            if number not in (0, 2, num_classes):  # num_classes=1 is a finding of its own
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
    """Check that joined data sets have their classes in one order, but for upper and lower case.

    Args:
        parts: label files of the data sets.
    """
    found, first = [], parts[0]
    for number, part in enumerate(parts[1:], 2):
        one, other = (tuple(map(_plain, names)) for names in (first.named_classes, part.named_classes))
        if not one or len(one) != len(other) or one == other:
            continue
        i = next(i for i, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1])
        names = f'{first.named_classes[i]!r} in the first, and {part.named_classes[i]!r} in data set {number}'
        difference = f'class {i} is {names} ({part.dataset}, {part.common_folder})'
        if sorted(one) == sorted(other):
            what = f'joined data sets have their classes in another order: {difference}'
            change = f'labels are indices, so the order has to be the same: {", ".join(first.named_classes)}'
            maps = not (first.reads_raw_values and part.reads_raw_values)  # transforms may put them right
            found.append(Finding(Severity.WARNING if maps else Severity.ERROR, what, change))
        else:
            what = f'joined data sets name their classes differently: {difference}'
            found.append(Finding(Severity.NOTE, what, 'look whether the labels mean the same'))
    return list(dict.fromkeys(found))


def _plain(name: str) -> str:
    return re.sub(r'[\s_-]+', ' ', name.strip().lower())


def check_weights(model: dict, parts: list[LabelFiles]) -> list[Finding]:
    """Check that the statistics that class weights are made of are of the data set's classes.

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
    names = [tuple(map(_plain, classes)) for classes in (theirs.classes, part.classes)]
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
    if 'Depth' in type_name(main_head(config)):  # its labels are distances
        return
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
        if loader is None or not loader.get('dataset'):
            continue
        for dataset in leaf_datasets(loader['dataset']):
            if (ignored := _setting(dataset, 'ignore_index')) is not None:
                yield f'{split}_dataloader.dataset.ignore_index', ignored
        number = main_head(config).get('num_classes') or 0
        yield from _ignored_by_steps(f'{split}_dataloader', loader['dataset'], number)
        yield from _ignored_by_steps(f'{split}_evaluator', config.get(f'{split}_evaluator') or {}, number)


def _ignored_by_steps(where: str, config: Any, num_classes: int) -> Iterator[tuple[str, int]]:
    """Yield what transforms and metrics ignore, or write where there is no label."""
    loaded = False  # labels: a pad before that writes none
    for step in nodes(config):
        name = type_name(step)
        if 'pipeline' in step or 'dataset' in step:
            loaded = False
            continue
        kind = class_of(step, TRANSFORMS)
        loaded = loaded or (isinstance(kind, type) and effect_of(kind) is Effect.LABELS)
        for key in _IGNORED:
            if step.get(key) is not None:
                yield f'{where}: {name}.{key}', step[key]
        crops_anything = name == 'RandomCrop' and step.get('cat_max_ratio', 1.0) >= 1  # then it ignores nothing
        if name in _BY_DEFAULT and step.get(_BY_DEFAULT[name]) is None and not crops_anything:
            yield f'{where}: {name}.{_BY_DEFAULT[name]}', 255
        if loaded and name in _PADS and (name == 'Pad' or step.get('auto_pad')):
            padded = step.get('pad_val')
            yield f'{where}: {name}.pad_val.seg', padded.get('seg', 255) if isinstance(padded, dict) else 255
        if step.get('seg_fill_in') is not None and step['seg_fill_in'] >= num_classes:
            yield f'{where}: {name}.seg_fill_in', step['seg_fill_in']


def _reduce_zero_label(config: Config) -> Iterator[Finding]:
    said: dict[str, dict[str, set[tuple[bool, str]]]] = {}
    for split in _SPLITS:
        loader = config.get(f'{split}_dataloader')
        for dataset in leaf_datasets(loader['dataset']) if loader and loader.get('dataset') else ():
            said_here = _setting(dataset, 'reduce_zero_label')
            if said_here is None:
                continue
            value, own = bool(said_here), _setting({**dataset, 'reduce_zero_label': None}, 'reduce_zero_label')
            place, kind = f'{split}_dataloader', type_name(dataset)
            said.setdefault(kind, {}).setdefault(place, set()).add((value, str(dataset.get('data_root'))))
            for step in nodes(dataset.get('pipeline') or []):
                said_there = step.get('reduce_zero_label')
                if said_there is None or not reads_as_load_annotations(class_of(step, TRANSFORMS)):
                    continue
                if bool(said_there) != value:
                    yield Finding(
                        Severity.ERROR,
                        f'{place}: the dataset says reduce_zero_label={value}, its LoadAnnotations '
                        f'{said_there}: mmseg refuses the first image',
                        'give both the same',
                    )
            if own and not value:
                yield Finding(
                    Severity.WARNING,
                    f'{place}: reduce_zero_label=False, but for {kind} raw 0 is "other" (its own default is True)',
                    'set reduce_zero_label=True in the dataset and in LoadAnnotations, unless the masks were made anew',
                )
    for kind, places in said.items():
        yield from _different_splits(kind, places)


def _different_splits(kind: str, places: dict[str, set[tuple[bool, str]]]) -> Iterator[Finding]:
    """Compare data sets of one type in all splits: those in the same folder, and of others the first that differ."""
    said = sorted((root, value, place) for place, entries in places.items() for value, root in entries)
    for root in dict.fromkeys(root for root, *_ in said):
        values = {value: place for where, value, place in said if where == root}
        if len(values) > 1 and values[True] != values[False]:
            yield Finding(
                Severity.ERROR,
                f'{kind}: reduce_zero_label is True in {values[True]} and False in {values[False]}',
                'give all the same: what is learnt is not what is measured',
            )
            return
    values = {value: place for _, value, place in said}
    joined = any(len(entries) > 1 for entries in places.values())
    if len(values) > 1 and values[True] != values[False] and not joined:
        yield Finding(
            Severity.WARNING,
            f'{kind}: reduce_zero_label is True in {values[True]} and False in {values[False]}, in other folders',
            'look whether the files of both are stored so: else what is learnt is not what is measured',
        )


def _setting(dataset: dict, name: str) -> Any:
    """Return what a data set's config or its class says; None where code of a project may say anything."""
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
