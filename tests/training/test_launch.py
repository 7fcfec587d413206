import pytest
import torch
from mmengine.config import Config
from mmseg_wce.training import launch
from mmseg_wce.training.preflight import PreflightError


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(launch, 'get_device', lambda: 'cpu')
    monkeypatch.setattr(torch.distributed, 'init_process_group', lambda backend: None)
    monkeypatch.setattr(launch.Runner, 'from_cfg', lambda config: config)
    monkeypatch.setenv('RANK', '0')


def joined(**settings) -> Config:
    model = dict(decode_head=dict(norm_cfg=dict(type='SyncBN')), heads=[dict(norm_cfg=dict(type='SyncBN'))])
    return launch.build_runner(Config(dict(launcher='pytorch', model=model, **settings)))


def test_processes_on_cpu_are_wrapped_without_devices(on_cpu):
    config = joined(find_unused_parameters=True)

    assert config.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False, find_unused_parameters=True
    )
    assert config.model.decode_head.norm_cfg.type == config.model.heads[0].norm_cfg.type == 'BN'


def test_a_wrapper_of_the_config_stays(on_cpu):
    assert joined(model_wrapper_cfg=dict(type='Mine')).model_wrapper_cfg == dict(type='Mine')


@pytest.mark.parametrize('launcher', ['slurm', 'mpi'])
def test_other_launchers_need_accelerators(on_cpu, launcher):
    with pytest.raises(PreflightError, match=f'--launcher {launcher} needs accelerators'):
        launch.build_runner(Config(dict(launcher=launcher, model={})))


@pytest.mark.parametrize(
    ('option', 'own', 'expected'),
    [('given', 'mine', 'given'), (None, 'mine', 'mine'), (None, None, 'work_dirs/config')],
)
def test_work_dir_comes_from_the_option_then_the_config_then_its_name(tmp_path, monkeypatch, option, own, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config.py').write_text('' if own is None else f'work_dir = {own!r}')
    arguments = launch.argparse.Namespace(
        config='config.py', cfg_options=None, launcher='none', work_dir=option, local_rank=0
    )

    assert launch.config_from(arguments).work_dir == expected
