"""Two ways to read the labels of a sample: files of plain ``LoadAnnotations``, and whatever a pipeline makes."""

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
from mmseg_wce.class_weights import Convention
from mmseg_wce.class_weights.statistics import FileLabels
from mmseg_wce.dataset_checks.known_transforms import is_resize
from mmseg_wce.dataset_checks.label_pipeline import LabelPipeline
from mmseg_wce.errors import in_one_line
from PIL import Image

__all__ = ['AnnotationReader', 'LabelFileError', 'PipelineReader', 'Sample', 'VolumeError']

_EXIF_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


class LabelFileError(ValueError):
    """A label file does not hold one class index for each pixel."""


class VolumeError(ValueError):
    """Labels have three dimensions."""


@dataclass(frozen=True)
class Sample:
    """A label file.

    Attributes:
        index: of the sample in its data set, or of the file in its folder.
        label: path of the label, or what stands for it in a message.
        image: path of the image; None where it is not known.
    """

    index: int
    label: str
    image: str | None = None


@dataclass(frozen=True)
class AnnotationReader:
    """Files that mmseg's own ``LoadAnnotations`` reads, with nothing after it that changes labels.

    Attributes:
        load: the transform.
        convention: how raw values become labels.
        pipeline: of the data set; None where there is none.
    """

    load: Any
    convention: Convention
    pipeline: LabelPipeline | None = None

    @cached_property
    def table(self) -> np.ndarray:
        """(256,), uint8: the label that each raw value becomes, found by letting ``load`` read all of them once."""
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

    @property
    def resizes(self) -> bool:
        """Whether image and label are resized before anything else moves them, so that their sizes may differ."""
        return self.pipeline is not None and is_resize(self.pipeline.first_move)

    def raw(self, path: str) -> tuple[np.ndarray, str]:
        """Return a file's values (H, W) as ``load`` decodes them, before it keeps 8 bits, and how they are stored.

        Raises:
            LabelFileError: it holds colours.
            Exception: it is missing or damaged; every storage and decoder has its own errors.
        """
        content = fileio.get(path, backend_args=self.load.backend_args)
        decoder = self.load.imdecode_backend
        if decoder == 'pillow':
            image = Image.open(io.BytesIO(content))
            return _two_dimensional(_squeezed(np.array(image))), f'{image.mode} {image.format}'
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
        return _two_dimensional(_squeezed(values)), f'{decoder} {values.dtype} {kind}'

    def labels(self, sample: Sample) -> np.ndarray:
        """Return (H, W), integers: the labels as the loss gets them."""
        return self.table[_as_bytes(self.raw(sample.label)[0])]

    def count(self, sample: Sample, with_image: bool = False) -> FileLabels:
        """Count the pixels of every label; compare its size with the image's where that is asked."""
        raw, storage = self.raw(sample.label)
        kept = _as_bytes(raw)
        histogram = _histogram(kept)
        raw_values = np.flatnonzero(histogram)
        labels = np.bincount(self.table, weights=histogram, minlength=256).astype(np.int64)
        values = np.flatnonzero(labels)
        return FileLabels(
            sample.label,
            raw.shape,
            values,
            labels[values],
            raw_values=raw_values,
            raw_counts=histogram[raw_values],
            storage=storage,
            altered={} if raw is kept else _altered_bytes(raw, kept, self.table[kept] == self.convention.ignore_index),
            image_mismatch=_find_mismatch(sample, raw.shape, self.pipeline) if with_image else None,
        )

    def image(self, sample: Sample) -> np.ndarray | None:
        """Return the image as its loader leaves it: (H, W, 3), uint8, BGR as a rule."""
        return _image(sample, self.pipeline)


@dataclass(frozen=True)
class PipelineReader:
    """Samples whose labels a data set's own transforms make.

    Attributes:
        pipeline: what is run for a sample.
    """

    pipeline: LabelPipeline

    @property
    def resizes(self) -> bool:
        """Whether image and label are resized before anything else moves them, so that their sizes may differ."""
        return is_resize(self.pipeline.first_move)

    def labels(self, sample: Sample) -> np.ndarray:
        """Return (H, W), integers: the labels as the loss gets them."""
        return _as_integers(self.pipeline.load(sample.index).labels)[0]

    def count(self, sample: Sample, with_image: bool = False) -> FileLabels:
        """Count the pixels of every label; compare its size with the image's where that is asked."""
        loaded = self.pipeline.load(sample.index)
        labels, altered = _as_integers(loaded.labels)
        valid = labels
        if 'not finite' in altered:
            valid = labels[np.isfinite(loaded.labels).reshape(labels.shape)]
        values, counts = _count_values(valid)
        mismatch = None
        if with_image and loaded.size is not None:
            mismatch = _find_mismatch(sample, loaded.size, self.pipeline)
        names = [type(transform).__name__ for transform in self.pipeline.label_transforms]
        return FileLabels(
            sample.label,
            labels.shape,
            values,
            counts,
            storage=' + '.join(names),
            altered={**self._altered_before(loaded.path), **altered},
            image_mismatch=mismatch,
        )

    def image(self, sample: Sample) -> np.ndarray | None:
        """Return the image as its loader leaves it: (H, W, 3), uint8, BGR as a rule."""
        return _image(sample, self.pipeline)

    def _altered_before(self, path: str | None) -> dict[str, tuple[int, str]]:
        """Find values that plain ``LoadAnnotations`` changes before another transform sees them."""
        load: Any = next((t for t in self.pipeline.label_transforms if type(t) is LoadAnnotations), None)
        if path is None or load is None or _has_bytes(path, load.backend_args):
            return {}
        raw = AnnotationReader(load, Convention()).raw(path)[0]
        kept = _as_bytes(raw)
        return {} if raw is kept else _altered_bytes(raw, kept, kept == 255)


def _image(sample: Sample, pipeline: LabelPipeline | None) -> np.ndarray | None:
    if pipeline is not None:
        return pipeline.load_image(sample.index)
    return None if sample.image is None else LoadImageFromFile()(dict(img_path=sample.image))['img']


def _find_mismatch(
    sample: Sample, label_size: tuple[int, int], pipeline: LabelPipeline | None
) -> tuple[str, str] | None:
    """Compare the sizes of a label and its image as their loaders leave them.

    The image is decoded only where its header may not tell its size: turned by EXIF, or in a format of another loader.

    Args:
        sample: their paths.
        label_size: height and width of the label.
        pipeline: of the data set; None where there is none.

    Returns:
        None where they are equal, or the kind of mismatch (a key of ``LabelStatistics.image_mismatches``) and both
        files with their sizes.
    """
    loaders: list[Any] = [LoadImageFromFile()] if pipeline is None else pipeline.image_loaders
    if sample.image is None or not loaders:
        return None
    stored = None
    try:
        if pipeline is None or pipeline.has_plain_images:
            backend_args = loaders[0].backend_args
            stored, is_turned = _stored_size(sample.image, backend_args)
            if stored == label_size and not is_turned:
                return None
        image = _image(sample, pipeline)
    except FileNotFoundError:
        return 'missing', sample.image
    except Exception as error:  # every decoder has its own errors
        return 'unknown' if pipeline is None else 'unreadable', f'{sample.image}: {in_one_line(error)}'
    if image is None or np.ndim(image) not in (2, 3) or image.shape[:2] == label_size:
        return None
    height, width = image.shape[:2]
    detail = f'{sample.label} {label_size[1]} x {label_size[0]}, {sample.image} {width} x {height}'
    if stored == label_size == (width, height):
        return 'turned', detail
    if pipeline is None or not pipeline.resized_alike(label_size, (height, width)):
        return 'size', detail
    same_shape = abs(height * label_size[1] - width * label_size[0]) <= max(height, width, *label_size)
    return 'resized' if same_shape else 'stretched', detail


def _stored_size(path: str, backend_args: dict | None) -> tuple[tuple[int, int], bool]:
    """Return height and width of an image file by its header, and if EXIF asks to swap them; zeros if it has none."""
    local = osp.isfile(path)
    try:
        with Image.open(path if local else io.BytesIO(fileio.get(path, backend_args=backend_args))) as image:
            return image.size[::-1], image.getexif().get(_EXIF_ORIENTATION) in _TURNED
    except FileNotFoundError:
        raise
    except Exception:  # a format that Pillow does not know
        return (0, 0), False


def _has_bytes(path: str, backend_args: dict | None) -> bool:
    """Return True if the header of a label file says that its values have 8 bits at most."""
    try:
        content = path if osp.isfile(path) else io.BytesIO(fileio.get(path, backend_args=backend_args))
        with Image.open(content) as image:
            return image.mode in ('1', 'L', 'P')
    except Exception:  # Pillow does not know the format
        return False


def _squeezed(values: np.ndarray) -> np.ndarray:
    return values.squeeze() if values.ndim > 2 else values


def _two_dimensional(values: np.ndarray) -> np.ndarray:
    if values.ndim == 2:
        return values
    for axis in (0, -1) if values.ndim == 3 else ():
        if values.shape[axis] > 1 and ((values == 0) | (values == 1)).all() and (values.sum(axis) == 1).all():
            raise LabelFileError(f'it holds one-hot labels of shape {values.shape}: take their argmax({axis})')
    if values.ndim == 3 and values.shape[-1] <= 4:
        raise LabelFileError(
            f'it holds {values.shape[-1]} colour channels, as an RGB mask does: store one class index for each pixel'
        )
    raise LabelFileError(f'it holds an array of shape {values.shape}: store one class index for each pixel, (H, W)')


def _as_bytes(values: np.ndarray) -> np.ndarray:
    """Convert values as ``LoadAnnotations`` does, which keeps 8 bits."""
    if values.dtype == np.uint8:
        return values
    with np.errstate(invalid='ignore'):
        return values.astype(np.uint8)


def _altered_bytes(raw: np.ndarray, kept: np.ndarray, is_ignored: np.ndarray) -> dict[str, tuple[int, str]]:
    """Count the values that differ after 8 bits were kept of them, by kind.

    Args:
        raw: (H, W), values of the file.
        kept: (H, W), uint8: what is left of them.
        is_ignored: (H, W), bool: the label that is made of them does not count.
    """
    differs = raw != kept
    found = _altered_floats(raw)
    wrapped = differs & (raw == np.trunc(raw)) if raw.dtype.kind == 'f' else differs
    all_ones = wrapped & is_ignored & np.isin(raw, (-1, 2**16 - 1, 2**32 - 1))
    for kind, mask in (
        ('wrapped', wrapped & ~is_ignored),
        ('wrapped to ignored', wrapped & is_ignored & ~all_ones),
        ('all ones', all_ones),
    ):
        if mask.any():
            found[kind] = int(mask.sum()), _first_change(mask, raw, kept)
    return found


def _altered_floats(values: np.ndarray) -> dict[str, tuple[int, str]]:
    """Count floating-point values that are no whole numbers, by kind."""
    if values.dtype.kind != 'f':
        return {}
    finite = np.isfinite(values)
    found = {}
    if not finite.all():
        found['not finite'] = int((~finite).sum()), _first_change(~finite, values)
    fraction = finite & (values != np.trunc(values))
    if fraction.any():
        found['fraction'] = int(fraction.sum()), _first_change(fraction, values)
    return found


def _first_change(mask: np.ndarray, before: np.ndarray, after: np.ndarray | None = None) -> str:
    """Name the first marked value, its place and what it becomes."""
    row, column = divmod(int(mask.argmax()), mask.shape[1])
    value = before[row, column].item()
    becomes = after[row, column].item() if after is not None else int(value) if np.isfinite(value) else None
    shown = f'{value:g}' if isinstance(value, float) else str(value)
    return f'{shown} at row {row}, column {column}' + ('' if becomes is None else f', which becomes {becomes}')


def _as_integers(values: np.ndarray) -> tuple[np.ndarray, dict[str, tuple[int, str]]]:
    """Convert labels as ``PackSegInputs`` does, and count the values that this changes, by kind.

    Raises:
        LabelFileError: they have a shape or dtype that holds no class indices.
        VolumeError: they have three dimensions.
    """
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    try:
        values = _two_dimensional(values)
    except LabelFileError as error:
        if values.ndim == 3 and values.shape[-1] > 4 and 'one-hot' not in str(error):
            raise VolumeError(f'labels are volumes of shape {values.shape}, which are not checked') from error
        raise
    if values.dtype.kind not in 'biuf':
        raise LabelFileError(f'labels have dtype {values.dtype}: class indices are integers')
    altered = _altered_floats(values)
    with np.errstate(invalid='ignore'):
        return values if values.dtype.kind in 'iu' else values.astype(np.int64), altered


def _histogram(values: np.ndarray) -> np.ndarray:
    """Return (256,), int64: pixels of each byte."""
    runs, lengths = _runs(values)
    return np.bincount(runs, weights=lengths, minlength=256).astype(np.int64)


def _count_values(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values that occur, sorted, int64, and how many pixels have each."""
    runs, lengths = _runs(values)
    found, positions = np.unique(runs, return_inverse=True)
    return found.astype(np.int64), np.bincount(positions, weights=lengths, minlength=len(found)).astype(np.int64)


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return values and lengths of runs of equal values: to count those takes a third of the time."""
    values = values.ravel()
    if values.size == 0:
        return values, np.zeros(0, np.int64)
    starts = np.concatenate(([0], 1 + np.flatnonzero(values[1:] != values[:-1])))
    return values[starts], np.diff(starts, append=values.size)
