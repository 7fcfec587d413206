"""Check that labels, images, config and checkpoint of a rebalancing belong together."""

import ast
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmseg_wce.class_weights import LabelStatistics
from mmseg_wce.dataset_checks import LabelFiles
from mmseg_wce.dataset_checks.class_names import find_difference
from mmseg_wce.training.preflight import PreflightError


def check_classes(statistics: LabelStatistics, datasets: Sequence[Any], note: Callable[[str], None]) -> tuple[str, ...]:
    """Return the names of the classes, those of the first data set.

    Args:
        statistics: of the training labels.
        datasets: data sets of mmseg; a model with one channel has two classes.
        note: called with a text if names differ and may mean the same.

    Raises:
        PreflightError: the numbers of classes differ, or the same names are in another order.
    """
    names = [tuple(dataset.metainfo.get('classes') or statistics.classes) for dataset in datasets]
    first = names[0]
    for other, source in [
        *((other, 'the other images') for other in names[1:]),
        (statistics.classes, 'the statistics'),
    ]:
        if len(other) != len(first):
            raise PreflightError(f'the images have {len(first)} classes, {source} {len(other)}: they must be the same')
        if (difference := find_difference(first, other)) is None:
            continue
        c = difference.first
        detail = f'class {c} is {first[c]!r} in the images, and {other[c]!r} in {source}'
        if difference.is_order:
            raise PreflightError(f'the classes are in another order: {detail}')
        note(f'classes have other names: {detail}. Check that they mean the same')
    return first


def check_images(splits: Sequence[str], datasets: Sequence[Any]) -> None:
    """Raise PreflightError if images of the report are among those that tau is chosen on.

    Args:
        splits: names of one or two splits: to choose on, and to report on.
        datasets: their data sets.
    """
    if len(datasets) < 2 or not all(hasattr(dataset, 'get_data_info') for dataset in datasets):
        return
    chosen, reported = ([dataset.get_data_info(i).get('img_path') for i in range(len(dataset))] for dataset in datasets)
    if shared := len((set(chosen) & set(reported)) - {None}):
        raise PreflightError(
            f'{shared} of the {len(reported)} images of {splits[1]} are also in {splits[0]}, which tau is chosen on: '
            'the report would look better than the model is. In place of --report-on give --choose-on 0.5, which '
            'chooses on the first half of the images and reports on the other'
        )


def check_same_files(file: Path, statistics: LabelStatistics, parts: Sequence[LabelFiles]) -> None:
    """Raise PreflightError unless statistics are of these label files, by folders, number and label encoding."""
    number, counted = sum(len(part) * part.times for part in parts), statistics.num_images
    most = max(part.times for part in parts)  # files that could not be read are named once
    left_out = most * (len(statistics.failed) + (statistics.dropped.files if statistics.dropped else 0))
    is_same = set(statistics.folders) == {part.common_folder for part in parts}
    advice = 'remove the file, or give another one with --statistics'
    if not is_same or not counted <= number <= counted + left_out:
        raise PreflightError(
            f'{str(file)!r} holds statistics of {counted} labels in {", ".join(statistics.folders)}, and the training '
            f'set of this config has {number}: {advice}'
        )
    if other := next((part.convention for part in parts if part.convention not in statistics.conventions), None):
        raise PreflightError(
            f'{str(file)!r} holds statistics of labels with {statistics.conventions[0]}, and this config reads them '
            f'with {other}: {advice}'
        )


def check_training(config: Config, trained: str | None, note: Callable[[str], None]) -> None:
    """Note where a config and the one in the checkpoint differ in what decides the prior.

    The text in the checkpoint is compared, never run: checkpoints come from anywhere.

    Args:
        config: config of the model.
        trained: text of the config that the checkpoint was trained with; None if it has none.
        note: called with a text for each difference.
    """
    if trained is None:
        return
    try:
        ours, theirs = ast.parse(config.pretty_text), ast.parse(trained)
    except SyntaxError:
        return
    for name, place in {
        'losses': ('model', 'decode_head', 'loss_decode'),
        'sampler': ('train_dataloader', 'sampler'),
    }.items():
        now, then = ([ast.unparse(node) for node in _settings(tree, *place)] for tree in (ours, theirs))
        if now != then:
            note(
                f'the checkpoint was trained with other {name} than this config has, and the prior follows the config. '
                f'{".".join(place)} was {", ".join(then) or "not set"}'
            )


def _settings(tree: ast.Module, variable: str, *keys: str) -> Iterator[ast.expr]:
    """Yield the values of ``keys`` in a variable of a config's text; of all entries where there is a list."""
    found = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == variable
    ]
    for key in keys:
        dicts = [entry for node in found for entry in (node.elts if isinstance(node, ast.List) else [node])]
        found = [
            keyword.value
            for node in dicts
            if isinstance(node, ast.Call)
            for keyword in node.keywords
            if keyword.arg == key
        ]
    yield from found
