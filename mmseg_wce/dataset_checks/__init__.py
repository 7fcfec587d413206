"""The label files of a data set, read as its own ``LoadAnnotations`` reads them, counted and checked."""

from mmseg_wce.dataset_checks.config_consistency import check_classes, check_config, check_weights
from mmseg_wce.dataset_checks.discovery import LabelConflict, from_config, from_dataset, from_folder
from mmseg_wce.dataset_checks.findings import Finding, Severity
from mmseg_wce.dataset_checks.image_label_pairs import check_pairs, list_pairs
from mmseg_wce.dataset_checks.label_files import LabelFileError, LabelFiles
from mmseg_wce.dataset_checks.reduce_zero_label import check_raw_zero, evenly
from mmseg_wce.dataset_checks.scanning import cores, scan
from mmseg_wce.dataset_checks.statistics_checks import check_statistics

__all__ = [
    'Finding',
    'LabelConflict',
    'LabelFileError',
    'LabelFiles',
    'Severity',
    'check_classes',
    'check_config',
    'check_pairs',
    'check_raw_zero',
    'check_statistics',
    'check_weights',
    'cores',
    'evenly',
    'from_config',
    'from_dataset',
    'from_folder',
    'list_pairs',
    'scan',
]
