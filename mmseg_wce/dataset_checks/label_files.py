"""Label files, read as the training reads them."""

from __future__ import annotations

import copy
import io
import os.path as osp
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import mmcv
import numpy as np
from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations
from mmseg_wce.class_weights import Convention, LabelStatistics
from mmseg_wce.errors import in_one_line
from PIL import Image, UnidentifiedImageError

__all__ = ['LabelFileError', 'LabelFiles']


class LabelFileError(ValueError):
    """A label file does not hold one class index of 8 bits for each pixel."""


@dataclass(frozen=True)
class LabelFiles:
    """Label files that are read in the same way.

    Attributes:
        dataset: its name.
        classes: names of the C classes.
        palette: RGB of each class; empty where there is none.
        convention: how raw values become labels.
        load: the transform that reads a file in training.
        files: paths of the labels.
        images: path of each label's image; empty where they are not known.
        times: how often the training visits each file in an epoch.
        folder: holds the files; None where it holds files of others as well.
        suffix: of the files.
    """

    dataset: str
    classes: tuple[str, ...]
    palette: list[list[int]]
    convention: Convention
    load: Any
    files: list[str]
    images: list[str] = field(default_factory=list)
    times: int = 1
    folder: str | None = None
    suffix: str = '.png'

    @property
    def reads_raw_values(self) -> bool:
        """Whether the files hold what ``LoadAnnotations`` remaps; other transforms make labels in ways of their own."""
        return type(self.load) is LoadAnnotations

    @cached_property
    def table(self) -> np.ndarray:
        """(256,), uint8: the label that each raw value becomes, found by letting ``load`` read all of them once."""
        every_value = np.arange(256, dtype=np.uint8)
        if not self.reads_raw_values:
            return every_value
        load = copy.copy(self.load)
        load.backend_args = None
        kind = 'tiff' if load.imdecode_backend == 'tifffile' else 'png'
        with tempfile.TemporaryDirectory() as folder:
            path = osp.join(folder, f'every_value.{kind}')
            Image.fromarray(every_value.reshape(16, 16)).save(path)
            return self._loaded(load, path).ravel()

    @cached_property
    def common_folder(self) -> str:
        """The deepest folder that holds all files."""
        common = osp.commonpath([osp.dirname(file) for file in self.files])
        return osp.realpath(common) if osp.isdir(common) else common

    def read(self, path: str) -> tuple[np.ndarray, str]:
        """A file's raw values (H, W), uint8, as ``load`` decodes them, and how they are stored.

        Raises:
            LabelFileError: it holds colours, or values beyond 8 bits.
            Exception: it is missing or damaged; every storage and decoder has its own errors.
        """
        if not self.reads_raw_values:
            return _checked(self._loaded(self.load, path)), type(self.load).__name__
        content = fileio.get(path, backend_args=self.load.backend_args)
        decoder = self.load.imdecode_backend
        if decoder == 'pillow':
            image = Image.open(io.BytesIO(content))
            return _checked(np.array(image)), f'{image.mode} {image.format}'
        kind = 'file'
        if content.startswith(b'\x89PNG'):
            image = Image.open(io.BytesIO(content))
            kind = 'palette PNG' if image.mode == 'P' else 'PNG'
            image.verify()  # OpenCV decodes what there is of a file that was cut
        values = mmcv.imfrombytes(content, flag='unchanged', backend=decoder)
        if values is None:
            raise LabelFileError(f'{decoder} cannot decode it')
        if kind == 'palette PNG' and values.ndim > 2:
            raise LabelFileError(
                f"{decoder} makes colours of its palette: set imdecode_backend='pillow' in LoadAnnotations"
            )
        return _checked(values), f'{decoder} {values.dtype} {kind}'

    def labels(self, path: str) -> np.ndarray:
        """A file's labels (H, W), uint8, as the loss gets them."""
        return self.table[self.read(path)[0]]

    def histogram(self, path: str) -> tuple[np.ndarray, tuple[int, int], str]:
        """(256,) pixels of each raw value, height and width, and how they are stored. Raises as :meth:`read`."""
        values, storage = self.read(path)
        return _histogram(values), values.shape, storage

    def statistics(self, files: Sequence[str]) -> LabelStatistics:
        """Of some of the files; what cannot be read is named in ``failed`` and counts for nothing."""
        good, histograms, sizes, storage, failed = [], [], [], [], {}
        for file in files:
            try:
                histogram, size, kind = self.histogram(file)
            except Exception as error:  # one file must not cost the scan, and every decoder has its own errors
                failed[file] = _reason(error)
                continue
            good.append(file)
            histograms.append(histogram)
            sizes.append(size)
            storage.append(kind)
        of_good = LabelStatistics.of(
            self.dataset, self.classes, self.convention, self.table, good, np.array(histograms), sizes, storage
        )
        return replace(of_good, failed=failed, folders=(self.common_folder,))

    def _loaded(self, load: Any, path: str) -> np.ndarray:
        results = dict(
            seg_map_path=path,
            reduce_zero_label=self.convention.reduce_zero_label,
            label_map=self.convention.label_map,
            seg_fields=[],
        )
        return load(results)['gt_seg_map']


def _histogram(values: np.ndarray) -> np.ndarray:
    """(256,), int64. Label maps are made of runs of equal values, so these are counted: a third of bincount's time."""
    values = values.ravel()
    starts = np.concatenate(([0], 1 + np.flatnonzero(values[1:] != values[:-1])))
    lengths = np.diff(starts, append=values.size)
    return np.bincount(values[starts], weights=lengths, minlength=256).astype(np.int64)


def _checked(values: np.ndarray) -> np.ndarray:
    values = values.squeeze() if values.ndim > 2 else values
    if values.ndim != 2:
        raise LabelFileError(
            f'it holds {values.shape[-1]} colour channels, as an RGB mask does: store one class index for each pixel'
        )
    if values.dtype == np.uint8:
        return values
    if values.size and not (values.min() >= 0 and values.max() <= 255):
        beyond = values[(values < 0) | (values > 255)][0]
        raise LabelFileError(
            f'it holds {values.dtype} values such as {beyond}, which LoadAnnotations turns into '
            f'{int(beyond) % 256} without a word: store class indices in 8 bits'
        )
    return values.astype(np.uint8)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return 'it does not exist: add it, or take its image out; or seg_map_suffix or the folder is wrong'
    if isinstance(error, UnidentifiedImageError):  # its message holds an address in memory
        return 'it is empty, or no image'
    return str(error) if isinstance(error, LabelFileError) else in_one_line(error)
