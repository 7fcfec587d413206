"""A small data set of three classes in ADE20K layout and convention, for tests of label files."""

from pathlib import Path

import cv2
import numpy as np
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from mmseg_wce.dataset_checks import LabelFiles, from_dataset

LOAD, IMAGE, PACK = dict(type='LoadAnnotations'), dict(type='LoadImageFromFile'), dict(type='PackSegInputs')


@DATASETS.register_module()
class ThreeClasses(BaseSegDataset):
    METAINFO = dict(classes=('a', 'b', 'c'), palette=[[255, 0, 0], [0, 255, 0], [0, 0, 255]])


def make_masks(number: int, seed: int = 0, shape: tuple[int, int] = (12, 16)) -> list[np.ndarray]:
    """Raw labels 0..3 in blocks; few are 0."""
    rng = np.random.default_rng(seed)
    blocks = rng.choice(4, (number, shape[0] // 4, shape[1] // 4), p=[0.1, 0.3, 0.3, 0.3]).astype(np.uint8)
    return list(blocks.repeat(4, 1).repeat(4, 2))


def write_data(root: Path, masks: list[np.ndarray]) -> Path:
    """Images and labels, ``images/training/*.jpg`` and ``annotations/training/*.png``."""
    for kind in ('images', 'annotations'):
        (root / kind / 'training').mkdir(parents=True)
    for i, mask in enumerate(masks):
        cv2.imwrite(str(root / f'annotations/training/{i:02d}.png'), mask)
        image = np.full((*mask.shape[:2], 3), 40 * (mask.reshape(*mask.shape[:2], -1)[..., :1] % 6), np.uint8)
        cv2.imwrite(str(root / f'images/training/{i:02d}.jpg'), image)
    return root


def dataset_config(root: Path, load: dict | None = None, **changes) -> dict:
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations') | (load or {})]
    return (
        dict(
            type='ThreeClasses',
            data_root=str(root),
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            reduce_zero_label=True,
            pipeline=[*steps, dict(type='Resize', scale=(8, 8)), dict(type='PackSegInputs')],
        )
        | changes
    )


def part_of(root: Path, *pipeline: dict, **changes) -> LabelFiles:
    """The label files of a data set with this pipeline."""
    (part,) = from_dataset(DATASETS.build(dataset_config(root, pipeline=list(pipeline), **changes)))
    return part


def config_text(root: Path, num_classes: int = 3, **changes) -> str:
    """A config that ``tools/`` can read."""
    return (
        f'default_scope = "mmseg"\ncustom_imports = dict(imports=["mmseg_wce", "three_classes"])\n'
        f'train_dataloader = dict(dataset={dataset_config(root, **changes)!r})\n'
        f'model = dict(decode_head=dict(num_classes={num_classes}))\n'
    )
