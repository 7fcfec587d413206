"""Generated landscapes with the layout and label convention of ADE20K; long-tailed, without a download."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from mmseg.datasets import ADE20KDataset
from mmseg.registry import DATASETS
from rich.progress import track

__all__ = ['DemoScenesDataset', 'draw_scene', 'generate_demo_scenes']

_HEIGHT, _WIDTH = 192, 256
_CLASSES = ('sky', 'field', 'hill', 'road', 'house', 'tree', 'pole', 'person', 'bird', 'flag')
_PALETTE = [
    [166, 206, 227],
    [205, 226, 160],
    [150, 140, 100],
    [150, 150, 155],
    [201, 130, 88],
    [27, 120, 60],
    [106, 61, 154],
    [231, 41, 138],
    [0, 0, 0],
    [255, 190, 0],
]
_OTHER = 0  # raw label of pixels without a class


@DATASETS.register_module()
class DemoScenesDataset(ADE20KDataset):
    """Demo scenes: ``images/<split>/*.jpg``, ``annotations/<split>/*.png`` with raw 0 = other and 1..10 = classes.

    As in mmseg's ``ADE20KDataset``, whose arguments it has, ``reduce_zero_label=True`` by default maps these to 255 and
    0..9; the pipeline's ``LoadAnnotations`` must have the same value. :func:`generate_demo_scenes` writes the files.

    Example:
        >>> import tempfile
        >>> from mmseg_wce.datasets import DemoScenesDataset
        >>> from mmseg_wce.datasets.demo_scenes import generate_demo_scenes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     generate_demo_scenes(folder, num_training=2, num_validation=1, progress=False)
        ...     prefix = dict(img_path='images/training', seg_map_path='annotations/training')
        ...     len(DemoScenesDataset(data_root=folder, data_prefix=prefix))
        2
    """

    METAINFO = dict(classes=_CLASSES, palette=_PALETTE)


class _Canvas:
    """An image and its labels, drawn together."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.image = np.zeros((_HEIGHT, _WIDTH, 3), np.float32)
        self.labels = np.zeros((_HEIGHT, _WIDTH), np.uint8)

    def fill(self, name: str | None, color: tuple[int, int, int], outline: np.ndarray, spread: float = 18) -> None:
        """Draw a polygon (K, 2) of x, y in a shade around ``color`` (RGB); ``name`` None is 'other'."""
        mask = np.zeros(self.labels.shape, np.uint8)
        cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 1)
        self.image[mask > 0] = np.asarray(color) + self.rng.normal(0, spread, 3)
        self.labels[mask > 0] = _OTHER if name is None else 1 + _CLASSES.index(name)

    def ellipse(self, name: str, color: tuple[int, int, int], x: float, y: float, rx: float, ry: float) -> None:
        angle = np.linspace(0, 2 * np.pi, 24)
        self.fill(name, color, np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1))

    def box(self, name: str, color: tuple[int, int, int], x: float, y: float, width: float, height: float) -> None:
        self.fill(name, color, np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]]))

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Return image and labels, with illumination, texture and noise that do not depend on the class."""
        light = cv2.resize(self.rng.normal(1, 0.12, (3, 4)).astype(np.float32), (_WIDTH, _HEIGHT))
        texture = cv2.resize(self.rng.normal(0, 14, (48, 64)).astype(np.float32), (_WIDTH, _HEIGHT))
        noise = self.rng.normal(0, 9, self.image.shape)
        image = self.image * light[..., None] + texture[..., None] + noise
        return np.clip(image, 0, 255).astype(np.uint8), self.labels


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a landscape: large regions first, then smaller and rarer objects.

    Args:
        rng: random generator.

    Returns:
        Image (192, 256, 3), RGB, uint8, and raw labels (192, 256), uint8: 0 = other, 1..10 = classes.

    Example:
        >>> import numpy as np
        >>> from mmseg_wce.datasets.demo_scenes import draw_scene
        >>> image, labels = draw_scene(np.random.default_rng(0))
        >>> image.shape, labels.shape, int(labels.max()) <= 10
        ((192, 256, 3), (192, 256), True)
    """
    canvas = _Canvas(rng)
    horizon = rng.uniform(60, 95)
    everything = np.array([[0, 0], [_WIDTH, 0], [_WIDTH, _HEIGHT], [0, _HEIGHT]])
    canvas.fill('sky', (150, 190, 230), everything)
    ridge = horizon - np.abs(np.cumsum(rng.normal(0, 6, 12)))
    hill = np.concatenate([np.stack([np.linspace(0, _WIDTH, 12), ridge], 1), [[_WIDTH, horizon], [0, horizon]]])
    canvas.fill('hill', (105, 130, 95), hill)
    canvas.fill('field', (140, 175, 95), np.array([[0, horizon], [_WIDTH, horizon], [_WIDTH, _HEIGHT], [0, _HEIGHT]]))
    if rng.random() < 0.8:  # an unannotated pond: raw 0, in the colours of sky and road
        x, y = rng.uniform(0, _WIDTH), rng.uniform(horizon + 15, _HEIGHT)
        angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        radius = rng.uniform(12, 34) * rng.uniform(0.7, 1.2, 16)
        canvas.fill(None, (120, 150, 170), np.stack([x + 1.6 * radius * np.cos(angle), y + radius * np.sin(angle)], 1))
    vanishing, left, width = rng.uniform(80, 180), rng.uniform(-20, 160), rng.uniform(50, 90)
    canvas.fill(
        'road',
        (125, 122, 120),
        np.array([[vanishing, horizon], [vanishing + 6, horizon], [left + width, _HEIGHT], [left, _HEIGHT]]),
    )
    for draw, least, most in ((_house, 0, 2), (_tree, 1, 4), (_pole, 0, 2), (_person, 0, 2), (_bird, 0, 3)):
        for _ in range(rng.integers(least, most + 1)):
            draw(canvas, horizon)
    return canvas.finish()


def _house(canvas: _Canvas, horizon: float) -> None:
    rng = canvas.rng
    x, width, height = rng.uniform(0, 200), rng.uniform(30, 60), rng.uniform(22, 42)
    y = horizon + rng.uniform(5, 30)
    canvas.box('house', (190, 130, 100), x, y - height, width, height)
    canvas.fill(
        'house',
        (150, 70, 55),
        np.array([[x - 3, y - height], [x + width + 3, y - height], [x + width / 2, y - 1.6 * height]]),
    )


def _tree(canvas: _Canvas, horizon: float) -> None:
    rng = canvas.rng
    x, y, size = rng.uniform(0, _WIDTH), horizon + rng.uniform(0, 45), rng.uniform(9, 20)
    canvas.box('tree', (95, 75, 55), x - 2.5, y - size, 5, size)
    canvas.ellipse('tree', (60, 105, 60), x, y - 1.6 * size, size, 1.2 * size)


def _pole(canvas: _Canvas, horizon: float) -> None:
    rng = canvas.rng
    x, y, height = rng.uniform(10, 240), horizon + rng.uniform(10, 70), rng.uniform(45, 80)
    canvas.box('pole', (105, 100, 100), x, y - height, rng.uniform(3.5, 5.5), height)
    if rng.random() < 0.45:
        top, length = y - height + 2, rng.uniform(12, 20)
        canvas.fill('flag', (205, 70, 60), np.array([[x + 4, top], [x + 4 + length, top + 5], [x + 4, top + 11]]))


def _person(canvas: _Canvas, horizon: float) -> None:
    rng = canvas.rng
    x, y, size = rng.uniform(10, 240), horizon + rng.uniform(30, 85), rng.uniform(6, 9)
    canvas.box('person', (90, 80, 130), x, y - 2.6 * size, size, 2.6 * size)
    canvas.ellipse('person', (200, 160, 140), x + size / 2, y - 3 * size, 0.45 * size, 0.5 * size)


def _bird(canvas: _Canvas, horizon: float) -> None:
    rng = canvas.rng
    x, y, span = rng.uniform(10, 245), rng.uniform(6, horizon - 25), rng.uniform(6, 10)
    wings = [[x - span, y - 0.5 * span], [x, y], [x + span, y - 0.5 * span], [x, y + 0.6 * span]]
    canvas.fill('bird', (70, 70, 75), np.array(wings))


def generate_demo_scenes(
    root: str | Path, num_training: int = 160, num_validation: int = 32, seed: int = 0, progress: bool = True
) -> None:
    """Write the data set; the same arguments give the same files.

    Args:
        root: folder for ``images/<split>`` and ``annotations/<split>``; the splits are training and validation.
        num_training: number of training images.
        num_validation: number of validation images.
        seed: random seed.
        progress: show a progress bar.

    Example:
        >>> import os, tempfile
        >>> from mmseg_wce.datasets.demo_scenes import generate_demo_scenes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     generate_demo_scenes(folder, num_training=2, num_validation=1, progress=False)
        ...     sorted(os.listdir(f'{folder}/annotations/training'))
        ['demo_training_0000.png', 'demo_training_0001.png']
    """
    splits = (('training', num_training), ('validation', num_validation))
    scenes = [(split, i) for split, number in splits for i in range(number)]
    for split, _ in splits:
        for kind in ('images', 'annotations'):
            (Path(root) / kind / split).mkdir(parents=True, exist_ok=True)
    for split, i in track(scenes, 'Drawing scenes') if progress else scenes:
        image, labels = draw_scene(np.random.default_rng([seed, split == 'validation', i]))
        stem = f'demo_{split}_{i:04d}'
        cv2.imwrite(
            str(Path(root) / 'images' / split / f'{stem}.jpg'), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95]
        )
        cv2.imwrite(str(Path(root) / 'annotations' / split / f'{stem}.png'), labels)
