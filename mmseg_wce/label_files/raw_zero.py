"""Whether raw 0 is "other" or a class, as far as a look at some files can tell."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from mmengine import fileio
from mmseg_wce.label_files.findings import Finding, Severity
from mmseg_wce.label_files.reading import LabelFiles
from PIL import Image

__all__ = ['check_raw_zero', 'evenly']


def evenly(parts: Sequence[LabelFiles], most: int) -> list[tuple[LabelFiles, int]]:
    """Up to ``most`` files, evenly spread over all: each as its part and its index in it."""
    every = [(part, i) for part in parts for i in range(len(part.files))]
    return [every[i] for i in sorted({k * len(every) // most for k in range(most)})] if every else []


def check_raw_zero(parts: Sequence[LabelFiles], most: int = 32) -> list[Finding]:
    """Whether raw 0 looks like "other" or like a class: by where it lies and by the files' palette. Reads few files.

    "Other" is what annotators leave between things, so most of it lies along borders; a class has an inside.
    """
    borders, pixels = np.zeros(256), np.zeros(256)
    found: list[Finding] = []
    for part, i in evenly([part for part in parts if part.reads_raw_values], most):
        try:
            values, storage = part.read(part.files[i])
        except Exception:  # the scan has named it
            continue
        if storage == 'P' and not found:
            found += _palette_offset(part, part.files[i])
        inside = cv2.erode(values, np.ones((5, 5))) == cv2.dilate(values, np.ones((5, 5)))
        pixels += np.bincount(values.ravel(), minlength=256)
        borders += np.bincount(values[~inside], minlength=256)
    kept_as_class = [part for part in parts if not part.convention.reduce_zero_label]
    share = borders / np.maximum(pixels, 1)
    larger = np.flatnonzero((pixels >= pixels[0]) & (np.arange(256) > 0) & (np.arange(256) < 255))
    if not found and kept_as_class and 0 < pixels[0] < 0.2 * pixels.sum() and len(larger) > 1:
        typical = share[larger].max()
        if share[0] > 1.5 * typical:
            found.append(
                Finding(
                    Severity.WARNING,
                    f'raw 0 looks like "other", not like a class: {100 * share[0]:.0f} % of it lies along borders, of '
                    f'classes as frequent at most {100 * typical:.0f} % do',
                    'if it is no class, set reduce_zero_label=True in the dataset and in LoadAnnotations',
                    len(kept_as_class[0].files),
                    kept_as_class[0].files[0],
                )
            )
    return found


def _palette_offset(part: LabelFiles, file: str) -> list[Finding]:
    """Compare the file's palette with that of the data set: it says which raw value each class has."""
    content = fileio.get(file, backend_args=part.load.backend_args)
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
                    len(part.files),
                    file,
                )
            ]
    return []
