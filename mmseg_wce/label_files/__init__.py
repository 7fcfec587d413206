"""The label files of a data set, read as its own ``LoadAnnotations`` reads them."""

from mmseg_wce.label_files.listing import in_folder, of_config, of_dataset
from mmseg_wce.label_files.reading import LabelFileError, LabelFiles
from mmseg_wce.label_files.scanning import scan

__all__ = ['LabelFileError', 'LabelFiles', 'in_folder', 'of_config', 'of_dataset', 'scan']
