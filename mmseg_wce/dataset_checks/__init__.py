"""Checks of a data set's labels as the training sees them."""

from mmseg_wce.dataset_checks.config_consistency import (
    check_classes,
    check_config,
    check_head_classes,
    check_heads,
    check_joined_classes,
    check_weights,
)
from mmseg_wce.dataset_checks.discovery import LabelConflict, UnreadableDataset, from_config, from_dataset, from_folder
from mmseg_wce.dataset_checks.findings import Finding, Severity
from mmseg_wce.dataset_checks.image_label_pairs import check_unused_labels
from mmseg_wce.dataset_checks.label_files import LabelFiles
from mmseg_wce.dataset_checks.label_values import LabelFileError
from mmseg_wce.dataset_checks.reduce_zero_label import check_raw_zero, evenly
from mmseg_wce.dataset_checks.scanning import cores, scan, scan_parts, sum_statistics
from mmseg_wce.dataset_checks.statistics_checks import check_statistics

__all__ = [
    'Finding',
    'LabelConflict',
    'LabelFileError',
    'LabelFiles',
    'Severity',
    'UnreadableDataset',
    'check_classes',
    'check_config',
    'check_head_classes',
    'check_heads',
    'check_joined_classes',
    'check_raw_zero',
    'check_statistics',
    'check_unused_labels',
    'check_weights',
    'cores',
    'evenly',
    'from_config',
    'from_dataset',
    'from_folder',
    'scan',
    'scan_parts',
    'sum_statistics',
]
