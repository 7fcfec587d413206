"""Which label files a config, a data set or a folder has."""

from __future__ import annotations

import copy
import math
import os
import os.path as osp
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from mmengine import fileio
from mmengine.config import Config
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS, TRANSFORMS
from mmseg_wce.class_weights import Convention
from mmseg_wce.config_parts import heads_of, leaf_datasets, nodes
from mmseg_wce.dataset_checks.label_files import LabelFiles
from mmseg_wce.errors import in_one_line
from PIL import Image

__all__ = ['LabelConflict', 'from_config', 'from_dataset', 'from_folder', 'is_loading']


class LabelConflict(ValueError):
    """A data set and its transforms say different things about its labels."""


def from_config(config: Config, split: str = 'train') -> list[LabelFiles]:
    """Label files of a config's data set.

    Args:
        config: of a segmentor, with ``<split>_dataloader``.
        split: 'train', 'val' or 'test'.

    Returns:
        One entry for each data set inside wrappers that join or repeat.

    Raises:
        ValueError: it has no such data set, or one without labels, or with conflicts (:class:`LabelConflict`).

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
        >>> len(part.files), part.classes[:2], part.convention.reduce_zero_label
        (2, ('sky', 'field'), True)
    """
    init_default_scope(config.get('default_scope', 'mmseg'))
    loader = config.get(f'{split}_dataloader')
    if loader is None:
        raise ValueError(f'the config has no {split}_dataloader')
    try:
        dataset = DATASETS.build(_only_loading(copy.deepcopy(loader['dataset'])))
    except Exception as error:  # data sets have many ways to fail, and few that say why
        raise ValueError(f'{split}_dataloader: the data set cannot be read: {in_one_line(error)}') from error
    head = _main_head(config)
    return from_dataset(dataset, head.get('num_classes'), head.get('ignore_index', 255))


def _main_head(config: Config) -> dict:
    """The decode head of a config, the last one of a cascade; an empty dict where there is none."""
    heads = [head for place, head in heads_of(config) if place.startswith('model.decode_head')]
    return heads[-1] if heads else {}


def _only_loading(dataset: dict) -> dict:
    """A data set's config without transforms but the one that reads labels: the others cost time and may not exist."""
    for leaf in leaf_datasets(dataset):
        steps = (step for step in nodes(leaf.get('pipeline') or []) if is_loading(step.get('type')))
        leaf['pipeline'] = list(islice(steps, 1))
    for wrapper in nodes(dataset):
        if 'dataset' in wrapper and 'pipeline' in wrapper:
            wrapper['pipeline'] = []
    return dataset


def is_loading(kind: str | type | None) -> bool:
    """Whether transforms of this type read labels."""
    found = TRANSFORMS.get(kind) if isinstance(kind, str) else kind
    return found is not None and 'Annotation' in found.__name__


def from_dataset(
    dataset: Any, num_classes: int | None = None, ignore_index: int = 255, most: int | None = None
) -> list[LabelFiles]:
    """Label files of a built data set; one entry for each data set inside wrappers that join or repeat.

    Args:
        dataset: of mmseg, or a wrapper around such.
        num_classes: of the model, for a data set that names no classes.
        ignore_index: the label that the loss does not count.
        most: how many files to take of each data set, evenly spread over it; None for all.

    Returns:
        The files, with how often an epoch visits those of each data set.

    Raises:
        LabelConflict: a data set and its ``LoadAnnotations`` say different things.
        ValueError: there is no label.
    """
    parts = [_of_leaf(leaf, num_classes, ignore_index, times, most) for leaf, times in _leaves(dataset)]
    common = math.gcd(*(part.times for part in parts))
    return [replace(part, times=part.times // common) for part in parts]


def _leaves(dataset: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
    if isinstance(dataset, ConcatDataset):
        for inner in dataset.datasets:
            yield from _leaves(inner, times)
    elif isinstance(dataset, RepeatDataset):
        yield from _leaves(dataset.dataset, times * dataset.times)
    elif hasattr(dataset, 'dataset'):
        yield from _leaves(dataset.dataset, times)
    else:
        yield dataset, times


def _of_leaf(dataset: Any, num_classes: int | None, ignore_index: int, times: int, most: int | None) -> LabelFiles:
    name = type(dataset).__name__
    load = next(_loading_transforms(dataset.pipeline), None)
    if load is None:
        raise ValueError(f'{name}: its pipeline has no LoadAnnotations, so it reads no labels')
    number = len(dataset)
    indices = range(number) if most is None else sorted({i * number // most for i in range(most)})
    infos = [dataset.get_data_info(i) for i in indices]
    files = [info['seg_map_path'] for info in infos if info.get('seg_map_path') is not None]
    if not files:
        raise ValueError(
            f'{name}: none of its {len(infos)} samples in {dataset.data_prefix.get("img_path")!r} has a label: '
            'data_prefix needs seg_map_path'
        )
    reduces = infos[0]['reduce_zero_label']
    if getattr(load, 'reduce_zero_label', None) not in (None, reduces):
        raise LabelConflict(
            f'{name} says reduce_zero_label={reduces} and its LoadAnnotations says {load.reduce_zero_label}: give both '
            'the same'
        )
    metainfo = dataset.metainfo
    classes = metainfo.get('classes') or [str(c) for c in range(num_classes or 0)]
    if not classes:
        raise ValueError(f'{name} names no classes, and the config has no decode_head with num_classes')
    return LabelFiles(
        dataset=name,
        classes=tuple(classes),
        palette=[list(color) for color in metainfo.get('palette') or []],
        convention=Convention(bool(reduces), ignore_index, infos[0].get('label_map')),
        load=load,
        files=files,
        images=[info['img_path'] for info in infos if info.get('seg_map_path') is not None],
        times=times,
        folder=None if _is_a_choice(dataset) or most is not None else dataset.data_prefix['seg_map_path'],
        suffix=dataset.seg_map_suffix,
    )


def _is_a_choice(dataset: Any) -> bool:
    """Whether other files of its folders belong to other splits."""
    return bool(dataset.ann_file) or getattr(dataset, '_indices', None) is not None


def _loading_transforms(pipeline: Any) -> Iterator[Any]:
    for step in getattr(pipeline, 'transforms', None) or []:
        if 'Annotation' in type(step).__name__:
            yield step
        yield from _loading_transforms(step)


def from_folder(
    folder: str,
    num_classes: int,
    reduce_zero_label: bool = False,
    ignore_index: int = 255,
    suffix: str = '.png',
    images: str | None = None,
    image_suffix: str | None = None,
) -> LabelFiles:
    """Label files below a folder, without a config.

    Args:
        folder: searched with all its subfolders; any file backend of mmengine.
        num_classes: C.
        reduce_zero_label: whether raw 0 is "other" and raw k is class k - 1.
        ignore_index: the label that does not count.
        suffix: of the label files.
        images: folder of their images, at the same relative paths but for the suffix.
        image_suffix: of the images; None for the extension of any image.

    Returns:
        The files, and those that images ask for and that do not exist.

    Raises:
        ValueError: there is no such folder, or no such file in it.

    Example:
        >>> import tempfile, numpy as np
        >>> from mmseg_wce.dataset_checks import from_folder
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8)).save(f'{folder}/a.png')
        ...     files = from_folder(folder, num_classes=2, reduce_zero_label=True)
        ...     files.labels(files.files[0]).tolist()
        [[255, 0], [1, 255]]
    """
    names = _names(folder)
    stems = {name.removesuffix(suffix) for name in names if name.endswith(suffix)}
    if not stems:
        others = ', '.join(sorted({f'*{osp.splitext(name)[1]}' for name in names}))
        raise ValueError(
            f'folder {folder!r} holds no label *{suffix}: ' + (f'it has {others}' if names else 'it is empty')
        )
    image_of: dict[str, str] = {}
    if images is not None:
        beside = osp.normpath(images) == osp.normpath(folder)
        of_images = [name for name in _names(images) if _is_image(name, image_suffix, suffix if beside else None)]
        image_of = {name.removesuffix(image_suffix or osp.splitext(name)[1]): name for name in of_images}
    ordered = sorted(stems | set(image_of))
    return LabelFiles(
        dataset=osp.normpath(folder),
        classes=tuple(str(c) for c in range(num_classes)),
        palette=[],
        convention=Convention(reduce_zero_label, ignore_index),
        load=TRANSFORMS.build(dict(type='mmseg.LoadAnnotations')),
        files=[osp.join(folder, stem + suffix) for stem in ordered],
        images=[osp.join(images, image_of.get(stem, f'{stem}{image_suffix or ".jpg"}')) for stem in ordered if images],
        suffix=suffix,
    )


def _is_image(name: str, image_suffix: str | None, label_suffix: str | None) -> bool:
    if image_suffix is not None:
        return name.endswith(image_suffix)
    label = label_suffix is not None and name.endswith(label_suffix)
    return not label and osp.splitext(name)[1].lower() in Image.registered_extensions()


def _names(folder: str) -> list[str]:
    """Relative paths of all files; of links as well that lead nowhere, which mmengine leaves out."""
    if not fileio.isdir(folder):
        raise ValueError(f'folder {folder!r} does not exist (looked in {os.getcwd()})')
    names = list(fileio.list_dir_or_file(folder, list_dir=False, recursive=True))
    broken = (path for path in Path(folder).rglob('*') if path.is_symlink() and not path.exists())
    return names + [path.relative_to(folder).as_posix() for path in broken]
