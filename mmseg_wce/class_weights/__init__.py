"""Class weights from lists, from files, or from label statistics by a weighting scheme; offsets of logits."""

from typing import Any

from mmseg_wce.class_weights.offsets import ClassCounts, class_offsets
from mmseg_wce.class_weights.schemes import SCHEMES, class_weights
from mmseg_wce.class_weights.statistics import LabelEncoding, LabelStatistics, Tally
from mmseg_wce.class_weights.statistics_file import load_statistics, save_statistics
from mmseg_wce.class_weights.weights import ClassWeight, check_class_weight, load_class_weight
from mmseg_wce.deprecated import renamed_attribute

__all__ = [
    'SCHEMES',
    'ClassCounts',
    'ClassWeight',
    'LabelEncoding',
    'LabelStatistics',
    'Tally',
    'check_class_weight',
    'class_offsets',
    'class_weights',
    'load_class_weight',
    'load_statistics',
    'save_statistics',
]


def __getattr__(name: str) -> Any:
    return renamed_attribute(__name__, name)
