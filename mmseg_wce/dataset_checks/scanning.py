"""Scan of label files: parallel, in constant memory, and resumed after an interruption."""

from __future__ import annotations

import hashlib
import json
import operator
import os
import os.path as osp
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path

from mmseg_wce.class_weights import LabelStatistics
from mmseg_wce.class_weights.statistics_file import from_json, to_json
from mmseg_wce.dataset_checks.label_files import LabelFiles
from mmseg_wce.dataset_checks.label_readers import AnnotationReader
from mmseg_wce.safe_io.json_files import write_json
from torch.utils.data import DataLoader, Dataset, Subset

__all__ = ['cores', 'scan', 'scan_parts', 'sum_statistics']

_FILES_IN_CHUNK = 16
_SECONDS_BETWEEN_SAVES = 2.0


class _Chunks(Dataset):
    """Data set of chunks of files; an item is a chunk's number of files, the index of its part, and its counts."""

    def __init__(self, parts: Sequence[LabelFiles], with_images: bool, with_class_pixels: bool) -> None:
        self.parts, self.with_images, self.with_class_pixels = parts, with_images, with_class_pixels
        self.bounds = [(i, start) for i, part in enumerate(parts) for start in range(0, len(part), _FILES_IN_CHUNK)]

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: int) -> tuple[int, int, LabelStatistics, dict[str, dict[int, int]]]:
        i, start = self.bounds[index]
        part = self.parts[i]
        files = range(start, min(start + _FILES_IN_CHUNK, len(part)))
        statistics, class_pixels = part.count(files, self.with_images)
        return len(files), i, statistics * part.times, class_pixels if self.with_class_pixels else {}


def cores() -> int:
    """Return the number of cores that this process may use; outside Linux, all cores of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def scan(
    parts: Sequence[LabelFiles], num_workers: int = 0, unfinished: str | os.PathLike | None = None
) -> Iterator[tuple[int, LabelStatistics]]:
    """Read each file once, in memory that does not grow with the number of files.

    Args:
        parts: parts of one data set, with the same number of classes.
        num_workers: number of processes that read, at most one per core; 0 reads in this process.
        unfinished: file for the state of an interrupted scan, from which the next scan resumes; it is removed when the
            scan is complete. A state of other files, or of files that have changed since, is not used.

    Yields:
        Number of files read so far and their statistics, repeatedly; the last time for all files.

    Example:
        >>> import tempfile, numpy as np
        >>> from mmseg_wce.dataset_checks import from_folder, scan
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8)).save(f'{folder}/a.png')
        ...     *_, (number, statistics) = scan([from_folder(folder, num_classes=2, reduce_zero_label=True)])
        >>> number, statistics.pixels.tolist(), statistics.ignored_pixels
        (1, [1, 1], 2)
    """
    for done, statistics in scan_parts(parts, num_workers, unfinished):
        yield done, sum_statistics(statistics)


def sum_statistics(statistics: Sequence[LabelStatistics]) -> LabelStatistics:
    """Return the sum of the statistics of at least one data set, class by class in the order of the indices.

    Raises:
        ValueError: the numbers of classes differ.
    """
    return reduce(operator.add, statistics)


def scan_parts(
    parts: Sequence[LabelFiles],
    num_workers: int = 0,
    unfinished: str | os.PathLike | None = None,
    with_images: bool = False,
    class_pixels: dict[str, dict[int, int]] | None = None,
) -> Iterator[tuple[int, list[LabelStatistics]]]:
    """Read each file once like :func:`scan`, with separate statistics for joined data sets.

    Args:
        parts: parts of one data set.
        num_workers: number of processes that read.
        unfinished: file for the state of an interrupted scan.
        with_images: compare the size of each label with that of its image.
        class_pixels: filled with the number of pixels of each class in each file, by its path.

    Yields:
        Number of files read so far and the statistics of each part, repeatedly; the last time for all files.
    """
    keeps = class_pixels is not None
    chunks = _Chunks(parts, with_images, with_class_pixels=keeps)
    for part in parts:
        if isinstance(part.reader, AnnotationReader):
            _ = part.reader.table  # computed once here, not in each process
    state = _ScanState(Path(unfinished), parts, (with_images, keeps)) if unfinished is not None else None
    class_pixels = {} if class_pixels is None else class_pixels
    empty = [LabelStatistics.empty(part.dataset, part.classes, part.convention) for part in parts]
    first, done, totals, counted = (state and state.load()) or (0, 0, empty, {})
    class_pixels.update(counted)
    if done:
        yield done, list(totals)
    remaining = Subset(chunks, range(first, len(chunks)))
    num_workers = min(num_workers, len(remaining), cores())
    loader = DataLoader(remaining, batch_size=None, num_workers=num_workers)
    last_save, index = time.monotonic(), first
    try:
        for index, (number, i, statistics, counted) in enumerate(loader, first + 1):
            done, totals[i] = done + number, totals[i] + statistics
            class_pixels.update(counted)
            if state and time.monotonic() - last_save > _SECONDS_BETWEEN_SAVES:
                state.save(index, done, totals, class_pixels)
                last_save = time.monotonic()
            yield done, list(totals)
    except BaseException:  # an interrupt, or the caller closed the generator
        if state and done > 0:
            state.save(index, done, totals, class_pixels)
        raise
    if state:
        state.path.unlink(missing_ok=True)


class _ScanState:
    """State of an interrupted scan, in a file."""

    def __init__(self, path: Path, parts: Sequence[LabelFiles], options: tuple[bool, bool]) -> None:
        self.path, self.digest, self.number = path, _digest(parts, options), len(parts)

    def load(self) -> tuple[int, int, list[LabelStatistics], dict[str, dict[int, int]]] | None:
        """Return chunks read, files read, statistics of each part, and class pixels; None if there is no such state."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(self.path.read_text())
            if content['digest'] == self.digest and len(content['statistics']) == self.number:
                statistics = [from_json(part) for part in content['statistics']]
                class_pixels = {file: dict(pixels) for file, pixels in content['class_pixels'].items()}
                return content['chunks'], content['files'], statistics, class_pixels
        return None

    def save(
        self, chunks: int, files: int, statistics: Sequence[LabelStatistics], class_pixels: dict[str, dict[int, int]]
    ) -> None:
        counts = {file: list(pixels.items()) for file, pixels in class_pixels.items()}  # keys of JSON would be text
        state = dict(statistics=[to_json(part) for part in statistics], class_pixels=counts)
        write_json(self.path, dict(digest=self.digest, chunks=chunks, files=files, **state))


def _digest(parts: Iterable[LabelFiles], options: tuple[bool, bool]) -> str:
    """Return a hash of the inputs of the statistics: size and time of change of local files, names of others."""
    with_images = options[0]
    digest = hashlib.sha256(str(options).encode())
    for part in parts:
        settings = f'{part.dataset} {part.classes} {part.convention} {part.transforms} {part.times}'
        digest.update(re.sub(r' at 0x[0-9a-f]+', '', settings).encode())  # addresses in memory
        for sample in part.samples:
            for file in (sample.label, sample.image) if with_images else (sample.label,):
                stat = os.stat(file) if file and osp.isfile(file) else None
                digest.update(f'{file} {stat and (stat.st_size, stat.st_mtime_ns)}'.encode())
    return digest.hexdigest()
