"""One pass over label files: in parallel, in constant memory, resumed after an interruption."""

from __future__ import annotations

import hashlib
import json
import os
import os.path as osp
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mmseg_wce.class_weights import LabelStatistics
from mmseg_wce.class_weights.statistics_file import from_json, to_json
from mmseg_wce.dataset_checks.label_files import LabelFiles
from mmseg_wce.json_files import write_json
from torch.utils.data import DataLoader, Dataset, Subset

__all__ = ['cores', 'scan']

_FILES_IN_CHUNK = 16
_SECONDS_BETWEEN_SAVES = 2.0


class _Chunks(Dataset):
    """Runs of files as a DataLoader asks for them; an item is their statistics."""

    def __init__(self, parts: Sequence[LabelFiles]) -> None:
        self.parts = parts
        self.bounds = [
            (i, start) for i, part in enumerate(parts) for start in range(0, len(part.files), _FILES_IN_CHUNK)
        ]

    def __len__(self) -> int:
        return len(self.bounds)

    def __getitem__(self, index: int) -> tuple[int, LabelStatistics]:
        i, start = self.bounds[index]
        files = self.parts[i].files[start : start + _FILES_IN_CHUNK]
        return len(files), self.parts[i].statistics(files) * self.parts[i].times


def cores() -> int:
    """How many this process may use; systems other than Linux tell only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def scan(
    parts: Sequence[LabelFiles], num_workers: int = 0, unfinished: str | os.PathLike | None = None
) -> Iterator[tuple[int, LabelStatistics]]:
    """Read every file once. Memory does not grow with their number.

    Args:
        parts: of one data set, with the same classes.
        num_workers: processes that read, at most as many as there are cores; 0 reads in this one.
        unfinished: where to keep what an interrupted scan had, to go on from there: a file that exists only until the
            scan is complete. What it holds of other files, or of files that have changed since, is not used.

    Yields:
        Number of files done and the statistics of them, again and again, the last time of all.

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
    chunks = _Chunks(parts)
    for part in parts:
        _ = part.table  # made here once, not in every process
    kept = _Kept(Path(unfinished), parts) if unfinished is not None else None
    first, done, total = kept.load() if kept else (0, 0, None)
    if total is not None:
        yield done, total
    left = Subset(chunks, range(first, len(chunks)))
    num_workers = min(num_workers, len(left), cores())
    loader = DataLoader(left, batch_size=None, num_workers=num_workers, collate_fn=_as_it_is)
    saved, index = time.monotonic(), first
    try:
        for index, (number, statistics) in enumerate(loader, first + 1):
            done, total = done + number, statistics if total is None else total + statistics
            if kept and time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                kept.save(index, done, total)
                saved = time.monotonic()
            yield done, total
    except BaseException:  # an interrupt, or whoever consumes this has had enough
        if kept and total is not None:
            kept.save(index, done, total)
        raise
    if kept:
        kept.path.unlink(missing_ok=True)


def _as_it_is(item: Any) -> Any:
    return item


class _Kept:
    """What an interrupted scan had, in a file."""

    def __init__(self, path: Path, parts: Sequence[LabelFiles]) -> None:
        self.path, self.digest = path, _digest(parts)

    def load(self) -> tuple[int, int, LabelStatistics | None]:
        """Chunks done, files done, their statistics."""
        try:
            content = json.loads(self.path.read_text())
            if content['digest'] != self.digest:
                return 0, 0, None
            return content['chunks'], content['files'], from_json(content['statistics'])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0, None

    def save(self, chunks: int, files: int, statistics: LabelStatistics) -> None:
        content = dict(digest=self.digest, chunks=chunks, files=files, statistics=to_json(statistics))
        write_json(self.path, content)


def _digest(parts: Iterable[LabelFiles]) -> str:
    """Of everything that the statistics depend on; local files by size and time of change, others by name alone."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f'{part.dataset} {part.classes} {part.convention} {part.load} {part.times}'.encode())
        for file in part.files:
            stat = os.stat(file) if osp.isfile(file) else None
            digest.update(f'{file} {stat and (stat.st_size, stat.st_mtime_ns)}'.encode())
    return digest.hexdigest()
