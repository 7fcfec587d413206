"""Label masks of three classes, and their statistics."""

import numpy as np
from mmseg_wce.class_weights import Convention, LabelStatistics

CLASSES = ('a', 'b', 'c')
REDUCED = np.arange(-1, 255) % 256  # what reduce_zero_label=True makes of raw values


def statistics_of(masks, first: int = 0) -> LabelStatistics:
    histograms = np.array([np.bincount(mask.ravel(), minlength=256) for mask in masks])
    files = [f'{first + i}.png' for i in range(len(masks))]
    sizes = [mask.shape for mask in masks]
    return LabelStatistics.of('three', CLASSES, Convention(True), REDUCED, files, histograms, sizes, ['L'] * len(masks))


def some_masks(seed: int = 0, number: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice([0, 1, 2, 3, 4, 200], rng.integers(1, 9, 2)).astype(np.uint8) for _ in range(number)]
