"""Check that the statistics, and the images that a model is rebalanced on, have the same classes in the same order."""

from collections.abc import Callable, Sequence
from typing import Any

from mmseg_wce.class_weights import LabelStatistics
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
