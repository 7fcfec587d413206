"""Sampler that draws images with rare classes more often."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sized
from numbers import Real
from typing import Any

import numpy as np
from mmengine.dataset import InfiniteSampler
from mmengine.logging import print_log
from mmseg.registry import DATA_SAMPLERS
from mmseg_wce.class_weights.file_record import load_file_record
from mmseg_wce.class_weights.rare_class_sampling import draws_per_epoch

__all__ = ['RareClassSampler']


@DATA_SAMPLERS.register_module()
class RareClassSampler(InfiniteSampler):
    """Infinite sampler that draws images by the classes they hold: the rarer a class, the more often its images.

    ``train_dataloader = dict(sampler=dict(_delete_=True, type='RareClassSampler', statistics='...'))``

    The formula is that of :func:`mmseg_wce.class_weights.rare_class_sampling.draws_per_epoch`. In every N draws, N
    being the number of images, an image that should be drawn x times is drawn floor(x) or ceil(x) times, in random
    order. The order follows from the seed alone: N ranks draw what one rank would, and a resumed training goes on with
    the images that would have followed. What it changes is logged: the share of each class in the pixels of whole
    images, before and after.

    mmengine's ``ClassBalancedDataset`` needs ``get_cat_ids``, which mmseg's data sets do not have, refuses joined data
    sets, and repeats by the number of images with a class, not by its pixels.

    Args:
        dataset: the training data set, which may be joined or repeated.
        statistics: path of the statistics that ``tools/class_weights.py`` has written for this data set; the record of
            its files is read from beside it.
        temperature: T of the formula; 0.01 is the published value.
        max_repeats: most draws of an image in N draws.
        seed: by default that of the training.

    Attributes:
        draws: (N,), float64, how often each image is drawn, on average, in N draws.
        drawn_pixels: (C,), float64, pixels of each class in N draws, on average.

    Raises:
        TypeError, ValueError: an argument is invalid, or the record does not fit the data set.
    """

    def __init__(
        self,
        dataset: Sized,
        statistics: str | os.PathLike,
        temperature: float = 0.01,
        max_repeats: float = 10.0,
        seed: int | None = None,
    ) -> None:
        for name, value in dict(temperature=temperature, max_repeats=max_repeats).items():
            is_valid, description = _OPTIONS[name]
            if isinstance(value, bool) or not isinstance(value, Real):
                raise TypeError(f'RareClassSampler: {name} must be a number, got {value!r}')
            if not is_valid(value):
                raise ValueError(f'RareClassSampler: {name} must be {description}, got {value}')
        record = load_file_record(statistics)
        class_pixels = record.table(_label_files(dataset))
        self.draws = draws_per_epoch(class_pixels, temperature, max_repeats)
        self.drawn_pixels = self.draws @ class_pixels
        super().__init__(dataset, shuffle=True, seed=seed)
        self._log(record.classes, class_pixels.sum(0))

    def _infinite_indices(self) -> Iterator[int]:
        for epoch in range(2**62):
            yield from _draw(self.draws, np.random.default_rng((self.seed, epoch))).tolist()

    def _log(self, classes: tuple[str, ...], pixels: np.ndarray) -> None:
        before, after = (100 * counts / counts.sum() for counts in (pixels, self.drawn_pixels))
        changes = ', '.join(
            f'{classes[c]} {before[c]:.2g} -> {after[c]:.2g} %' for c in np.argsort(before, kind='stable')
        )
        print_log(
            f'RareClassSampler: in {self.size} draws an image is drawn {self.draws.min():.2g} to '
            f'{self.draws.max():.2g} times; share of the pixels: {changes}',
            'current',
        )


# Check and description of each option.
_OPTIONS: dict[str, tuple[Callable[[float], bool], str]] = {
    'temperature': (lambda value: 0 < value < math.inf, 'finite and above 0'),
    'max_repeats': (lambda value: 1 <= value < math.inf, 'finite and at least 1'),
}


def _draw(draws: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw as many images as there are, each floor(x) or ceil(x) times for its x draws (systematic sampling)."""
    order = random.permutation(len(draws))
    ends = np.floor(np.cumsum(draws[order]) + random.random())
    ends[-1] = len(draws)
    times = np.diff(np.minimum(ends, len(draws)), prepend=0).astype(int)
    return random.permutation(np.repeat(order, times))


def _label_files(dataset: Any) -> list[str]:
    files = []
    for index in range(len(dataset)):
        file = dataset.get_data_info(index).get('seg_map_path')
        if file is None:
            raise ValueError(f'RareClassSampler: the data set has no seg_map_path for its image {index}')
        files.append(file)
    return files
