"""Record of the pixels of each class in each label file, in a JSON file beside the statistics of all files."""

from __future__ import annotations

import json
import os
import os.path as osp
import warnings
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

        A data set that has been moved as a whole is found, too: then paths below the folder that holds all files count,
        and a warning is logged.

        Args:
            files: paths of label files; a file may occur more than once.

        Returns:
            (number of files, C), int64; zeros for a file that could not be read.

        Raises:
            ValueError: the record does not have a file.
        """
        recorded = {osp.abspath(file): pixels for file, pixels in self.files.items()}
        names = list(map(osp.abspath, files))
        missing = next((file for file, name in zip(files, names, strict=True) if name not in recorded), None)
        if missing is not None:
            folders = _common_folder(list(recorded)), _common_folder(names)
            recorded = {osp.relpath(file, folders[0]): pixels for file, pixels in recorded.items()}
            names = [osp.relpath(name, folders[1]) for name in names]
            if recorded.keys() != set(names):
                raise ValueError(
                    f'the record of label files does not have {missing!r}: it is of the {len(self.files)} files in '
                    f'{folders[0]!r}. Run tools/class_weights.py on your config again'
                )
            warnings.warn(
                f'the record of label files is of {folders[0]!r}, and is used for files of the same names in '
                f'{folders[1]!r}',
                stacklevel=2,
            )
        table = np.zeros((len(files), len(self.classes)), np.int64)
        for row, name in zip(table, names, strict=True):
            row[list(recorded[name])] = list(recorded[name].values())
        return table


def _common_folder(paths: Sequence[str]) -> str:
    return osp.commonpath([osp.dirname(path) for path in paths]) if paths else ''


def record_path(statistics: str | os.PathLike) -> str:
    """Return the path of the record that belongs to a statistics file."""
    return f'{osp.splitext(os.fspath(statistics))[0]}.files.json'


def save_file_record(record: FileRecord, statistics: str | os.PathLike) -> None:
    """Write a record that :func:`load_file_record` reads.

    Args:
        record: the record of a scan.
        statistics: path of the statistics file of the same scan, beside which it is written.
    """
    files = {file: {str(c): number for c, number in pixels.items()} for file, pixels in record.files.items()}
    write_json(Path(record_path(statistics)), dict(format=_FORMAT, classes=record.classes, files=files), indent=None)


def load_file_record(statistics: str | os.PathLike) -> FileRecord:
    """Load the record that ``tools/class_weights.py`` has written beside a statistics file.

    Args:
        statistics: path of the statistics file (any file backend of mmengine).

    Raises:
        ValueError: there is no record, or the file is none.
    """
    if os.fspath(statistics) in BUNDLED:
        raise ValueError(
            f'statistics={statistics!r} come without a record of your label files: run tools/class_weights.py CONFIG, '
            'and give the path of the statistics that it writes'
        )
    advice = f'run tools/class_weights.py CONFIG --statistics {os.fspath(statistics)}, which writes both'
    path = record_path(statistics)
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
