"""The label files of a data set, read as its own ``LoadAnnotations`` reads them, counted and checked."""

from mmseg_wce.label_files.agreement import check_classes, check_config, check_weights
from mmseg_wce.label_files.findings import Finding, Severity
from mmseg_wce.label_files.listing import LabelConflict, in_folder, of_config, of_dataset
from mmseg_wce.label_files.pairs import check_pairs, pairs_of
from mmseg_wce.label_files.raw_zero import check_raw_zero, evenly
from mmseg_wce.label_files.reading import LabelFileError, LabelFiles
from mmseg_wce.label_files.scanning import cores, scan
from mmseg_wce.label_files.statistics_checks import check_statistics

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
    'in_folder',
    'of_config',
    'of_dataset',
    'pairs_of',
    'scan',
]
