"""Readers of a sample's labels: from the file of plain ``LoadAnnotations``, by a pipeline, or as a data set's item."""

from __future__ import annotations

import copy
import io
import os.path as osp
import tempfile
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from mmseg.datasets.transforms import LoadAnnotations
from mmseg_wce.class_weights import LabelEncoding
from mmseg_wce.class_weights.statistics import FileLabels
from mmseg_wce.dataset_checks.isolation import isolated_random_state
from mmseg_wce.dataset_checks.label_pipeline import LabelPipeline
from mmseg_wce.dataset_checks.label_values import (
    LabelFileError,
    SampleDroppedError,
    altered_bytes,
    as_bytes,
    as_integers,
    count_values,
    labels_in,
    two_dimensional,
)
from mmseg_wce.safe_io.errors import in_one_line
from PIL import Image

__all__ = ['AnnotationReader', 'ItemReader', 'PipelineReader', 'Sample', 'open_image']

_EXIF_ORIENTATION, _TRANSPOSED = 0x0112, (5, 6, 7, 8)


@dataclass(frozen=True)
class Sample:
    """A label file.

    Attributes:
        index: index of the sample in its data set, or of the file in its folder.
        label: path of the label, or a name for messages if it has no file.
        image: path of the image; None if unknown.
        has_label: False if the data set names no label for the image.
    """

    index: int
    label: str
    image: str | None = None
    has_label: bool = True


@dataclass(frozen=True)
class AnnotationReader:
    """Reader of files for pipelines in which mmseg's ``LoadAnnotations`` alone makes the labels.

    Attributes:
        load: the transform.
        convention: encoding of raw values.
        pipeline: pipeline of the data set; None if there is none.
    """

    load: Any
    convention: LabelEncoding
    pipeline: LabelPipeline | None = None

    @cached_property
    def table(self) -> np.ndarray:
        """Label of each raw value: (256,), uint8. ``load`` reads a file with all raw values once to fill it."""
        load = copy.copy(self.load)
        load.backend_args = None
        kind = 'tiff' if load.imdecode_backend == 'tifffile' else 'png'
        with tempfile.TemporaryDirectory() as folder:
            path = osp.join(folder, f'every_value.{kind}')
            Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(path)
            results = dict(
                seg_map_path=path,
                reduce_zero_label=self.convention.reduce_zero_label,
                label_map=self.convention.label_map,
                seg_fields=[],
            )
            return load(results)['gt_seg_map'].ravel()

    def raw(self, path: str) -> tuple[np.ndarray, str]:
        """Return a file's values (H, W) as ``load`` decodes them, before a conversion to 8 bits, and their storage.

        Raises:
            LabelFileError: the file holds colours.
            Exception: the file is missing or damaged; each storage backend and decoder has its own errors.
        """
        content = fileio.get(path, backend_args=self.load.backend_args)
        decoder = self.load.imdecode_backend
        if decoder == 'pillow':
            image = Image.open(io.BytesIO(content))
            values, storage = np.array(image), f'{image.mode} {image.format}'
        else:
            kind = 'file'
            if content.startswith(b'\x89PNG'):
                image = Image.open(io.BytesIO(content))
                kind = 'palette PNG' if image.mode == 'P' else 'PNG'
                image.verify()  # OpenCV decodes truncated files without an error
            values = mmcv.imfrombytes(content, flag='unchanged', backend=decoder)
            if values is None:
                raise LabelFileError(f'{decoder} cannot decode it')
            if kind == 'palette PNG' and values.ndim > 2:
                raise LabelFileError(
                    f"{decoder} makes colours of its palette: set imdecode_backend='pillow' in LoadAnnotations"
                )
            storage = f'{decoder} {values.dtype} {kind}'
        return two_dimensional(values.squeeze() if values.ndim > 2 else values), storage

    def labels(self, sample: Sample) -> np.ndarray:
        """Return (H, W), integers: the labels as the loss gets them."""
        return self.table[as_bytes(self.raw(sample.label)[0])]

    def count(self, sample: Sample, with_image: bool = False) -> FileLabels:
        """Count the pixels of each label, and compare its size with the image's if ``with_image``."""
        raw, storage = self.raw(sample.label)
        kept = as_bytes(raw)
        raw_values, raw_counts = count_values(kept)
        counts = np.bincount(self.table[raw_values], weights=raw_counts).astype(np.int64)
        values = np.flatnonzero(counts)
        return FileLabels(
            sample.label,
            raw.shape,
            values,
            counts[values],
            raw_values=raw_values,
            raw_counts=raw_counts,
            storage=storage,
            altered={} if raw is kept else altered_bytes(raw, kept, self.table[kept] == self.convention.ignore_index),
            image_mismatch=_find_mismatch(sample, raw.shape, self.pipeline) if with_image else None,
        )

    def image(self, sample: Sample) -> np.ndarray | None:
        """Return the image from its loader: (H, W, 3), uint8, usually BGR."""
        return _load_image(sample, self.pipeline)


@dataclass(frozen=True)
class PipelineReader:
    """Reader of samples whose labels are made by the transforms of a data set."""

    pipeline: LabelPipeline

    def labels(self, sample: Sample) -> np.ndarray:
        """Return (H, W), integers: the labels as the loss gets them."""
        return as_integers(self.pipeline.load(sample.index).labels)[0]

    def count(self, sample: Sample, with_image: bool = False, loads_image: bool = False) -> FileLabels:
        """Count the pixels of each label, and compare its size with the image's if ``with_image``.

        ``loads_image`` loads the image before the labels, even if no probed sample needed it.
        """
        loaded = self.pipeline.load(sample.index, loads_image)
        load = next((t for t in self.pipeline.label_transforms if type(t) is LoadAnnotations), None)
        altered = _altered_before(load, loaded.path, changes_later=self.pipeline.label_transforms != [load])
        if loaded.full_run_reason and not self.pipeline.notes_full_run:
            altered['whole pipeline'] = loaded.labels.size, loaded.full_run_reason
        mismatch = None
        if with_image and loaded.size is not None:
            mismatch = _find_mismatch(sample, loaded.size, self.pipeline)
        storage = ' + '.join(type(transform).__name__ for transform in self.pipeline.label_transforms)
        return _count_labels(sample.label, loaded.labels, altered, storage=storage, image_mismatch=mismatch)

    def image(self, sample: Sample) -> np.ndarray | None:
        """Return the image from its loader: (H, W, 3), uint8, usually BGR."""
        return _load_image(sample, self.pipeline)


@dataclass(frozen=True)
class ItemReader:
    """Reader of the items of a data set or a wrapper with a custom ``__getitem__``.

    Attributes:
        items: a copy of the data set.
        load: the plain ``LoadAnnotations`` of its pipeline; None if there is none.
    """

    items: Any
    load: Any = None

    pipeline = None

    def labels(self, sample: Sample) -> np.ndarray:
        """Return (H, W), integers: the labels as the loss gets them."""
        return as_integers(labels_in(self._item(sample)))[0]

    def count(self, sample: Sample, with_image: bool = False) -> FileLabels:
        """Count the pixels of each label; the image went through the same transforms and is not compared."""
        item = self._item(sample)
        packed = item.get('data_samples')
        path = item.get('seg_map_path') if packed is None else getattr(packed, 'seg_map_path', None)
        altered = _altered_before(self.load, path, changes_later=True)
        return _count_labels(str(path or sample.label), labels_in(item), altered, storage=type(self.items).__name__)

    def image(self, sample: Sample) -> np.ndarray | None:
        """Return the image (H, W, 3) of the item; None if it has none."""
        item = self._item(sample)
        image = item.get('img') if item.get('inputs') is None else item['inputs'].movedim(0, -1).numpy()
        return image if image is not None and image.dtype == np.uint8 else None

    def _item(self, sample: Sample) -> dict:
        with isolated_random_state(sample.index):
            item = self.items[sample.index]
        if item is None:
            raise SampleDroppedError(type(self.items).__name__)
        return item


def _altered_before(load: Any, path: str | None, changes_later: bool) -> dict[str, tuple[int, str]]:
    """Count values that plain ``LoadAnnotations`` changes before another transform sees them, by kind."""
    if path is None or load is None or _has_8_bits(path, load.backend_args):
        return {}
    try:
        raw = AnnotationReader(load, LabelEncoding()).raw(path)[0]
    except Exception:  # colours, for example, which a later transform has turned into labels
        return {}
    kept = as_bytes(raw)
    altered = {} if raw is kept else altered_bytes(raw, kept, kept == 255)
    if changes_later and 'wrapped' in altered:  # a later transform may read the file again
        altered['wrapped before others'] = altered.pop('wrapped')
    return altered


def _count_labels(file: str, labels: np.ndarray, altered: dict[str, tuple[int, str]], **others: Any) -> FileLabels:
    """Count the pixels of each label of a sample."""
    integers, not_integers = as_integers(labels)
    valid = integers
    if 'not finite' in not_integers:
        valid = integers[np.isfinite(labels).reshape(integers.shape)]
    values, counts = count_values(valid)
    return FileLabels(file, integers.shape, values, counts, altered={**altered, **not_integers}, **others)


def _load_image(sample: Sample, pipeline: LabelPipeline | None) -> np.ndarray | None:
    if pipeline is not None:
        return pipeline.load_image(sample.index)
    return None if sample.image is None else LoadImageFromFile()(dict(img_path=sample.image))['img']


def _find_mismatch(
    sample: Sample, label_size: tuple[int, int], pipeline: LabelPipeline | None
) -> tuple[str, str] | None:
    """Compare the sizes of a label and its image after their loaders.

    The image is decoded only if the header may not give its size: an EXIF rotation, or the format of a custom loader.
    Return None if the sizes are equal; else a key of ``LabelStatistics.image_mismatches``, and both files and sizes.
    """
    loaders: list[Any] = [LoadImageFromFile()] if pipeline is None else pipeline.image_loaders
    if sample.image is None or not loaders:
        return None
    stored = None
    try:
        if pipeline is None or pipeline.has_plain_images:
            backend_args = loaders[0].backend_args
            stored, is_transposed = _stored_size(sample.image, backend_args)
            if stored == label_size and not is_transposed:
                return None
        image = _load_image(sample, pipeline)
    except FileNotFoundError:
        drops_missing = any(getattr(load, 'ignore_empty', False) for load in loaders)
        return None if drops_missing else ('missing', sample.image)
    except Exception as error:  # each decoder has its own errors
        return 'unknown' if pipeline is None else 'unreadable', f'{sample.image}: {in_one_line(error)}'
    if image is None or np.ndim(image) not in (2, 3) or label_size in (image.shape[:2], image.shape[1:]):
        return None
    height, width = image.shape[:2]
    detail = f'{sample.label} {label_size[1]} x {label_size[0]}, {sample.image} {width} x {height}'
    if pipeline is not None and pipeline.fits_where_loaded(sample.index):
        return 'resized before', detail
    if pipeline is not None and pipeline.has_custom_transforms:
        try:
            label, final, is_resized = pipeline.sizes(sample.index)
        except Exception:  # a transform needs one that was left out, so its effect on the sizes is unknown
            return None
        if is_resized:
            has_same_size = final is None or label[:2] in (final[:2], final[1:])
            return None if has_same_size else ('resized by others', f'{sample.label} {label}, {sample.image} {final}')
    if stored == label_size == (width, height):
        return 'turned', detail
    if pipeline is None or not pipeline.resized_alike(label_size, (height, width)):
        return 'size', detail
    same_ratio = abs(height * label_size[1] - width * label_size[0]) <= max(height, width, *label_size)
    return 'resized' if same_ratio else 'stretched', detail


def open_image(path: str, backend_args: dict | None) -> Image.Image:
    """Open an image or label file of any file backend of mmengine, without decoding it.

    Args:
        path: path of the file.
        backend_args: file backend.

    Returns:
        The file as Pillow opens it.
    """
    return Image.open(path if osp.isfile(path) else io.BytesIO(fileio.get(path, backend_args=backend_args)))


def _stored_size(path: str, backend_args: dict | None) -> tuple[tuple[int, int], bool]:
    """Return height and width in an image file's header (zeros if unknown), and True if EXIF swaps them."""
    try:
        with open_image(path, backend_args) as image:
            return image.size[::-1], image.getexif().get(_EXIF_ORIENTATION) in _TRANSPOSED
    except FileNotFoundError:
        raise
    except Exception:  # a format that Pillow does not know
        return (0, 0), False


def _has_8_bits(path: str, backend_args: dict | None) -> bool:
    """Return True if the header of a label file says that values have at most 8 bits."""
    try:
        with open_image(path, backend_args) as image:
            return image.mode in ('1', 'L', 'P')
    except Exception:  # Pillow does not know the format
        return False
