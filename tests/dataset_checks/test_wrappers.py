"""Data sets and wrappers that make their samples in a way of their own, compared with what they give the training."""

import random
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import ClassBalancedDataset
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS
from mmseg_wce.dataset_checks import from_config, from_dataset
from mmseg_wce.dataset_checks.wrappers import inherits_items, leaves
from PIL import Image
from three_classes import IMAGE, LOAD, PACK, ThreeClasses, dataset_config, make_masks
from torch.utils.data import Subset


def swapped(item):
    labels = item['data_samples'].gt_sem_seg.data
    labels.apply_(lambda value: {0: 1, 1: 0}.get(value, value))
    return item


@DATASETS.register_module()
class SwapsItems(ThreeClasses):
    """Swaps two classes in every item."""

    def __getitem__(self, index):
        return swapped(super().__getitem__(index))


@DATASETS.register_module()
class SwapsInAWrapper:
    """Swaps two classes of another data set's items."""

    def __init__(self, dataset):
        self.dataset = DATASETS.build(dataset)
        self.metainfo = self.dataset.metainfo

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return swapped(self.dataset[index])


def items_of(dataset) -> list[np.ndarray]:
    return [dataset[i]['data_samples'].gt_sem_seg.data[0].numpy() for i in range(len(dataset))]


@pytest.mark.parametrize('wrapped', [False, True])
def test_items_are_taken_as_they_are(data, wrapped):
    pipeline = [IMAGE, LOAD, PACK]
    own = dataset_config(data, type='SwapsItems', pipeline=pipeline)
    config = dict(type='SwapsInAWrapper', dataset=dataset_config(data, pipeline=pipeline)) if wrapped else own
    dataset = DATASETS.build(config)

    (part,) = from_dataset(dataset)

    name = config['type']
    assert part.notes == (
        f'{name} makes its samples in a way of its own, so that labels are counted as they come out of it: after crops '
        'and flips',
    )
    assert part.classes == ('a', 'b', 'c')
    assert all(map(np.array_equal, map(part.labels, range(6)), items_of(dataset)))
    every = np.concatenate(items_of(dataset), axis=None)
    statistics = part.statistics(with_images=True)
    assert (statistics.failed, statistics.image_mismatches) == ({}, {})
    assert statistics.pixels.tolist() == [(every == c).sum() for c in range(3)]
    assert list(statistics.storage) == [name]
    assert part.reader.image(part.samples[0]).shape == (12, 16, 3)


def test_items_inside_other_wrappers(data):
    own = dataset_config(data, type='SwapsItems', pipeline=[IMAGE, LOAD, PACK])
    plain = dataset_config(data, pipeline=[IMAGE, LOAD, PACK])
    repeated = dict(type='RepeatDataset', times=2, dataset=own)
    dataset = DATASETS.build(dict(type='ConcatDataset', datasets=[plain, repeated]))

    parts = from_dataset(dataset)

    assert [(part.dataset, part.times) for part in parts] == [('ThreeClasses', 1), ('SwapsItems', 2)]
    for part, offset in zip(parts, (0, 6), strict=True):
        assert all(np.array_equal(part.labels(i), items_of(dataset)[offset + i]) for i in range(6))


def test_values_that_eight_bits_change_are_found_in_items_as_well(data):
    for i, mask in enumerate(make_masks(6)):
        Image.fromarray(mask.astype(np.uint16) + 256).save(data / f'annotations/training/{i:02d}.png')
    dataset = DATASETS.build(dict(type='SwapsInAWrapper', dataset=dataset_config(data, pipeline=[IMAGE, LOAD, PACK])))

    (part,) = from_dataset(dataset)

    assert part.statistics().altered['wrapped before others'].files == 6


def test_a_wrapper_that_repeats_samples_below_one_that_mixes(data, monkeypatch):
    """Its samples are those of the wrapper, not those of the data set."""
    monkeypatch.setattr(ThreeClasses, 'get_cat_ids', lambda self, index: [index > 1])
    plain = dataset_config(data, pipeline=[IMAGE, LOAD])
    repeated = dict(type='ClassBalancedDataset', oversample_thr=0.9, dataset=plain)
    dataset = DATASETS.build(dict(type='MultiImageMixDataset', dataset=repeated, pipeline=[PACK]))

    (part,) = from_dataset(dataset)

    assert len(part) == len(dataset) > 6
    assert all(map(np.array_equal, map(part.labels, range(len(part))), items_of(dataset)))


@DATASETS.register_module()
class KeepsAList(ThreeClasses):
    """Remembers in a list of its own what was asked for, and draws from generators of its own."""

    def __init__(self, **options):
        self.asked = []
        self.inner = SimpleNamespace(generator=np.random.default_rng(0))
        self.choice = random.Random(0)
        super().__init__(**options)

    def get_data_info(self, index):
        self.asked.append(index)
        self.inner.generator.random()
        self.choice.random()
        return super().get_data_info(index)


def test_lists_and_generators_of_a_data_set_are_left_as_they_were(data):
    dataset = DATASETS.build(dataset_config(data, type='KeepsAList', pipeline=[IMAGE, LOAD, PACK]))

    def state():
        return list(dataset.asked), dataset.inner.generator.bit_generator.state, dataset.choice.getstate()

    before = state()

    (part,) = from_dataset(dataset)
    part.statistics(with_images=True)

    assert state() == before


def test_a_joined_part_without_labels_does_not_cost_the_others(data):
    parts = [dataset_config(data, pipeline=[IMAGE, *load, PACK]) for load in ([], [LOAD])]

    (part,) = from_dataset(DATASETS.build(dict(type='ConcatDataset', datasets=parts)))

    assert part.statistics().num_images == 6
    assert 'its pipeline has no LoadAnnotations' in part.notes[0]


@DATASETS.register_module()
class HasNoInfo(ThreeClasses):
    def get_data_info(self, index):
        raise NotImplementedError('ask for items')

    def __getitem__(self, index):
        return self.pipeline(super().get_data_info(index))


def test_a_data_set_that_gives_items_only(data):
    dataset = DATASETS.build(dataset_config(data, type='HasNoInfo', pipeline=[IMAGE, LOAD, PACK]))

    (part,) = from_dataset(dataset)

    assert all(map(np.array_equal, map(part.labels, range(6)), items_of(dataset)))


@pytest.mark.parametrize(
    'wrap',
    [
        lambda dataset: Subset(dataset, [0, 1]),
        lambda dataset: ClassBalancedDataset(dataset, oversample_thr=1e-3),
    ],
)
def test_wrappers_that_choose_samples_say_that_all_are_counted(data, wrap, monkeypatch):
    monkeypatch.setattr(ThreeClasses, 'get_cat_ids', lambda self, index: [0])
    dataset = wrap(DATASETS.build(dataset_config(data)))

    (part,) = from_dataset(dataset)

    assert part.notes == (f'{type(dataset).__name__}: all samples of its data set are counted, and each once',)
    assert len(part) == 6


def test_a_wrapper_that_cannot_be_copied(data):
    dataset = DATASETS.build(dict(type='SwapsInAWrapper', dataset=dataset_config(data)))
    dataset.lock = threading.Lock()

    with pytest.raises(ValueError, match='SwapsInAWrapper cannot be copied'):
        from_dataset(dataset)


def test_samples_without_a_label_are_named(data):
    """Samples without one are named, since the training fails for them."""
    config = dataset_config(data, type='SomeLabels', pipeline=[IMAGE, LOAD, PACK])

    (part,) = from_config(Config(dict(train_dataloader=dict(dataset=config))))
    statistics = part.statistics()

    assert (len(part), statistics.num_images) == (6, 5)
    ((file, reason),) = statistics.failed.items()
    assert file.endswith('03.jpg')
    assert reason == 'the data set names no label for this image'


@DATASETS.register_module()
class SomeLabels(ThreeClasses):
    def load_data_list(self):
        samples = super().load_data_list()
        samples[3].pop('seg_map_path')
        return samples


def test_overridden_getitem_is_recognised(data):
    plain = DATASETS.build(dataset_config(data))

    assert inherits_items(plain, BaseSegDataset)
    assert not inherits_items(DATASETS.build(dataset_config(data, type='SwapsItems')), ThreeClasses)
    assert [leaf.dataset for leaf in leaves(plain)] == [plain]
