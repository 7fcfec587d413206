from dataclasses import replace

import numpy as np
import pytest
from mmengine.config import Config
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.registry import DATASETS, TRANSFORMS
from mmseg_wce.class_weights import LabelEncoding, LabelStatistics, save_statistics
from mmseg_wce.dataset_checks import Severity, check_classes, check_config, check_heads, from_config
from three_classes import ThreeClasses, dataset_config, make_masks, write_data


@pytest.fixture
def config(tmp_path) -> Config:
    write_data(tmp_path, make_masks(2))
    crop = dict(type='RandomCrop', crop_size=(4, 4), cat_max_ratio=0.75)
    train = dataset_config(tmp_path)
    train['pipeline'].insert(2, crop)
    loader = dict(dataset=dict(type='RepeatDataset', times=2, dataset=train))
    head = dict(type='FCNHead', num_classes=3, loss_decode=[dict(type='WeightedCrossEntropyLoss')])
    return Config(
        dict(
            data_preprocessor=dict(type='SegDataPreProcessor', seg_pad_val=255),
            train_dataloader=loader,
            val_dataloader=dict(dataset=dataset_config(tmp_path)),
            val_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
            model=dict(decode_head=head, auxiliary_head=[dict(head), dict(head)]),
        )
    )


def ignore_9(config) -> None:
    config.model.decode_head.ignore_index = 9
    for head in config.model.auxiliary_head:
        head.ignore_index = 9
    config.merge_from_dict(
        {
            'data_preprocessor.seg_pad_val': 9,
            f'{TRAIN}ignore_index': 9,
            f'{TRAIN}pipeline.2.ignore_index': 9,
            'val_dataloader.dataset.ignore_index': 9,
            'val_evaluator.ignore_index': 9,
        }
    )


def everything(config):
    return [*check_config(config), *check_classes(config, from_config(config, 'val'))]


def test_nothing_is_found_where_all_agree(config):
    assert everything(config) == []


TRAIN = 'train_dataloader.dataset.dataset.'


@pytest.mark.parametrize(
    ('changes', 'places'),
    [
        ({'model.decode_head.ignore_index': 0}, ['0 in model.decode_head.ignore_index']),
        ({'model.auxiliary_head.1.ignore_index': -1}, ['-1 in model.auxiliary_head[1].ignore_index']),
        ({'model.decode_head.loss_decode.0.ignore_index': 3}, ['3 in model.decode_head.loss_decode.ignore_index']),
        ({'data_preprocessor.seg_pad_val': 0}, ['0 in data_preprocessor.seg_pad_val']),
        ({f'{TRAIN}ignore_index': 254}, ['254 in train_dataloader.dataset.ignore_index']),
        ({f'{TRAIN}pipeline.2.ignore_index': 254}, ['254 in train_dataloader: RandomCrop.ignore_index']),
        ({'val_evaluator.ignore_index': 0}, ['0 in val_evaluator: IoUMetric.ignore_index']),
    ],
)
def test_ignored_labels_that_differ(config, changes, places):
    config.merge_from_dict(changes)

    (finding,) = everything(config)

    assert finding.severity == Severity.ERROR
    assert all(place in finding.what for place in places)
    assert '255 everywhere else' in finding.what


def test_joined_data_sets_that_differ(config):
    dataset = config.val_dataloader.dataset
    config.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[dict(dataset, ignore_index=7), dataset])

    (finding,) = check_config(config)

    assert '7 in val_dataloader.dataset.ignore_index' in finding.what


@pytest.mark.parametrize('kind', ['Pad', 'RandomRotate'])
def test_labels_that_transforms_write_are_compared(config, kind):
    step = dict(
        Pad=dict(type='Pad', size=(9, 9), pad_val=dict(img=0, seg=7)),
        RandomRotate=dict(type='RandomRotate', prob=0.5, degree=9, seg_pad_val=7),
    )[kind]
    config.train_dataloader.dataset.dataset.pipeline.append(step)

    (finding,) = everything(config)

    assert f'7 in train_dataloader: {kind}' in finding.what


@pytest.mark.parametrize(
    ('step', 'place'),
    [
        (dict(type='Pad', size=(9, 9)), 'Pad.pad_val.seg'),
        (dict(type='CenterCrop', crop_size=(4, 4), auto_pad=True), 'CenterCrop.pad_val.seg'),
        (dict(type='RandomMosaic', prob=1.0, img_scale=(8, 8)), 'RandomMosaic.seg_pad_val'),
        (dict(type='RandomCutOut', prob=1.0, n_holes=1, cutout_shape=(2, 2), seg_fill_in=255), 'RandomCutOut.seg_fill'),
    ],
)
def test_default_labels_that_transforms_write_are_compared(config, step, place):
    config.train_dataloader.dataset.dataset.pipeline.append(step)
    assert everything(config) == []  # 255, as all say

    ignore_9(config)
    (finding,) = everything(config)

    assert f'255 in train_dataloader: {place}' in finding.what


@DATASETS.register_module()
class IgnoresNine(ThreeClasses):
    def __init__(self, ignore_index=9, **options):
        super().__init__(ignore_index=ignore_index, **options)


def test_transforms_that_write_no_labels_may_have_any_fill_value(config):
    """A crop that takes any region, a pad before labels are loaded, and what a data set ignores by itself."""
    config.train_dataloader.dataset.dataset.pipeline.insert(1, dict(type='Pad', size=(9, 9)))
    ignore_9(config)
    crop = config.train_dataloader.dataset.dataset.pipeline[3]
    crop.pop('ignore_index'), crop.pop('cat_max_ratio')
    config.val_dataloader.dataset.type = 'IgnoresNine'
    config.val_dataloader.dataset.pop('ignore_index')

    assert check_config(config) == []


def test_labels_of_depth_are_no_classes(config):
    config.model.decode_head.type = 'VPDDepthHead'
    config.data_preprocessor.seg_pad_val = 0

    assert [f for f in check_config(config) if 'ignored label differs' in f.what] == []


@DATASETS.register_module()
class HasOptions(ThreeClasses):
    """Says in its code how its files are stored."""

    def __init__(self, **options):
        super().__init__(**{**options, 'reduce_zero_label': True})


def test_what_a_class_says_in_its_code_is_not_guessed(config):
    dataset = config.val_dataloader.dataset
    dataset.update(type='HasOptions')
    dataset.pop('reduce_zero_label')
    dataset.pipeline[1].reduce_zero_label = True

    assert check_config(config) == []


def test_holes_may_be_filled_with_a_class(config):
    hole = dict(type='RandomCutOut', prob=1.0, n_holes=1, cutout_shape=(2, 2), seg_fill_in=0)
    config.train_dataloader.dataset.dataset.pipeline.append(hole)

    assert everything(config) == []


NOWHERE = dict(statistics='nowhere.json')


@pytest.mark.parametrize(
    ('key', 'value', 'words'),
    [
        (
            'model.auxiliary_head.1.num_classes',
            4,
            'model.auxiliary_head[1] has num_classes=4, but ThreeClasses has 3 cl',
        ),
        ('model.decode_head.loss_decode.0.class_weight', NOWHERE, "'nowhere.json' cannot be read"),
        ('val_dataloader.dataset.reduce_zero_label', False, 'True in train_dataloader and False in val_dataloader'),
    ],
)
def test_one_changed_setting_is_found(config, key, value, words):
    config.merge_from_dict({key: value})

    (finding,) = everything(config)

    assert words in finding.what


SIGMOID = [dict(type='CrossEntropyLoss', use_sigmoid=True)]
SOFTMAX = [dict(type='CrossEntropyLoss')]


def one_head(**head) -> Config:
    return Config(dict(model=dict(decode_head=dict(type='FCNHead', **head))))


@pytest.mark.parametrize(
    ('head', 'severity', 'words'),
    [
        (dict(num_classes=2, out_channels=1, loss_decode=SIGMOID), None, ''),
        (dict(num_classes=2, loss_decode=SOFTMAX), None, ''),
        (dict(num_classes=2, loss_decode=SIGMOID), None, ''),
        (dict(num_classes=2, out_channels=None, loss_decode=SOFTMAX), None, ''),
        (dict(num_classes=1, loss_decode=SIGMOID), Severity.WARNING, 'IoUMetric counts background as a hit'),
        (dict(num_classes=1, loss_decode=SOFTMAX), Severity.ERROR, 'one channel and a softmax'),
        (dict(num_classes=1), Severity.ERROR, 'one channel and a softmax'),
        (dict(num_classes=2, out_channels=1, loss_decode=[*SIGMOID, *SOFTMAX]), Severity.ERROR, 'one channel and a'),
        (dict(num_classes=2, out_channels=1, loss_decode=dict(type='DiceLoss')), None, ''),
        (dict(num_classes=300), Severity.WARNING, 'num_classes=300 and ignores class 255'),
        (dict(num_classes=256), Severity.WARNING, 'num_classes=256 and ignores class 255'),
        (dict(num_classes=255), None, ''),
        (dict(num_classes=300, ignore_index=300), None, ''),
        (dict(num_classes=300, ignore_index=255), None, ''),
    ],
)
def test_channels_and_losses_of_a_head(head, severity, words):
    found = check_heads(one_head(**head))

    assert [finding.severity for finding in found] == [severity] * (severity is not None)
    assert all(words in finding.what for finding in found)


@pytest.mark.parametrize(
    ('classes', 'head', 'severity'),
    [
        (('background', 'water'), dict(num_classes=2, out_channels=1), None),
        (('water',), dict(num_classes=2, out_channels=1), Severity.WARNING),
        (('water',), dict(num_classes=1), None),  # which check_heads finds
        (('a', 'b', 'c'), dict(num_classes=2, out_channels=1), Severity.ERROR),
        (('background', 'water'), dict(num_classes=2), None),
        (('water',), dict(num_classes=2), Severity.ERROR),
    ],
)
def test_names_of_background_and_foreground(tmp_path, classes, head, severity):
    write_data(tmp_path, [np.ones((4, 4), np.uint8)])
    dataset = dataset_config(tmp_path, type='BaseSegDataset', metainfo=dict(classes=classes), reduce_zero_label=False)
    config = one_head(**head, loss_decode=SIGMOID)
    config.train_dataloader = dict(dataset=dataset)

    found = check_classes(config, from_config(config))

    assert [finding.severity for finding in found] == [severity] * (severity is not None)


def joined(tmp_path, *names, **changes) -> Config:
    write_data(tmp_path, make_masks(2))
    parts = [dataset_config(tmp_path, type='BaseSegDataset', metainfo=dict(classes=n), **changes) for n in names]
    dataset = dict(type='ConcatDataset', datasets=parts, ignore_keys=['classes', 'palette', 'reduce_zero_label'])
    return Config(dict(train_dataloader=dict(dataset=dataset), model=dict(decode_head=dict(num_classes=3))))


@pytest.mark.parametrize(
    ('other', 'severity', 'words'),
    [
        (('a', 'b', 'c'), None, ''),
        (('A', 'B', 'C '), None, ''),
        (('c', 'b', 'a'), Severity.ERROR, "class 0 is 'a' in the first, and 'c' in data set 2"),
        (('B', 'A', 'C'), Severity.ERROR, 'in another order'),
        (('a', 'b', 'd'), Severity.NOTE, "class 2 is 'c' in the first, and 'd' in data set 2"),
        (('a', 'b'), Severity.WARNING, 'num_classes=3, but BaseSegDataset has 2 classes'),
        (('a', 'b', 'c', 'd'), Severity.ERROR, 'num_classes=3, but BaseSegDataset has 4 classes'),
    ],
)
def test_classes_of_joined_data_sets(tmp_path, other, severity, words):
    config = joined(tmp_path, ('a', 'b', 'c'), other)

    found = check_classes(config, from_config(config))

    assert [finding.severity for finding in found] == [severity] * (severity is not None)
    assert all(words in finding.what for finding in found)
    assert all('the same: a, b, c' in f.change for f in found if f.severity == Severity.ERROR and 'order' in f.what)


def test_names_differ_only_in_how_they_are_written(tmp_path):
    config = joined(tmp_path, ('traffic light', 'b', 'c'), ('Traffic_Light', 'b', 'c'))

    assert check_classes(config, from_config(config)) == []


@pytest.mark.parametrize(
    ('changes', 'severity', 'words'),
    [
        ({}, None, None),
        (dict(classes=('0', '1', '2')), None, None),  # of a folder: nothing is known
        (dict(classes=('A', 'b ', 'C')), None, None),
        (dict(classes=('a', 'c', 'b')), Severity.ERROR, "class 1 is 'c' in"),
        (dict(classes=('a', 'b', 'x')), Severity.WARNING, "class 2 is 'x' in"),
        (dict(classes=('a', 'b')), Severity.ERROR, 'has 2 classes, ThreeClasses has 3'),
        (dict(conventions=(LabelEncoding(False),)), Severity.WARNING, 'with reduce_zero_label=False'),
    ],
)
def test_statistics_of_other_data(config, tmp_path, changes, severity, words):
    part = from_config(config, 'val')[0]
    statistics = replace(part.statistics(), **changes)
    if len(statistics.classes) == 2:
        statistics = LabelStatistics.empty('two', statistics.classes, LabelEncoding(True))
    save_statistics(statistics, tmp_path / 'statistics.json')
    config.model.decode_head.loss_decode[0].class_weight = dict(statistics=str(tmp_path / 'statistics.json'))

    found = everything(config)

    assert [f.severity for f in found] == [severity] * (severity is not None)
    assert all(words in f.what for f in found)


def test_reduce_zero_label_of_data_set_and_pipeline_are_compared(config):
    config.val_dataloader.dataset.pipeline[1].reduce_zero_label = False

    (finding,) = check_config(config)

    assert 'val_dataloader: the dataset says reduce_zero_label=True, its LoadAnnotations False' in finding.what


def test_reduce_zero_label_that_differs_in_another_folder_is_a_warning(config, tmp_path):
    """Files of another folder may be stored in another way."""
    write_data(tmp_path / 'other', make_masks(2))
    config.val_dataloader.dataset = dataset_config(tmp_path / 'other', reduce_zero_label=False)

    (finding,) = everything(config)

    assert finding.severity == Severity.WARNING
    assert 'True in train_dataloader and False in val_dataloader, in other folders' in finding.what


@TRANSFORMS.register_module()
class ReadsItsOwn(LoadAnnotations):
    """Takes the argument, and means something else."""

    def _load_seg_map(self, results):
        raise NotImplementedError


def test_loaders_that_read_in_a_way_of_their_own_may_say_what_they_like(config):
    config.val_dataloader.dataset.pipeline[1].update(type='ReadsItsOwn', reduce_zero_label=False)

    assert check_config(config) == []


def test_reduce_zero_label_false_is_doubtful_for_ade20k(config):
    for dataset in (config.train_dataloader.dataset.dataset, config.val_dataloader.dataset):
        dataset.update(type='ADE20KDataset', reduce_zero_label=False)

    found = check_config(config)

    assert [f.severity for f in found] == [Severity.WARNING] * 2
    assert all('for ADE20KDataset raw 0 is "other"' in f.what for f in found)
