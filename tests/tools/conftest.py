import importlib.util
import json
import shutil
import sys

import pytest
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


@pytest.fixture
def gpu_check(import_tool):
    """The tool gpu_check.py."""
    return import_tool('gpu_check')


@pytest.fixture
def gpu_results(gpu_check):
    """The results of its checks."""
    return importlib.import_module('gpu_checks.results')


@pytest.fixture
def check_run(gpu_results, tmp_path):
    """Run a function of gpu_checks as a check of this process; return its rows."""

    def run(function, *arguments, device='cpu', seconds=60.0):
        path = tmp_path / 'rows.jsonl'
        path.unlink(missing_ok=True)
        function(gpu_results.CheckRun(path, device, seconds), *arguments)
        return gpu_results.read_rows(path)

    return run
