"""Label files of a config, a data set or a folder."""

from __future__ import annotations

import copy
import math
import os
import os.path as osp
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from mmengine import fileio
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations, LoadBiomedicalAnnotation
from mmseg_wce.class_weights import LabelEncoding
from mmseg_wce.config_walk import classes_string_advice, has_one_channel, main_head
from mmseg_wce.dataset_checks.building import build_dataset
from mmseg_wce.dataset_checks.isolation import copy_of_dataset, isolated_random_state
from mmseg_wce.dataset_checks.known_transforms import reads_as_load_annotations
from mmseg_wce.dataset_checks.label_files import LabelFiles
from mmseg_wce.dataset_checks.label_pipeline import LabelPipeline
from mmseg_wce.dataset_checks.label_readers import AnnotationReader, ItemReader, PipelineReader, Sample
from mmseg_wce.dataset_checks.label_values import NoLabelsError, NoLoaderError, VolumeError
from mmseg_wce.dataset_checks.pipeline_steps import flatten
from mmseg_wce.dataset_checks.wrappers import Leaf, inherits_items, leaves, prepares_as_mmseg
from mmseg_wce.safe_io.errors import in_one_line
from PIL import Image

__all__ = ['LabelConflict', 'UnreadableDataset', 'from_config', 'from_dataset', 'from_folder', 'why_no_samples']


class LabelConflict(ValueError):
    """Error for a data set whose settings of labels contradict each other or its transforms."""


class UnreadableDataset(ValueError):
    """Error for a config whose data set cannot be built."""


def from_config(config: Config, split: str = 'train') -> list[LabelFiles]:
    """Return the label files of a config's data set.

    Args:
        config: config of a segmentor, with ``<split>_dataloader``.
        split: 'train', 'val' or 'test'.

    Returns:
        One entry for each data set inside wrappers that join or repeat.

    Raises:
        ValueError: the config has no such data set, or it cannot be built (:class:`UnreadableDataset`), has no labels
            or has conflicting settings (:class:`LabelConflict`).

    Example:
        >>> import tempfile
        >>> from mmengine.config import Config
        >>> from mmseg_wce.datasets.demo_scenes import generate_demo_scenes
        >>> from mmseg_wce.dataset_checks import from_config
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     generate_demo_scenes(folder, num_training=2, num_validation=1, progress=False)
        ...     load = dict(type='LoadAnnotations', reduce_zero_label=True)
        ...     prefix = dict(img_path='images/training', seg_map_path='annotations/training')
        ...     dataset = dict(type='DemoScenesDataset', data_root=folder, data_prefix=prefix, pipeline=[load])
        ...     (part,) = from_config(Config(dict(train_dataloader=dict(dataset=dataset))))
        >>> len(part), part.classes[:2], part.convention.reduce_zero_label
        (2, ('sky', 'field'), True)
    """
    init_default_scope(config.get('default_scope', 'mmseg'))
    loader = config.get(f'{split}_dataloader')
    if loader is None:
        raise ValueError(f'the config has no {split}_dataloader')
    try:
        dataset = build_dataset(loader['dataset'])
    except Exception as error:  # data sets raise errors of any type
        raise UnreadableDataset(f'{split}_dataloader: the data set cannot be read: {in_one_line(error)}') from error
    head = main_head(config)
    try:
        return from_dataset(dataset, head.get('num_classes'), head.get('ignore_index', 255), has_one_channel(head))
    except ValueError:
        raise
    except Exception as error:  # of custom code
        raise ValueError(f'{split}_dataloader: labels cannot be checked: {in_one_line(error)}') from error


def from_dataset(
    dataset: Any,
    num_classes: int | None = None,
    ignore_index: int = 255,
    one_channel: bool = False,
    most: int | None = None,
) -> list[LabelFiles]:
    """Return the label files of a built data set, one entry for each data set inside wrappers that join or repeat.

    Args:
        dataset: a data set of mmseg, or a wrapper.
        num_classes: number of classes of the model, for a data set that names no classes.
        ignore_index: the label that the loss ignores.
        one_channel: True if the model has one output channel, for labels 0 and 1.
        most: number of files to take from each data set, evenly spread; None for all.

    Returns:
        The files, with the number of times that an epoch visits those of each data set.

    Raises:
        LabelConflict: a data set and its ``LoadAnnotations`` have different settings.
        ValueError: there are no labels, or labels are volumes.
    """
    parts, unlabelled = [], []
    with isolated_random_state():
        for leaf in leaves(dataset):
            try:
                parts.append(_from_leaf(leaf, most, (num_classes, ignore_index, one_channel)))
            except NoLoaderError as error:
                unlabelled.append(str(error))
    if not parts:
        raise ValueError(unlabelled[0])
    parts[0] = replace(parts[0], notes=(*parts[0].notes, *unlabelled))
    common = math.gcd(*(part.times for part in parts))
    return [replace(part, times=part.times // common) for part in parts]


def _from_leaf(leaf: Leaf, most: int | None, model: tuple[int | None, int, bool]) -> LabelFiles:
    dataset = leaf.dataset
    if not inherits_items(dataset, BaseDataset):
        return _from_items(leaf, most, model)
    name = type(dataset).__name__
    pipeline = LabelPipeline(dataset, leaf.more_transforms, leaf.get_sample if leaf.more_transforms else None)
    if len(dataset) == 0:
        raise ValueError(f'{name} has no samples: {why_no_samples(dataset)}')
    dataset_copy = copy_of_dataset(dataset)
    infos = {i: dataset_copy.get_data_info(i) for i in _spread_indices(len(dataset), most)}
    loaders: list[Any] = list(takewhile(_reads_seg_map_path, pipeline.label_transforms))
    labelled = {i: info for i, info in infos.items() if not loaders or info.get('seg_map_path') is not None}
    if not labelled:
        prefix = getattr(dataset, 'data_prefix', {}).get('img_path')
        raise ValueError(
            f'{name}: none of its {len(infos)} samples in {prefix!r} has a label: data_prefix needs seg_map_path'
        )
    settings = _settings(leaf, dataset, next(iter(labelled.values())), *model)
    convention = settings['convention']
    for load in loaders:
        if getattr(load, 'reduce_zero_label', None) not in (None, convention.reduce_zero_label):
            raise LabelConflict(
                f'{name} says reduce_zero_label={convention.reduce_zero_label} and its LoadAnnotations says '
                f'{load.reduce_zero_label}: set both to the same value'
            )
    samples = [
        Sample(
            i,
            str(info.get('seg_map_path') or info.get('img_path') or f'sample {i}'),
            info.get('img_path'),
            has_label=i in labelled,
        )
        for i, info in infos.items()
    ]
    reader = _make_reader(dataset, pipeline, convention, list(labelled.values()), [s for s in samples if s.has_label])
    return LabelFiles(
        reader=reader,
        samples=samples,
        folder=None if _is_subset(dataset) or most is not None else dataset.data_prefix.get('seg_map_path') or None,
        suffix=getattr(dataset, 'seg_map_suffix', ''),
        notes=(*leaf.notes, *pipeline.notes),
        **settings,
    )


def _from_items(leaf: Leaf, most: int | None, model: tuple[int | None, int, bool]) -> LabelFiles:
    """Return the items of a data set or a wrapper with a custom ``__getitem__``."""
    dataset, name = leaf.dataset, type(leaf.dataset).__name__
    base_dataset = dataset
    while not isinstance(base_dataset, BaseDataset):
        if not hasattr(base_dataset, 'dataset') and not getattr(base_dataset, 'datasets', None):
            raise ValueError(f'{name} is not a data set of mmengine, so its labels are not checked')
        base_dataset = base_dataset.dataset if hasattr(base_dataset, 'dataset') else base_dataset.datasets[0]
    if len(dataset) == 0:
        raise ValueError(f'{name} has no samples')
    try:
        items = copy.deepcopy(dataset if leaf.wrapper is None else leaf.wrapper)
    except Exception as error:  # an open file, a lock
        raise ValueError(f'{name} cannot be copied ({in_one_line(error)}), so its labels are not checked') from error
    offset = leaf.offset if leaf.wrapper is not None else 0
    note = (
        f'{name} makes its samples in a way of its own, so that labels are counted as they come out of it: after crops '
        'and flips'
    )
    try:
        info = copy_of_dataset(base_dataset).get_data_info(0)
    except Exception:  # the data set may store its samples in another way
        info = {}
    loaders = [t for t in flatten([getattr(base_dataset, 'pipeline', ())]) if type(t) is LoadAnnotations]
    return LabelFiles(
        reader=ItemReader(items, copy.deepcopy(loaders[0]) if loaders else None),
        samples=[Sample(offset + i, f'sample {i} of {name}') for i in _spread_indices(len(dataset), most)],
        notes=(*leaf.notes, note),
        **_settings(leaf, base_dataset, info, *model),
    )


def _spread_indices(number: int, most: int | None) -> Sequence[int]:
    """Return the indices of all samples, or of ``most`` evenly spread samples."""
    return range(number) if most is None else sorted({i * number // most for i in range(most)})


def _reads_seg_map_path(transform: Any) -> bool:
    return reads_as_load_annotations(type(transform)) or type(transform) is LoadBiomedicalAnnotation


def why_no_samples(dataset: Any) -> str:
    """Return why a data set that lists its files as mmseg does has no samples."""
    if dataset.ann_file:
        return f'ann_file {dataset.ann_file!r} is empty: it must name the images, one per line'
    return f'img_path {dataset.data_prefix.get("img_path")!r} holds no files *{getattr(dataset, "img_suffix", "")}'


def _settings(
    leaf: Leaf, dataset: Any, info: dict, num_classes: int | None, ignore_index: int, one_channel: bool
) -> dict[str, Any]:
    """Return what LabelFiles says of the classes and the encoding of the labels, whatever reads them."""
    names = dataset.metainfo.get('classes') or ()
    if isinstance(names, str):
        raise LabelConflict(classes_string_advice(names, type(dataset).__name__))
    name, named_classes = type(leaf.dataset).__name__, tuple(map(str, names))
    if one_channel and len(named_classes) == 1:
        classes: tuple[str, ...] = ('background', *named_classes)
    elif one_channel:
        classes = named_classes[:2] or ('background', 'foreground')
    else:
        classes = named_classes or tuple(str(c) for c in range(num_classes or 0))
    if not classes:
        raise ValueError(f'{name} names no classes, and the config has no decode_head with num_classes')
    return dict(
        dataset=name,
        classes=classes,
        palette=[list(color) for color in dataset.metainfo.get('palette') or []],
        convention=LabelEncoding(bool(info.get('reduce_zero_label')), ignore_index, info.get('label_map')),
        times=leaf.times,
        named_classes=named_classes,
    )


def _make_reader(
    dataset: Any, pipeline: LabelPipeline, convention: LabelEncoding, infos: list[dict], samples: list[Sample]
) -> AnnotationReader | PipelineReader:
    """Return a reader of files if plain ``LoadAnnotations`` alone makes the labels, else one that runs the pipeline."""
    probed = [samples[i] for i in sorted({0, len(samples) // 2, len(samples) - 1})]
    if any(type(t) is not LoadAnnotations for t in pipeline.label_transforms):
        pipeline.probe([sample.index for sample in probed])
    expected = convention.reduce_zero_label, convention.label_map
    is_plain = (
        [type(t) for t in pipeline.label_transforms] == [LoadAnnotations]
        and prepares_as_mmseg(dataset)
        and all((bool(i.get('reduce_zero_label')), i.get('label_map')) == expected for i in infos)
    )
    if is_plain:
        return AnnotationReader(pipeline.label_transforms[0], convention, pipeline)
    reader, problems = PipelineReader(pipeline), []
    for sample in probed:
        try:
            reader.labels(sample)
        except (NoLabelsError, VolumeError) as error:
            problems.append(str(error.args[0]))
        except Exception:  # the scan reports it
            return reader
        else:
            return reader
    raise ValueError(f'{type(dataset).__name__}: {problems[0]}')


def _is_subset(dataset: Any) -> bool:
    """Return True if other files in its folders may belong to other splits."""
    lists_all = type(dataset).load_data_list is BaseSegDataset.load_data_list
    filters = bool(getattr(dataset, 'filter_cfg', None)) or type(dataset).filter_data is not BaseDataset.filter_data
    return not lists_all or filters or bool(dataset.ann_file) or getattr(dataset, '_indices', None) is not None


def from_folder(
    folder: str,
    num_classes: int,
    reduce_zero_label: bool = False,
    ignore_index: int = 255,
    suffix: str = '.png',
    images: str | None = None,
    image_suffix: str | None = None,
) -> LabelFiles:
    """Return the label files below a folder, without a config.

    Args:
        folder: folder that is searched with its subfolders; any file backend of mmengine.
        num_classes: C.
        reduce_zero_label: True if raw 0 is "other" and raw k is class k - 1.
        ignore_index: the label that the loss ignores.
        suffix: suffix of the label files.
        images: folder of their images, which have the same relative paths except for the suffix.
        image_suffix: suffix of the images; None for any image extension.

    Returns:
        The files, including missing files of images.

    Raises:
        ValueError: the folder does not exist or holds no such file.

    Example:
        >>> import tempfile, numpy as np
        >>> from mmseg_wce.dataset_checks import from_folder
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8)).save(f'{folder}/a.png')
        ...     files = from_folder(folder, num_classes=2, reduce_zero_label=True)
        ...     files.labels(0).tolist()
        [[255, 0], [1, 255]]
    """
    names = _list_files(folder)
    stems = {name.removesuffix(suffix) for name in names if name.endswith(suffix)}
    if not stems:
        others = ', '.join(sorted({f'*{osp.splitext(name)[1]}' for name in names}))
        raise ValueError(
            f'folder {folder!r} holds no label *{suffix}: ' + (f'it has {others}' if names else 'it is empty')
        )
    images_by_stem: dict[str, str] = {}
    if images is not None:
        label_suffix = suffix if osp.normpath(images) == osp.normpath(folder) else None
        image_names = [name for name in _list_files(images) if _is_image(name, image_suffix, label_suffix)]
        images_by_stem = {name.removesuffix(image_suffix or osp.splitext(name)[1]): name for name in image_names}
    ordered = sorted(stems | set(images_by_stem))
    convention = LabelEncoding(reduce_zero_label, ignore_index)
    return LabelFiles(
        dataset=osp.normpath(folder),
        classes=tuple(str(c) for c in range(num_classes)),
        palette=[],
        convention=convention,
        reader=AnnotationReader(LoadAnnotations(), convention),
        samples=[
            Sample(
                i,
                osp.join(folder, stem + suffix),
                osp.join(images, images_by_stem.get(stem, f'{stem}{image_suffix or ".jpg"}')) if images else None,
            )
            for i, stem in enumerate(ordered)
        ],
        suffix=suffix,
    )


def _is_image(name: str, image_suffix: str | None, label_suffix: str | None) -> bool:
    if image_suffix is not None:
        return name.endswith(image_suffix)
    label = label_suffix is not None and name.endswith(label_suffix)
    return not label and osp.splitext(name)[1].lower() in Image.registered_extensions()


def _list_files(folder: str) -> list[str]:
    """Return the relative paths of all files, including broken links, which mmengine omits."""
    if not fileio.isdir(folder):
        raise ValueError(f'folder {folder!r} does not exist (looked in {os.getcwd()})')
    names = list(fileio.list_dir_or_file(folder, list_dir=False, recursive=True))
    broken = (path for path in Path(folder).rglob('*') if path.is_symlink() and not path.exists())
    return names + [path.relative_to(folder).as_posix() for path in broken]
