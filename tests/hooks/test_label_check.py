import logging
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import DATASETS, HOOKS, MODELS
from mmseg.structures import SegDataSample
from mmseg_wce.dataset_checks.label_readers import AnnotationReader
from mmseg_wce.hooks import label_check
from mmseg_wce.targets import valid_pixels
from three_classes import dataset_config, make_masks, write_data
from torch import nn


def runner_on(dataset, num_classes=3, cascade=False, class_weight=None) -> SimpleNamespace:
    head = nn.Identity()
    head.num_classes, head.ignore_index = num_classes, 255
    model = nn.Module()
    model.decode_head = nn.ModuleList([nn.Identity(), head]) if cascade else head
    return SimpleNamespace(
        model=model,
        cfg=Config(dict(model=dict(decode_head=dict(loss_decode=dict(class_weight=class_weight))))),
        train_dataloader=SimpleNamespace(dataset=dataset),
        logger=logging.getLogger('label check'),
    )


@pytest.fixture
def data(tmp_path):
    init_default_scope('mmseg')
    return write_data(tmp_path, make_masks(60))


def build(data, **changes):
    return DATASETS.build(dataset_config(data, **changes))


def check(runner, **options) -> None:
    HOOKS.build(dict(type='LabelCheckHook', **options)).before_train(runner)


@pytest.mark.parametrize('cascade', [False, True])
def test_nothing_is_said_where_nothing_is_wrong(data, caplog, cascade):
    check(runner_on(build(data), cascade=cascade))

    assert caplog.records == []


def test_reads_no_more_files_than_it_is_told(data, monkeypatch):
    read, dataset = [], build(data)

    count = AnnotationReader.count
    monkeypatch.setattr(AnnotationReader, 'count', lambda *a: read.append(a[1].label) or count(*a))

    check(runner_on(dataset), num_files=7)

    assert len(set(read)) == len(read) == 7
    assert read[0].endswith('00.png')
    assert read[-1] > read[0]


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda path: cv2.imwrite(path, np.full((12, 16), 200, np.uint8)), r'199 \(raw 200'),
        (lambda path: cv2.imwrite(path, np.zeros((12, 16, 3), np.uint8)), 'colour channels'),
    ],
)
def test_illegal_labels_stop_the_run(data, damage, words):
    damage(str(data / 'annotations/training/00.png'))

    with pytest.raises(ValueError, match=words) as caught:
        check(runner_on(build(data)))

    assert '00.png' in str(caught.value)


def test_labels_that_were_not_reduced_stop_the_run(data):
    with pytest.raises(ValueError, match='set reduce_zero_label=True'):
        check(runner_on(build(data, reduce_zero_label=False)))


def test_contradictions_stop_the_run(data):
    with pytest.raises(ValueError, match='says reduce_zero_label=True and its LoadAnnotations says False'):
        check(runner_on(build(data, load=dict(reduce_zero_label=False))))
    with pytest.raises(ValueError, match='num_classes=4, but ThreeClasses has 3 classes'):
        check(runner_on(build(data), num_classes=4))


def test_weights_of_other_classes_stop_the_run(data):
    with pytest.raises(ValueError, match="'ade20k' has 150 classes, ThreeClasses has 3"):
        check(runner_on(build(data), class_weight=dict(statistics='ade20k')))


def test_images_of_another_size_stop_the_run(data):
    cv2.imwrite(str(data / 'images/training/00.jpg'), np.zeros((7, 9, 3), np.uint8))
    load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]

    with pytest.raises(ValueError, match=r'image and label differ in size .*00\.png 16 x 12, .*00\.jpg 9 x 7'):
        check(runner_on(build(data, pipeline=load)))


def joined(data, classes, **changes):
    one = dataset_config(data, type='BaseSegDataset', metainfo=dict(classes=('a', 'b', 'c')))
    other = dict(one, metainfo=dict(classes=classes), **changes)
    keys = ['classes', 'palette', 'reduce_zero_label', 'label_map']
    return DATASETS.build(dict(type='ConcatDataset', datasets=[one, other], ignore_keys=keys))


def test_joined_data_sets_are_checked_with_their_own_classes(data, caplog):
    check(runner_on(joined(data, ('A', 'B', 'C'))))
    check(runner_on(joined(data, ('one', 'two', 'three'))))
    assert caplog.records == []

    with pytest.raises(ValueError, match=r"joined data sets have their classes in another order: class 0 is 'a'"):
        check(runner_on(joined(data, ('c', 'b', 'a'))))
    with pytest.raises(ValueError, match=r'3 \(\d+ px\)'):  # the second alone is not shifted
        check(runner_on(joined(data, ('A', 'B', 'C'), reduce_zero_label=False)))


@pytest.mark.parametrize(
    ('values', 'head', 'line'),
    [
        ([0, 1], dict(num_classes=2, out_channels=1), None),
        ([0, 255], dict(num_classes=2, out_channels=1), 'masks hold 0 and 255 only'),
        ([0, 2], dict(num_classes=2, out_channels=1), r'neither in \[0, 2\)'),
    ],
)
def test_labels_of_one_channel(data, caplog, values, head, line):
    for file in (data / 'annotations/training').iterdir():
        cv2.imwrite(str(file), np.array(values, np.uint8).repeat(96).reshape(12, 16))
    dataset = build(data, type='BaseSegDataset', metainfo=dict(classes=('bg', 'fg')), reduce_zero_label=False)
    runner = runner_on(dataset)
    runner.model.decode_head.num_classes, runner.model.decode_head.out_channels = 2, 1

    if line and 'neither' in line:
        with pytest.raises(ValueError, match=line):
            check(runner)
    else:
        check(runner)
        assert [line in record.message for record in caplog.records] == [True] * (line is not None)


def test_one_channel_with_a_softmax_stops_the_run(data):
    runner = runner_on(build(data))
    runner.cfg.model.decode_head = dict(num_classes=2, out_channels=1, loss_decode=dict(type='CrossEntropyLoss'))

    with pytest.raises(ValueError, match='one channel and a softmax'):
        check(runner)


def test_how_labels_are_looked_at_is_logged(data, caplog):
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    draws = dict(type='RandomApply', transforms=[dict(type='MapLabels', mapping={1: 2})], prob=0.5)

    check(runner_on(build(data, pipeline=[*steps, draws])))

    assert ['RandomApply changes labels at random' in record.message for record in caplog.records] == [True]


def test_backgrounds_with_borders_do_not_stop_the_run(data, caplog):
    for file in (data / 'annotations/training').iterdir():
        mask = np.zeros((12, 16), np.uint8)
        mask[3] = 255
        cv2.imwrite(str(file), mask)

    check(runner_on(build(data, reduce_zero_label=False)))

    assert caplog.records == []


def test_labels_that_look_shifted_are_a_warning(data, caplog):
    for file in (data / 'annotations/training').iterdir():
        cv2.imwrite(str(file), cv2.imread(str(file), cv2.IMREAD_UNCHANGED) - 1)

    check(runner_on(build(data)))

    assert ['shifted already' in record.message for record in caplog.records] == [True]


def test_other_data_sets_are_left_alone(caplog):
    check(runner_on(torch.utils.data.TensorDataset(torch.zeros(3))))

    assert ['labels are not checked' in record.message for record in caplog.records] == [True]


def test_other_ranks_raise_what_rank_0_found(data, monkeypatch):
    def from_rank_0(outcome):
        assert outcome == [None]
        outcome[0] = ['bad labels'], ['odd']

    monkeypatch.setattr(label_check, 'is_main_process', lambda: False)
    monkeypatch.setattr(label_check, 'broadcast_object_list', from_rank_0)

    with pytest.raises(ValueError, match='bad labels'):
        check(runner_on(None))


def test_what_the_config_says_is_checked_where_labels_cannot_be(caplog):
    runner = runner_on(torch.utils.data.TensorDataset(torch.zeros(3)))
    loss = dict(type='CrossEntropyLoss')
    runner.cfg.model.decode_head = dict(type='FCNHead', num_classes=2, out_channels=1, loss_decode=loss)

    with pytest.raises(ValueError, match='one channel and a softmax'):
        check(runner)


@MODELS.register_module()
class MapsLabels(SegDataPreProcessor):
    """Maps labels on the device."""


def test_labels_that_a_preprocessor_may_map_do_not_stop_the_run(data, caplog):
    runner = runner_on(build(data, load=dict(reduce_zero_label=False), reduce_zero_label=False))
    runner.cfg.model.data_preprocessor = dict(type='MapsLabels')

    check(runner)

    assert any('unless MapsLabels changes them' in record.message for record in caplog.records)


def test_num_files_below_one_raises():
    with pytest.raises(ValueError, match='at least 1, got 0'):
        label_check.LabelCheckHook(0)


def test_every_config_has_the_hook(root):
    configs = sorted((root / 'configs').glob('[!_]*/*.py'))

    assert configs
    for config in configs:
        assert Config.fromfile(config).default_hooks.label_check.type == 'LabelCheckHook'


@pytest.mark.parametrize('after', ['before_val', 'after_train'])
def test_a_refused_label_is_named_with_its_file(data, after):
    hook = HOOKS.build(dict(type='LabelCheckHook'))
    samples = [SegDataSample(metainfo=dict(seg_map_path=path)) for path in ('a.png', 'b.png')]
    label = torch.zeros(2, 4, 4, dtype=torch.int64)
    label[1, 2, 3] = 77

    hook.before_train_iter(runner_on(build(data)), 0, dict(data_samples=samples))
    with pytest.raises(ValueError, match=r"The first is 77 at index \(1, 2, 3\), of 'b.png'\."):
        valid_pixels(label, 3, 255)
    with pytest.raises(ValueError, match=r'at index \(0, 2, 3\)\. Likely'):
        valid_pixels(label[1:], 3, 255)  # not the labels of this batch
    getattr(hook, after)(None)
    with pytest.raises(ValueError, match=r'at index \(1, 2, 3\)\. Likely'):
        valid_pixels(label, 3, 255)


@pytest.mark.parametrize('data_batch', [None, [1, 2], dict(data_samples=[SegDataSample()])])
def test_batches_without_paths(data, data_batch):
    HOOKS.build(dict(type='LabelCheckHook')).before_train_iter(None, 0, data_batch)

    with pytest.raises(ValueError, match=r'at index \(0, 0, 0\)\. Likely'):
        valid_pixels(torch.full((1, 1, 1), 9), 3, 255)
