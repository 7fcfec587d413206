"""JSON files of label statistics, and the statistics that the package ships."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from mmseg_wce.class_weights.statistics import LabelEncoding, LabelStatistics, Tally
from mmseg_wce.safe_io.files import read_file
from mmseg_wce.safe_io.json_files import write_json

__all__ = ['BUNDLED', 'from_json', 'load_statistics', 'save_statistics', 'to_json']

BUNDLED: dict[str, Path] = {'ade20k': Path(__file__).with_name('ade20k.json')}
"""Files of the shipped statistics, by name."""

_FORMAT = 'mmseg_wce label statistics 1'
_MAX_FILE_SIZE = 1 << 26  # bytes


def to_json(statistics: LabelStatistics) -> dict[str, Any]:
    """Return a dict that :func:`from_json` reads and ``json`` can write."""
    content = {'format': _FORMAT, **asdict(statistics)}
    for name in ('pixels', 'images', 'pixels_in_images'):
        content[name] = None if content[name] is None else content[name].tolist()
    content['fingerprint'] = f'{statistics.fingerprint:016x}'
    return json.loads(json.dumps(content))  # as json reads it back: keys are text, tuples are lists


def from_json(content: dict[str, Any]) -> LabelStatistics:
    """Return statistics from a dict of :func:`to_json`.

    Raises:
        ValueError: the counts do not fit the classes.
    """
    # those that were added later, then all others
    values: dict[str, Any] = {'more_unexpected': 0, 'altered': {}, 'image_mismatches': {}, 'dropped': None}
    values |= {f.name: content[f.name] for f in fields(LabelStatistics) if f.name in content or f.name not in values}
    for name in ('pixels', 'images', 'pixels_in_images'):
        values[name] = None if values[name] is None else np.array(values[name], np.int64)
    for name in ('unexpected', 'raw_values', 'storage', 'altered', 'image_mismatches'):
        as_key = int if name in ('unexpected', 'raw_values') else str
        values[name] = {as_key(key): Tally(**tally) for key, tally in values[name].items()}
    for name in ('images_without_label', 'zero_and_255', 'dropped'):
        values[name] = None if values[name] is None else Tally(**values[name])
    for name in ('classes', 'folders'):
        values[name] = tuple(values[name])
    values['conventions'] = tuple(_label_encoding(c) for c in values['conventions'])
    values['fingerprint'] = int(values['fingerprint'], 16)
    statistics = LabelStatistics(**values)
    counts = [c for c in (statistics.pixels, statistics.images, statistics.pixels_in_images) if c is not None]
    if any(c.shape != (len(statistics.classes),) or (c < 0).any() for c in counts):
        raise ValueError(f'its counts do not fit its {len(statistics.classes)} classes')
    return statistics


def save_statistics(statistics: LabelStatistics, path: str | os.PathLike) -> None:
    """Write a JSON file that :func:`load_statistics` reads.

    Args:
        statistics: the statistics to write.
        path: path of the file; a missing folder is created.

    Example:
        >>> import tempfile
        >>> from mmseg_wce.class_weights import load_statistics, save_statistics
        >>> ade20k = load_statistics('ade20k')
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_statistics(ade20k + ade20k, f'{folder}/twice.json')
        ...     load_statistics(f'{folder}/twice.json') == ade20k * 2
        True
    """
    content = to_json(statistics)
    write_json(Path(path), {**content, 'checksum': _checksum(content)})


def load_statistics(source: str | os.PathLike) -> LabelStatistics:
    """Load statistics by name ('ade20k') or from a file of :func:`save_statistics` or ``tools/class_weights.py``.

    Args:
        source: a key of ``BUNDLED``, or a path (any file backend of mmengine).

    Raises:
        ValueError: the file is missing, is not a statistics file, or was changed after it was written.

    Example:
        >>> from mmseg_wce.class_weights import load_statistics
        >>> statistics = load_statistics('ade20k')
        >>> len(statistics.classes), statistics.num_images
        (150, 22210)
    """
    path = os.fspath(BUNDLED.get(os.fspath(source), source))
    try:
        content = json.loads(read_file(path, _MAX_FILE_SIZE))
    except (OSError, ImportError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(
            f'statistics {path!r} cannot be read from {os.getcwd()!r}: {error}. Give one of {", ".join(BUNDLED)}, or a '
            'file written by tools/class_weights.py'
        ) from error
    if not isinstance(content, dict) or content.get('format') != _FORMAT:
        raise ValueError(f'statistics {path!r}: not a statistics file of tools/class_weights.py')
    if content.pop('checksum', None) != _checksum(content):
        raise ValueError(f'statistics {path!r} is damaged, or was changed by hand: run tools/class_weights.py again')
    try:
        return from_json(content)
    except KeyError as error:
        raise ValueError(f'statistics {path!r} lacks {error}: run tools/class_weights.py again') from error
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f'statistics {path!r}: {error}') from error


def _label_encoding(content: dict[str, Any]) -> LabelEncoding:
    label_map = content['label_map']
    mapped = None if label_map is None else {int(old): new for old, new in label_map.items()}
    return LabelEncoding(content['reduce_zero_label'], content['ignore_index'], mapped)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
