"""Check of some files for raw 0 that looks like "other" or like a class, against ``reduce_zero_label``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from mmseg_wce.class_weights import LabelStatistics
from mmseg_wce.dataset_checks.findings import Finding, Severity
from mmseg_wce.dataset_checks.label_files import LabelFiles
from mmseg_wce.dataset_checks.label_readers import AnnotationReader, open_image

__all__ = ['check_raw_zero', 'evenly']

_BORDER_RATIO = 1.5  # "other" has a border share this many times larger than any value at least as frequent


def evenly(parts: Sequence[LabelFiles], most: int) -> list[tuple[LabelFiles, int]]:
    """Choose files that are evenly spread over all files.

    Args:
        parts: label files.
        most: number of files to choose.

    Returns:
        The part of each file, and the file's index in it.
    """
    files = [(part, i) for part in parts for i in range(len(part))]
    return [files[i] for i in sorted({k * len(files) // most for k in range(most)})] if files else []


def check_raw_zero(parts: Sequence[LabelFiles], statistics: LabelStatistics, most: int = 32) -> list[Finding]:
    """Check if raw 0 looks like "other" or like a class, by its position and the palette of some files.

    Annotators leave "other" between objects, so a larger share of it lies along borders than of a class as frequent.

    Args:
        parts: label files.
        statistics: statistics of all files.
        most: number of files to read.

    Returns:
        At most one finding, a warning.
    """
    borders = _BorderShares()
    for part, i in evenly([part for part in parts if part.reads_raw_values], most):
        assert isinstance(part.reader, AnnotationReader)
        try:
            values, storage = part.reader.raw(part.files[i])
        except Exception:  # the scan reports it
            continue
        if storage.startswith('P ') and (findings := [*_check_palette(part, part.files[i], part.reader.load)]):
            return findings
        if values.dtype == np.uint8:  # other dtypes have their own finding
            borders.add(values)
    reduces = {part.convention.reduce_zero_label for part in parts}
    if reduces == {False}:
        return [*_check_like_other(borders, parts[0])]
    return [*_check_like_class(borders, statistics)] if reduces == {True} else []


class _BorderShares:
    """Pixels of each raw value, and the share of them within two pixels of another value."""

    def __init__(self) -> None:
        self.pixels, self._inside = np.zeros(256), np.zeros(256)

    def add(self, values: np.ndarray) -> None:
        neighbours = np.ones((5, 5))
        inside = cv2.erode(values, neighbours) == cv2.dilate(values, neighbours)
        self.pixels += np.bincount(values.ravel(), minlength=256)
        self._inside += np.bincount(values[inside], minlength=256)

    @property
    def border_share(self) -> np.ndarray:
        return 1 - self._inside / np.maximum(self.pixels, 1)

    @property
    def zero_share(self) -> float:
        return self.pixels[0] / max(self.pixels.sum(), 1)

    @property
    def more_frequent(self) -> np.ndarray:
        """Border shares of the values from 1 to 254 that are at least as frequent as 0."""
        larger = self.pixels >= self.pixels[0]
        larger[[0, 255]] = False
        return self.border_share[larger]

    @property
    def less_frequent(self) -> np.ndarray:
        """Border shares of the values that are less frequent than 0; larger objects have smaller shares."""
        smaller = (self.pixels > 0) & (self.pixels < self.pixels[0])
        smaller[255] = False
        return self.border_share[smaller] if smaller.any() else np.zeros(1)


def _check_like_other(borders: _BorderShares, part: LabelFiles) -> Iterator[Finding]:
    if not (0 < borders.zero_share < 0.2 and len(borders.more_frequent) > 1):
        return
    share, largest = borders.border_share[0], borders.more_frequent.max()
    if share > _BORDER_RATIO * largest:
        yield Finding(
            Severity.WARNING,
            f'raw 0 looks like "other", not like a class: {100 * share:.0f} % of it lies along borders, of values as '
            f'frequent at most {100 * largest:.0f} % do',
            'if it is not a class, set reduce_zero_label=True in the dataset and in LoadAnnotations',
            len(part),
            part.files[0],
        )


def _check_like_class(borders: _BorderShares, statistics: LabelStatistics) -> Iterator[Finding]:
    """Find shifted labels whose files start at 0: the last value never occurs, and 0 has an interior."""
    number, raw = len(statistics.classes), statistics.raw_values
    if 0 not in raw or number in raw or 255 in raw or statistics.conventions[0].label_map is not None:
        return
    limit = _BORDER_RATIO * borders.more_frequent.max() if len(borders.more_frequent) else borders.less_frequent.min()
    if 0.01 < borders.zero_share <= 0.5 and borders.border_share[0] <= limit:
        yield Finding(
            Severity.WARNING,
            f'raw 0, {100 * borders.zero_share:.0f} % of the pixels, looks like a class: it has an interior, as '
            f'classes do, and raw {number} never occurs, so the files seem to hold 0..{number - 1}',
            'if they do, set reduce_zero_label=False in the dataset and in LoadAnnotations',
            raw[0].files,
            raw[0].example,
        )


def _check_palette(part: LabelFiles, file: str, load: Any) -> Iterator[Finding]:
    """Compare a file's palette with that of the data set: it shows the raw value of each class."""
    with open_image(file, load.backend_args) as image:
        colors = np.array(image.getpalette()).reshape(-1, 3)[:256]
    known = np.array(part.palette)
    if part.convention.label_map is not None or len(known) < 2:
        return
    for offset in (0, 1):
        shown = colors[offset : offset + len(known)]
        agrees = shown.shape == known.shape and (shown == known).all(1).mean() > 0.8
        if agrees and offset != part.convention.reduce_zero_label:
            yield Finding(
                Severity.WARNING,
                f"the files' palette gives raw {offset} the colour of class 0 ({part.classes[0]}), but "
                f'reduce_zero_label={part.convention.reduce_zero_label}',
                f'set reduce_zero_label={bool(offset)} in the dataset and in LoadAnnotations',
                len(part),
                file,
            )
