"""Compiling and keeping the CPU kernels: a small kernel in a folder of its own, and the assembly of the real ones."""

import os
import platform
import re
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


def assert_compiles_once_and_says_so(folder: Path) -> None:
    first, second = run(folder), run(folder)

    assert answer(first) == answer(second) == '[1.0, 1.0, 0.0]'
    assert first.stderr.count('compiling the CPU kernels') == 1
    assert second.stderr == ''


def kept_index(folder: Path) -> Path:
    run(folder)
    (index,) = (folder / 'cache').rglob('*.nbi')
    return index


def test_compiled_once_and_said_once(folder):
    assert_compiles_once_and_says_so(folder)


def test_an_edit_of_a_function_in_another_file_is_seen(folder):
    run(folder)

    (folder / 'helper.py').write_text(HELPER.format(value=2.0))

    assert answer(run(folder)) == '[2.0, 2.0, 0.0]'


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


def test_what_another_version_has_kept_is_made_anew(folder):
    """Its index may name classes that are gone."""
    index = kept_index(folder)
    index.write_bytes(index.read_bytes().replace(b'numba.core.types', b'numba.core.typos'))

    assert_compiles_once_and_says_so(folder)


def test_a_broken_index_that_cannot_be_written_costs_the_cache_alone(folder):
    index = kept_index(folder)
    index.write_bytes(index.read_bytes()[:-20])
    code = (
        'import numba.core.caching as caching\n'
        'def refused(*_): raise OSError(30, "Read-only file system")\n'
        'caching.IndexDataCacheFile.flush = refused\n' + CALL
    )

    assert answer(run(folder, code)) == '[1.0, 1.0, 0.0]'


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


BACKEND = (
    'import torch\n'
    'from mmseg_wce.kernels.backends import chosen_backend\n'
    'print(chosen_backend("cpu", torch.device("cpu"), torch.float32))\n'
)


@pytest.mark.parametrize(
    ('code', 'environment', 'expected'),
    [
        (BACKEND, {}, 'cpu'),
        (BACKEND, {'NUMBA_DISABLE_JIT': '1'}, 'slabs'),
        ('import numba; numba.config.DISABLE_JIT = 1\n' + BACKEND, {}, 'slabs'),
        ('import sys; sys.modules["numba"] = None\n' + BACKEND, {}, 'slabs'),
        ('import sys; sys.modules["llvmlite"] = None\n' + BACKEND, {}, 'slabs'),  # broken
    ],
)
def test_without_numba_plain_pytorch_takes_over(tmp_path, code, environment, expected):
    assert answer(run(tmp_path, code, **environment)) == expected


@pytest.mark.heavy
@pytest.mark.skipif(platform.machine() not in ('x86_64', 'AMD64'), reason='looks for instructions of x86')
@pytest.mark.parametrize(
    ('module', 'name', 'exponentials'),
    [
        ('resized_forward', 'forward', 2),
        ('resized_backward', 'backward', 5),
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
