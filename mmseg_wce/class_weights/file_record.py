"""Record of the pixels of each class in each label file, in a JSON file beside the statistics of all files."""

from __future__ import annotations

import json
import os
import os.path as osp
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmseg_wce.class_weights.statistics_file import BUNDLED
from mmseg_wce.safe_io.files import read_file
from mmseg_wce.safe_io.json_files import write_json

__all__ = ['FileRecord', 'load_file_record', 'record_path', 'save_file_record']

_FORMAT = 'mmseg_wce class pixels of label files 1'
_MAX_FILE_SIZE = 1 << 29  # bytes


@dataclass(frozen=True)
class FileRecord:
    """Pixels of each class in each label file of a data set.

    Attributes:
        classes: names of the C classes.
        files: pixels of the classes that a file has, by its path.
    """

    classes: tuple[str, ...]
    files: Mapping[str, Mapping[int, int]]

    def table(self, files: Sequence[str]) -> np.ndarray:
        """Return the pixels of each class in some label files.

        Args:
            files: paths of label files; a file may occur more than once. Folders above the one that holds all files
                may differ from those of the record: the data set may have been moved.

        Returns:
            (number of files, C), int64.

        Raises:
            ValueError: the record does not have a file.
        """
        recorded = dict(zip(_below_common_folder(list(self.files)), self.files.values(), strict=True))
        table = np.zeros((len(files), len(self.classes)), np.int64)
        for row, file, name in zip(table, files, _below_common_folder(files), strict=True):
            if name not in recorded:
                raise ValueError(f'the record of label files does not have {file!r}: run tools/class_weights.py again')
            row[list(recorded[name])] = list(recorded[name].values())
        return table


def _below_common_folder(files: Sequence[str]) -> list[str]:
    """Return the paths of files, relative to the deepest folder that holds all of them."""
    paths = [osp.abspath(file) for file in files]
    common = osp.commonpath([osp.dirname(path) for path in paths]) if paths else ''
    return [osp.relpath(path, common) for path in paths]


def record_path(statistics: str | os.PathLike) -> Path:
    """Return the path of the record that belongs to a statistics file."""
    return Path(statistics).with_suffix('.files.json')


def save_file_record(record: FileRecord, statistics: str | os.PathLike) -> None:
    """Write a record that :func:`load_file_record` reads.

    Args:
        record: the record of a scan.
        statistics: path of the statistics file of the same scan, beside which it is written.
    """
    files = {file: {str(c): number for c, number in pixels.items()} for file, pixels in record.files.items()}
    write_json(record_path(statistics), dict(format=_FORMAT, classes=record.classes, files=files), indent=None)


def load_file_record(statistics: str | os.PathLike) -> FileRecord:
    """Load the record that ``tools/class_weights.py`` has written beside a statistics file.

    Args:
        statistics: path of the statistics file (any file backend of mmengine).

    Raises:
        ValueError: there is no record, or the file is none.
    """
    advice = 'run tools/class_weights.py on your config, which writes it beside the statistics'
    if os.fspath(statistics) in BUNDLED:
        raise ValueError(f'statistics={statistics!r} come without a record of your label files: {advice}')
    path = os.fspath(record_path(statistics))
    try:
        content = json.loads(read_file(path, _MAX_FILE_SIZE))
        if content['format'] != _FORMAT:
            raise ValueError('it is no such record')
        classes = tuple(map(str, content['classes']))
        files = {file: {int(c): int(n) for c, n in pixels.items()} for file, pixels in content['files'].items()}
        if any(not 0 <= c < len(classes) or number < 0 for pixels in files.values() for c, number in pixels.items()):
            raise ValueError(f'it has pixels of classes beyond its {len(classes)}')
    except (OSError, ImportError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f'the record of label files {path!r} cannot be read: {error}; {advice}') from error
    return FileRecord(classes, files)
