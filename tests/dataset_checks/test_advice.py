"""The first advice of a check is followed, as it says: then the check is clean and every pixel has its true class."""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmseg_wce.dataset_checks import (
    Severity,
    check_classes,
    check_config,
    check_raw_zero,
    check_statistics,
    check_unused_labels,
    from_config,
)
from mmseg_wce.functional import weighted_cross_entropy
from mmseg_wce.training.preflight import check_data
from PIL import Image

FEW = 12  # images


def blocks(num_classes: int, ignored: float = 0.0, number: int = FEW) -> list[np.ndarray]:
    """Label maps as they are meant, 0..C - 1 and 255, in blocks that are not those of JPEG."""
    rng = np.random.default_rng(num_classes)
    maps = []
    for _ in range(number):
        small = rng.integers(0, num_classes, (7, 7))
        small[rng.random(small.shape) < ignored] = 255
        maps.append(small.repeat(10, 0).repeat(10, 1))
    return maps


def save(label: np.ndarray, path: Path) -> None:
    Image.fromarray(label.astype(np.uint8)).save(path)


def mapped(values) -> Callable:
    """Class c is stored as values[c], ignored pixels as values[-1] where there is one more."""

    def store(label: np.ndarray, path: Path) -> None:
        table = np.full(256, 255)
        table[: len(values)] = values
        save(table[label], path)

    return store


@dataclass
class Scene:
    """A data set with a mistake, and the config that reads it."""

    folder: Path
    meant: list[np.ndarray]
    num_classes: int
    store: Callable
    store_again: dict[str, Callable] = field(default_factory=dict)  # for advice that says how to make files
    suffix: str = '.png'
    mapping: dict | None = None
    reduce_zero_label: bool = False
    head: dict = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    zero: str = 'if 0 means "other"'  # what the user knows, where advice asks

    def __post_init__(self) -> None:
        self.classes = self.classes or tuple(f'c{i}' for i in range(self.num_classes))
        for kind in ('img', 'ann'):
            (self.folder / kind).mkdir(parents=True)
        for i, label in enumerate(self.meant):
            cv2.imwrite(str(self.folder / f'img/{i:02d}.png'), np.zeros((*label.shape, 3), np.uint8))
        self.write(self.store)

    def write(self, store: Callable) -> None:
        for i, label in enumerate(self.meant):
            store(label, self.folder / f'ann/{i:02d}{self.suffix}')

    def config(self) -> Config:
        pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
        if self.mapping is not None:
            pipeline.append(dict(type='MapLabels', mapping=self.mapping))
        dataset = dict(
            type='BaseSegDataset',
            data_root=str(self.folder),
            data_prefix=dict(img_path='img', seg_map_path='ann'),
            img_suffix='.png',
            seg_map_suffix=self.suffix,
            metainfo=dict(classes=self.classes),
            reduce_zero_label=self.reduce_zero_label,
            pipeline=[*pipeline, dict(type='PackSegInputs')],
        )
        head = dict(type='FCNHead', num_classes=self.num_classes, loss_decode=dict(type='CrossEntropyLoss'))
        return Config(dict(model=dict(decode_head=head | self.head), train_dataloader=dict(dataset=dataset)))

    def findings(self) -> list:
        """As tools/check_labels.py prints them, but for notes."""
        config = self.config()
        check_data(config, 'train')
        (part,) = from_config(config)
        statistics = part.statistics(with_images=True)
        found = [*check_statistics(statistics), *check_raw_zero([part], statistics), *check_unused_labels([part])]
        of_labels = sorted(found, key=lambda finding: -finding.severity)
        everything = [*check_config(config), *check_classes(config, [part]), *of_labels]
        return [finding for finding in everything if finding.severity > Severity.NOTE]

    def follow(self, advice: str) -> None:
        """Do what the first sentence of an advice says."""
        first = advice.removeprefix('likely cause: ').split('; or ')[0]
        if 'if 0 means "other"' in first:
            first = next(part for part in re.split('[:;] (?=if 0)', first) if part.startswith(self.zero))
        done = False
        if match := re.search(r"dict\(type='MapLabels', mapping=(\{[^}]*\})\)", first):
            self.mapping, done = ast.literal_eval(match[1]), True
        if match := re.search(r'set reduce_zero_label=(True|False)', first):
            self.reduce_zero_label, done = match[1] == 'True', True
        if match := re.search(r'need num_classes=(\d+) in every head, and a name for each', first):
            self.num_classes, done = int(match[1]), True
            self.classes = tuple(f'c{i}' for i in range(self.num_classes))
        if 'set num_classes=2 in every head, with out_channels=1 and use_sigmoid=True' in first:
            self.num_classes, self.classes, done = 2, ('background', 'foreground'), True
            self.head = dict(out_channels=1, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))
        if match := re.search(r"seg_map_suffix='(\S+)'", first):
            self.suffix, done = match[1], True
        for words, store in self.store_again.items():
            if words in first:
                self.write(store)
                done = True
        assert done, f'nothing in this advice can be followed: {advice}'


def true_pixels(scene: Scene) -> list[int]:
    every = np.concatenate([label.ravel() for label in scene.meant])
    return [int((every == c).sum()) for c in range(max(every[every != 255]) + 1)]


def jpeg(values) -> Callable:
    def store(label: np.ndarray, path: Path) -> None:
        Image.fromarray(np.array(values)[label].astype(np.uint8)).save(path, format='JPEG', quality=75)

    return store


def interpolated(values) -> Callable:
    """Masks that were made smaller and larger again."""

    def store(label: np.ndarray, path: Path) -> None:
        image = Image.fromarray(np.append(values, [0] * (255 - len(values)) + [255])[label].astype(np.uint8))
        small = tuple(size * 3 // 4 for size in image.size)
        image.resize(small, Image.BILINEAR).resize(image.size, Image.BILINEAR).save(path)

    return store


CITYSCAPES = dict(enumerate((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)))
WITHOUT = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
COCO_STUFF = [i for i in range(182) if i not in WITHOUT]


def label_ids(label: np.ndarray, path: Path) -> None:
    """Train ids of Cityscapes as label ids, with some that are ignored."""
    table = np.arange(256) % 7
    for train_id, label_id in CITYSCAPES.items():
        table[train_id] = label_id
    save(table[label], path)


SCENES = {
    'grey levels': lambda f: Scene(f, blocks(3), 3, mapped((29, 76, 150))),
    'scaled to be visible': lambda f: Scene(f, blocks(3), 3, mapped((0, 127, 254))),
    'scaled, with an ignored 255': lambda f: Scene(f, blocks(3, 0.1), 3, mapped((0, 85, 170))),
    'scaled, up to 255': lambda f: Scene(f, blocks(4), 4, mapped((0, 85, 170, 255))),
    'scaled, and shifted': lambda f: Scene(f, blocks(3), 3, mapped((0, 127, 254)), reduce_zero_label=True),
    'interpolated 0 and 255': lambda f: Scene(
        f, blocks(2), 2, interpolated((0, 255)), {'nearest neighbour': mapped((0, 255))}
    ),
    'interpolated grey levels': lambda f: Scene(
        f, blocks(3), 3, interpolated((0, 127, 254)), {'nearest neighbour': mapped((0, 127, 254))}
    ),
    'interpolated indices with ignored pixels': lambda f: Scene(
        f, blocks(21, 0.1), 21, interpolated(range(21)), {'nearest neighbour': mapped(range(21))}
    ),
    'JPEG of 0 and 255': lambda f: Scene(f, blocks(2), 2, jpeg((0, 255)), {'as PNG': mapped((0, 255))}),
    'JPEG of grey levels': lambda f: Scene(f, blocks(3), 3, jpeg((0, 127, 254)), {'as PNG': mapped((0, 127, 254))}),
    'JPEG of indices': lambda f: Scene(
        f, blocks(3), 3, jpeg((0, 1, 2)), {'as PNG': mapped(range(3)), 'PNG': mapped(range(3))}
    ),
    'ids with a gap': lambda f: Scene(f, blocks(3), 3, mapped((1, 2, 4))),
    'ids with gaps and ignored pixels': lambda f: Scene(f, blocks(5, 0.1), 5, mapped((0, 1, 3, 7, 8))),
    'Cityscapes': lambda f: Scene(f, blocks(19, 0.1), 19, label_ids, {'_gtFine_labelTrainIds.png': mapped(range(19))}),
    'COCO-Stuff': lambda f: Scene(f, blocks(171), 171, mapped(COCO_STUFF), {'_labelTrainIds.png': mapped(range(171))}),
    'unknown beyond a gap': lambda f: Scene(f, blocks(3, 0.2), 3, mapped((0, 1, 2, *[4] * 253))),
    'never shifted': lambda f: Scene(f, blocks(3), 3, mapped((1, 2, 3))),
    'never shifted, with some 0': lambda f: Scene(f, blocks(3, 0.1), 3, mapped((1, 2, 3, *[0] * 253))),
    'shifted on disk': lambda f: Scene(f, blocks(3, 0.1), 3, mapped(range(3)), reduce_zero_label=True),
    'shifted by code that does not keep 255': lambda f: Scene(
        f, blocks(3, 0.1), 3, mapped((0, 1, 2, *[254] * 253)), {'shift once': mapped(range(3))}
    ),
    **{
        f'one class too many, of {c + 1}': lambda f, c=c: Scene(
            f, blocks(c + 1), c, mapped(range(c + 1)), zero='if 0 is a class'
        )
        for c in (4, 6, 8, 12, 20)
    },
    'one class too many': lambda f: Scene(f, blocks(4), 3, mapped(range(4))),
    'two classes too many': lambda f: Scene(f, blocks(5), 3, mapped(range(5))),
    '254 for the foreground': lambda f: Scene(f, blocks(2), 2, mapped((0, 254))),
    '0 and 255': lambda f: Scene(f, blocks(2), 2, mapped((0, 255))),
    '0 and 255, and shifted': lambda f: Scene(f, blocks(2), 2, mapped((0, 255)), reduce_zero_label=True),
    '0 and 1 in one class': lambda f: Scene(f, blocks(2), 1, mapped((0, 1))),
    '0 and 1 in one class with a sigmoid': lambda f: Scene(
        f, blocks(2), 1, mapped((0, 1)), head=dict(loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))
    ),
    'one channel and a softmax': lambda f: Scene(f, blocks(2), 2, mapped((0, 1)), head=dict(out_channels=1)),
}
# Two mistakes, the second of which shows with the first.
TWO_STEPS = {
    '0 and 7 in one class': lambda f: Scene(f, blocks(2), 1, mapped((0, 7))),
    '0 and 255 in one class': lambda f: Scene(f, blocks(2), 1, mapped((0, 255))),
    '0 and 255 in one channel of one class': lambda f: Scene(
        f, blocks(2), 1, mapped((0, 255)), head=dict(loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True))
    ),
    '0 and 1 in one class, shifted': lambda f: Scene(f, blocks(2), 1, mapped((0, 1)), reduce_zero_label=True),
}


@pytest.mark.parametrize('name', [*SCENES, *TWO_STEPS])
def test_advice_that_is_followed_leads_to_a_clean_state(tmp_path, name):
    scene = (SCENES | TWO_STEPS)[name](tmp_path / 'data')
    steps = []

    while found := scene.findings():
        steps.append(str(found[0]))
        assert len(steps) <= (1 if name in SCENES else 2), '\n'.join(steps)
        scene.follow(found[0].change)

    assert steps, 'nothing was found'
    (part,) = from_config(scene.config())
    assert part.statistics().pixels.tolist() == true_pixels(scene)


@pytest.mark.parametrize(
    'name',
    [
        'grey levels',
        'interpolated grey levels',
        'ids with a gap',
        'unknown beyond a gap',
        'never shifted',
        'one class too many',
        'shifted by code that does not keep 255',
    ],
)
def test_the_loss_says_the_same_of_a_batch(tmp_path, name):
    scene = SCENES[name](tmp_path / 'data')
    (finding, *_) = scene.findings()
    (part,) = from_config(scene.config())
    target = torch.from_numpy(np.stack([part.labels(i) for i in range(len(part))])).long()

    with pytest.raises(ValueError, match='Likely cause') as caught:
        weighted_cross_entropy(torch.zeros(FEW, scene.num_classes, 8, 8), target)

    first = str(caught.value).split('Likely cause: ')[1].split('; or ')[0].rstrip('.')
    assert finding.change.removeprefix('likely cause: ').split('; or ')[0] == first


RIGHT = {
    'indices': lambda f: Scene(f, blocks(3), 3, mapped(range(3))),
    'indices with ignored pixels': lambda f: Scene(f, blocks(3, 0.2), 3, mapped(range(3))),
    'ADE20K': lambda f: Scene(f, blocks(3, 0.05), 3, mapped((1, 2, 3, *[0] * 253)), reduce_zero_label=True),
    'grey levels, mapped': lambda f: Scene(f, blocks(3), 3, mapped((0, 127, 254)), mapping={127: 1, 254: 2}),
    'two classes': lambda f: Scene(f, blocks(2), 2, mapped((0, 1))),
    'two classes with borders': lambda f: Scene(f, blocks(2, 0.05), 2, mapped((0, 1))),
    'one channel': lambda f: Scene(
        f,
        blocks(2),
        2,
        mapped((0, 1)),
        head=dict(out_channels=1, loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)),
    ),
    'many classes in few images': lambda f: Scene(f, blocks(150, 0.1), 150, mapped(range(150))),
    'scribbles': lambda f: Scene(f, blocks(3, 0.85), 3, mapped(range(3))),
}


@pytest.mark.parametrize('name', RIGHT)
def test_nothing_is_found_where_nothing_is_wrong(tmp_path, name):
    assert [str(finding) for finding in RIGHT[name](tmp_path / 'data').findings()] == []
