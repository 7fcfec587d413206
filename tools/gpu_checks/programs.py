"""Checks that start other programs: the tests, compute-sanitizer and the benchmark."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from gpu_checks.results import OK, CheckRun, read_rows
from gpu_checks.runner import ROOT, SCRIPT, error_line

_NEEDS = ('pytest', 'hypothesis')
# parts of tests/kernels that are for the CPU alone
_CPU_FILES = ('test_bilinear.py', 'test_cpu.py', 'test_jit.py', 'test_large.py', 'test_slabs.py', 'test_threads.py')
_CPU_FILES += ('test_triton_machine_code.py',)  # it compiles for a minute, with no need of the device
_ON_DEVICE = 'cuda or triton or another_process'  # in the names of tests that run on the device
_ENOUGH_MEMORY = 60 * 2**30  # bytes, for tests with more than 2^31 logits
_VERDICT = re.compile(r'^(\S+\.py::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b', re.MULTILINE)
_REASON = re.compile(r'^(?:FAILED|ERROR) (\S+\.py.*)$', re.MULTILINE)
_NO_TESTS = 5  # exit status of pytest
_STOPPED = 124  # exit status of a program whose time was up
_MARGIN = 4.0  # seconds that a check keeps for itself before its time is up
_BENCHMARK_CASES = ('ade20k-bf16', 'ade20k', 'cityscapes-bf16')  # of the GPU, the most important first
_MOST_TIMES_FLOOR = 12  # docs/design.md computes 8 for 150 classes, from the instructions of the kernels
_BENCHMARK_SHARE = 0.8  # of the check's time; the benchmark keeps within its own limit only roughly


@dataclass(frozen=True)
class TestFile:
    """A file of tests.

    Attributes:
        path: relative to the project's folder.
        expression: the tests to run, as pytest's -k takes it; empty for all.
        markers: the same for -m.
        missing: what it needs that this machine does not have.
    """

    path: str
    expression: str = ''
    markers: str = 'not slow'
    missing: str = ''


def test_files() -> list[TestFile]:
    """Return the files with a CUDA or Triton branch, the largest first: these take longest."""
    import torch

    kernels = [path for path in (ROOT / 'tests/kernels').glob('test_*.py') if path.name not in _CPU_FILES]
    kernels.sort(key=lambda path: -path.stat().st_size)
    files = [TestFile(str(path.relative_to(ROOT)), _ON_DEVICE) for path in kernels]
    memory = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0
    missing = '' if memory >= _ENOUGH_MEMORY else f'needs {_ENOUGH_MEMORY / 2**30:.0f} GiB of memory on the device'
    files.insert(1, TestFile('tests/kernels/test_large.py', 'cuda', '', missing))
    files += [TestFile(f'tests/{name}.py', _ON_DEVICE) for name in ('test_both_losses', 'test_targets')]
    missing = '' if importlib.util.find_spec('mmseg') else 'needs mmseg'
    return [*files, TestFile('tests/test_mixed_precision.py', _ON_DEVICE, missing=missing)]


@dataclass
class _RunningTests:
    """A file of tests that pytest runs in a process of its own."""

    file: TestFile
    log: IO[str]
    process: subprocess.Popen

    @classmethod
    def start(cls, file: TestFile, folder: Path) -> _RunningTests:
        log = (folder / f'{Path(file.path).stem}.log').open('w+')
        command = [sys.executable, '-m', 'pytest', file.path, '-v', '--tb=short', '-p', 'no:cacheprovider']
        command += ['-k', file.expression, '-m', file.markers]
        # COLUMNS: or the summary would cut off what the errors say
        environment = {**os.environ, 'CUBLAS_WORKSPACE_CONFIG': ':4096:8', 'COLUMNS': '300'}
        return cls(file, log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment))

    def report(self, run: CheckRun) -> None:
        """Write a row: how many tests passed, which failed, and where it was stopped."""
        status = self.process.poll()
        if status is None:
            self.process.kill()
            self.process.wait()
        self.log.seek(0)
        output = self.log.read()
        if status == _NO_TESTS:
            run.skip(self.file.path, 'no test for the device')
            return
        verdicts = _VERDICT.findall(output)
        counts = Counter(verdict.lower() for _, verdict in verdicts)
        failed = [name for name, verdict in verdicts if verdict in ('FAILED', 'ERROR')]
        found = ', '.join(f'{n} {verdict}' for verdict, n in counts.items()) or error_line(output)
        if status is None:
            found += '; stopped, no time left'
        elif status not in (0, 1):
            found += f'; pytest ended with {status}: {error_line(output)}'
        if failed:
            found += f'; first: {failed[0].rpartition("::")[2]}'
        advice = f'python -m pytest {self.file.path}'
        raw = dict(failed=failed, reasons=_REASON.findall(output), output='' if status == 0 else output[-20000:])
        run.add(self.file.path, 'all pass', found, status == 0, advice, **raw)


def suite(run: CheckRun, files: Sequence[TestFile] | None = None) -> None:
    """Run files of tests side by side.

    Args:
        run: the running check.
        files: by default those with a CUDA or Triton branch.
    """
    end = time.monotonic() + run.seconds - _MARGIN
    if missing := [name for name in _NEEDS if importlib.util.find_spec(name) is None]:
        run.skip('tests', f'needs {" and ".join(missing)}')
        return
    if files is None and not (ROOT / 'tests/kernels').is_dir():
        run.skip('tests', 'not in this folder: they come with a checkout of the project')
        return
    waiting, running = [], []
    for file in test_files() if files is None else files:
        if file.missing:
            run.skip(file.path, file.missing)
        else:
            waiting.append(file)
    with tempfile.TemporaryDirectory() as folder:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < parallel_processes():
                running.append(_RunningTests.start(waiting.pop(0), Path(folder)))
            for tests in [tests for tests in running if tests.process.poll() is not None]:
                running.remove(tests)
                tests.report(run)
            time.sleep(0.1)
        for tests in running:
            tests.report(run)
    for file in waiting:
        run.add(file.path, 'all pass', 'not started, no time left', False, f'python -m pytest {file.path}')


def parallel_processes() -> int:
    """Return how many processes run side by side: each compiles on the CPU and holds a CUDA context."""
    return max(1, min(8, (os.cpu_count() or 1) // 2))


def sanitizer(run: CheckRun, tool: str) -> None:
    """Run a small step under compute-sanitizer."""
    program = shutil.which('compute-sanitizer')
    if program is None:
        run.skip(f'compute-sanitizer {tool}', 'not found')
        return
    with tempfile.TemporaryDirectory() as folder:
        step = [sys.executable, str(SCRIPT), '--run', 'small step', '--rows', f'{folder}/rows', '--device', run.device]
        options = ['--tool', tool, '--error-exitcode', '99', '--target-processes', 'application-only']
        # memory that PyTorch keeps for later would hide accesses beyond the end
        environment = {**os.environ, 'PYTORCH_NO_CUDA_MEMORY_CACHING': '1'}
        process = run_program([program, *options, *step], run.seconds - _MARGIN, environment)
        rows = read_rows(Path(folder, 'rows'))
    raw = dict(output=process.stdout[-8000:])
    summary = [line for line in process.stdout.splitlines() if 'SUMMARY' in line]
    found = summary[-1].strip('= ') if summary else error_line(process.stdout)
    name, advice = f'compute-sanitizer {tool}', 'the JSON file has its output'
    if process.returncode in (0, 99):
        passed = process.returncode == 0 and [row.verdict for row in rows] == [OK] * 2  # the step itself ran
        run.add(name, '0 errors', found, passed, advice, **raw)
    elif process.returncode == _STOPPED:
        run.add(name, '0 errors', 'stopped, no time left', False, advice, **raw)
    else:
        run.skip(name, f'could not run: {error_line(process.stdout)}', **raw)


def run_program(
    command: list[str], seconds: float, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run a command with a time limit; its exit status is ``_STOPPED`` if it was stopped.

    Args:
        command: the program and its arguments.
        seconds: time limit.
        environment: its environment variables; those of this process by default.

    Returns:
        The ended process, with stdout and stderr together in ``stdout``.
    """
    with tempfile.TemporaryFile('w+') as log:
        with subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment) as process:
            try:
                status = process.wait(max(seconds, 1))
            except subprocess.TimeoutExpired:
                process.kill()
                status = _STOPPED
        log.seek(0)
        return subprocess.CompletedProcess(command, status, stdout=log.read())


def _read_json(path: Path) -> dict:
    """Return what a program has written; nothing if there is no file, or half of one."""
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def times_floor(case: dict) -> float | None:
    """Return our time on the device over the least that the device needs; None if one was not measured."""
    ours = case.get('ways', {}).get('mmseg_wce', {})
    if not ours.get('device') or 'floor' not in case:
        return None
    return ours['device']['median'] / case['floor']['seconds']


def step_times(case: dict) -> str:
    """Return the time of a step for each implementation; on a GPU also ours over the floor, and our launches."""
    ways, parts = case.get('ways', {}), []
    for name, way in ways.items():
        if time_of_step := way.get('device') or way.get('both'):
            parts.append(f'{name} {1e3 * time_of_step["median"]:.2f} ms')
    if (times := times_floor(case)) is not None:
        parts.append(f'{times:.1f} x the floor')
    ours = ways.get('mmseg_wce', {})
    if ours.get('kernels'):
        parts.append(f'{sum(kernel["launches"] for kernel in ours["kernels"]):g} launches')
    return ', '.join(parts)


def benchmark_command(device: str, out: Path, seconds: float) -> list[str]:
    """Return the command of the benchmark: loss steps, nothing else.

    Args:
        device: 'cuda' or 'cpu'.
        out: a folder, for benchmark.json.
        seconds: time for everything; the CPU's one case has no limit of its own.

    Returns:
        The program and its arguments.
    """
    command = [sys.executable, str(ROOT / 'tools/benchmark.py'), '--device', device]
    if device == 'cpu':
        return [*command, '--out', str(out), '--cases', 'one-image', '--models', '--photos', '--crops']
    command += ['--json', str(out / 'benchmark.json'), '--seconds', f'{seconds:.0f}']
    return [*command, '--cases', *_BENCHMARK_CASES, '--ways', 'mmseg_wce', 'eager', 'compiled']


def benchmark(run: CheckRun) -> None:
    """Run the benchmark, and report what it found in each case; it writes its file after every case."""
    with tempfile.TemporaryDirectory() as folder:
        seconds = run.seconds - _MARGIN
        process = run_program(benchmark_command(run.device, Path(folder), _BENCHMARK_SHARE * seconds), seconds)
        results = _read_json(Path(folder, 'benchmark.json'))
    for case in results.get('cases', []):
        found = case.get('not_measured') or step_times(case) or 'no times'
        times, name = times_floor(case), f'benchmark, {case["case"]}'
        if times is None:
            run.add(name, '', found, None, result=case)
            continue
        advice = 'see the clocks and the kernels in the JSON file; then try other Tiles in kernels/triton/tiles.py'
        run.add(name, f'<= {_MOST_TIMES_FLOOR} x the floor', found, times <= _MOST_TIMES_FLOOR, advice, result=case)
    if process.returncode == 0:
        if not results.get('cases'):
            run.add('benchmark', 'times', 'no benchmark.json with cases', False, output=process.stdout[-4000:])
        return
    if process.returncode == _STOPPED and results.get('cases'):
        run.add('benchmark', '', 'stopped, no time left for more', None, output=process.stdout[-4000:])
        return
    found = 'no time left' if process.returncode == _STOPPED else error_line(process.stdout)
    if 'No module named' in found:
        run.skip('benchmark', found, output=process.stdout[-4000:])
    else:
        advice = 'run tools/benchmark.py with fewer --cases, alone'
        run.add('benchmark', 'ends normally', found, False, advice, output=process.stdout[-4000:])
