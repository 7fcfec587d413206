import importlib.util
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import subprocess
import sys
import traceback
from types import SimpleNamespace

import pytest
import torch
from mmseg_wce.datasets.demo_scenes import generate_demo_scenes


@pytest.fixture(scope='session')
def demo_scenes(tmp_path_factory):
    """A small demo data set and class weights for it; not to be changed."""
    folder = tmp_path_factory.mktemp('demo_scenes')
    generate_demo_scenes(folder, num_training=8, num_validation=2)
    (folder / 'class_weight.json').write_text(json.dumps([0.5 + c for c in range(10)]))
    return folder


@pytest.fixture
def demo_folder(demo_scenes, tmp_path, monkeypatch):
    """A working folder with a copy of the demo data set where the demo configs look for it."""
    shutil.copytree(demo_scenes, tmp_path / 'data/demo_scenes')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def import_tool(root, monkeypatch):
    """Import a script of tools/ as it is imported when it is run."""

    def load(name: str):
        monkeypatch.syspath_prepend(str(root / 'tools'))
        spec = importlib.util.spec_from_file_location(name, root / 'tools' / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


class ForkedTool:
    """A stand-in for ``subprocess.Popen`` with a tool: a fork of this process need not import torch and mmseg again."""

    def __init__(self, command, env=None, **_):
        reading, writing = os.pipe()
        self._process = multiprocessing.get_context('fork').Process(
            target=_run_script, args=(command[1:], env, writing)
        )
        self._process.start()
        os.close(writing)
        self.pid, self.terminate = self._process.pid, self._process.terminate
        self.stdout, self.returncode = os.fdopen(reading), None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stdout.close()


def _run_script(argv, env, output) -> None:
    os.dup2(output, 1)
    sys.stdout = sys.stderr = os.fdopen(output, 'w', buffering=1)
    sys.argv = argv
    os.environ.update(env or {})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)  # a fork has none of the threads that OpenMP had
    status = 1
    try:
        runpy.run_path(argv[0], run_name='__main__')
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for worker in multiprocessing.active_children():
            worker.terminate()
        os._exit(status)  # the usual exit would join threads that a fork does not have


@pytest.fixture
def forked_tools(root, monkeypatch):
    """Let :func:`subprocess_runner.watch` run tools in forks. CUDA does not work in a fork: there it stays as it is."""
    monkeypatch.syspath_prepend(str(root / 'tools'))
    runner = importlib.import_module('subprocess_runner')
    if not torch.cuda.is_available():
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # imports what every fork would have to import
        names = dict(PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
        monkeypatch.setattr(runner, 'subprocess', SimpleNamespace(Popen=ForkedTool, **names))
    return runner
