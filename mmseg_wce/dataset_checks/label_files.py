"""Label files of a data set that are read in the same way, and their statistics."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from mmseg_wce.class_weights import LabelEncoding, LabelStatistics, Tally
from mmseg_wce.class_weights.statistics import FileLabels
from mmseg_wce.dataset_checks.known_transforms import is_resize
from mmseg_wce.dataset_checks.label_readers import AnnotationReader, ItemReader, PipelineReader, Sample
from mmseg_wce.dataset_checks.label_values import LabelFileError, SampleDroppedError
from mmseg_wce.safe_io.errors import in_one_line
from PIL import UnidentifiedImageError

__all__ = ['LabelFiles']


@dataclass(frozen=True)
class LabelFiles:
    """Label files that are read in the same way.

    Attributes:
        dataset: name of the data set.
        classes: names of the C classes of the labels; background and foreground for a model with one channel.
        palette: RGB of each class; empty if there is none.
        convention: encoding of raw values.
        reader: reader of a sample's labels.
        samples: samples of the data set.
        times: number of times that the training visits each file in an epoch.
        folder: folder of the files; None if it may hold files of other splits.
        suffix: suffix of the files.
        named_classes: class names of the data set; empty if it has none.
        notes: notes for the user on how the labels are read.
    """

    dataset: str
    classes: tuple[str, ...]
    palette: list[list[int]]
    convention: LabelEncoding
    reader: AnnotationReader | PipelineReader | ItemReader
    samples: list[Sample]
    times: int = 1
    folder: str | None = None
    suffix: str = '.png'
    named_classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def files(self) -> list[str]:
        """Paths of the labels; a name for messages where a label has no file."""
        return [sample.label for sample in self.samples]

    @property
    def has_images(self) -> bool:
        """True if images of the labels are known."""
        return any(sample.image is not None for sample in self.samples)

    @property
    def reads_raw_values(self) -> bool:
        """True if ``LoadAnnotations`` alone turns the raw values in the files into labels."""
        return isinstance(self.reader, AnnotationReader)

    @property
    def resizes(self) -> bool:
        """True if image and label are resized before other transforms move them, so that their sizes may differ."""
        pipeline = self.reader.pipeline
        return pipeline is not None and is_resize(pipeline.first_move)

    @property
    def transforms(self) -> list[tuple[str, dict]]:
        """Types and settings of the transforms that make the labels."""
        reader = self.reader
        if isinstance(reader, ItemReader):
            return [(type(reader.items).__qualname__, {})]
        used = [reader.load] if isinstance(reader, AnnotationReader) else reader.pipeline.transforms
        return [(type(transform).__qualname__, _attributes(transform)) for transform in used]

    @cached_property
    def common_folder(self) -> str:
        """Deepest folder that holds all files."""
        folders = {osp.dirname(file) for file in self.files}
        if len({osp.isabs(folder) for folder in folders}) > 1:  # some samples have no file
            return ''
        common = osp.commonpath(folders)
        return osp.realpath(common) if osp.isdir(common) else common

    def subset(self, indices: Iterable[int]) -> LabelFiles:
        """Return the files with these indices, from 0."""
        return replace(self, samples=[self.samples[i] for i in indices])

    def labels(self, index: int) -> np.ndarray:
        """Return a file's labels (H, W), integers, as the loss gets them.

        Raises:
            LabelFileError: the file does not hold one class index for each pixel.
            SampleDroppedError: a transform drops the sample.
            Exception: the file is missing or damaged; each storage backend and decoder has its own errors.
        """
        return self.reader.labels(self.samples[index])

    def _count(self, sample: Sample, with_images: bool) -> FileLabels:
        counted = self.reader.count(sample, with_images)
        if not isinstance(self.reader, PipelineReader) or self.reader.pipeline.needs_image:
            return counted
        is_class = (counted.values >= 0) & (counted.values < len(self.classes))
        if (is_class | (counted.values == self.convention.ignore_index)).all():
            return counted
        try:  # a transform may need the image to ignore these labels, though no probed sample needed it
            return self.reader.count(sample, with_images, loads_image=True)
        except Exception:  # there is no image
            return counted

    def statistics(self, indices: Sequence[int] | None = None, with_images: bool = False) -> LabelStatistics:
        """Count the labels of files. Files that cannot be read are listed in ``failed`` and not counted.

        Args:
            indices: indices of the files, from 0; by default all.
            with_images: compare the size of each label with that of its image.
        """
        return self.count(indices, with_images)[0]

    def count(
        self, indices: Sequence[int] | None = None, with_images: bool = False
    ) -> tuple[LabelStatistics, dict[str, dict[int, int]]]:
        """Count the labels of files as :meth:`statistics`; return the pixels of each class in each file, too.

        A file that cannot be read has none.
        """
        counted, failed, dropped = [], {}, None
        indices = range(len(self)) if indices is None else indices
        for index in indices:
            sample = self.samples[index]
            if not sample.has_label:
                failed[sample.label] = 'the data set names no label for this image'
                continue
            try:
                counted.append(self._count(sample, with_images))
            except SampleDroppedError as error:
                dropped = Tally(0, 1, sample.label, str(error)) if dropped is None else dropped + Tally(0, 1, '')
            except Exception as error:  # each decoder has its own errors, and one file must not end the scan
                failed[sample.label] = _failure_reason(error)
        statistics = LabelStatistics.from_files(self.dataset, self.classes, self.convention, counted)
        files: dict[str, dict[int, int]] = {sample.label: {} for sample in map(self.samples.__getitem__, indices)}
        files |= {file.file: self._class_pixels(file) for file in counted}
        return replace(statistics, failed=failed, dropped=dropped, folders=(self.common_folder,)), files

    def _class_pixels(self, file: FileLabels) -> dict[int, int]:
        pixels = zip(file.values.tolist(), file.counts.tolist(), strict=True)
        ignored = self.convention.ignore_index
        return {label: number for label, number in pixels if 0 <= label < len(self.classes) and label != ignored}


def _attributes(transform: Any) -> dict[str, Any]:
    slots = [name for kind in type(transform).__mro__ for name in getattr(kind, '__slots__', ())]
    return {name: getattr(transform, name, None) for name in slots} | getattr(transform, '__dict__', {})


def _failure_reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return 'it does not exist: add it, remove its image, or correct seg_map_suffix or the folder'
    if isinstance(error, UnidentifiedImageError):  # its message holds an address in memory
        return 'it is empty or not an image'
    return str(error) if isinstance(error, LabelFileError) else in_one_line(error)
