"""Class weights: from lists and files, or from statistics of a data set's labels by a weighting scheme."""

from mmseg_wce.class_weights.schemes import SCHEMES, class_weights
from mmseg_wce.class_weights.statistics import Convention, LabelStatistics, Tally
from mmseg_wce.class_weights.statistics_file import load_statistics, save_statistics
from mmseg_wce.class_weights.weights import ClassWeight, check_class_weight, load_class_weight

__all__ = [
    'SCHEMES',
    'ClassWeight',
    'Convention',
    'LabelStatistics',
    'Tally',
    'check_class_weight',
    'class_weights',
    'load_class_weight',
    'load_statistics',
    'save_statistics',
]
