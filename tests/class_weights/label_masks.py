"""Label masks of three classes, and their statistics."""

import numpy as np
from mmseg_wce.class_weights import LabelEncoding, LabelStatistics
from mmseg_wce.class_weights.statistics import FileLabels

CLASSES = ('a', 'b', 'c')
REDUCED = np.arange(-1, 255) % 256  # what reduce_zero_label=True makes of raw values


def statistics_of(masks, first: int = 0) -> LabelStatistics:
    files = [file_of(f'{first + i}.png', mask, REDUCED) for i, mask in enumerate(masks)]
    return LabelStatistics.from_files('three', CLASSES, LabelEncoding(True), files)


def file_of(name: str, mask: np.ndarray, table: np.ndarray) -> FileLabels:
    values, counts = np.unique(table[mask], return_counts=True)
    raw_values, raw_counts = np.unique(mask, return_counts=True)
    return FileLabels(name, mask.shape, values, counts, raw_values, raw_counts, 'L')


def some_masks(seed: int = 0, number: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice([0, 1, 2, 3, 4, 200], rng.integers(1, 9, 2)).astype(np.uint8) for _ in range(number)]
