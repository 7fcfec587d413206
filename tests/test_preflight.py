import pytest
from mmengine.config import Config
from mmseg_wce import preflight
from mmseg_wce.preflight import PreflightError, check_amp, check_checkpoint, check_data, load_config


@pytest.fixture
def dataset(tmp_path):
    for kind in ('images', 'annotations'):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / 'one.png').touch()
    return dict(data_root=str(tmp_path), data_prefix=dict(img_path='images', seg_map_path='annotations'))


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


@pytest.mark.parametrize('wrap', [lambda d: d, lambda d: dict(dataset=d), lambda d: dict(datasets=[d])])
def test_missing_data_root(dataset, wrap):
    dataset['data_root'] = 'no/such/folder'

    assert "data_root 'no/such/folder' does not exist" in complaint(wrap(dataset))


def test_missing_folder(dataset):
    dataset['data_prefix']['seg_map_path'] = 'labels'

    assert 'labels' in complaint(dataset)


def test_empty_folder(dataset, tmp_path):
    (tmp_path / 'images' / 'one.png').unlink()

    assert 'holds no files' in complaint(dataset)


def test_missing_list(dataset):
    dataset['ann_file'] = 'train.txt'

    assert 'train.txt' in complaint(dataset)


def test_other_storages_are_left_alone(dataset):
    dataset.update(data_root='s3://bucket', backend_args=dict(backend='petrel'))

    check_data(config(dataset), 'train')


def test_missing_config():
    with pytest.raises(PreflightError, match=r"config file 'nowhere\.py' does not exist"):
        load_config('nowhere.py')


def test_config_with_a_missing_base(tmp_path):
    (tmp_path / 'config.py').write_text("_base_ = './base.py'")

    with pytest.raises(PreflightError, match=r'base\.py'):
        load_config(str(tmp_path / 'config.py'))


def test_options_are_merged(tmp_path):
    (tmp_path / 'config.py').write_text('train_cfg = dict(max_iters=10)')

    assert load_config(str(tmp_path / 'config.py'), {'train_cfg.max_iters': 3}).train_cfg.max_iters == 3


def test_amp_on_cpu(monkeypatch):
    monkeypatch.setattr(preflight, 'get_device', lambda: 'cpu')
    with pytest.raises(PreflightError, match='--amp needs an accelerator'):
        check_amp()

    monkeypatch.setattr(preflight, 'get_device', lambda: 'cuda')
    check_amp()


def test_missing_checkpoint(tmp_path):
    with pytest.raises(PreflightError, match=r'epoch_1\.pth'):
        check_checkpoint(str(tmp_path / 'epoch_1.pth'))

    check_checkpoint('https://example.org/epoch_1.pth')
