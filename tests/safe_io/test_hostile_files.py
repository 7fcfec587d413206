"""Files from strangers that would create a marker file if anything in them were executed: it never appears."""

import json
import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.runner import Runner, checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from mmseg_wce.class_weights import load_class_weight, load_statistics, statistics_file
from mmseg_wce.class_weights.statistics_file import BUNDLED
from mmseg_wce.training.checkpoints import checkpoints_in
from mmseg_wce.training.preflight import PreflightError, check_checkpoint


class Hostile:
    """Creates the marker when it is unpickled in the ordinary way."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / 'executed'
    yield path
    assert not path.exists()


def write(path, kind: str, marker) -> None:
    """A hostile file of each kind that is read."""
    hostile, command = Hostile(marker), f'mkdir {marker}'
    if kind == 'npy':
        np.save(path, np.array([1.0, hostile], dtype=object), allow_pickle=True)
    elif kind == 'yaml':
        path.write_text(f'!!python/object/apply:os.system ["{command}"]')
    elif kind == 'json':
        path.write_text(json.dumps({'__reduce__': ['os.system', command]}))
    elif kind == 'pkl':
        path.write_bytes(pickle.dumps([1.0, hostile]))
    elif kind == 'pth':
        torch.save(dict(state_dict={}, meta=hostile), path)
    else:
        torch.save(dict(state_dict={}, meta=hostile), path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize('kind', ['pkl', 'npy', 'yaml', 'pth', 'old pth'])
def test_they_are_hostile(tmp_path, kind):
    """Read without precautions, each of them is executed."""
    import yaml

    marker, path = tmp_path / 'proof', tmp_path / 'file'
    write(path, kind, marker)
    path = path if path.exists() else path.with_suffix('.npy')
    {
        'pkl': lambda: pickle.loads(path.read_bytes()),
        'npy': lambda: np.load(path, allow_pickle=True),
        'yaml': lambda: yaml.unsafe_load(path.read_text()),
    }.get(kind, lambda: torch.load(path, weights_only=False))()

    assert marker.exists()


@pytest.mark.parametrize(
    ('kind', 'reason'),
    [
        ('pkl', r'it asks for (posix|nt)\.mkdir; only numbers'),
        ('npy', 'allow_pickle'),
        ('yaml', 'os.system'),
        ('json', 'dict'),
    ],
)
def test_weights(tmp_path, marker, kind, reason):
    path = tmp_path / f'weights.{kind}'
    write(path, kind, marker)

    with pytest.raises(ValueError, match=reason):
        load_class_weight(str(path))


def laughs(depth: int):
    """2^depth numbers, if it is written out."""
    shared = (1.0, 2.0)
    for _ in range(depth):
        shared = (shared, shared)
    return shared


def aliases(level: str, depth: int = 40, each: int = 9) -> bytes:
    lines = ['- &a0 ' + ('{x: 1}' if '{{' in level else '[1, 2]')]
    for i in range(depth):
        lines.append(f'- &a{i + 1} ' + level.format(', '.join([f'*a{i}'] * each)))
    return '\n'.join(lines).encode()


@pytest.mark.parametrize(
    ('name', 'content', 'reason'),
    [
        ('itself.yaml', b'&a [*a, *a]', 'recursive'),
        ('laughs.pkl', pickle.dumps(laughs(60)), 'got the tuple .* at index 0'),
        ('keys.pkl', b'\x80\x02}K\x01K\x02\x86' + b'2\x86' * 60 + b'K\x01s.', 'it holds a dict or a set'),
        ('memo.pkl', b'\x80\x02]r\xff\xff\xff\x7f.', 'one weight per class'),
        ('laughs.yaml', aliases('[{}]'), 'got the list .* at index 0'),
        ('merge.yaml', aliases('{{<<: [{}]}}'), 'got the dict .* at index 0'),
        ('minutes.yaml', b'[' + b'1:' * 60_000 + b'1]', 'not a valid .yaml file'),
        ('deep.json', b'[' * 100_000 + b']' * 100_000, 'not a valid .json file'),
        ('large.json', b'[' + b'1,' * (1 << 23) + b'1]', r'16,777,\d+ bytes, more than'),
    ],
)
def test_weights_that_would_take_for_ever(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)

    with pytest.raises(ValueError, match=reason):
        load_class_weight(str(tmp_path / name))


@pytest.mark.parametrize('load', [load_class_weight, load_statistics])
def test_pipes_and_sparse_files(tmp_path, load):
    os.mkfifo(tmp_path / 'pipe.json')
    (tmp_path / 'sparse.json').touch()
    os.truncate(tmp_path / 'sparse.json', 1 << 40)

    with pytest.raises(ValueError, match='it is not a regular file'):
        load(str(tmp_path / 'pipe.json'))
    with pytest.raises(ValueError, match=r'1,099,511,627,776 bytes'):
        load(str(tmp_path / 'sparse.json'))


@pytest.mark.parametrize('change', [dict(unexpected=[]), dict(pixels=[2**70] * 150)])
def test_statistics_of_the_wrong_kind(tmp_path, change):
    content = json.loads(BUNDLED['ade20k'].read_text())
    content.pop('checksum')
    content |= change
    (tmp_path / 'mine.json').write_text(json.dumps({**content, 'checksum': statistics_file._checksum(content)}))
    (tmp_path / 'deep.json').write_text('[' * 200_000)

    for name in ('mine.json', 'deep.json'):
        with pytest.raises(ValueError, match=f'statistics .*{name}'):
            load_statistics(tmp_path / name)


@pytest.mark.parametrize('kind', ['pkl', 'json', 'yaml'])
def test_statistics(tmp_path, marker, kind):
    path = tmp_path / 'statistics.json'
    write(path, kind, marker)

    with pytest.raises(ValueError, match='statistics'):
        load_statistics(path)


@pytest.mark.parametrize('kind', ['pth', 'old pth', 'pkl'])
def test_code_in_checkpoints_is_not_executed(tmp_path, marker, kind):
    path = str(tmp_path / 'iter_1.pth')
    write(tmp_path / 'iter_1.pth', kind, marker)

    with pytest.raises(pickle.UnpicklingError, match=r'mkdir|Weights only'):
        CheckpointLoader.load_checkpoint(path, map_location='cpu')
    if kind == 'pth':  # whole, and not read before it is loaded
        assert checkpoints_in(str(tmp_path)).usable == path
    else:
        with pytest.raises(PreflightError, match='cannot be read'):
            check_checkpoint(path)


class Resuming:
    """The part of a Runner that ``resume`` needs until it has read the checkpoint."""

    def __init__(self, load) -> None:
        self.load, self.train_loop = load, SimpleNamespace()

    def load_checkpoint(self, path, map_location):
        return self.load(CheckpointLoader, path, map_location=map_location)


def test_a_config_in_a_checkpoint(tmp_path, marker):
    def resume(load, marker) -> None:
        config = f'name = __import__("os").mkdir({str(marker)!r})\n'
        torch.save(dict(state_dict={}, meta=dict(epoch=0, iter=3, config=config)), tmp_path / 'iter_3.pth')
        with pytest.raises((AttributeError, KeyError)):  # what a Runner has besides
            Runner.resume(Resuming(load), str(tmp_path / 'iter_3.pth'), map_location='cpu')

    load = CheckpointLoader.load_checkpoint.__func__
    resume(load.__wrapped__, tmp_path / 'proof')
    assert (tmp_path / 'proof').exists()  # mmengine alone executes it
    resume(load, marker)


@pytest.fixture
def address(tmp_path, monkeypatch):
    """Return the URL of the folder on a local server."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'downloads'))
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}'
    server.shutdown()
    server.server_close()


NAMED = ('torchvision://model', 'open-mmlab://model', 'openmmlab://model', 'mmcls://model')


@pytest.mark.parametrize('name', ['', *NAMED])
@pytest.mark.parametrize('kind', ['pth', 'old pth', 'pkl'])
def test_checkpoints_from_an_address(tmp_path, marker, address, monkeypatch, kind, name):
    write(tmp_path / 'model.pth', kind, marker)
    for of_names in ('get_torchvision_models', 'get_external_models', 'get_mmcls_models'):
        monkeypatch.setattr(checkpoint, of_names, lambda: dict(model=f'{address}/model.pth'))

    with pytest.raises(pickle.UnpicklingError, match=r'mkdir|Weights only'):
        CheckpointLoader.load_checkpoint(name or f'{address}/model.pth', map_location='cpu')


def test_a_checkpoint_from_an_address_loads(tmp_path, address):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    torch.save(dict(state_dict=dict(weight=torch.ones(2)), message_hub=dict(loss=history)), tmp_path / 'model.pth')

    loaded = CheckpointLoader.load_checkpoint(f'{address}/model.pth', map_location='cpu')

    assert loaded['state_dict']['weight'].tolist() == [1, 1]
    assert loaded['message_hub']['loss'].mean() == 2


def test_names_do_not_reach_a_shell(root, tmp_path, marker):
    """Arguments of the scripts that start several processes, and values of a config."""
    name = f'a config; mkdir {marker} $(mkdir {marker}) `mkdir {marker}`.py'
    printed = subprocess.run(
        [root / 'tools/dist_train.sh', name, '2', '--work-dir', name],
        env=dict(os.environ, PYTHON='/bin/echo', PYTHONPATH=name),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.count(name) == 2

    (tmp_path / 'config.py').write_text(f'work_dir = "$(mkdir {marker}); `mkdir {marker}`"\nmodel = dict()\n')
    train = subprocess.run(
        [sys.executable, root / 'tools/train.py', tmp_path / 'config.py'],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert train.returncode != 0
