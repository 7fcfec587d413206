"""Compiling and keeping the CPU kernels: a small kernel in a folder of its own, and the assembly of the real ones."""

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from fresh_process import WITHOUT_MMSEG

numba = pytest.importorskip('numba')

HELPER = """
from mmseg_wce.kernels.cpu.jit import fast_function

@fast_function
def addend():
    return {value}
"""
KERNEL = """
import numpy as np
from helper import addend
from mmseg_wce.kernels.cpu.jit import Kernel
from numba import types

@Kernel(types.float64[::1])
def fill(first, last, pieces, out):
    for i in range(first, last):
        out[i] = addend()
"""
CALL = """
import numpy as np
from kernel import fill
out = np.zeros(3)
fill.compiled()(0, 2, np.zeros((3, 1), np.int64), out)
print(out.tolist())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / 'kernel.py').write_text(KERNEL)
    (tmp_path / 'helper.py').write_text(HELPER.format(value=1.0))
    return tmp_path


def run(folder: Path, code: str = CALL, **environment: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get('PYTHONPATH')])])
    environment = {**os.environ, 'PYTHONPATH': path, 'NUMBA_CACHE_DIR': str(folder / 'cache'), **environment}
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-B', '-c', WITHOUT_MMSEG + code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


def answer(process: subprocess.CompletedProcess) -> str:
    return process.stdout.splitlines()[-1]  # the fork prints lines of its own while it is imported


@pytest.fixture(scope='module')
def first_run(tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess]:
    """A folder with the cache of one run, a copy of it, and what the run printed: a process takes seconds to start."""
    folder = tmp_path_factory.mktemp('compiled')
    (folder / 'kernel.py').write_text(KERNEL)
    (folder / 'helper.py').write_text(HELPER.format(value=1.0))
    process = run(folder)
    return folder, shutil.copytree(folder, tmp_path_factory.mktemp('copy') / 'compiled'), process


@pytest.fixture
def compiled(first_run) -> Path:
    """The folder of the first run as it was after it; Numba's cache depends on where it lies."""
    folder, copy, _ = first_run
    shutil.rmtree(folder)
    return shutil.copytree(copy, folder)


def index_file(folder: Path) -> Path:
    (index,) = (folder / 'cache').rglob('*.nbi')
    return index


def assert_compiled_once(first: subprocess.CompletedProcess, second: subprocess.CompletedProcess) -> None:
    assert answer(first) == answer(second) == '[1.0, 1.0, 0.0]'
    assert first.stderr.count('compiling the CPU kernels') == 1
    assert second.stderr == ''


def test_compiled_once_and_said_once(first_run, compiled):
    assert_compiled_once(first_run[2], run(compiled))


def test_an_edit_of_a_function_in_another_file_is_seen(compiled):
    (compiled / 'helper.py').write_text(HELPER.format(value=2.0))

    assert answer(run(compiled)) == '[2.0, 2.0, 0.0]'


def test_an_edit_of_the_shared_units_is_seen(folder):
    (folder / 'helper.py').write_text('from mmseg_wce.kernels.units import ADDEND\n' + HELPER.format(value='ADDEND'))
    code = (
        'from mmseg_wce.kernels import units\n'
        'units.__file__ = __import__("os").environ["UNITS"]\n'
        'exec(open(units.__file__).read(), vars(units))\n' + CALL
    )
    answers = []
    for value in (1.0, 2.0):
        (folder / 'units.py').write_text(f'ADDEND = {value}\n')
        answers.append(answer(run(folder, code, UNITS=str(folder / 'units.py'))))

    assert answers == ['[1.0, 1.0, 0.0]', '[2.0, 2.0, 0.0]']


EXACT = """
from mmseg_wce.kernels.cpu.jit import exact_function

@exact_function
def _product_and_sum(a, b, c):
    return a * b + c

@exact_function
def addend(a):
    return _product_and_sum(a, a, -1 - 2.0**-26)
"""


def test_exact_functions_round_every_operation(folder):
    """Numba lets a function inherit the fastmath of its caller: a product and a sum would be rounded once."""
    (folder / 'helper.py').write_text(EXACT)
    (folder / 'kernel.py').write_text(KERNEL.replace('addend()', 'addend(out[i])'))

    found = run(folder, CALL.replace('np.zeros(3)', 'np.full(3, 1 + 2.0**-27)'))

    assert answer(found) == '[0.0, 0.0, 1.0000000074505806]'


def test_a_cache_of_another_version_is_made_anew(compiled):
    """Its index may name classes that are gone."""
    index = index_file(compiled)
    index.write_bytes(index.read_bytes().replace(b'numba.core.types', b'numba.core.typos'))

    assert_compiled_once(run(compiled), run(compiled))


def test_a_broken_index_that_cannot_be_written_costs_the_cache_alone(compiled):
    index = index_file(compiled)
    index.write_bytes(index.read_bytes()[:-20])
    code = (
        'import numba.core.caching as caching\n'
        'def refused(*_): raise OSError(30, "Read-only file system")\n'
        'caching.IndexDataCacheFile.flush = refused\n' + CALL
    )

    assert answer(run(compiled, code)) == '[1.0, 1.0, 0.0]'


AS_NOBODY = 'import os\nimport kernel\nif os.getuid() == 0: os.setuid(65534)\n' + CALL


def test_no_folder_that_can_be_written(folder):
    (folder / 'cache').mkdir()
    modes = {path: path.stat().st_mode for path in (folder / 'cache', folder)}
    for path in modes:
        path.chmod(0o555)  # root is another user by then
    try:
        found = run(folder, AS_NOBODY)
    finally:
        for path, mode in reversed(modes.items()):
            path.chmod(mode)

    assert answer(found) == '[1.0, 1.0, 0.0]'
    assert found.stderr.count('\n') == 2
    assert 'set NUMBA_CACHE_DIR' in found.stderr


def test_a_full_disk_costs_the_cache_alone(folder):
    code = (
        'import numba.core.caching as caching\n'
        'def full(*_): raise OSError(28, "No space left on device")\n'
        'caching.IndexDataCacheFile.save = full\n' + CALL
    )

    assert answer(run(folder, code)) == '[1.0, 1.0, 0.0]'


WITHOUT_NUMBA = """
import importlib, os, sys, torch
from mmseg_wce.kernels import backends

def chosen():
    return importlib.reload(backends).chosen_backend('cpu', torch.device('cpu'), torch.float32)

sys.modules['numba'] = None
answers = [chosen()]
del sys.modules['numba']
os.environ['NUMBA_DISABLE_JIT'] = '1'
answers.append(chosen())
del os.environ['NUMBA_DISABLE_JIT']
answers.append(chosen())
import numba
numba.config.DISABLE_JIT = 1
answers.append(chosen())
for name in [name for name in sys.modules if name.split('.')[0] in ('numba', 'llvmlite')]:
    del sys.modules[name]
sys.modules['llvmlite'] = None
answers.append(chosen())
print(*answers)
"""


def test_without_numba_plain_pytorch_takes_over(tmp_path):
    """Numba is missing, switched off, installed, switched off after its import, and broken."""
    assert answer(run(tmp_path, WITHOUT_NUMBA)) == 'slabs slabs cpu slabs slabs'


@pytest.mark.heavy
@pytest.mark.skipif(platform.machine() not in ('x86_64', 'AMD64'), reason='looks for instructions of x86')
@pytest.mark.parametrize(
    ('module', 'name', 'exponentials'),
    [
        ('resized_forward', 'forward', 2),
        pytest.param('resized_backward', 'backward', 5, marks=pytest.mark.slow),  # the longest to compile
        ('same_size', 'forward', 1),
        ('same_size', 'backward', 2),
    ],
)
def test_inner_loops_are_vectorized(module, name, exponentials):
    """Shifts by 23 bits build the power of two of an exponential: with every loop there is one on a whole vector."""
    from mmseg_wce.kernels.cpu.jit import Kernel

    kernel = getattr(import_module(f'mmseg_wce.kernels.cpu.{module}'), name)
    afresh = Kernel(*kernel.signature[3:])(kernel.dispatcher.py_func)  # what comes from the cache has no assembly
    afresh.dispatcher.compile(afresh.signature)
    (assembly,) = afresh.dispatcher.inspect_asm().values()

    shifts = re.findall(r'vpslld\s+\$23, %([yz])mm', assembly)
    assert len(shifts) >= exponentials
    assert len(re.findall(r'vf\w+ps\s.*%[yz]mm', assembly)) >= 5 * exponentials  # of the polynomial
