from contextlib import nullcontext
from pathlib import Path

import mmseg
import pytest
import torch
from mmengine.config import Config
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import DATASETS, TRANSFORMS
from mmseg_wce.class_weights.file_record import FileRecord, save_file_record
from mmseg_wce.training import preflight
from mmseg_wce.training.preflight import (
    PreflightError,
    check_amp,
    check_checkpoint,
    check_data,
    check_losses,
    check_model,
    check_record,
    check_work_dir,
    load_config,
)


@pytest.fixture
def dataset(tmp_path):
    for kind in ('images', 'annotations'):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / ('one.jpg' if kind == 'images' else 'one.png')).touch()
    return dict(
        type='CamVidDataset',
        data_root=str(tmp_path),
        data_prefix=dict(img_path='images', seg_map_path='annotations'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
    )


def config(dataset) -> Config:
    return Config(dict(train_dataloader=dict(dataset=dataset), val_dataloader=None))


def complaint(dataset) -> str:
    with pytest.raises(PreflightError) as caught:
        check_data(config(dataset), 'train', 'val', 'test')
    message = str(caught.value)
    assert '\n' not in message
    assert 'train_dataloader' in message
    return message


def test_good_data_passes(dataset):
    check_data(config(dataset), 'train', 'val', 'test')
    check_data(config(dict(type='RepeatDataset', times=2, dataset=dataset)), 'train')
    check_data(config(dict(type='ConcatDataset', datasets=[dataset, dataset])), 'train')


@pytest.mark.parametrize(
    'wrap', [lambda d: d, lambda d: dict(type='RepeatDataset', dataset=d), lambda d: dict(datasets=[d])]
)
def test_missing_data_root(dataset, wrap):
    dataset['data_root'] = 'no/such/folder'

    assert "data_root 'no/such/folder' does not exist" in complaint(wrap(dataset))


def folders(img_path='images', seg_map_path='annotations') -> dict:
    return dict(data_prefix=dict(img_path=img_path, seg_map_path=seg_map_path))


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (folders(seg_map_path='labels'), 'labels'),
        (folders(img_path='empty'), "img_path '{}/empty' holds no files *.jpg"),
        (folders(seg_map_path='file'), "file' does not exist, or is not a folder"),
        (dict(img_suffix='.bmp'), 'holds no files *.bmp'),
        (dict(seg_map_suffix='.tif'), "one.tif' of the first sample does not exist"),
        (dict(ann_file='train.txt'), 'train.txt'),
        (dict(ann_file='file'), "ann_file '{}/file' is empty"),
        (dict(metainfo=dict(classes='skyroad')), "CamVidDataset: classes is one string, 'skyroad'"),
        (dict(metainfo=dict(classes='skyroad')), 'every letter would be a class. Put a comma between'),
        (dict(metainfo=dict(classes='a'), type='BaseSegDataset'), "BaseSegDataset: classes is one string, 'a'"),
        (dict(type='ListsNothing', data_prefix=dict()), 'ListsNothing lists no samples'),
    ],
)
def test_data_that_a_training_cannot_read_is_named(dataset, tmp_path, changes, words):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file').touch()

    message = complaint({**dataset, **changes})

    assert words.format(tmp_path) in message
    assert ('holds no files' in message) == ('holds no files' in words)


def test_files_in_subfolders(dataset, tmp_path):
    for kind in ('images', 'annotations'):
        (file,) = (tmp_path / kind).iterdir()
        (tmp_path / kind / 'city').mkdir()
        file.rename(tmp_path / kind / 'city' / file.name)

    check_data(config(dataset), 'train')


def test_a_data_set_without_root(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    del dataset['data_root']
    check_data(config(dataset), 'train')

    dataset['data_prefix']['img_path'] = 'pictures'
    assert "img_path 'pictures' does not exist" in complaint(dataset)


def test_the_option_names_every_loader_of_that_folder(dataset):
    dataset['data_root'] = 'no/such/folder'
    both = Config(dict(train_dataloader=dict(dataset=dataset), val_dataloader=dict(dataset=dataset)))

    with pytest.raises(PreflightError) as caught:
        check_data(both, 'train', 'val')

    assert 'train_dataloader.dataset.data_root=PATH val_dataloader.dataset.data_root=PATH' in str(caught.value)


def test_classes_in_a_file_are_no_string(dataset, tmp_path):
    (tmp_path / 'classes.txt').write_text('sky\nroad\n')
    dataset.update(type='BaseSegDataset', metainfo=dict(classes=str(tmp_path / 'classes.txt')))

    check_data(config(dataset), 'train')


@pytest.mark.parametrize('metric', ['IoUMetric', 'ClassIoUMetric', 'mmseg.IoUMetric'])
def test_a_metric_without_classes(dataset, metric):
    def validation(first: bool = True, **changes) -> Config:
        nameless = dict(dataset, type='BaseSegDataset', **changes)
        joined = dict(type='ConcatDataset', datasets=[nameless, dataset][:: 1 if first else -1])
        return Config(dict(val_dataloader=dict(dataset=joined), val_evaluator=[dict(type=metric)]))

    with pytest.raises(PreflightError, match=r"val_dataloader: BaseSegDataset names no classes.*'classes' in \w*IoU"):
        check_data(validation(), 'val')

    check_data(validation(metainfo=dict(classes=('a', 'b'))), 'val')
    check_data(validation(first=False), 'val')  # the names are those of the first
    check_data(config(dict(dataset, type='BaseSegDataset')), 'train')


@DATASETS.register_module()
class OwnArguments(BaseSegDataset):
    """Takes other arguments than those of mmseg, and knows its classes."""

    def __init__(self, root, pipeline):
        folders = dict(img_path='images', seg_map_path='annotations')
        super().__init__(data_root=root, data_prefix=folders, metainfo=dict(classes=('a', 'b')), pipeline=pipeline)


def test_a_data_set_with_arguments_of_its_own(dataset, tmp_path):
    own = dict(type='OwnArguments', root=str(tmp_path), pipeline=dataset['pipeline'])
    whole = config(own)
    whole.train_evaluator = dict(type='IoUMetric')

    check_data(whole, 'train')
    (tmp_path / 'annotations/one.png').unlink()
    assert "one.png' of the first sample does not exist" in complaint(own)


@DATASETS.register_module()
class ReadsItsPipeline(BaseSegDataset):
    def __init__(self, pipeline, **options):
        self.loader = pipeline[0]['type']
        super().__init__(pipeline=pipeline, **options)


@DATASETS.register_module()
class PreparesItsList(BaseSegDataset):
    """Prepares in ``full_init`` what ``load_data_list`` needs, and names its classes itself."""

    def __init__(self, **options):
        super().__init__(metainfo=dict(classes=('a', 'b')), **options)
        self.first = self[0] if not self.pipeline.transforms else self.get_data_info(0)

    def full_init(self):
        self.paths = dict(img_path='images/one.jpg', seg_map_path='annotations/one.png')
        super().full_init()

    def load_data_list(self):
        return [dict(self.paths, seg_fields=[])]

    def get_data_info(self, index):
        info = super().get_data_info(index)
        return info | {kind: f'{self.data_root}/{path}' for kind, path in self.paths.items()}


@DATASETS.register_module()
class LeavesOutMissing(BaseSegDataset):
    def filter_data(self):
        return [sample for sample in self.data_list if Path(sample['img_path']).exists()]


@DATASETS.register_module()
class Archive(BaseSegDataset):
    """Reads everything from one file, and takes a list of lists, and an argument that wrappers have."""

    def __init__(self, ann_file, dataset='potsdam', **options):
        super().__init__(metainfo=dict(classes=('a', 'b')), **options)

    def load_data_list(self):
        return [dict(img_path=self.data_prefix['img_path'], seg_fields=[])]


@pytest.mark.parametrize(
    'changes',
    [
        dict(type='ReadsItsPipeline', metainfo=dict(classes=('a', 'b'))),
        dict(type='PreparesItsList', data_prefix=dict()),
        dict(type='LeavesOutMissing', ann_file='list.txt', metainfo=dict(classes=('a', 'b'))),
        dict(type='Archive', data_prefix=dict(img_path='list.txt'), ann_file=['a.txt', 'b.txt'], dataset='vaihingen'),
        dict(ann_file='list.txt', indices=[1]),
        dict(ann_file='list.txt', pipeline=[dict(type='LoadImageFromFile', ignore_empty=True)]),
        dict(data_root=None, data_prefix=dict(img_path='s3://bucket/images', seg_map_path='s3://bucket/labels')),
    ],
)
def test_unusual_but_valid_data_sets_pass(dataset, tmp_path, changes):
    (tmp_path / 'list.txt').write_text('none\none\n')
    whole = config({**dataset, **changes})
    whole.train_evaluator = dict(type='IoUMetric')

    check_data(whole, 'train')


@DATASETS.register_module()
class ListsNothing(BaseSegDataset):
    def load_data_list(self):
        return []


def test_a_loader_without_a_data_set():
    with pytest.raises(PreflightError, match='val_dataloader has no dataset'):
        check_data(Config(dict(val_dataloader=dict(batch_size=1))), 'val')


def test_random_state_is_unchanged(dataset):
    state = torch.get_rng_state()
    dataset['type'] = 'DrawsAtRandom'

    check_data(config(dataset), 'train')

    assert torch.equal(torch.get_rng_state(), state)


@DATASETS.register_module()
class DrawsAtRandom(BaseSegDataset):
    METAINFO = dict(classes=('a', 'b'))

    def load_data_list(self):
        samples = super().load_data_list()
        return [samples[i] for i in torch.randperm(len(samples))]


@TRANSFORMS.register_module()
class ReadsElsewhere(LoadAnnotations):
    """Finds labels in a way of its own."""

    def _load_seg_map(self, results):
        raise NotImplementedError


def test_files_of_other_loaders_are_not_looked_for(dataset, tmp_path):
    (tmp_path / 'annotations/one.png').unlink()
    dataset['pipeline'][1] = dict(type='ReadsElsewhere')

    check_data(config(dataset), 'train')


def test_weights_of_losses_of_others_may_mean_anything():
    class ThreeWeights(torch.nn.Module):
        pass

    loss = dict(type=ThreeWeights, class_weight=[1.0, 2.0])

    check_losses(Config(dict(model=dict(decode_head=dict(type='FCNHead', num_classes=3, loss_decode=loss)))))


def test_other_storages_are_left_alone(dataset):
    dataset.update(data_root='s3://bucket', backend_args=dict(backend='petrel'))

    check_data(config(dataset), 'train')


def test_missing_config():
    with pytest.raises(PreflightError, match=r"config file 'nowhere\.py' does not exist"):
        load_config('nowhere.py')


def test_options_are_merged(tmp_path):
    (tmp_path / 'config.py').write_text('train_cfg = dict(max_iters=10)')

    assert load_config(str(tmp_path / 'config.py'), {'train_cfg.max_iters': 3}).train_cfg.max_iters == 3


def test_amp_on_cpu(monkeypatch):
    monkeypatch.setattr(preflight, 'get_device', lambda: 'cpu')
    with pytest.raises(PreflightError, match='--amp needs an accelerator'):
        check_amp()

    monkeypatch.setattr(preflight, 'get_device', lambda: 'cuda')
    check_amp()


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('model = dict(', 'SyntaxError'),
        ('model = 1 / 0', 'ZeroDivisionError'),
        ("_base_ = 'mmseg::no/such/config.py'", 'no/such/config.py'),
        ("_base_ = './base.py'", 'base.py'),
    ],
)
def test_broken_config(tmp_path, content, words):
    (tmp_path / 'config.py').write_text(content)

    with pytest.raises(PreflightError, match='cannot be read') as caught:
        load_config(str(tmp_path / 'config.py'))

    assert words in str(caught.value)
    assert '\n' not in str(caught.value)


def test_folder_and_file_are_told_apart(tmp_path):
    with pytest.raises(PreflightError, match='is a folder'):
        load_config(str(tmp_path))
    with pytest.raises(PreflightError, match='is a folder'):
        check_checkpoint(str(tmp_path))
    (tmp_path / 'file').touch()
    with pytest.raises(PreflightError, match='is a file'):
        check_work_dir(str(tmp_path / 'file'))

    check_work_dir(str(tmp_path))
    check_work_dir(str(tmp_path / 'not yet'))


def test_option_that_does_not_fit(tmp_path):
    (tmp_path / 'config.py').write_text('model = dict(auxiliary_head=[dict(channels=8)])')

    with pytest.raises(PreflightError, match=r'--cfg-options model\.auxiliary_head\.7\.channels=4 does not fit'):
        load_config(str(tmp_path / 'config.py'), {'model.auxiliary_head.7.channels': 4})


@pytest.mark.parametrize(
    ('weights', 'words'),
    [('nowhere.json', 'nowhere.json'), ([1.0, -1.0], 'class 1: -1.0'), (3.0, 'class_weight must be a list')],
)
def test_class_weights_that_cannot_be_used(weights, words):
    loss = dict(type='WeightedCrossEntropyLoss', class_weight=weights)
    model = dict(decode_head=dict(loss_decode=dict(type='CrossEntropyLoss')), auxiliary_head=[dict(loss_decode=[loss])])

    with pytest.raises(PreflightError) as caught:
        check_losses(Config(dict(model=model)))

    assert words in str(caught.value)
    assert '\n' not in str(caught.value)
    loss['class_weight'] = [1.0, 2.0]
    check_losses(Config(dict(model=model)))


OURS, BUILT_IN = dict(type='WeightedCrossEntropyLoss'), dict(type='CrossEntropyLoss')


SIGMOID, BUILT_IN_SIGMOID = dict(OURS, use_sigmoid=True), dict(BUILT_IN, use_sigmoid=True)
BY_WEIGHT = dict(SIGMOID, normalize_by='class_weight')
THREE, ONE_CHANNEL = dict(num_classes=3), dict(num_classes=2, out_channels=1)


@pytest.mark.parametrize(
    ('head', 'loss', 'weights', 'words'),
    [
        (THREE, OURS, [1.0, 2.0], 'holds 2 weights, but FCNHead has num_'),
        (THREE, BUILT_IN, [1.0, 2.0], 'CrossEntropyLoss holds 2 weights'),
        (THREE, dict(type='OhemCrossEntropy'), [1.0], 'Ohem.* holds 1 weights'),
        (THREE, dict(type='LovaszLoss'), [1.0] * 4, 'LovaszLoss holds 4 weights'),
        (THREE, dict(type=CrossEntropyLoss), [1.0], 'of CrossEntropyLoss holds 1 weights, but FCNHead'),
        (THREE, dict(type=CrossEntropyLoss, use_sigmoid=True), [1.0] * 3, 'along the width'),
        (THREE, BY_WEIGHT, [1.0, 2.0, 3.0], 'needs one channel .out_channels=1. and two class weights'),
        (dict(num_classes=2), BY_WEIGHT, [1.0, 2.0], 'needs one channel'),
        (ONE_CHANNEL, BY_WEIGHT, [1.0, 2.0], None),
        (dict(THREE, type='SideAdapterCLIPHead'), BUILT_IN, [1.0] * 4, None),
        (THREE, BUILT_IN_SIGMOID, [1.0] * 3, 'along the width of the image.*WeightedCrossEntropyLoss'),
        (ONE_CHANNEL, BUILT_IN_SIGMOID, [1.0, 2.0], 'along the width of the image'),
        (ONE_CHANNEL, SIGMOID, [1.0] * 3, 'holds 3 weights, but FCNHead has one channel'),
        (THREE, BUILT_IN_SIGMOID, [2.0], None),
        (THREE, SIGMOID, 2.0, None),
        (THREE, OURS, [1.0] * 3, None),
        (THREE, SIGMOID, [1.0] * 3, None),
        (ONE_CHANNEL, SIGMOID, [1.0, 2.0], None),
        (ONE_CHANNEL, BUILT_IN_SIGMOID, [2.0], None),
        (THREE, BUILT_IN, 'weights.npy', None),
        (THREE, dict(type='FocalLoss'), 0.5, None),
    ],
)
@pytest.mark.parametrize('listed', [False, True])
def test_number_of_class_weights(head, loss, weights, words, listed):
    loss = dict(loss, class_weight=weights)
    head = dict(type='FCNHead', loss_decode=[loss] if listed else loss) | head
    with pytest.raises(PreflightError, match=words) if words else nullcontext():
        check_losses(Config(dict(model=dict(decode_head=head))))


SHIPPED = Path(mmseg.__file__).parent / '.mim/configs'


@pytest.mark.parametrize('pattern', ['san/*.py', 'pidnet/*.py', pytest.param('*/*.py', marks=pytest.mark.slow)])
def test_configs_of_mmseg_pass(pattern):
    files = [file for file in sorted(SHIPPED.glob(pattern)) if not file.parent.name.startswith('_')]

    assert len(files) >= 3
    for file in files:
        config = Config.fromfile(file, import_custom_modules=False)
        check_losses(config)
        check_model(config)


def test_messages_are_not_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = dict(statistics='a/very/long/way/to/' + 'statistics/' * 20 + 'nowhere.json', scheme='enet')
    whole = Config(dict(model=dict(decode_head=dict(loss_decode=dict(OURS, class_weight=weights)))))

    with pytest.raises(PreflightError, match=r'a file written by tools/class_weights\.py$'):
        check_losses(whole)


SEGMENTER = dict(type='SegmenterMaskTransformerHead', num_classes=2)
SAMPLED = dict(type='FCNHead', num_classes=3, sampler=dict(type='OHEMPixelSampler'))


@pytest.mark.parametrize(
    ('head', 'words'),
    [
        (dict(num_classes=1, loss_decode=BUILT_IN), r'model\.decode_head has one channel and a softmax'),
        (
            dict(SEGMENTER, loss_decode=SIGMOID, out_channels=1),
            'makes num_classes=2 channels, not out_channels=1. Leave',
        ),
        (dict(SEGMENTER, loss_decode=OURS), None),  # what that says to do
        (dict(SAMPLED, loss_decode=SIGMOID), 'OHEMPixelSampler without thresh ranks pixels by their losses'),
        (dict(SAMPLED, loss_decode=BUILT_IN_SIGMOID), 'OHEMPixelSampler without thresh ranks pixels by their losses'),
    ],
)
def test_heads_that_cannot_be_trained(head, words):
    with pytest.raises(PreflightError, match=words) if words else nullcontext():
        check_model(Config(dict(model=dict(decode_head=head))))


def test_ignored_class_255_of_many_classes_is_logged(monkeypatch):
    said = []
    monkeypatch.setattr(preflight, 'print_log', lambda message, *_: said.append(message))

    check_model(Config(dict(model=dict(decode_head=dict(num_classes=300)))))
    check_model(Config(dict(model=dict(decode_head=dict(num_classes=150)))))

    (line,) = said
    assert 'num_classes=300 and ignores class 255' in line


def test_damaged_checkpoint(tmp_path):
    path = str(tmp_path / 'iter_1.pth')
    torch.save(dict(state_dict={'weight': torch.ones(1000)}), path)
    check_checkpoint(path)
    torch.save(dict(state_dict={}), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    check_checkpoint(str(tmp_path / 'old.pth'))

    with open(path, 'r+b') as file:
        file.truncate(600)

    with pytest.raises(PreflightError, match=r'iter_1\.pth.*damaged'):
        check_checkpoint(path)


def test_missing_checkpoint(tmp_path):
    with pytest.raises(PreflightError, match=r'epoch_1\.pth'):
        check_checkpoint(str(tmp_path / 'epoch_1.pth'))

    check_checkpoint('https://example.org/epoch_1.pth')


def test_a_loss_on_the_validation_set_needs_its_hook():
    """Under any of the places where a config has hooks."""
    evaluator = [dict(type='IoUMetric'), dict(type='mmseg.ValidationLoss')]
    hook = dict(type='FusedPredictHook')

    with pytest.raises(
        PreflightError, match=r"val_evaluator has ValidationLoss, .* add dict\(type='FusedPredictHook'\)"
    ):
        check_model(Config(dict(val_evaluator=evaluator, custom_hooks=[dict(type='FusedLossHook')])))
    check_model(Config(dict(val_evaluator=evaluator, custom_hooks=[hook])))
    check_model(Config(dict(test_evaluator=evaluator, default_hooks=dict(fused_predict=hook, logger=None))))


def test_a_sampler_without_its_record(dataset, tmp_path):
    statistics = str(tmp_path / 'labels.json')
    sampler = dict(type='RareClassSampler', statistics=statistics)

    with pytest.raises(PreflightError, match=r'sampler: the record of label files .*labels.files.json'):
        check_record(Config(dict(train_dataloader=dict(dataset=dataset, sampler=sampler))))

    save_file_record(FileRecord(('sky',), {}), statistics)
    check_record(Config(dict(train_dataloader=dict(dataset=dataset, sampler=sampler))))
    check_record(config(dataset))
    check_record(Config())
