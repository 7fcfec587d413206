"""Labels from a data set's pipeline, without the transforms that move, crop, colour or pack."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import Compose
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs
from mmseg_wce.dataset_checks.isolation import copy_of_dataset, isolated_random_state
from mmseg_wce.dataset_checks.known_transforms import Effect, is_loader, is_resize
from mmseg_wce.dataset_checks.label_values import (
    LoadedLabels,
    NoLabelsError,
    NoLoaderError,
    SampleDroppedError,
    height_and_width,
    labels_in,
)
from mmseg_wce.dataset_checks.pipeline_steps import (
    Step,
    find_first_move,
    find_moves_before_labels,
    flatten,
    label_step,
    notes_on,
)
from mmseg_wce.dataset_checks.wrappers import prepares_as_mmseg
from mmseg_wce.safe_io.errors import in_one_line

__all__ = ['LabelPipeline']


class LabelPipeline:
    """Part of a data set's pipeline that determines the meaning of its labels.

    Transforms of mmcv and mmseg that move, crop, resize, colour or pack are left out, and so are all transforms after
    the last one that may change labels. All others are run: the loader of labels, and custom transforms before or after
    it. If that fails, the full pipeline is run instead, with crops and flips.

    All transforms are copies and the random state is restored, so that the training is not affected.

    Args:
        dataset: an mmengine ``BaseDataset``, without wrappers.
        more_transforms: transforms of wrappers, which run after those of the data set.
        get_sample: returns the sample at an index as the training sees it; by default the data set's ``prepare_data``.

    Attributes:
        notes: notes for the user on how the labels are read, one sentence each.
        needs_image: True if a transform makes other labels, or fails, without the image.
        first_move: the first transform that moves pixels, if image and labels are loaded before it; else None.
        notes_full_run: True if a note says that the full pipeline is run.

    Raises:
        NoLoaderError: no transform loads labels.
        ValueError: a transform cannot be copied.
    """

    def __init__(
        self, dataset: Any, more_transforms: Sequence[Callable] = (), get_sample: Callable[[int], dict] | None = None
    ) -> None:
        self._name = name = type(dataset).__name__
        transforms = [*flatten([dataset.pipeline]), *flatten(more_transforms)]
        self.notes: list[str] = [f'{name}: {note}' for transform in transforms for note in notes_on(transform)]
        steps = [step for transform in transforms if (step := label_step(transform))]
        changing = [i for i, step in enumerate(steps) if step.effect is Effect.LABELS]
        if not changing:
            raise NoLoaderError(f'{name}: its pipeline has no LoadAnnotations, so it reads no labels')
        self._steps = [_copy_step(name, step) for step in steps]
        self._end = changing[-1] + 1  # end of the steps that make labels; loaders of images may follow
        self.first_move = find_first_move(transforms)
        self._dataset = copy_of_dataset(dataset)
        self._dataset.pipeline = _unchanged
        self._prepares = not prepares_as_mmseg(dataset)
        self._packers = [copy.deepcopy(t) for t in transforms if type(t) is PackSegInputs] if self._prepares else []
        self._up_to_labels = find_moves_before_labels(transforms)
        self._original = dataset
        self._get_sample = get_sample
        self._run_all: Callable[[int], dict] | None = None
        self.needs_image = True
        self.notes_full_run = False

    @property
    def transforms(self) -> list[Callable]:
        """Transforms that are run, including loaders of images."""
        return [step.transform for step in self._steps[: self._end]]

    @property
    def image_loaders(self) -> list[Callable]:
        """Transforms that load the image."""
        return [step.transform for step in self._steps if step.effect is Effect.LOADS_IMAGE]

    @property
    def label_transforms(self) -> list[Callable]:
        """Transforms that load labels or may change them."""
        return [step.transform for step in self._steps if step.effect is Effect.LABELS]

    def probe(self, indices: Sequence[int]) -> None:
        """Run some samples to find out if labels need the image, and add notes on unusual transforms.

        A custom transform that adds an image and changes nothing else counts as a loader of images. Images are loaded
        for all samples if labels of a probed sample differ, or cannot be made, without them. Needs at least one index.
        """
        with isolated_random_state():
            self._find_image_loaders(indices[0])
        outcomes = [self._probe_sample(index) for index in indices]
        self.needs_image = any(needs_image for needs_image, _ in outcomes)
        self.notes += dict.fromkeys(note for _, note in outcomes if note)

    def load(self, index: int, with_image: bool = False) -> LoadedLabels:
        """Load the labels of a sample; ``with_image`` loads its image first, even if no probed sample needed it.

        Raises:
            SampleDroppedError: a transform returned None.
            NoLabelsError: no transform loads labels for this sample.
            Exception: the training's full pipeline fails on the sample too.
        """
        with isolated_random_state(index):
            try:
                return self._run(index, with_image or self.needs_image)
            except (SampleDroppedError, NoLabelsError):
                raise
            except Exception as error:  # perhaps a transform needs one that was left out
                cause = error
            if not (with_image or self.needs_image):
                with suppress(Exception):
                    return self._run(index, with_image=True)
            return self._run_full(index)._replace(full_run_reason=in_one_line(cause))

    @property
    def has_custom_transforms(self) -> bool:
        """True if custom transforms are run, which may change the size of image or label."""
        return not all(is_loader(step.transform) for step in self._steps)

    def sizes(self, index: int) -> tuple[tuple[int, ...], tuple[int, ...] | None, bool]:
        """Return the shapes of a sample's label and image (None without one) after all transforms that are run.

        The third value is True if a transform changed the size of either after it was loaded.
        """
        all_shapes: dict[str, list[tuple[int, ...]]] = dict(img=[], gt_seg_map=[])
        with isolated_random_state(index):
            results: Any = self._dataset.prepare_data(index)
            for transform, _ in self._steps:
                results = transform(results)
                if results is None:
                    raise SampleDroppedError(type(transform).__name__)
                for key, shapes in all_shapes.items():
                    if results.get(key) is not None:
                        shapes.append(np.shape(results[key]))
        images, labels = all_shapes['img'], all_shapes['gt_seg_map']
        resized = any(shape[:2] != shapes[0][:2] for shapes in all_shapes.values() for shape in shapes)
        return labels[-1], images[-1] if images else None, resized

    @property
    def has_plain_images(self) -> bool:
        """True if images are the files that the data set names, read by ``LoadImageFromFile``."""
        return all(type(step.transform) is LoadImageFromFile for step in self._image_steps())

    def load_image(self, index: int) -> np.ndarray | None:
        """Load the image of a sample without its labels; None if there is no loader or the sample is dropped."""
        with isolated_random_state(index):
            load = Compose([step.transform for step in self._image_steps()])
            return (load(self._dataset.prepare_data(index)) or {}).get('img')

    def _image_steps(self) -> list[Step]:
        """Return the steps that load the image: its loaders, and custom transforms before them."""
        loads = [i for i, step in enumerate(self._steps) if step.effect is Effect.LOADS_IMAGE]
        before = self._steps[: loads[-1] + 1] if loads else []
        custom = [i for i, step in enumerate(before) if step.effect is Effect.LABELS and not is_loader(step.transform)]
        labels = [i for i, step in enumerate(before) if step.effect is Effect.LABELS and is_loader(step.transform)]
        if custom and labels and labels[0] < custom[-1]:  # a custom transform may need the labels
            return before
        return [step for i, step in enumerate(before) if i in custom or step.effect is Effect.LOADS_IMAGE]

    def resized_alike(self, label_size: tuple[int, int], image_size: tuple[int, int]) -> bool:
        """Return True if a resize gives image and label the same (height, width) before others move them."""
        if not is_resize(self.first_move):
            return False
        move: Any = copy.deepcopy(self.first_move)
        results = dict(img=np.zeros((*image_size, 3), np.uint8), img_shape=image_size, ori_shape=image_size)
        results.update(gt_seg_map=np.zeros(label_size, np.uint8), seg_fields=['gt_seg_map'])
        with isolated_random_state():
            try:
                results = move(results)
            except Exception:  # it needs more input than an image and a label
                return False
        return results['img'].shape[:2] == results['gt_seg_map'].shape[:2]

    def fits_where_loaded(self, index: int) -> bool:
        """Return True if transforms before the loader of labels resize the image to the label's size."""
        if not self._up_to_labels:
            return False
        with isolated_random_state(index):
            try:
                results: Any = Compose(copy.deepcopy(self._up_to_labels))(self._dataset.prepare_data(index))
                return np.shape(results['img'])[:2] == np.shape(results['gt_seg_map'])[:2]
            except Exception:  # they need more input, or drop the sample
                return False

    def _run(self, index: int, with_image: bool) -> LoadedLabels:
        if self._prepares:
            outputs: list[LoadedLabels] = []
            dataset = copy.copy(self._dataset)
            dataset.pipeline = lambda results: self._run_packed(results, with_image, outputs)
            results = dataset.prepare_data(index)
            if results is None:
                raise SampleDroppedError(type(dataset).__name__)
            return outputs[-1]._replace(labels=labels_in(results))
        return self._run_steps(self._dataset.prepare_data(index), with_image)[1]

    def _run_packed(self, results: dict, with_image: bool, outputs: list[LoadedLabels]) -> Any:
        """Run the steps and pack the results, as a custom ``prepare_data`` may expect of its pipeline."""
        try:
            results, loaded = self._run_steps(results, with_image)
        except SampleDroppedError:
            return None
        outputs.append(loaded)
        return Compose(self._packers)(results)

    def _run_steps(self, results: Any, with_image: bool) -> tuple[Any, LoadedLabels]:
        size, path, resized_by = None, None, ''
        for transform, effect in self._steps[: self._end]:
            if effect is Effect.LOADS_IMAGE and not with_image:
                continue
            if type(transform) is LoadAnnotations:
                path = results.get('seg_map_path')
            results = transform(results)
            if results is None:
                raise SampleDroppedError(type(transform).__name__)
            shape = height_and_width(results.get('gt_seg_map'))
            if shape is not None:
                size = shape if size is None else size
                resized_by = resized_by or (type(transform).__name__ if shape != size else '')
        return results, LoadedLabels(labels_in(results), size, path, resized_by)

    def _run_full(self, index: int) -> LoadedLabels:
        if self._run_all is None:
            if self._get_sample is not None:
                self._run_all = copy.deepcopy(self._get_sample)
            else:
                dataset = copy_of_dataset(self._original)
                dataset.pipeline = copy.deepcopy(self._original.pipeline)
                self._run_all = dataset.prepare_data
        results = self._run_all(index)
        if results is None:
            raise SampleDroppedError('a transform')
        return LoadedLabels(labels_in(results))

    def _find_image_loaders(self, index: int) -> None:
        loads = [i for i, step in enumerate(self._steps) if is_loader(step.transform)]
        unknown = [i for i in range(loads[0] if loads else 0) if self._steps[i].effect is Effect.LABELS]
        if not unknown:
            return
        with suppress(Exception):  # a missing file, for example; transforms not known as image loaders are run
            results = self._dataset.prepare_data(index)
            for i in range(unknown[-1] + 1):
                before = dict(results)
                results = self._steps[i].transform(results)
                changed = [key for key in before if results.get(key) is not before[key]]
                if i in unknown and not changed and 'img' in set(results) - set(before):
                    self._steps[i] = self._steps[i]._replace(effect=Effect.LOADS_IMAGE)

    def _probe_sample(self, index: int) -> tuple[bool, str]:
        """Return True if the image is needed, and a note."""
        loaded, again = (self._outcome(index, True, seed) for seed in (index, index + 1))
        without_image = self._outcome(index, False, index)
        if isinstance(loaded, LoadedLabels):
            same = isinstance(without_image, LoadedLabels) and _same(loaded.labels, without_image.labels)
            is_random = isinstance(again, LoadedLabels) and not _same_values(loaded.labels, again.labels)
            return not same, self._shape_note(loaded) or self._random_note() * is_random
        if isinstance(without_image, LoadedLabels):  # the image itself cannot be loaded
            return False, self._shape_note(without_image)
        return True, self._full_run_note(index, loaded)

    def _outcome(self, index: int, with_image: bool, seed: int) -> LoadedLabels | Exception:
        with isolated_random_state(seed):
            try:
                return self._run(index, with_image)
            except Exception as error:  # of any transform
                return error

    def _random_note(self) -> str:
        others = [type(t).__name__ for t in self.label_transforms if not is_loader(t)]
        if {'RandomApply', 'RandomChoice'} & set(others):  # notes_on has a note on these
            return ''
        return f'{self._name}: {", ".join(others)} changes labels at random: they are counted as one draw leaves them'

    def _shape_note(self, loaded: LoadedLabels) -> str:
        shape = np.shape(loaded.labels)[:2]
        if not loaded.resized_by or loaded.size is None or len(shape) < 2:
            return ''
        before, after = ('{1} x {0}'.format(*size) for size in (loaded.size, shape))
        return (
            f'{self._name}: {loaded.resized_by} changes the size of labels ({before} becomes '
            f'{after}, width x height): they are counted as the transforms leave them'
        )

    def _full_run_note(self, index: int, error: Exception) -> str:
        """Return a note that the full pipeline has to be run, if it works."""
        if isinstance(error, SampleDroppedError):
            return ''
        with isolated_random_state(index):
            try:
                self._run_full(index)
            except Exception:  # the training fails too, and reading the sample reports it
                return ''
        self.notes_full_run = True
        return (
            f'{self._name}: its transforms need what the ones left out make '
            f'({in_one_line(error)}), so labels are counted after the whole pipeline, with its crops and flips'
        )


def _copy_step(dataset: str, step: Step) -> Step:
    try:
        return step._replace(transform=copy.deepcopy(step.transform))
    except Exception as error:  # an open file, a lock
        raise ValueError(
            f'{dataset}: transform {type(step.transform).__name__} cannot be copied ({in_one_line(error)}), so its '
            'labels are not checked'
        ) from error


def _unchanged(results: dict) -> dict:
    return results


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == 'f')


def _same_values(one: np.ndarray, other: np.ndarray) -> bool:
    """Return True if both hold each value equally often, as before and after a flip."""
    return one.shape == other.shape and _same(np.sort(one, axis=None), np.sort(other, axis=None))
