"""Label statistics of a data set: pixels and images of each class, and every value that is not a class.

Statistics of parts add up to those of the data set, so a scan can be split over processes and resumed.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from mmseg_wce.deprecated import renamed_attribute

__all__ = ['FileLabels', 'LabelEncoding', 'LabelStatistics', 'Tally']

_FINGERPRINT_MODULUS = 1 << 64
_MAX_UNEXPECTED = 4096  # instance ids may have millions of values


@dataclass(frozen=True)
class LabelEncoding:
    """Encoding of label files: ``reduce_zero_label``, then ``label_map``, turn raw values into labels.

    Attributes:
        reduce_zero_label: raw 0 and raw 255 become 255, raw k becomes k - 1.
        ignore_index: the label that the loss ignores.
        label_map: the new value of each label; None keeps all labels.

    Example:
        >>> from mmseg_wce.class_weights import LabelEncoding
        >>> print(LabelEncoding(reduce_zero_label=True))
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
    """Number of pixels and files in which something occurs, with an example. Tallies can be added and multiplied.

    Attributes:
        pixels: number of pixels.
        files: number of files.
        example: one of the files.
        detail: text about the example.

    Example:
        >>> from mmseg_wce.class_weights import Tally
        >>> Tally(pixels=5, files=1, example='a.png') + Tally(pixels=2, files=1, example='b.png')
        Tally(pixels=7, files=2, example='a.png', detail='')
    """

    pixels: int
    files: int
    example: str
    detail: str = ''

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.pixels + other.pixels, self.files + other.files, self.example, self.detail)

    def __mul__(self, times: int) -> Tally:
        return Tally(self.pixels * times, self.files * times, self.example, self.detail)


@dataclass(frozen=True)
class FileLabels:
    """Label values of one file, with the number of pixels of each.

    Attributes:
        file: path of the file.
        size: height and width.
        values: (K,), int64: the labels that occur, as the loss gets them, without duplicates.
        counts: (K,), int64: pixels of each label.
        raw_values: (R,), int64: values that ``LoadAnnotations`` decodes, before ``reduce_zero_label``; None where the
            labels are made in another way.
        raw_counts: (R,), int64: pixels of each raw value.
        storage: how the file holds its values.
        altered: values that reading changes, by kind (keys of :attr:`LabelStatistics.altered`): number of pixels, and
            the first value with its position.
        image_mismatch: kind of mismatch between label and image (a key of :attr:`LabelStatistics.image_mismatches`),
            and both files; None if they match or were not compared.
    """

    file: str
    size: tuple[int, int]
    values: np.ndarray
    counts: np.ndarray
    raw_values: np.ndarray | None = None
    raw_counts: np.ndarray | None = None
    storage: str = ''
    altered: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    image_mismatch: tuple[str, str] | None = None


@dataclass(frozen=True, eq=False)
class LabelStatistics:
    """Statistics of a data set's labels. ``a + b`` describes both data sets together, ``a * 3`` three copies.

    Attributes:
        dataset: name of the data set.
        classes: names of the C classes.
        conventions: encodings of the files; more than one if joined data sets have different ones.
        folders: folders that hold the files.
        pixels: (C,), int64: pixels of each class.
        images: (C,), int64: images that contain each class.
        pixels_in_images: (C,), int64: all pixels of the images that contain each class, ignored ones included; None if
            unknown.
        num_images: number of images.
        num_pixels: number of pixels, ignored ones included.
        ignored_pixels: pixels with ``ignore_index``.
        images_without_label: images with ignored pixels only; None if there are none.
        zero_and_255: images whose only values are 0 and 255; None if there are none.
        unexpected: labels that are neither a class nor ignored; the 4,096 smallest are kept.
        more_unexpected: pixels of the unexpected labels that were not kept.
        raw_values: values of the files as ``LoadAnnotations`` decodes them, before the encoding is applied; empty
            where labels are made in another way.
        altered: values that reading changes: 'not finite' (NaN, infinities), 'fraction' (0.5 becomes 0), 'wrapped'
            (``LoadAnnotations`` keeps 8 bits: 300 becomes 44), 'wrapped to ignored' (511 becomes 255) and 'all ones'
            (65535 or -1 becomes 255), 'wrapped before others' (a transform follows that may read the file again); and
            'whole pipeline' for samples whose labels went through crops and flips.
        sizes: number of images of each size, as '683 x 512' (width x height).
        storage: how files store their values ('L', 'P', ...: Pillow's modes), with the number of files and an example.
        image_mismatches: labels that do not match their image, if both were compared: 'size' (they differ), 'resized'
            and 'stretched' (they differ until the pipeline resizes both, with or without the same shape), 'turned' (by
            EXIF), 'resized before' (by transforms before the loader of labels), 'resized by others' (transforms of a
            project left them at different shapes), 'missing', 'unreadable' (by the data set's own loader) and 'unknown'
            (format).
        failed: files that could not be read, with the reason. No other figure counts them.
        dropped: samples that a transform leaves out of the training by returning None; None if there are none.
            No other figure counts them.
        fingerprint: hash of the names and contents of the files, independent of their order.
        source: origin of the figures, if they were not counted from files.

    Example:
        >>> from mmseg_wce.class_weights import load_statistics
        >>> ade20k = load_statistics('ade20k')
        >>> [(ade20k.classes[c], round(float(ade20k.share[c]), 4)) for c in (0, 1, 149)]
        [('wall', 0.1699), ('building', 0.1156), ('flag', 0.0002)]
    """

    dataset: str
    classes: tuple[str, ...]
    conventions: tuple[LabelEncoding, ...]
    pixels: np.ndarray
    images: np.ndarray
    pixels_in_images: np.ndarray | None
    num_images: int = 0
    num_pixels: int = 0
    ignored_pixels: int = 0
    images_without_label: Tally | None = None
    zero_and_255: Tally | None = None
    unexpected: dict[int, Tally] = field(default_factory=dict)
    more_unexpected: int = 0
    raw_values: dict[int, Tally] = field(default_factory=dict)
    altered: dict[str, Tally] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    storage: dict[str, Tally] = field(default_factory=dict)
    image_mismatches: dict[str, Tally] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    dropped: Tally | None = None
    fingerprint: int = 0
    source: str = ''
    folders: tuple[str, ...] = ()

    @classmethod
    def empty(cls, dataset: str, classes: Sequence[str], convention: LabelEncoding) -> LabelStatistics:
        """Return the statistics of no image."""
        zeros = np.zeros(len(classes), np.int64)
        return cls(dataset, tuple(classes), (convention,), zeros, zeros.copy(), zeros.copy())

    @classmethod
    def from_files(
        cls, dataset: str, classes: Sequence[str], convention: LabelEncoding, files: Iterable[FileLabels]
    ) -> LabelStatistics:
        """Return the statistics of files.

        Args:
            dataset: name of the data set.
            classes: names of the C classes.
            convention: encoding of the files.
            files: labels of each file.
        """
        total = cls.empty(dataset, classes, convention)
        assert total.pixels_in_images is not None
        figures: dict[str, Any] = {}
        for file in files:
            size = math.prod(file.size)
            num_ignored = total._count_file(file, size, total.pixels_in_images)
            found: dict[str, Any] = dict(num_images=1, num_pixels=size, ignored_pixels=num_ignored)
            found['fingerprint'] = _fingerprint(file)
            if num_ignored == size:
                found['images_without_label'] = Tally(size, 1, file.file)
            if num_255 := _count_255(file):
                found['zero_and_255'] = Tally(num_255, 1, file.file)
            figures = _sum(figures, found)
        return replace(total, **figures)._bounded()

    def _count_file(self, file: FileLabels, size: int, pixels_in_images: np.ndarray) -> int:
        """Add a file to the counts in place, and return the number of its ignored pixels."""
        ignored = file.values == self.conventions[0].ignore_index
        is_class = (file.values >= 0) & (file.values < len(self.classes)) & ~ignored
        present = file.values[is_class]
        self.pixels[present] += file.counts[is_class]
        self.images[present] += 1
        pixels_in_images[present] += size
        num_ignored = int(file.counts[ignored].sum())
        if len(present) + (num_ignored > 0) < len(file.values):
            no_class = ~(is_class | ignored)
            _count(self.unexpected, file.values[no_class], file.counts[no_class], file.file)
        if file.raw_values is not None and file.raw_counts is not None:
            _count(self.raw_values, file.raw_values, file.raw_counts, file.file)
        for kind, (number, detail) in file.altered.items():
            _add(self.altered, kind, Tally(number, 1, file.file, detail))
        if file.image_mismatch is not None:
            _add(self.image_mismatches, file.image_mismatch[0], Tally(0, 1, file.file, file.image_mismatch[1]))
        _add(self.storage, file.storage, Tally(0, 1, file.file))
        _add(self.sizes, f'{file.size[1]} x {file.size[0]}', 1)
        return num_ignored

    def _bounded(self) -> LabelStatistics:
        """Keep the smallest unexpected values, the same ones for a sum as for its parts, and 64 bits of fingerprint."""
        unexpected, more = self.unexpected, self.more_unexpected
        if len(unexpected) > _MAX_UNEXPECTED:
            unexpected = dict(sorted(unexpected.items())[:_MAX_UNEXPECTED])
            more += sum(tally.pixels for value, tally in self.unexpected.items() if value not in unexpected)
        fingerprint = self.fingerprint % _FINGERPRINT_MODULUS
        return replace(self, unexpected=unexpected, more_unexpected=more, fingerprint=fingerprint)

    @property
    def share(self) -> np.ndarray:
        """Share of each class in the pixels that have a class: (C,)."""
        return self.pixels / max(self.pixels.sum(), 1)

    @property
    def frequency_where_present(self) -> np.ndarray:
        """Share of each class in the pixels of the images that contain it: (C,), 0 for a class that never occurs.

        If ``pixels_in_images`` is unknown, all images are assumed to have the same size.
        """
        image_pixels = self.pixels_in_images
        if image_pixels is None:
            image_pixels = self.images * (self.num_pixels / max(self.num_images, 1))
        return np.divide(self.pixels, image_pixels, out=np.zeros(len(self.classes)), where=image_pixels > 0)

    @property
    def absent(self) -> list[str]:
        """Names of the classes that never occur."""
        return [name for name, pixels in zip(self.classes, self.pixels, strict=True) if pixels == 0]

    def __add__(self, other: LabelStatistics) -> LabelStatistics:
        if len(self.classes) != len(other.classes):
            raise ValueError(
                f'statistics of different numbers of classes do not add up: {self.dataset!r} has {len(self.classes)} '
                f'({", ".join(self.classes[:3])}, ...), {other.dataset!r} has {len(other.classes)} '
                f'({", ".join(other.classes[:3])}, ...)'
            )
        figures = {name: _sum(getattr(self, name), getattr(other, name)) for name in _FIGURES}
        if self.pixels_in_images is None or other.pixels_in_images is None:
            figures['pixels_in_images'] = None
        joined = LabelStatistics(
            ' + '.join(dict.fromkeys((*self.dataset.split(' + '), *other.dataset.split(' + ')))),
            self.classes,
            (*self.conventions, *(c for c in other.conventions if c not in self.conventions)),
            **figures,
            failed={**self.failed, **other.failed},
            source='; '.join(filter(None, dict.fromkeys((self.source, other.source)))),
            folders=tuple(dict.fromkeys((*self.folders, *other.folders))),
        )
        return joined._bounded()

    def __mul__(self, times: int) -> LabelStatistics:
        return replace(self, **{name: _multiply(getattr(self, name), times) for name in _FIGURES})._bounded()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelStatistics):
            return NotImplemented
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return all(np.array_equal(a, b) if isinstance(a, np.ndarray) else a is b or bool(a == b) for a, b in pairs)

    __hash__ = None  # type: ignore[assignment]  # __eq__ compares arrays, which have no hash


_TEXTS = ('dataset', 'classes', 'conventions', 'failed', 'source', 'folders')
_FIGURES = [f.name for f in fields(LabelStatistics) if f.name not in _TEXTS]  # these are added and multiplied


def _fingerprint(file: FileLabels) -> int:
    name = os.path.basename(file.file).encode()
    if file.raw_values is not None and file.raw_counts is not None:
        histogram = np.zeros(256, np.int64)
        histogram[file.raw_values] = file.raw_counts
        content = histogram.tobytes()
    else:
        content = file.values.tobytes() + file.counts.tobytes()
    return int.from_bytes(hashlib.blake2b(name + content, digest_size=8).digest(), 'little')


def _count_255(file: FileLabels) -> int:
    """Return the pixels of 255 in a file whose only values, raw ones if known, are 0 and 255; 0 for other files."""
    values, counts = file.values, file.counts
    if file.raw_values is not None and file.raw_counts is not None:
        values, counts = file.raw_values, file.raw_counts
    return int(counts[values.argmax()]) if len(values) == 2 and {*values.tolist()} == {0, 255} else 0


def _add(total: dict[Any, Any], key: Any, figure: Any) -> None:
    total[key] = total[key] + figure if key in total else figure


def _count(tallies: dict[Any, Tally], values: np.ndarray, counts: np.ndarray, file: str) -> None:
    for value, pixels in zip(values.tolist(), counts.tolist(), strict=True):
        _add(tallies, value, Tally(pixels, 1, file))


def _sum(one: Any, other: Any) -> Any:
    """Add two figures, or those with the same key in two dicts; None counts as zero."""
    if one is None or other is None:
        return other if one is None else one
    if not isinstance(one, dict):
        return one + other
    total = dict(one)
    for key, figure in other.items():
        _add(total, key, figure)
    return total


def _multiply(figure: Any, times: int) -> Any:
    if isinstance(figure, dict):
        return {key: value * times for key, value in figure.items()}
    return None if figure is None else figure * times


def __getattr__(name: str) -> Any:
    return renamed_attribute(__name__, name)
