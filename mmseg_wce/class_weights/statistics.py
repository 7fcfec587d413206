"""What the labels of a data set hold: pixels and images of each class, and every value that is no class.

Statistics of parts add up to the statistics of the whole, so a scan can be cut, spread over processes and resumed.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

__all__ = ['Convention', 'LabelStatistics', 'Tally']

_FINGERPRINTS = 1 << 64  # they add up modulo this


@dataclass(frozen=True)
class Convention:
    """How raw values of the label files become labels: ``reduce_zero_label``, then ``label_map``.

    Attributes:
        reduce_zero_label: raw 0 and raw 255 become 255, raw k becomes k - 1.
        ignore_index: the label that does not count.
        label_map: what each of the labels becomes; None for itself.

    Example:
        >>> from mmseg_wce.class_weights import Convention
        >>> print(Convention(reduce_zero_label=True))
        reduce_zero_label=True, ignore_index=255
    """

    reduce_zero_label: bool = False
    ignore_index: int = 255
    label_map: dict[int, int] | None = None

    def __str__(self) -> str:
        mapped = '' if self.label_map is None else f', label_map of {len(self.label_map)} classes'
        return f'reduce_zero_label={self.reduce_zero_label}, ignore_index={self.ignore_index}{mapped}'


@dataclass(frozen=True)
class Tally:
    """How often a value occurs: in how many pixels and files, one of which is named. ``a + b`` and ``a * 3`` count on.

    Example:
        >>> from mmseg_wce.class_weights import Tally
        >>> Tally(pixels=5, files=1, example='a.png') + Tally(pixels=2, files=1, example='b.png')
        Tally(pixels=7, files=2, example='a.png')
    """

    pixels: int
    files: int
    example: str

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.pixels + other.pixels, self.files + other.files, self.example)

    def __mul__(self, times: int) -> Tally:
        return Tally(self.pixels * times, self.files * times, self.example)


@dataclass(frozen=True, eq=False)
class LabelStatistics:
    """Statistics of a data set's labels. ``a + b`` are those of both data sets together, ``a * 3`` of three copies.

    Attributes:
        dataset: its name.
        classes: names of the C classes.
        conventions: of the files; more than one where data sets with different ones were joined.
        folders: that hold the files.
        pixels: (C,), int64: pixels of each class.
        images: (C,), int64: images that contain it.
        pixels_in_images: (C,), int64: all pixels of the images that contain it, ignored ones included; None where this
            is not known.
        num_images: all images.
        num_pixels: all pixels, ignored ones included.
        ignored_pixels: pixels with ``ignore_index``.
        images_without_label: those that have nothing but ignored pixels; None where there is none.
        zero_and_255: those whose raw values are 0 and 255 and no others; None where there is none.
        unexpected: labels that are neither a class nor ignored.
        raw_values: values of the files as ``LoadAnnotations`` decodes them, before the convention is applied.
        sizes: number of images of each, as '683 x 512' (width x height).
        storage: how the files hold their values ('L', 'P', ...: Pillow's modes), how many do so, and one of them.
        failed: files that could not be read, with the reason. They are in none of the figures.
        fingerprint: of names and contents of the files, whatever their order.
        source: where the figures come from, if not from files.

    Example:
        >>> from mmseg_wce.class_weights import load_statistics
        >>> ade20k = load_statistics('ade20k')
        >>> [(ade20k.classes[c], round(float(ade20k.share[c]), 4)) for c in (0, 1, 149)]
        [('wall', 0.1699), ('building', 0.1156), ('flag', 0.0002)]
    """

    dataset: str
    classes: tuple[str, ...]
    conventions: tuple[Convention, ...]
    pixels: np.ndarray
    images: np.ndarray
    pixels_in_images: np.ndarray | None
    num_images: int = 0
    num_pixels: int = 0
    ignored_pixels: int = 0
    images_without_label: Tally | None = None
    zero_and_255: Tally | None = None
    unexpected: dict[int, Tally] = field(default_factory=dict)
    raw_values: dict[int, Tally] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    storage: dict[str, Tally] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    fingerprint: int = 0
    source: str = ''
    folders: tuple[str, ...] = ()

    @classmethod
    def empty(cls, dataset: str, classes: Sequence[str], convention: Convention) -> LabelStatistics:
        """Of no image."""
        zeros = np.zeros(len(classes), np.int64)
        return cls(dataset, tuple(classes), (convention,), zeros, zeros.copy(), zeros.copy())

    @classmethod
    def of(
        cls,
        dataset: str,
        classes: Sequence[str],
        convention: Convention,
        table: np.ndarray,
        files: Sequence[str],
        histograms: np.ndarray,
        sizes: Sequence[tuple[int, int]],
        storage: Sequence[str],
    ) -> LabelStatistics:
        """Of B files.

        Args:
            dataset: its name.
            classes: names of the C classes.
            convention: of the files.
            table: (256,): the label that each raw value becomes.
            files: B paths.
            histograms: (B, 256), int64: pixels of each raw value.
            sizes: B times height and width.
            storage: how each file holds its values.
        """
        if not files:
            return cls.empty(dataset, classes, convention)
        num_classes = len(classes)
        labels = np.zeros_like(histograms)
        np.add.at(labels.T, table, histograms.T)  # no matrix product, whose threads would fight among processes
        size, no_class = histograms.sum(1), [v for v in range(num_classes, 256) if v != convention.ignore_index]
        ignored = np.zeros_like(size)
        if 0 <= convention.ignore_index < 256:
            ignored = labels[:, convention.ignore_index].copy()
            labels[:, convention.ignore_index] = 0  # a class with this index does not count either
        present = labels[:, :num_classes] > 0
        binary = (histograms[:, 1:255].sum(1) == 0) & (histograms[:, 0] > 0) & (histograms[:, 255] > 0)
        return cls(
            dataset,
            tuple(classes),
            (convention,),
            pixels=labels[:, :num_classes].sum(0),
            images=present.sum(0),
            pixels_in_images=(present * size[:, None]).sum(0),
            num_images=len(files),
            num_pixels=int(size.sum()),
            ignored_pixels=int(ignored.sum()),
            images_without_label=_tally(ignored == size, ignored, files),
            zero_and_255=_tally(binary, histograms[:, 255], files),
            unexpected=_tallies(labels, no_class, files),
            raw_values=_tallies(histograms, range(256), files),
            sizes=dict(Counter(f'{width} x {height}' for height, width in sizes)),
            storage=_merged(*({kind: Tally(0, 1, file)} for kind, file in zip(storage, files, strict=True))),
            fingerprint=sum(map(_fingerprint, files, histograms)) % _FINGERPRINTS,
        )

    @property
    def share(self) -> np.ndarray:
        """(C,): each class's part of the pixels that have a class."""
        return self.pixels / max(self.pixels.sum(), 1)

    @property
    def frequency_where_present(self) -> np.ndarray:
        """(C,): each class's part of the pixels of the images that contain it; 0 for a class that never occurs.

        Where ``pixels_in_images`` is not known, images are taken to be of equal size.
        """
        around = self.pixels_in_images
        if around is None:
            around = self.images * (self.num_pixels / max(self.num_images, 1))
        return np.divide(self.pixels, around, out=np.zeros(len(self.classes)), where=around > 0)

    @property
    def absent(self) -> list[str]:
        """Classes that never occur."""
        return [name for name, pixels in zip(self.classes, self.pixels, strict=True) if pixels == 0]

    def __add__(self, other: LabelStatistics) -> LabelStatistics:
        if self.classes != other.classes:
            raise ValueError(
                f'statistics of different classes do not add up: {self.dataset!r} has {len(self.classes)} '
                f'({", ".join(self.classes[:3])}, ...), {other.dataset!r} has {len(other.classes)} '
                f'({", ".join(other.classes[:3])}, ...)'
            )
        around, others = self.pixels_in_images, other.pixels_in_images
        names = dict.fromkeys((*self.dataset.split(' + '), *other.dataset.split(' + ')))
        return LabelStatistics(
            ' + '.join(names),
            self.classes,
            (*self.conventions, *(c for c in other.conventions if c not in self.conventions)),
            pixels=self.pixels + other.pixels,
            images=self.images + other.images,
            pixels_in_images=None if around is None or others is None else around + others,
            num_images=self.num_images + other.num_images,
            num_pixels=self.num_pixels + other.num_pixels,
            ignored_pixels=self.ignored_pixels + other.ignored_pixels,
            images_without_label=_sum(self.images_without_label, other.images_without_label),
            zero_and_255=_sum(self.zero_and_255, other.zero_and_255),
            unexpected=_merged(self.unexpected, other.unexpected),
            raw_values=_merged(self.raw_values, other.raw_values),
            sizes=dict(Counter(self.sizes) + Counter(other.sizes)),
            storage=_merged(self.storage, other.storage),
            failed={**self.failed, **other.failed},
            fingerprint=(self.fingerprint + other.fingerprint) % _FINGERPRINTS,
            source='; '.join(filter(None, dict.fromkeys((self.source, other.source)))),
            folders=tuple(dict.fromkeys((*self.folders, *other.folders))),
        )

    def __mul__(self, times: int) -> LabelStatistics:
        around = self.pixels_in_images
        return replace(
            self,
            pixels=self.pixels * times,
            images=self.images * times,
            pixels_in_images=None if around is None else around * times,
            num_images=self.num_images * times,
            num_pixels=self.num_pixels * times,
            ignored_pixels=self.ignored_pixels * times,
            images_without_label=self.images_without_label and self.images_without_label * times,
            zero_and_255=self.zero_and_255 and self.zero_and_255 * times,
            sizes={size: number * times for size, number in self.sizes.items()},
            unexpected=_times(self.unexpected, times),
            raw_values=_times(self.raw_values, times),
            storage=_times(self.storage, times),
            fingerprint=self.fingerprint * times % _FINGERPRINTS,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelStatistics):
            return NotImplemented
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a is b or bool(a == b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]  # as Python spells it


def _fingerprint(file: str, histogram: np.ndarray) -> int:
    name = os.path.basename(file).encode()
    return int.from_bytes(hashlib.blake2b(name + histogram.tobytes(), digest_size=8).digest(), 'little')


def _tally(holds: np.ndarray, pixels: np.ndarray, files: Sequence[str]) -> Tally | None:
    """Of some of the files; None where it is none of them."""
    if not holds.any():
        return None
    return Tally(int(pixels[holds].sum()), int(holds.sum()), files[int(holds.argmax())])


def _tallies(histograms: np.ndarray, values: Sequence[int], files: Sequence[str]) -> dict[int, Tally]:
    """Of the values that occur at all."""
    of_values = {value: _tally(histograms[:, value] > 0, histograms[:, value], files) for value in values}
    return {value: tally for value, tally in of_values.items() if tally}


def _sum(a: Tally | None, b: Tally | None) -> Tally | None:
    return a + b if a and b else a or b


def _times(tallies: dict[Any, Tally], times: int) -> dict[Any, Tally]:
    return {value: tally * times for value, tally in tallies.items()}


def _merged(*parts: dict[Any, Tally]) -> dict[Any, Tally]:
    total: dict[Any, Tally] = {}
    for part in parts:
        for key, tally in part.items():
            total[key] = total[key] + tally if key in total else tally
    return total
