"""Ids of known data sets that are often mistaken for class indices."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

__all__ = ['KNOWN_IDS', 'KnownIds']


class KnownIds(NamedTuple):
    """Ids of a data set that are often mistaken for class indices.

    Attributes:
        name: name of the ids.
        num_classes: number of classes of the benchmark.
        matches: takes the smallest label, the largest label and all labels; True if they may be these ids.
        advice: files that hold class indices.
    """

    name: str
    num_classes: int
    matches: Callable[[float, float, set[float]], bool]
    advice: str


_ABSENT_FROM_COCO = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
_ABSENT_FROM_COCO_STUFF = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
# The file names are those of mmsegmentation's converters (tools/dataset_converters).
KNOWN_IDS = (
    KnownIds(
        'Cityscapes labelIds (0..33)',
        19,
        lambda smallest, largest, labels: (
            smallest >= -1 and 24 <= largest <= 34 and (largest >= 33 or labels != set(range(len(labels))))
        ),
        "read the train ids: seg_map_suffix='_gtFine_labelTrainIds.png', files that mmseg's "
        'tools/dataset_converters/cityscapes.py writes',
    ),
    KnownIds(
        'COCO-Stuff ids (0..181, with gaps)',
        171,
        lambda smallest, largest, labels: smallest >= 0
        and 171 < largest <= 181
        and not _ABSENT_FROM_COCO_STUFF & labels,
        "read the train ids: seg_map_suffix='_labelTrainIds.png', files that mmseg's "
        'tools/dataset_converters/coco_stuff164k.py writes',
    ),
    KnownIds(
        'COCO category ids (1..90, with gaps)',
        80,
        lambda smallest, largest, labels: smallest >= 0 and 80 < largest <= 90 and not _ABSENT_FROM_COCO & labels,
        'map them to 0..79 in every pipeline, directly after the transform that loads labels: '
        "dict(type='MapLabels', mapping={0: 255, **{k: i for i, k in enumerate(sorted({*range(1, 91)} - "
        f'{{{", ".join(map(str, sorted(_ABSENT_FROM_COCO)))}}}))}}}}), where 0 is taken for no class',
    ),
    KnownIds(
        'ids of the full ADE20K (up to 3,687)',
        150,
        lambda smallest, largest, _: smallest >= 0 and 255 < largest <= 3687,
        'read the annotations of ADEChallengeData2016, which hold the 150 classes of the benchmark, with '
        'reduce_zero_label=True',
    ),
)
