"""Labels of pipelines with transforms of a project's own, compared with what the data set itself gives."""

import copy
import pickle
import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine.config import Config
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, TRANSFORMS
from mmseg_wce.dataset_checks import Severity, check_statistics, from_config, from_dataset, scan
from mmseg_wce.dataset_checks.label_readers import AnnotationReader, PipelineReader
from PIL import Image
from three_classes import IMAGE, LOAD, PACK, dataset_config, make_masks, part_of, write_data

CROP, ADD_ONE = dict(type='RandomCrop', crop_size=(4, 4)), dict(type='AddOne')


def dataset_of(data, *pipeline, **changes):
    return DATASETS.build(dataset_config(data, pipeline=list(pipeline), **changes))


def part_of_config(data, *pipeline):
    dataset = dataset_config(data, pipeline=list(pipeline))
    (part,) = from_config(Config(dict(train_dataloader=dict(dataset=dataset))))
    return part


def labels_of(part) -> list[np.ndarray]:
    return [part.labels(i) for i in range(len(part))]


def labels_in_training(data, *pipeline, **changes) -> list[np.ndarray]:
    """Return the label of the whole pipeline, which must not move anything."""
    dataset = dataset_of(data, *pipeline, **changes)
    samples = [dataset[i] for i in range(len(dataset))]
    return [s['gt_seg_map'] if 'gt_seg_map' in s else s['data_samples'].gt_sem_seg.data[0].numpy() for s in samples]


def same(found, expected) -> bool:
    return len(found) == len(expected) and all(map(np.array_equal, found, expected))


@TRANSFORMS.register_module()
class AddOne(BaseTransform):
    """Labels become 1 more, but for the ignored one."""

    def transform(self, results):
        seg = results['gt_seg_map'].astype(np.int64)
        results['gt_seg_map'] = np.where(seg == 255, 255, seg + 1)
        return results


@TRANSFORMS.register_module()
class ByImage(BaseTransform):
    """Labels where the image is bright are ignored; ``how`` it asks for the image."""

    def __init__(self, how='item'):
        self.how = how

    def transform(self, results):
        image = results['img'] if self.how == 'item' else dict(**results).get('img')
        if image is None:
            return results
        results['gt_seg_map'] = np.where(image[..., 0] > 100, 255, results['gt_seg_map'])
        return results


@TRANSFORMS.register_module()
class LoadBoxes(BaseTransform):
    """Class 1 in the upper half, at the size of the image, which is known from a default if need be."""

    def __init__(self, get=False):
        self.get = get

    def transform(self, results):
        height, width = results.get('img_shape', (2, 2)) if self.get else results['img_shape']
        seg = np.zeros((height, width), np.uint8)
        seg[: height // 2] = 1
        results['gt_seg_map'] = seg
        results['seg_fields'].append('gt_seg_map')
        return results


@TRANSFORMS.register_module()
class LoadMyImage(BaseTransform):
    """An image loader of a project's own."""

    loaded = 0

    def transform(self, results):
        type(self).loaded += 1
        results['img'] = np.array(Image.open(results['img_path']).convert('RGB'))
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results


@TRANSFORMS.register_module()
class OtherFolder(BaseTransform):
    """Labels come from another file than the data set says."""

    def transform(self, results):
        results['seg_map_path'] = results['seg_map_path'].replace('00.png', '01.png')
        return results


@TRANSFORMS.register_module()
class OtherImage(BaseTransform):
    """Images come from another file than the data set says."""

    def transform(self, results):
        results['img_path'] = results['img_path'].replace('00.jpg', '01.jpg')
        return results


@TRANSFORMS.register_module()
class WithScale(BaseTransform):
    """Needs what Resize makes."""

    def transform(self, results):
        assert results['scale_factor']
        results['gt_seg_map'] = np.where(results['gt_seg_map'] == 255, 255, 2)
        return results


@TRANSFORMS.register_module()
class AfterPacking(BaseTransform):
    """Changes packed labels."""

    def transform(self, results):
        labels = results['data_samples'].gt_sem_seg.data
        results['data_samples'].gt_sem_seg.data = torch.where(labels == 0, 2, labels)
        return results


@TRANSFORMS.register_module()
class UpperHalf(BaseTransform):
    """Crops, and calls the rest class 0."""

    def transform(self, results):
        seg = results['gt_seg_map'][: results['gt_seg_map'].shape[0] // 2]
        results['gt_seg_map'] = np.zeros_like(seg)
        return results


@TRANSFORMS.register_module()
class OnlySome(BaseTransform):
    """Leaves out what holds a label."""

    def __init__(self, without):
        self.without = without

    def transform(self, results):
        return None if (results['gt_seg_map'] == self.without).any() else results


@TRANSFORMS.register_module()
class AtRandom(BaseTransform):
    """Draws from every source of random numbers, and counts its calls."""

    def __init__(self):
        self.own_calls = 0

    def transform(self, results):
        self.own_calls += 1
        drawn = random.random() + np.random.rand() + torch.rand(()).item()
        results['gt_seg_map'] = np.full_like(results['gt_seg_map'], int(drawn) % 3)
        return results


@TRANSFORMS.register_module()
class Fails(BaseTransform):
    def __init__(self, only=''):
        self.only = only

    def transform(self, results):
        if self.only in results['seg_map_path']:
            raise LookupError('no such colour')
        return results


@TRANSFORMS.register_module()
class NotCopied(BaseTransform):
    def __init__(self):
        self.lock = threading.Lock()

    def transform(self, results):
        return results


@TRANSFORMS.register_module()
class NotBuilt(BaseTransform):
    def __init__(self):
        raise OSError('no table')

    def transform(self, results):
        return results


PIPELINES = {
    'plain': [IMAGE, LOAD],
    'labels first': [LOAD, IMAGE],
    'remap': [IMAGE, LOAD, ADD_ONE, PACK],
    'two remaps': [IMAGE, LOAD, ADD_ONE, dict(type='Normalize', mean=[0], std=[1]), ADD_ONE],
    'table': [IMAGE, LOAD, dict(type='MapLabels', mapping={0: 2, 2: 0}), PACK],
    'with the image': [IMAGE, LOAD, dict(type='ByImage')],
    'with everything': [IMAGE, LOAD, dict(type='ByImage', how='all')],
    'boxes': [IMAGE, dict(type='LoadBoxes')],
    'boxes by get': [IMAGE, dict(type='LoadBoxes', get=True)],
    'own image': [dict(type='LoadMyImage'), LOAD, PACK],
    'own image and remap': [dict(type='LoadMyImage'), LOAD, dict(type='ByImage')],
    'other files': [dict(type='OtherFolder'), IMAGE, LOAD],
    'compose': [dict(type='Compose', transforms=[IMAGE, LOAD, ADD_ONE])],
    'always': [IMAGE, LOAD, dict(type='RandomApply', transforms=[ADD_ONE], prob=1.0)],
    'never': [IMAGE, LOAD, dict(type='RandomApply', transforms=[ADD_ONE], prob=0.0)],
    'choice': [IMAGE, LOAD, dict(type='RandomChoice', transforms=[[ADD_ONE], [ADD_ONE]])],
    'mapper': [IMAGE, dict(type='KeyMapper', transforms=[LOAD, ADD_ONE])],
    'mapped keys': [
        IMAGE,
        LOAD,
        dict(type='KeyMapper', mapping=dict(gt_seg_map='gt_seg_map'), auto_remap=True, transforms=[ADD_ONE]),
    ],
    'packed': [IMAGE, LOAD, PACK, dict(type='AfterPacking')],
    'scaled': [IMAGE, LOAD, dict(type='Resize', scale=(16, 12)), dict(type='WithScale')],
    'own loader of mmcv': [IMAGE, dict(type='mmcv.LoadAnnotations', with_bbox=False, with_label=False, with_seg=True)],
}


@pytest.mark.parametrize('reduce_zero_label', [True, False])
@pytest.mark.parametrize('name', PIPELINES)
def test_labels_are_those_of_the_training(data, name, reduce_zero_label):
    pipeline, options = PIPELINES[name], dict(reduce_zero_label=reduce_zero_label)

    part = part_of(data, *pipeline, **options)

    assert same(labels_of(part), labels_in_training(data, *pipeline, **options))
    every = np.concatenate([labels.ravel() for labels in labels_of(part)])
    statistics = part.statistics()
    assert statistics.failed == {}
    assert statistics.ignored_pixels == (every == 255).sum()
    assert statistics.pixels.tolist() == [(every == c).sum() for c in range(3)]
    assert {v: t.pixels for v, t in statistics.unexpected.items()} == {
        v: (every == v).sum() for v in np.unique(every).tolist() if not 0 <= v < 3 and v != 255
    }
    *_, (number, scanned) = scan([part], num_workers=2)
    assert (number, scanned.pixels.tolist()) == (len(part), statistics.pixels.tolist())


@pytest.mark.parametrize('name', ['plain', 'labels first', 'own image', 'mapper'])
def test_plain_files_are_read_directly(data, name):
    pipeline = [step for step in PIPELINES[name] if step.get('type') != 'AddOne']
    pipeline = [dict(type='KeyMapper', transforms=[LOAD])] if name == 'mapper' else pipeline

    assert isinstance(part_of(data, *pipeline).reader, AnnotationReader)


def test_transforms_that_move_pixels_or_pack_are_left_out(data):
    moved = [IMAGE, LOAD, CROP, dict(type='RandomFlip', prob=1.0), dict(type='PhotoMetricDistortion')]
    part = part_of(data, *moved, ADD_ONE, dict(type='RandomRotate', prob=1.0, degree=90), PACK)

    assert same(labels_of(part), labels_in_training(data, IMAGE, LOAD, ADD_ONE))
    assert [type(t).__name__ for t in part.reader.pipeline.transforms] == [
        'LoadImageFromFile',
        'LoadAnnotations',
        'AddOne',
    ]


def test_images_are_decoded_only_where_a_transform_needs_them(data, monkeypatch):
    loaded, four = [], dict(metainfo=dict(classes=tuple('abcd')), type='BaseSegDataset')
    transform = LoadImageFromFile.transform
    monkeypatch.setattr(LoadImageFromFile, 'transform', lambda *a: loaded.append(a[1]['img_path']) or transform(*a))
    remapped = part_of(data, IMAGE, LOAD, ADD_ONE, **four)
    painted = part_of(data, IMAGE, dict(type='LoadBoxes'))
    loaded.clear()

    remapped.statistics()
    assert loaded == []

    painted.statistics()
    assert len(loaded) == len(painted)


def test_an_image_loader_of_ones_own_is_not_run_for_plain_labels(data):
    part = part_of(data, dict(type='LoadMyImage'), LOAD, PACK)
    LoadMyImage.loaded = 0

    part.statistics()
    assert LoadMyImage.loaded == 0

    assert part.reader.image(part.samples[0]).shape == (12, 16, 3)
    assert part.statistics(with_images=True).image_mismatches == {}


def test_missing_images_do_not_cost_the_labels(data):
    for file in (data / 'images/training').iterdir():
        file.write_bytes(b'')
    part = part_of(data, IMAGE, LOAD, ADD_ONE)

    assert part.statistics().failed == {}


@pytest.mark.parametrize('more', [[], [ADD_ONE]])
@pytest.mark.parametrize(('damage', 'kind'), [(Path.unlink, 'missing'), (lambda p: p.write_bytes(b'x'), 'unreadable')])
def test_images_that_cannot_be_compared_do_not_cost_the_labels(data, more, damage, kind):
    part = part_of(data, IMAGE, LOAD, *more)
    damage(data / 'images/training/02.jpg')

    statistics = part.statistics(with_images=True)

    assert statistics.failed == {}
    assert {k: (t.files, Path(t.example).name) for k, t in statistics.image_mismatches.items()} == {kind: (1, '02.png')}


def test_images_of_changed_paths_are_compared(data):
    """A transform before the loaders decides which files are read."""
    Image.new('RGB', (9, 7)).save(data / 'images/training/00.jpg')

    part = part_of(data, dict(type='OtherImage'), IMAGE, LOAD)

    assert part.statistics(with_images=True).image_mismatches == {}
    assert part.reader.image(part.samples[0]).shape == (12, 16, 3)


def random_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize('pipeline', [[IMAGE, LOAD, dict(type='AtRandom'), CROP], [IMAGE, LOAD, CROP, PACK]])
def test_a_check_changes_nothing_of_the_training(data, pipeline):
    dataset = dataset_of(data, *pipeline)
    before = pickle.dumps([vars(t) for t in dataset.pipeline.transforms])
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    states = random_states()

    (part,) = from_dataset(dataset, most=4)
    part.statistics(with_images=True)

    assert random_states() == states
    assert pickle.dumps([vars(t) for t in dataset.pipeline.transforms]) == before


def test_random_labels_are_the_same_at_every_reading(data):
    part = part_of(data, IMAGE, LOAD, dict(type='AtRandom'))

    first = labels_of(part)

    assert same(labels_of(part), first)
    assert len({int(labels[0, 0]) for labels in first}) > 1


def test_a_transform_after_packing_makes_the_whole_pipeline_run_and_says_so(data):
    part = part_of(data, IMAGE, LOAD, PACK, dict(type='AfterPacking'))

    (note,) = part.notes
    assert 'need what the ones left out make' in note
    assert "KeyError: 'data_samples'" in note


def test_labels_after_the_whole_pipeline_have_their_meaning(data):
    part = part_of(data, IMAGE, LOAD, dict(type='Resize', scale=(8, 6)), CROP, dict(type='WithScale'))

    assert "KeyError: 'scale_factor'" in part.notes[0]
    assert {value for labels in labels_of(part) for value in np.unique(labels).tolist()} <= {2, 255}
    assert part.labels(0).shape == (4, 4)


def test_a_transform_that_changes_the_size_says_so(data):
    part = part_of(data, IMAGE, LOAD, dict(type='UpperHalf'))

    assert part.labels(0).shape == (6, 16)
    (note,) = part.notes
    assert 'UpperHalf changes the size of labels (16 x 12 becomes 16 x 6, width x height)' in note
    assert part.statistics(with_images=True).image_mismatches == {}  # compared after the loader


def test_samples_that_a_transform_leaves_out(data):
    part = part_of(data, IMAGE, LOAD, dict(type='OnlySome', without=255))
    without = [i for i in range(6) if not (labels_in_training(data, IMAGE, LOAD)[i] == 255).any()]

    statistics = part.statistics()

    assert statistics.num_images == len(without)
    assert statistics.dropped.files == 6 - len(without)
    assert statistics.failed == {}
    (note,) = [f for f in check_statistics(statistics) if 'left out' in f.what]
    assert (note.severity, 'OnlySome returns None' in note.what) == (Severity.NOTE, True)


def test_all_samples_left_out_is_an_error(data):
    for file in (data / 'annotations/training').iterdir():
        Image.fromarray(np.zeros((12, 16), np.uint8)).save(file)

    statistics = part_of(data, IMAGE, LOAD, dict(type='OnlySome', without=255)).statistics()

    assert [f.severity for f in check_statistics(statistics) if 'all samples' in f.what] == [Severity.ERROR]


def test_a_transform_that_fails_for_one_file_names_it(data):
    statistics = part_of(data, IMAGE, LOAD, dict(type='Fails', only='03.png')).statistics()

    assert [Path(file).name for file in statistics.failed] == ['03.png']
    assert 'LookupError: no such colour' in next(iter(statistics.failed.values()))


def test_transforms_that_cannot_be_copied_are_said(data):
    with pytest.raises(ValueError, match=r'NotCopied cannot be copied .*so its labels are not checked'):
        part_of(data, IMAGE, LOAD, dict(type='NotCopied'))


@pytest.mark.parametrize(
    ('container', 'words'),
    [
        (dict(type='RandomApply', transforms=[ADD_ONE], prob=0.5), 'RandomApply changes labels at random'),
        (dict(type='RandomChoice', transforms=[[ADD_ONE], []]), 'RandomChoice changes labels at random'),
        (dict(type='RandomApply', transforms=[dict(type='PhotoMetricDistortion')], prob=0.5), None),
        (dict(type='RandomChoice', transforms=[[CROP], [dict(type='RandomFlip', prob=0.5)]]), None),
    ],
)
def test_random_containers_of_label_transforms_are_named(data, container, words):
    part = part_of(data, IMAGE, LOAD, container)

    assert [words in note for note in part.notes] == [True] * (words is not None)
    assert isinstance(part.reader, PipelineReader) == (words is not None)


def test_test_time_augmentation(data):
    stages = [
        [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (0.5, 1.0)],
        [LOAD],
        [ADD_ONE],
        [PACK],
    ]
    part = part_of(data, IMAGE, dict(type='TestTimeAug', transforms=stages))

    assert same(labels_of(part), labels_in_training(data, IMAGE, LOAD, ADD_ONE))


def test_albumentations_is_left_out_also_where_it_is_not_installed(data):
    albu = dict(type='Albu', transforms=[dict(type='HorizontalFlip', p=0.5)])
    part = part_of_config(data, IMAGE, LOAD, albu, ADD_ONE, PACK)

    assert part.notes == ()
    assert same(labels_of(part), labels_in_training(data, IMAGE, LOAD, ADD_ONE))


@pytest.mark.parametrize(
    'step', [dict(type='NotRegisteredAnywhere'), dict(type='Compose', transforms=[dict(type='No')])]
)
def test_transforms_that_are_not_registered_are_left_out_and_named(data, step):
    part = part_of_config(data, IMAGE, LOAD, step, ADD_ONE, PACK)

    assert f'transform {step["type"]} is left out, since it cannot be built' in part.notes[0]
    assert same(labels_of(part), labels_in_training(data, IMAGE, LOAD, ADD_ONE))


def test_a_transform_that_cannot_be_built_fails_for_every_file(data):
    failed = part_of_config(data, IMAGE, LOAD, dict(type='NotBuilt'), PACK).statistics().failed

    assert len(failed) == 6
    assert 'transform NotBuilt cannot be built' in next(iter(failed.values()))


def mixed(data, *pipeline, inner=(), **options):
    inner = dataset_config(data, pipeline=[IMAGE, LOAD, *inner])
    joined = dict(type='ConcatDataset', datasets=[inner, dict(type='RepeatDataset', times=2, dataset=inner)])
    return dict(type='MultiImageMixDataset', dataset=joined, pipeline=list(pipeline), **options)


MOSAIC = dict(type='RandomMosaic', prob=1.0, img_scale=(12, 16), seg_pad_val=255)


@TRANSFORMS.register_module()
class MixUp(BaseTransform):
    """Labels are those of another image where these are ignored."""

    def get_indices(self, dataset):
        return [0]

    def transform(self, results):
        other = results['mix_results'][0]['gt_seg_map']
        results['gt_seg_map'] = np.where(results['gt_seg_map'] == 255, other, results['gt_seg_map'])
        return results


def test_the_pipeline_of_a_wrapper_is_applied(data):
    parts = from_dataset(DATASETS.build(mixed(data, MOSAIC, ADD_ONE, CROP, PACK)))

    assert [(len(part), part.times) for part in parts] == [(6, 1), (6, 2)]
    for part in parts:
        assert same(labels_of(part), labels_in_training(data, IMAGE, LOAD, ADD_ONE))


def test_wrappers_around_wrappers_and_skipped_transforms(data):
    outer = dict(type='MultiImageMixDataset', dataset=mixed(data, ADD_ONE), pipeline=[ADD_ONE])
    skipped = mixed(data, ADD_ONE, skip_type_keys=['AddOne'])

    for config, steps in ((outer, [ADD_ONE, ADD_ONE]), (skipped, [])):
        for part in from_dataset(DATASETS.build(config)):
            assert same(labels_of(part), labels_in_training(data, IMAGE, LOAD, *steps))


def test_a_wrapper_that_mixes_labels_is_run_whole(data):
    dataset = DATASETS.build(mixed(data, dict(type='MixUp')))
    expected = [dataset[i]['gt_seg_map'] for i in range(6)]

    first, second = from_dataset(dataset)

    assert "KeyError: 'mix_results'" in first.notes[0]
    assert same(labels_of(first), expected)
    assert same(labels_of(second), expected)


def test_a_wrapper_of_a_config_with_transforms_that_are_not_registered(data):
    config = mixed(data, dict(type='NotRegisteredAnywhere'), ADD_ONE)

    for part in from_config(Config(dict(train_dataloader=dict(dataset=config)))):
        assert 'NotRegisteredAnywhere is left out' in part.notes[0]
        assert same(labels_of(part), labels_in_training(data, IMAGE, LOAD, ADD_ONE))


@DATASETS.register_module()
class Prepares(BaseSegDataset):
    """Prepares samples in a way of its own."""

    METAINFO = dict(classes=('a', 'b', 'c'))

    def prepare_data(self, idx):
        info = self.get_data_info(idx)
        info['seg_map_path'] = info['seg_map_path'].replace('00.png', '01.png')
        return self.pipeline(info)


def test_a_data_set_that_prepares_samples_itself(data):
    part = part_of(data, IMAGE, LOAD, type='Prepares')

    assert same(labels_of(part), labels_in_training(data, IMAGE, LOAD, type='Prepares'))
    assert same(labels_of(part)[:1], labels_of(part)[1:2])


@DATASETS.register_module()
class TwoConventions(BaseSegDataset):
    """Every sample says by itself how its labels are to be read."""

    METAINFO = dict(classes=('a', 'b', 'c'))

    def get_data_info(self, idx):
        info = super().get_data_info(idx)
        info['label_map'] = {0: 2} if idx % 2 else None
        return info


def test_samples_with_label_maps_of_their_own(data):
    part = part_of(data, IMAGE, LOAD, type='TwoConventions')

    assert same(labels_of(part), labels_in_training(data, IMAGE, LOAD, type='TwoConventions'))


def npy_data(tmp_path, arrays):
    write_data(tmp_path, make_masks(len(arrays)))
    for i, array in enumerate(arrays):
        np.save(tmp_path / f'annotations/training/{i:02d}.npy', array)
    return tmp_path


@TRANSFORMS.register_module()
class LoadNpy(BaseTransform):
    def transform(self, results):
        results['gt_seg_map'] = np.load(results['seg_map_path'])
        results['seg_fields'].append('gt_seg_map')
        return results


def npy_part(tmp_path, *arrays, ignore_index=255, classes=3, **changes):
    names = tuple(f'c{i}' for i in range(classes))
    options = dict(type='BaseSegDataset', metainfo=dict(classes=names), seg_map_suffix='.npy', reduce_zero_label=False)
    config = dataset_config(npy_data(tmp_path, arrays), pipeline=[IMAGE, dict(type='LoadNpy'), PACK], **options)
    (part,) = from_dataset(DATASETS.build(config), ignore_index=ignore_index)
    return part


@pytest.mark.parametrize('dtype', [bool, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, float])
def test_any_dtype_of_labels(tmp_path, dtype):
    labels = (np.arange(192).reshape(12, 16) % 2).astype(dtype)

    statistics = npy_part(tmp_path, labels).statistics()

    assert statistics.pixels.tolist() == [96, 96, 0]
    assert statistics.altered == {}
    assert [f for f in check_statistics(statistics) if f.severity > Severity.NOTE] == []


@pytest.mark.parametrize(
    ('dtype', 'ignore_index', 'classes'),
    [(np.int16, -1, 3), (np.int64, -100, 3), (np.uint16, 65535, 300), (np.int32, 300, 300), (np.uint16, 65535, 65535)],
)
def test_any_ignored_label_and_number_of_classes(tmp_path, dtype, ignore_index, classes):
    labels = np.array([[0, 1, classes - 1, ignore_index]] * 3, dtype)

    part = npy_part(tmp_path, labels, ignore_index=ignore_index, classes=classes)

    statistics = part.statistics()
    assert {c: n for c, n in enumerate(statistics.pixels.tolist()) if n} == {0: 3, 1: 3, classes - 1: 3}
    assert statistics.ignored_pixels == 3
    assert [f for f in check_statistics(statistics) if f.severity > Severity.NOTE] == []


def test_labels_that_are_no_whole_numbers(tmp_path):
    labels = np.zeros((4, 5), np.float32)
    labels[1, 2], labels[3, 4], labels[0, 0] = np.nan, 1.5, 2.0
    part = npy_part(tmp_path, labels)

    found = check_statistics(part.statistics())

    wrong = [f for f in found if f.severity == Severity.ERROR]
    assert ['nan at row 1, column 2' in f.what for f in wrong] == [True, False]
    assert '1.5 at row 3, column 4, which becomes 1' in wrong[1].what
    assert all(f.example.endswith('00.npy') for f in wrong)
    assert part.statistics().pixels.tolist() == [17, 1, 1]  # without NaN, and as PackSegInputs cuts 1.5 off


@pytest.mark.parametrize(
    ('array', 'words'),
    [
        (np.zeros((4, 5, 3), np.uint8), '3 colour channels'),
        (np.eye(3, dtype=np.uint8)[np.zeros((4, 5), int)], 'one-hot labels of shape (4, 5, 3): take their argmax(-1)'),
        (np.eye(7)[np.zeros((4, 5), int)].transpose(2, 0, 1), 'take their argmax(0)'),
        (np.vstack((np.eye(7), np.zeros((1, 7))))[np.arange(20).reshape(4, 5) % 8], 'the ignored label where all are'),
        (np.zeros(4, np.uint8), r'shape (4,)'),
        (np.array(1), r'shape ()'),
        (np.array([['a', 'b']]), 'dtype <U1'),
    ],
)
def test_arrays_that_are_no_labels(tmp_path, array, words):
    statistics = npy_part(tmp_path, array).statistics(with_images=True)

    assert words in next(iter(statistics.failed.values()))


@pytest.mark.parametrize('shape', [(1, 12, 16), (12, 16, 1)])
def test_an_axis_of_one_is_left_out(tmp_path, shape):
    assert npy_part(tmp_path, np.ones(shape, np.uint8)).labels(0).shape == (12, 16)


@pytest.mark.parametrize('value', [1, 2])
def test_volumes_are_said_to_be_unchecked(tmp_path, value):
    with pytest.raises(ValueError, match=r'volumes of shape \(3, 12, 16\), which are not checked'):
        npy_part(tmp_path, np.full((3, 12, 16), value, np.uint8))


def test_biomedical_data_in_one_file(tmp_path):
    write_data(tmp_path, make_masks(2))
    labels = make_masks(2)[0] % 3
    for i in range(2):
        np.save(tmp_path / f'images/training/{i:02d}.npy', np.stack([labels * 0, labels])[:, None].astype(np.float32))
    load = dict(type='LoadBiomedicalData', with_seg=True, decode_backend='numpy')
    names = dict(type='BaseSegDataset', metainfo=dict(classes=('a', 'b', 'c')), reduce_zero_label=False)
    prefix = dict(img_path='images/training')

    part = part_of(tmp_path, load, PACK, img_suffix='.npy', data_prefix=prefix, **names)

    assert [Path(file).name for file in part.files] == ['00.npy', '01.npy']
    assert same(labels_of(part), [labels, labels])
    with pytest.raises(ValueError, match='reads no labels'):
        part_of(tmp_path, dict(load, with_seg=False), PACK, img_suffix='.npy', data_prefix=prefix, **names)


def test_a_pipeline_whose_transforms_set_no_labels(data):
    with pytest.raises(ValueError, match='no transform has set gt_seg_map'):
        part_of(data, dict(type='LoadMyImage'), PACK)


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
@pytest.mark.parametrize('more', [[], [ADD_ONE]])
def test_values_that_load_annotations_changes_are_found_before_another_transform(tmp_path, backend, more):
    write_data(tmp_path, make_masks(5))
    file = tmp_path / 'annotations/training'
    Image.fromarray(np.array([[1, 300], [2, 3]], np.uint16)).save(file / '00.png')
    Image.fromarray(np.array([[1, 511], [2, 3]], np.uint16)).save(file / '01.png')
    Image.fromarray(np.array([[1, 65535], [2, 3]], np.uint16)).save(file / '02.png')
    Image.fromarray(np.array([[1, 2], [2, 3]], np.uint16)).save(file / '03.png')

    part = part_of(tmp_path, IMAGE, dict(LOAD, imdecode_backend=backend), *more, reduce_zero_label=False)

    altered = part.statistics().altered
    wrapped = 'wrapped before others' if more else 'wrapped'  # another transform may read the file again
    assert {kind: (tally.files, Path(tally.example).name) for kind, tally in altered.items()} == {
        wrapped: (1, '00.png'),
        'wrapped to ignored': (1, '01.png'),
        'all ones': (1, '02.png'),
    }
    assert altered[wrapped].detail == '300 at row 0, column 1, which becomes 44'
    severities = {f.severity for f in check_statistics(part.statistics()) if ' wrap ' in f.what}
    assert severities == {Severity.WARNING, Severity.NOTE} | ({Severity.ERROR} if not more else set())


def test_parts_survive_a_pickle(data):
    part = part_of(data, IMAGE, LOAD, ADD_ONE)

    assert pickle.loads(pickle.dumps(part)).statistics() == part.statistics()
    assert copy.deepcopy(part).statistics() == part.statistics()
