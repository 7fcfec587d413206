"""What an installation without a checkout has, up to a training from a wheel in an empty environment."""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import mmengine
import mmseg_wce
import pytest
import torch
from mmengine.config import Config
from mmseg_wce import __main__ as command
from mmseg_wce import resources
from mmseg_wce.datasets.demo_scenes import generate_demo_scenes


def test_lists_every_config(capsys, root):
    assert command.main(['configs']) == 0

    listed = capsys.readouterr().out.split()
    assert listed == sorted(str(p.relative_to(root / 'configs')) for p in (root / 'configs').glob('[!_]*/*.py'))


@pytest.mark.parametrize('name', resources.configs())
def test_a_copy_is_the_same_config(tmp_path, capsys, root, monkeypatch, name):
    assert command.main(['configs', name, '--out', str(tmp_path / 'mine')]) == 0

    copy = capsys.readouterr().out.splitlines()[0]
    monkeypatch.chdir(tmp_path)
    assert Config.fromfile(copy).to_dict() == Config.fromfile(root / 'configs' / name).to_dict()


def test_a_config_without_local_bases_is_one_file(tmp_path, capsys):
    command.main(['configs', 'segnext', '--out', str(tmp_path)])

    (copy,) = capsys.readouterr().out.splitlines()
    assert copy == str(tmp_path / 'segnext_mscan-t_1xb16-adamw-wce-160k_ade20k-512x512.py')


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('nowhere', "no config has 'nowhere' in its name"),
        ('segformer_mit-b0', "'segformer_mit-b0' is in the names of 3 configs: ade20k/segformer_mit-b0"),
    ],
)
def test_a_name_that_is_not_one_config(tmp_path, capsys, name, words):
    assert command.main(['configs', name, '--out', str(tmp_path)]) == 2

    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_users_own_file_is_not_overwritten(tmp_path, capsys):
    name = 'camvid/fast_scnn_1xb8-wce-4k_camvid-352x480'
    command.main(['configs', name, '--out', str(tmp_path)])
    command.main(['configs', name, '--out', str(tmp_path)])
    base = tmp_path / '_base_/schedules/schedule_4k.py'
    base.write_text('mine = True\n')
    (tmp_path / f'{name}.py').unlink()

    assert command.main(['configs', name, '--out', str(tmp_path)]) == 2

    assert 'exists and differs' in capsys.readouterr().err
    assert base.read_text() == 'mine = True\n'
    assert not (tmp_path / f'{name}.py').exists()


def test_where_a_copy_cannot_go(tmp_path, capsys):
    (tmp_path / 'file').touch()
    (tmp_path / 'segnext_mscan-t_1xb16-adamw-wce-160k_ade20k-512x512.py').symlink_to(tmp_path / 'elsewhere.py')

    assert command.main(['configs', 'SegNeXt', '--out', str(tmp_path / 'file')]) == 2
    assert 'is not a folder' in capsys.readouterr().err
    assert command.main(['configs', 'SegNeXt', '--out', str(tmp_path)]) == 2
    assert 'exists and differs' in capsys.readouterr().err
    assert not (tmp_path / 'elsewhere.py').exists()
    with pytest.raises(SystemExit, match='2'):
        command.main(['configs', '--out', str(tmp_path)])


def test_every_tool_exists_and_explains_itself(root, capsys):
    assert all((root / 'tools' / f'{name}.py').is_file() for name in command.TOOLS)
    with pytest.raises(SystemExit):
        command.main(['train', '--help'])

    assert 'config file' in capsys.readouterr().out


@pytest.mark.parametrize('arguments', [[], ['--help']])
def test_lists_commands_and_tools(capsys, arguments):
    try:
        status = command.main(arguments)
    except SystemExit as end:
        status = end.code

    listed = capsys.readouterr().out
    assert status == 0
    assert [name for name in ('env', 'configs', *command.TOOLS) if f'\n    {name}' not in listed] == []


def test_the_environment(capsys, monkeypatch):
    monkeypatch.setenv('MMSEG_WCE_BACKEND', 'reference')
    monkeypatch.setenv('NUMBA_DISABLE_JIT', '1')

    assert command.main(['env']) == 0

    found = dict(line.split(': ', 1) for line in capsys.readouterr().out.splitlines() if ': ' in line)
    assert found['PyTorch'] == torch.__version__
    assert found['MMEngine'] == mmengine.__version__
    assert found['mmseg_wce'] == mmseg_wce.__version__
    assert found['registered with mmseg'] == 'yes'
    assert 'mmsegmentation ' in found['mmseg']
    assert found['numba'] == f'numba {metadata.version("numba")}'
    assert found['back end on CPU'] == 'reference'
    assert found['set in the environment'].startswith('MMSEG_WCE_BACKEND=reference, NUMBA_DISABLE_JIT=1')
    assert 'numpy_random_seed' not in found


NOTHING_WORKS = """
for name in ('mmseg', 'mmengine', 'mmcv'): sys.modules[name] = None
os.environ['MMSEG_WCE_BACKEND'] = 'none'
import torch
from importlib import metadata
torch.cuda.device_count = lambda: 1 / 0
metadata.distributions = lambda **_: ()
"""


@pytest.mark.parametrize(
    ('breakage', 'words'),
    [
        (
            NOTHING_WORKS,
            [
                'no (mmseg is not installed)',
                'unknown (ValueError: MMSEG_WCE_BACKEND must be one of',
                'numba: not installed',
                'GPUs: unknown (ZeroDivisionError',
            ],
        ),
        ("sys.modules['mmcv'] = None", ['no (ModuleNotFoundError: import of mmcv halted; None in sys.modules)']),
        ("sys.modules['cv2'] = None", ['no (ModuleNotFoundError: import of cv2 halted']),
    ],
)
def test_the_environment_of_what_is_broken(breakage, words):
    code = f"import os, sys\n{breakage}\nfrom mmseg_wce.__main__ import main\nsys.exit(main(['env']))"

    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)

    assert process.returncode == 0, process.stderr
    assert [word for word in words if word not in process.stdout] == []
    assert f'mmseg_wce: {mmseg_wce.__version__}' in process.stdout


@pytest.mark.slow
def test_a_wheel_trains_in_an_empty_environment(root, tmp_path):
    """The sdist holds all that the wheel is built from; the wheel holds all that a training needs."""
    checkout = tmp_path / 'checkout'
    left = shutil.ignore_patterns('.*', 'build', 'dist', 'data', 'work_dirs', '*.egg-info', '__pycache__')
    shutil.copytree(root, checkout, ignore=left)

    def run(*arguments: str, cwd) -> str:
        process = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-2000:]
        return process.stdout + process.stderr

    run(sys.executable, '-c', f'import setuptools.build_meta as b; b.build_sdist({str(tmp_path)!r})', cwd=checkout)
    (sdist,) = tmp_path.glob('*.tar.gz')
    offline = ('--no-deps', '--no-index', '--no-build-isolation')
    run(sys.executable, '-m', 'pip', 'wheel', *offline, str(sdist), cwd=tmp_path)
    (wheel,) = tmp_path.glob('*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    assert 'mmseg_wce/py.typed' in names
    (index,) = [name for name in names if name.endswith('/model-index.yml')]
    assert index == 'mmseg_wce/.mim/model-index.yml'  # and what it imports is where it says
    imported = re.findall(r'- (.*)', (root / 'model-index.yml').read_text())
    assert {f'mmseg_wce/.mim/{path}' for path in imported} <= set(names)

    empty = tmp_path / 'empty'
    venv.create(empty, with_pip=False, symlinks=True)
    python = str(empty / 'bin/python')
    run(sys.executable, '-m', 'pip', '--python', python, 'install', *offline[:2], str(wheel), cwd=tmp_path)
    # a .pth file's own .pth files are not read: torch and mmseg are visible, this checkout's installation is not
    (site_packages,) = empty.glob('lib/python*/site-packages')
    installed = Path(sysconfig.get_path('purelib'))
    # but this one of setuptools: Python 3.12 and later have no distutils, which mmengine imports
    distutils = (installed / 'distutils-precedence.pth').read_text()
    (site_packages / 'torch_and_mmseg.pth').write_text(f'{installed}\n{distutils}')

    work = tmp_path / 'work'
    generate_demo_scenes(work / 'data/demo_scenes', num_training=4, num_validation=2)
    (work / 'data/demo_scenes/class_weight.json').write_text(str([0.5 + c for c in range(10)]))
    package = [python, '-m', 'mmseg_wce']
    copied = run(*package, 'configs', 'fast_scnn_1xb4-wce-400_demo', '--out', 'mine', cwd=work).split()
    config = next(word for word in copied if word.endswith('demo-192x256.py'))
    where = run(python, '-c', 'import mmseg_wce; print(mmseg_wce.__file__)', cwd=work)
    environment = run(str(empty / 'bin/mmseg_wce'), 'env', cwd=work)
    options = ['train_cfg.max_iters=1', 'train_cfg.val_interval=1', 'train_dataloader.batch_size=2']
    output = run(*package, 'train', config, '--cfg-options', *options, 'default_hooks.logger.interval=1', cwd=work)

    assert str(empty) in where
    assert 'registered with mmseg: yes' in environment
    assert 'Iter(train) [1/1]' in output
    assert 'mIoU' in output
    assert (work / 'work_dirs' / config.split('/')[-1].removesuffix('.py') / 'iter_1.pth').is_file()
