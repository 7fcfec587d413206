import pytest
import torch
from mmengine.config import Config
from mmseg_wce.training import resuming
from mmseg_wce.training.preflight import PreflightError
from mmseg_wce.training.resuming import check_can_go_on, check_parameters
from torch import nn

CONFIG = Config(dict(train_cfg=dict(max_iters=10), param_scheduler=[dict(type='PolyLR')]))
WHOLE = dict(meta=dict(iter=5, epoch=0), state_dict={}, message_hub={}, optimizer={}, param_schedulers=[])


@pytest.fixture
def said(monkeypatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(resuming, 'print_log', lambda message, *_: lines.append(message))
    return lines


@pytest.fixture
def save(tmp_path):
    def save(content, **options) -> str:
        torch.save(content, tmp_path / 'iter_5.pth', **options)
        return str(tmp_path / 'iter_5.pth')

    return save


@pytest.mark.parametrize('zipped', [True, False])
def test_a_whole_checkpoint_passes_without_a_word(save, said, zipped):
    check_can_go_on(save(WHOLE, _use_new_zipfile_serialization=zipped), CONFIG)
    check_can_go_on('s3://bucket/iter_5.pth', CONFIG)

    assert said == []


def test_sharded_checkpoints_are_left_to_mmengine(tmp_path):
    with pytest.raises(PreflightError, match='a folder without a checkpoint'):
        check_can_go_on(str(tmp_path), CONFIG)
    (tmp_path / '.metadata').touch()
    check_can_go_on(str(tmp_path), CONFIG)
    check_parameters(nn.Linear(2, 2), str(tmp_path))


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (dict(weight=torch.ones(2)), 'holds no meta and no state_dict and no message_hub'),
        (dict(meta={}, state_dict={}), 'holds no message_hub, .*load_from=.*iter_5.pth'),
        ([1, 2], 'is not a checkpoint: it holds a list'),
    ],
)
def test_weights_alone_are_refused(save, content, words):
    with pytest.raises(PreflightError, match=words):
        check_can_go_on(save(content), CONFIG)


def test_missing_and_damaged_files(tmp_path, save):
    with pytest.raises(PreflightError, match='does not exist'):
        check_can_go_on(str(tmp_path / 'iter_1.pth'), CONFIG)
    path = save(WHOLE)
    with open(path, 'r+b') as file:
        file.truncate(100)
    with pytest.raises(PreflightError, match='damaged'):
        check_can_go_on(path, CONFIG)


@pytest.mark.parametrize(
    ('lacks', 'config', 'words'),
    [
        (['optimizer'], CONFIG, 'holds no optimizer: that part'),
        (['optimizer', 'param_schedulers'], CONFIG, 'holds no optimizer and no param_schedulers'),
        (['param_schedulers'], Config(dict(train_cfg=dict(max_iters=10))), None),
    ],
)
def test_missing_optimizer_and_schedulers_are_logged(save, said, lacks, config, words):
    check_can_go_on(save({name: part for name, part in WHOLE.items() if name not in lacks}), config)

    assert [words in line for line in said] == [True] * (words is not None)


@pytest.mark.parametrize('train_cfg', [dict(max_iters=5), dict(by_epoch=True, max_epochs=3)])
def test_a_training_that_is_over_is_said(save, said, train_cfg):
    check_can_go_on(save(WHOLE | dict(meta=dict(iter=5, epoch=3))), Config(dict(train_cfg=train_cfg)))

    (line,) = said
    assert 'nothing is left to train' in line


class Model(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.convolution = nn.Conv2d(2, classes, 1)
        self.norm = nn.BatchNorm2d(classes)


@pytest.mark.parametrize(
    ('other', 'words'),
    [
        (Model(4), r'convolution\.weight: copying a param with shape torch\.Size\(\[4, 2, 1, 1\]\)'),
        (nn.Sequential(nn.Conv2d(2, 3, 1)), r'lacks 4 of 4 parameters, such as convolution\.bias'),
    ],
)
def test_checkpoints_of_another_model(save, other, words):
    with pytest.raises(PreflightError, match=words):
        check_parameters(Model(), save(WHOLE | dict(state_dict=other.state_dict())))


def test_the_same_parameters_pass(save):
    state = Model().state_dict()

    check_parameters(Model(), save(WHOLE | dict(state_dict=state)))
    check_parameters(Model(), save(WHOLE | dict(state_dict={f'module.{name}': value for name, value in state.items()})))
    no_buffers = {name: value for name, value in state.items() if 'running' not in name}
    check_parameters(Model(), save(WHOLE | dict(state_dict=no_buffers)))
