"""Describe the machine: versions, device, clocks, bandwidth, and the back end that the loss takes on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from statistics import median

import mmseg_wce
import torch
from cuda_timing import device_timer
from mmseg_wce.kernels.backends import OLDEST_CAPABILITY, chosen_backend

from gpu_checks.results import CheckRun, Outcome

_QUERY = ('driver_version', 'clocks.sm', 'clocks.max.sm', 'clocks.mem', 'clocks.max.mem', 'power.draw', 'power.limit')
_QUERY += ('temperature.gpu', 'utilization.gpu', 'memory.used', 'persistence_mode')
_PROPERTIES = ('uuid', 'L2_cache_size', 'clock_rate', 'memory_clock_rate', 'memory_bus_width', 'warp_size')
_PROPERTIES += ('regs_per_multiprocessor', 'shared_memory_per_multiprocessor', 'max_threads_per_multi_processor')
# they change what runs, or how fast
_VARIABLES = ('MMSEG_WCE_BACKEND', 'TRITON_INTERPRET', 'CUDA_LAUNCH_BLOCKING', 'PYTORCH_NO_CUDA_MEMORY_CACHING')
_COPIED = 1 << 30  # bytes


def versions(run: CheckRun) -> None:
    """Report versions, and what Triton needs to compile: a C compiler, Python's headers, a folder to write to."""
    run.add('mmseg_wce, Python', '', f'{mmseg_wce.__version__}, {platform.python_version()}', None)
    run.add('torch, CUDA', '', f'{torch.__version__}, {torch.version.cuda}', None)
    for name in ('triton', 'numba', 'numpy', 'pytest', 'hypothesis'):
        try:
            run.add(name, '', importlib.metadata.version(name), None)
        except importlib.metadata.PackageNotFoundError:
            run.add(name, '', 'not installed', None)
    if run.device == 'cpu':
        return
    chosen = ', '.join(f'{name}={os.environ[name]}' for name in _VARIABLES if os.environ.get(name))
    run.add('environment variables', 'none', chosen or 'none', not chosen, f'unset {" ".join(_VARIABLES)}')
    compiler = os.environ.get('CC') or next(filter(shutil.which, ('gcc', 'clang', 'cc')), None)
    advice = 'install gcc, or set CC: Triton compiles the code that launches kernels with it'
    run.add('C compiler', 'one', str(compiler or 'none'), compiler is not None, advice)
    headers = Path(sysconfig.get_path('include'), 'Python.h').exists()
    run.add("Python's headers", 'found', 'found' if headers else 'not found', headers, 'apt install python3-dev')
    home = Path(os.environ.get('TRITON_HOME') or Path.home())
    cache = Path(os.environ.get('TRITON_CACHE_DIR') or home / '.triton/cache')
    run.attempt("Triton's cache folder", 'can be written', lambda: can_be_written(cache), 'set TRITON_CACHE_DIR')


def can_be_written(folder: Path) -> Outcome:
    """Write a file in the folder, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        return 'can be written', True, dict(folder=str(folder))


def device(run: CheckRun) -> None:
    """Report the device, its clocks before and after work, and the bandwidth of a copy."""
    properties = torch.cuda.get_device_properties(0)
    capability = properties.major, properties.minor
    raw = {name: str(getattr(properties, name, None)) for name in _PROPERTIES}
    run.add('device', '', f'{properties.name}, {properties.total_memory / 2**30:.1f} GiB', None, **raw)
    advice = 'MMSEG_WCE_BACKEND=slabs'
    found, oldest = ('.'.join(map(str, version)) for version in (capability, OLDEST_CAPABILITY))
    run.add('compute capability', f'>= {oldest}', found, capability >= OLDEST_CAPABILITY, advice)
    run.add('multiprocessors', '', str(properties.multi_processor_count), None)
    clocks(run, 'idle')
    run.attempt('bandwidth of a copy', '', bandwidth)
    clocks(run, 'after the copy')


def clocks(run: CheckRun, when: str) -> None:
    """Report what nvidia-smi says of driver, clocks, power and use."""
    if shutil.which('nvidia-smi') is None:
        run.skip(f'nvidia-smi, {when}', 'not found')
        return
    # torch's first device need not be nvidia-smi's: take it by its UUID
    uuid = str(getattr(torch.cuda.get_device_properties(0), 'uuid', ''))
    selected = ['-i', uuid if uuid.startswith('GPU-') else f'GPU-{uuid}'] if uuid else ['-i', '0']
    command = ['nvidia-smi', f'--query-gpu={",".join(_QUERY)}', '--format=csv,noheader']
    for options in (selected, []):
        answer = subprocess.run([*command, *options], capture_output=True, text=True, timeout=20, check=False)
        if answer.returncode == 0:
            values = dict(zip(_QUERY, answer.stdout.splitlines()[0].split(', '), strict=True))
            found = 'driver {driver_version}, SM {clocks.sm} of {clocks.max.sm}, memory {clocks.mem}, {power.draw}'
            for name, value in values.items():
                found = found.replace('{' + name + '}', value)
            run.add(f'nvidia-smi, {when}', '', found, None, **values)
            return
    run.skip(f'nvidia-smi, {when}', (answer.stdout + answer.stderr).strip()[:200])


def bandwidth() -> Outcome:
    """Measure a copy on the device; bytes read and bytes written count."""
    size = min(_COPIED, torch.cuda.mem_get_info()[0] // 4)
    source = torch.ones(size, dtype=torch.uint8, device='cuda')
    into = torch.empty_like(source)
    timer = device_timer(lambda: into.copy_(source))
    seconds = [timer.sample() for _ in range(7)]
    rate = 2 * size / median(seconds)
    return f'{rate / 1e9:,.0f} GB/s', None, dict(bytes=size, seconds=seconds, bytes_per_second=rate)


def backend(run: CheckRun) -> None:
    """Report the back end that the loss takes for each dtype, without anything chosen."""
    expected = dict(float32='triton', float16='triton', bfloat16='triton', float64='slabs')
    if run.device == 'cpu':
        expected = dict.fromkeys(expected, 'cpu or slabs')
    advice = "pip install 'triton>=3.3' and a CUDA build of torch; is MMSEG_WCE_BACKEND set?"
    for name, wanted in expected.items():

        def choose(name: str = name, wanted: str = wanted) -> Outcome:
            chosen = chosen_backend(None, torch.device(run.device), getattr(torch, name))
            return chosen, chosen in wanted.split(' or '), {}

        run.attempt(f'back end, {name}', wanted, choose, advice)
