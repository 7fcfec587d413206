"""Check if raw 0 is "other" or a class, as far as a look at some files can tell."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmengine import fileio
from mmseg_wce.class_weights import LabelStatistics
from mmseg_wce.dataset_checks.findings import Finding, Severity
from mmseg_wce.dataset_checks.label_files import LabelFiles
from mmseg_wce.dataset_checks.label_readers import AnnotationReader
from PIL import Image

__all__ = ['check_raw_zero', 'evenly']

_MORE = 1.5  # "other" has this much more of it along borders than any value as frequent


def evenly(parts: Sequence[LabelFiles], most: int) -> list[tuple[LabelFiles, int]]:
    """Choose some of the files, evenly spread over all.

    Args:
        parts: label files.
        most: how many to take.

    Returns:
        Of each file, its part and its index in it.
    """
    every = [(part, i) for part in parts for i in range(len(part))]
    return [every[i] for i in sorted({k * len(every) // most for k in range(most)})] if every else []


def check_raw_zero(parts: Sequence[LabelFiles], statistics: LabelStatistics, most: int = 32) -> list[Finding]:
    """Check if raw 0 looks like "other" or like a class: by where it lies and by the files' palette. Reads few files.

    "Other" is what annotators leave between things, so more of it lies along borders than of a class of that size.

    Args:
        parts: label files.
        statistics: of all of them.
        most: how many files to read.

    Returns:
        A doubt, or none.
    """
    looked = _Look()
    for part, i in evenly([part for part in parts if part.reads_raw_values], most):
        assert isinstance(part.reader, AnnotationReader)
        try:
            values, storage = part.reader.raw(part.files[i])
        except Exception:  # the scan has named it
            continue
        if storage.startswith('P ') and (found := _palette_offset(part, part.files[i], part.reader.load)):
            return found
        if values.dtype == np.uint8:  # others are a finding of their own
            looked.add(values)
    reduces = {part.convention.reduce_zero_label for part in parts}
    if reduces == {False}:
        return _like_other(looked, parts[0])
    return _like_a_class(looked, statistics) if reduces == {True} else []


class _Look:
    """Pixels of each raw value, and the part of them that lies within two pixels of another value."""

    def __init__(self) -> None:
        self.pixels, self._inside = np.zeros(256), np.zeros(256)

    def add(self, values: np.ndarray) -> None:
        neighbours = np.ones((5, 5))
        inside = cv2.erode(values, neighbours) == cv2.dilate(values, neighbours)
        self.pixels += np.bincount(values.ravel(), minlength=256)
        self._inside += np.bincount(values[inside], minlength=256)

    @property
    def along_borders(self) -> np.ndarray:
        return 1 - self._inside / np.maximum(self.pixels, 1)

    @property
    def share_of_zero(self) -> float:
        return self.pixels[0] / max(self.pixels.sum(), 1)

    @property
    def of_larger(self) -> np.ndarray:
        """What lies along borders of the values from 1 to 254 that are as frequent as 0."""
        larger = self.pixels >= self.pixels[0]
        larger[[0, 255]] = False
        return self.along_borders[larger]

    @property
    def of_smaller(self) -> np.ndarray:
        """The same of all others; the less of it, the larger the things."""
        smaller = (self.pixels > 0) & (self.pixels < self.pixels[0])
        smaller[255] = False
        return self.along_borders[smaller] if smaller.any() else np.zeros(1)


def _like_other(looked: _Look, part: LabelFiles) -> list[Finding]:
    if not (0 < looked.share_of_zero < 0.2 and len(looked.of_larger) > 1):
        return []
    of_zero, most = looked.along_borders[0], looked.of_larger.max()
    if of_zero <= _MORE * most:
        return []
    return [
        Finding(
            Severity.WARNING,
            f'raw 0 looks like "other", not like a class: {100 * of_zero:.0f} % of it lies along borders, of values as '
            f'frequent at most {100 * most:.0f} % do',
            'if it is no class, set reduce_zero_label=True in the dataset and in LoadAnnotations',
            len(part),
            part.files[0],
        )
    ]


def _like_a_class(looked: _Look, statistics: LabelStatistics) -> list[Finding]:
    """Labels that start at 0 and are shifted nonetheless: the last value never occurs, and 0 has an inside."""
    number, raw = len(statistics.classes), statistics.raw_values
    if 0 not in raw or number in raw or 255 in raw or statistics.conventions[0].label_map is not None:
        return []
    of_zero = looked.along_borders[0]
    compact = of_zero <= _MORE * looked.of_larger.max() if len(looked.of_larger) else of_zero <= looked.of_smaller.min()
    if not (0.01 < looked.share_of_zero <= 0.5 and compact):
        return []
    return [
        Finding(
            Severity.WARNING,
            f'raw 0, {100 * looked.share_of_zero:.0f} % of the pixels, looks like a class: it has an inside, as '
            f'others do, and raw {number} never occurs, so the files seem to hold 0..{number - 1}',
            'if they do, set reduce_zero_label=False in the dataset and in LoadAnnotations',
            raw[0].files,
            raw[0].example,
        )
    ]


def _palette_offset(part: LabelFiles, file: str, load: Any) -> list[Finding]:
    """Compare the file's palette with that of the data set: it says which raw value each class has."""
    content = fileio.get(file, backend_args=load.backend_args)
    colors = np.array(Image.open(io.BytesIO(content)).getpalette()).reshape(-1, 3)[:256]
    known = np.array(part.palette)
    if part.convention.label_map is not None or len(known) < 2:
        return []
    for offset in (0, 1):
        shown = colors[offset : offset + len(known)]
        agrees = shown.shape == known.shape and (shown == known).all(1).mean() > 0.8
        if agrees and offset != part.convention.reduce_zero_label:
            return [
                Finding(
                    Severity.WARNING,
                    f"the files' palette gives raw {offset} the colour of class 0 ({part.classes[0]}), but "
                    f'reduce_zero_label={part.convention.reduce_zero_label}',
                    f'set reduce_zero_label={bool(offset)} in the dataset and in LoadAnnotations',
                    len(part),
                    file,
                )
            ]
    return []
