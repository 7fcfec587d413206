"""What the labels of a data set hold: pixels and images of each class, and every value that is no class.

Statistics of parts add up to the statistics of the whole, so a scan can be cut, spread over processes and resumed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ['SHIPPED', 'Convention', 'LabelStatistics', 'Tally', 'load_statistics']

SHIPPED: dict[str, Path] = {'ade20k': Path(__file__).with_name('ade20k.json')}
"""Statistics that need no data set, by name."""

_FORMAT = 'mmseg_wce label statistics 1'
_FINGERPRINTS = 1 << 64  # they add up modulo this


@dataclass(frozen=True)
class Convention:
    """How raw values of the label files become labels: ``reduce_zero_label``, then ``label_map``."""

    reduce_zero_label: bool = False
    ignore_index: int = 255
    label_map: dict[int, int] | None = None

    def __str__(self) -> str:
        mapped = '' if self.label_map is None else f', label_map of {len(self.label_map)} classes'
        return f'reduce_zero_label={self.reduce_zero_label}, ignore_index={self.ignore_index}{mapped}'


@dataclass(frozen=True)
class Tally:
    """How often a value occurs: in how many pixels and files, one of which is named."""

    pixels: int
    files: int
    example: str

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.pixels + other.pixels, self.files + other.files, self.example)


@dataclass(frozen=True, eq=False)
class LabelStatistics:
    """Statistics of a data set's labels. ``a + b`` are those of both data sets together, ``a * 3`` of three copies.

    Attributes:
        dataset: its name.
        classes: names of the C classes.
        conventions: of the files; more than one where data sets with different ones were joined.
        pixels: (C,), int64: pixels of each class.
        images: (C,), int64: images that contain it.
        pixels_in_images: (C,), int64: all pixels of the images that contain it, ignored ones included; None where this
            is not known.
        num_images: all images.
        num_pixels: all pixels, ignored ones included.
        ignored_pixels: pixels with ``ignore_index``.
        images_without_label: how many have nothing but ignored pixels, and one of them; None where there is none.
        unexpected: labels that are neither a class nor ignored.
        raw_values: values of the files as ``LoadAnnotations`` decodes them, before the convention is applied.
        height: smallest and largest, in pixels.
        width: smallest and largest, in pixels.
        storage: how the files hold their values ('L', 'P', ...: Pillow's modes), how many do so, and one of them.
        failed: files that could not be read, with the reason. They are in none of the figures.
        fingerprint: of names and contents of the files, whatever their order.
        source: where the figures come from, if not from files.
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
    unexpected: dict[int, Tally] = field(default_factory=dict)
    raw_values: dict[int, Tally] = field(default_factory=dict)
    height: tuple[int, int] | None = None
    width: tuple[int, int] | None = None
    storage: dict[str, Tally] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    fingerprint: int = 0
    source: str = ''

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
        becomes = np.zeros((256, 256))
        becomes[np.arange(256), table] = 1
        labels = (histograms @ becomes).astype(np.int64)  # float64 is exact up to 2^53 pixels
        present, size = labels[:, :num_classes] > 0, histograms.sum(1)
        no_class = [v for v in range(num_classes, 256) if v != convention.ignore_index]
        ignored = labels[:, convention.ignore_index] if 0 <= convention.ignore_index < 256 else np.zeros_like(size)
        heights, widths = zip(*sizes, strict=True)
        empty = [file for file, all_ignored in zip(files, ignored == size, strict=True) if all_ignored]
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
            images_without_label=Tally(0, len(empty), empty[0]) if empty else None,
            unexpected=_tallies(labels, no_class, files),
            raw_values=_tallies(histograms, range(256), files),
            height=(min(heights), max(heights)),
            width=(min(widths), max(widths)),
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
        around = (self.pixels_in_images, other.pixels_in_images)
        without = [tally for tally in (self.images_without_label, other.images_without_label) if tally]
        names = dict.fromkeys((*self.dataset.split(' + '), *other.dataset.split(' + ')))
        return LabelStatistics(
            ' + '.join(names),
            self.classes,
            (*self.conventions, *(c for c in other.conventions if c not in self.conventions)),
            pixels=self.pixels + other.pixels,
            images=self.images + other.images,
            pixels_in_images=None if any(a is None for a in around) else around[0] + around[1],
            num_images=self.num_images + other.num_images,
            num_pixels=self.num_pixels + other.num_pixels,
            ignored_pixels=self.ignored_pixels + other.ignored_pixels,
            images_without_label=sum(without[1:], without[0]) if without else None,
            unexpected=_merged(self.unexpected, other.unexpected),
            raw_values=_merged(self.raw_values, other.raw_values),
            height=_range(self.height, other.height),
            width=_range(self.width, other.width),
            storage=_merged(self.storage, other.storage),
            failed={**self.failed, **other.failed},
            fingerprint=(self.fingerprint + other.fingerprint) % _FINGERPRINTS,
            source='; '.join(filter(None, dict.fromkeys((self.source, other.source)))),
        )

    def __mul__(self, times: int) -> LabelStatistics:
        total = self
        for _ in range(times - 1):
            total = total + self
        return total

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelStatistics) and self.to_json() == other.to_json()

    __hash__ = None

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads."""
        content = {'format': _FORMAT, **asdict(self)}
        for name in ('pixels', 'images', 'pixels_in_images'):
            content[name] = None if content[name] is None else content[name].tolist()
        content['fingerprint'] = f'{self.fingerprint:016x}'
        return json.loads(json.dumps(content))  # as it is read back: keys are text, tuples are lists

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> LabelStatistics:
        """Statistics from what :meth:`to_json` gave.

        Raises:
            ValueError: the counts do not fit the classes.
        """
        values = {f.name: content[f.name] for f in fields(cls)}
        for name in ('pixels', 'images', 'pixels_in_images'):
            values[name] = None if values[name] is None else np.array(values[name], np.int64)
        for name in ('unexpected', 'raw_values'):
            values[name] = {int(value): Tally(**tally) for value, tally in values[name].items()}
        values['storage'] = {kind: Tally(**tally) for kind, tally in values['storage'].items()}
        values['images_without_label'] = Tally(**without) if (without := values['images_without_label']) else None
        for name in ('classes', 'height', 'width'):
            values[name] = None if values[name] is None else tuple(values[name])
        values['conventions'] = tuple(_convention(c) for c in values['conventions'])
        values['fingerprint'] = int(values['fingerprint'], 16)
        statistics = cls(**values)
        counts = [c for c in (statistics.pixels, statistics.images, statistics.pixels_in_images) if c is not None]
        if any(c.shape != (len(statistics.classes),) or (c < 0).any() for c in counts):
            raise ValueError(f'its counts do not fit its {len(statistics.classes)} classes')
        return statistics

    def save(self, path: str | os.PathLike) -> None:
        """Write a JSON file that :func:`load_statistics` reads; what was there stays until the new one is complete."""
        path, content = Path(path), self.to_json()
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + '.new')
        unfinished.write_text(json.dumps({**content, 'checksum': _checksum(content)}, indent=1))
        os.replace(unfinished, path)


def load_statistics(source: str | os.PathLike) -> LabelStatistics:
    """Statistics by name ('ade20k') or from a file that ``LabelStatistics.save`` or ``tools/class_weights.py`` wrote.

    Args:
        source: a key of ``SHIPPED``, or a path (any file backend of mmengine).

    Raises:
        ValueError: there is no such file, it is no such statistics, or it was changed after it was written.
    """
    path = os.fspath(SHIPPED.get(os.fspath(source), source))
    try:
        content = json.loads(_read(path))
    except (OSError, ImportError, KeyError, ValueError) as error:
        raise ValueError(
            f'statistics {path!r} cannot be read from {os.getcwd()!r}: {error}. Either one of {", ".join(SHIPPED)}, or '
            'a file written by tools/class_weights.py'
        ) from error
    if not isinstance(content, dict) or content.get('format') != _FORMAT:
        raise ValueError(f'statistics {path!r}: not a file that tools/class_weights.py wrote as its statistics')
    if content.pop('checksum', None) != _checksum(content):
        raise ValueError(f'statistics {path!r} is damaged, or was changed by hand: run tools/class_weights.py again')
    try:
        return LabelStatistics.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'statistics {path!r}: {error}') from error


def _read(path: str) -> bytes:
    if os.path.isfile(path):
        return Path(path).read_bytes()
    from mmengine import fileio  # every other storage that mmengine knows

    return fileio.get(path)


def _convention(content: dict[str, Any]) -> Convention:
    label_map = content['label_map']
    mapped = None if label_map is None else {int(old): new for old, new in label_map.items()}
    return Convention(content['reduce_zero_label'], content['ignore_index'], mapped)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _fingerprint(file: str, histogram: np.ndarray) -> int:
    name = os.path.basename(file).encode()
    return int.from_bytes(hashlib.blake2b(name + histogram.tobytes(), digest_size=8).digest(), 'little')


def _tallies(histograms: np.ndarray, values: Sequence[int], files: Sequence[str]) -> dict[int, Tally]:
    """Of the values that occur at all."""
    pixels = histograms.sum(0)
    found = {}
    for value in values:
        if pixels[value]:
            holds = histograms[:, value] > 0
            found[value] = Tally(int(pixels[value]), int(holds.sum()), files[int(holds.argmax())])
    return found


def _merged(*parts: dict[Any, Tally]) -> dict[Any, Tally]:
    total: dict[Any, Tally] = {}
    for part in parts:
        for key, tally in part.items():
            total[key] = total[key] + tally if key in total else tally
    return total


def _range(a: tuple[int, int] | None, b: tuple[int, int] | None) -> tuple[int, int] | None:
    if a is None or b is None:
        return a or b
    return min(a[0], b[0]), max(a[1], b[1])
