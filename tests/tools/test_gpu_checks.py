"""The single checks for a GPU, as far as a CPU allows: that they notice errors, and say so."""

import argparse
import importlib
import os
import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def correctness(gpu_check):
    return importlib.import_module('gpu_checks.correctness')


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_the_loss_is_correct(correctness, check_run, dtype):
    rows = check_run(correctness.resizing, dtype)

    assert len(rows) == 11
    assert {row.verdict for row in rows} == {'ok'}, [row.found for row in rows]
    assert all(0 <= row.raw['gradient_error'] <= row.raw['gradient_tolerance'] for row in rows)


def test_an_error_of_the_loss_is_found(correctness, check_run, monkeypatch):
    right = correctness.weighted_cross_entropy
    monkeypatch.setattr(
        correctness, 'weighted_cross_entropy', lambda *args, **options: 1.0001 * right(*args, **options)
    )

    rows = check_run(correctness.options_and_values)

    assert {row.check for row in rows if row.verdict != 'FAILED'} == {'all ignored'}
    assert all('MMSEG_WCE_BACKEND=slabs' in row.advice for row in rows if row.verdict == 'FAILED')


def test_a_nan_that_spreads_is_found(correctness, check_run, monkeypatch):
    right = correctness.weighted_cross_entropy

    def spread(logits, *args, **options):
        losses = right(logits, *args, **options)
        return torch.where(losses.isnan().any(2, keepdim=True), torch.nan, losses)  # along whole rows

    monkeypatch.setattr(correctness, 'weighted_cross_entropy', spread)
    problem = correctness.make_problem('cpu', 5, (6, 10), (24, 40))

    _, passed, raw = correctness.nan_reaches(*problem)

    assert not passed
    assert raw['wrong'] > 0


def test_a_gradient_with_an_error_is_found(correctness):
    behaviour = importlib.import_module('gpu_checks.behaviour')
    results = behaviour.training_step(*correctness.make_problem('cpu', 5, (6, 10), (24, 40)))

    assert behaviour.same_bits(results, results)[:2] == ('the same bits', True)
    found, passed, raw = behaviour.same_bits(results, (results[0], results[1] + 1e-3))
    assert not passed
    assert found.startswith('another gradient')
    assert raw['gradient_difference'] == pytest.approx(1e-3, rel=1e-3)


@pytest.fixture
def programs(gpu_check):
    return importlib.import_module('gpu_checks.programs')


TESTS = dict(
    mixed='def test_one(): pass\ndef test_two(): assert 1 == 2\ndef test_three_on_the_cpu(): assert False\n',
    crash='import os\ndef test_one(): pass\ndef test_two(): os.abort()\n',
    hang='import time\ndef test_one(): pass\ndef test_two(): time.sleep(600)\n',
    broken='import no_such_module\n',
)


def test_files_of_tests_are_run_side_by_side(programs, check_run, tmp_path, monkeypatch):
    files = []
    monkeypatch.setattr(programs, 'parallel_processes', lambda: 3)
    for name, code in TESTS.items():
        (tmp_path / f'test_{name}.py').write_text(code)
        files.append(programs.TestFile(str(tmp_path / f'test_{name}.py'), 'not on_the_cpu'))
    files.append(programs.TestFile(str(tmp_path / 'test_none.py'), 'no_such_test'))
    (tmp_path / 'test_none.py').write_text(TESTS['mixed'])
    files.append(programs.TestFile('tests/far.py', missing='needs more memory'))

    rows = check_run(programs.suite, files, seconds=20)

    found = {row.check.rpartition('/')[2]: row for row in rows}
    assert (found['far.py'].verdict, found['far.py'].found) == ('skipped', 'needs more memory')
    assert (found['test_none.py'].verdict, found['test_none.py'].found) == ('skipped', 'no test for the device')
    assert {name for name, row in found.items() if row.verdict == 'FAILED'} == {f'test_{name}.py' for name in TESTS}
    assert found['test_mixed.py'].found == '1 passed, 1 failed; first: test_two'
    assert found['test_mixed.py'].raw['reasons'][0].endswith('test_two - assert 1 == 2')
    assert found['test_crash.py'].found.startswith('1 passed; pytest ended with -6')
    assert found['test_hang.py'].found == '1 passed; stopped, no time left'
    assert 'no_such_module' in found['test_broken.py'].raw['output']


def test_files_of_tests_that_no_time_is_left_for_are_listed(programs, check_run):
    (row,) = check_run(programs.suite, [programs.TestFile('tests/kernels/test_op.py')], seconds=1)

    assert (row.verdict, row.found) == ('FAILED', 'not started, no time left')


def test_files_of_the_suite_exist(programs):
    files = programs.test_files()

    assert all((programs.ROOT / file.path).is_file() for file in files)
    assert 'tests/kernels/test_triton.py' in [file.path for file in files]


def test_tests_are_skipped_without_pytest(programs, check_run, monkeypatch):
    monkeypatch.setattr(programs, '_NEEDS', ('no_such_module',))

    (row,) = check_run(programs.suite)

    assert (row.verdict, row.found) == ('skipped', 'needs no_such_module')


SANITIZERS = {
    'clean': ('echo "========= ERROR SUMMARY: 0 errors"', 'ok', 'ERROR SUMMARY: 0 errors'),
    'errors': ('echo "========= ERROR SUMMARY: 2 errors"; exit 99', 'FAILED', 'ERROR SUMMARY: 2 errors'),
    'useless': ('echo "Error: Device not supported"; exit 1', 'skipped', 'could not run: Error: Device not supported'),
}


@pytest.mark.parametrize('kind', SANITIZERS)
def test_compute_sanitizer(programs, check_run, tmp_path, monkeypatch, kind):
    end, verdict, found = SANITIZERS[kind]
    script = tmp_path / 'compute-sanitizer'
    # it runs the program that follows its own six arguments
    script.write_text(f'#!/bin/sh\nshift 6\n"$@" >"{tmp_path}/step" 2>&1\ncp "$6" "{tmp_path}/found"\n{end}\n')
    script.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv('PYTHONPATH', str(programs.ROOT))

    (row,) = check_run(programs.sanitizer, 'memcheck')

    assert (row.verdict, row.found) == (verdict, found)
    assert (tmp_path / 'found').read_text().count('"verdict": "ok"') == 2, (tmp_path / 'step').read_text()


def test_without_compute_sanitizer(programs, check_run, monkeypatch):
    monkeypatch.setattr(programs.shutil, 'which', lambda _: None)

    (row,) = check_run(programs.sanitizer, 'memcheck')

    assert (row.verdict, row.found) == ('skipped', 'not found')


CPU_WAYS = {name: dict(both=dict(median=x)) for name, x in (('mmseg_wce', 2.5e-3), ('built-in', 2e-2))}
CUDA_WAYS = dict(
    mmseg_wce=dict(device=dict(median=5e-4), kernels=[dict(launches=7), dict(launches=5.5)]),
    eager=dict(device=dict(median=6e-3)),
    compiled=dict(not_measured='it would take longer'),
)
CASES = dict(
    cpu=dict(case='ADE20K', ways={**CPU_WAYS, 'failed': {}}),
    cuda=dict(case='ADE20K', ways=CUDA_WAYS, floor=dict(seconds=2e-4)),
    slow=dict(case='ADE20K', ways=CUDA_WAYS, floor=dict(seconds=2e-5)),
    late=dict(case='ADE20K', not_measured='--seconds 100 were used up'),
)
ON_CUDA = 'mmseg_wce 0.50 ms, eager 6.00 ms, 2.5 x the floor, 12.5 launches'
HANG = 'import time; time.sleep(600)'
BENCHMARKS = {
    'fine': ('{cpu}', [('info', 'mmseg_wce 2.50 ms, built-in 20.00 ms')]),
    'cuda': ('{cuda}', [('ok', ON_CUDA)]),
    'slow': ('{slow}', [('FAILED', ON_CUDA.replace('2.5 x', '25.0 x'))]),
    'late': ('{late}', [('info', '--seconds 100 were used up')]),
    'stopped': ('{cuda}; ' + HANG, [('ok', ON_CUDA), ('info', 'stopped, no time left for more')]),
    'fails': ('raise ValueError("no such case")', [('FAILED', 'ValueError: no such case')]),
    'misses': ('import no_such_module', [('skipped', "ModuleNotFoundError: No module named 'no_such_module'")]),
    'hangs': (HANG, [('FAILED', 'no time left')]),
    'half': ('open("{out}", "w").write("{")', [('FAILED', 'no benchmark.json with cases')]),
    'empty': ('json.dump({}, open("{out}", "w"))', [('FAILED', 'no benchmark.json with cases')]),
}


@pytest.mark.parametrize('kind', BENCHMARKS)
def test_benchmark(programs, check_run, monkeypatch, kind):
    code, expected = BENCHMARKS[kind]
    for name, case in CASES.items():
        code = code.replace(f'{{{name}}}', f'Path("{{out}}").write_text(json.dumps({dict(cases=[case])}))')

    def command(device, out, seconds):
        assert seconds < 6.0
        code_of_file = code.replace('{out}', str(out / 'benchmark.json'))
        return [sys.executable, '-c', 'import json\nfrom pathlib import Path\n' + code_of_file]

    monkeypatch.setattr(programs, 'benchmark_command', command)

    rows = check_run(programs.benchmark, seconds=6.0)

    assert [(row.verdict, row.found) for row in rows] == expected


class Understood(Exception):
    """A tool has read its command line."""


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_the_benchmark_understands_its_command(programs, import_tool, tmp_path, monkeypatch, device):
    parse, benchmark = argparse.ArgumentParser.parse_args, import_tool('benchmark')

    def understand(*arguments):
        raise Understood(parse(*arguments))

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', understand)

    with pytest.raises(Understood) as understood:
        benchmark.main(programs.benchmark_command(device, tmp_path, 90.0)[2:])
    (arguments,) = understood.value.args
    if device == 'cpu':
        assert arguments.out == tmp_path
    else:
        assert (arguments.json, arguments.seconds) == (tmp_path / 'benchmark.json', 90)
    assert arguments.cases


def test_nvidia_smi(gpu_check, check_run, tmp_path, monkeypatch):
    machine = importlib.import_module('gpu_checks.machine')
    script = tmp_path / 'nvidia-smi'
    values = '580.159, 345 MHz, 1980 MHz, 3201 MHz, 3201 MHz, 75.0 W, 700.0 W, 30, 0 %, 4 MiB, Enabled'
    # it knows no device by its UUID, as in some containers
    script.write_text(f'#!/bin/sh\ncase "$*" in *GPU-1234*) echo "No devices"; exit 6;; esac\necho "{values}"\n')
    script.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda _: SimpleNamespace(uuid='1234'))

    (row,) = check_run(machine.clocks, 'idle')

    assert row.found == 'driver 580.159, SM 345 MHz of 1980 MHz, memory 3201 MHz, 75.0 W'
    assert row.raw['persistence_mode'] == 'Enabled'


class FakeCuda:
    """Stands in for torch.cuda on the CPU: a graph whose replay computes nothing new, a clock that stands still."""

    def __init__(self, monkeypatch):
        self.modes = []
        nothing = SimpleNamespace(wait_stream=lambda _: None, replay=lambda: None, record=lambda: None)
        nothing.elapsed_time = lambda _: 2.0
        for name in ('synchronize', 'Stream', 'current_stream', 'CUDAGraph', 'Event'):
            monkeypatch.setattr(torch.cuda, name, lambda **_: nothing)
        for name in ('graph', 'stream'):
            monkeypatch.setattr(torch.cuda, name, lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', self.modes.append)
        monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda: (4096, 8192))
        monkeypatch.setattr(torch, 'ones', partial(self.on_cpu, torch.ones))
        properties = dict(name='a GPU', total_memory=2**34, major=6, minor=1, multi_processor_count=28)
        monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda _: SimpleNamespace(**properties))

    @staticmethod
    def on_cpu(function, *args, device=None, **options):
        return function(*args, **options)


@pytest.fixture
def behaviour(gpu_check):
    return importlib.import_module('gpu_checks.behaviour')


@pytest.fixture
def cuda(monkeypatch):
    return FakeCuda(monkeypatch)


@pytest.mark.parametrize('before', ['nothing', 'other shapes', 'warm-up'])
def test_a_graph_that_ignores_new_inputs_is_found(cuda, behaviour, check_run, before):
    (row,) = check_run(behaviour.graph, before)

    assert (row.check, row.verdict) == (f'CUDA graph, {before} before', 'FAILED')
    assert row.found.startswith('another loss and gradient')
    assert ('before the capture' in row.advice) == (before != 'warm-up')


def test_synchronization_is_forbidden_in_loss_steps_only(cuda, behaviour, check_run):
    rows = check_run(behaviour.no_synchronization)

    assert [row.verdict for row in rows] == ['ok'] * 3
    assert cuda.modes == ['error', 'default'] * 3


def test_device_and_bandwidth(cuda, gpu_check, check_run, monkeypatch):
    machine = importlib.import_module('gpu_checks.machine')
    monkeypatch.setattr(machine.shutil, 'which', lambda _: None)
    monkeypatch.setattr(machine, 'device_timer', lambda _: SimpleNamespace(sample=lambda: 2e-3))

    rows = {row.check: row for row in check_run(machine.device)}

    assert rows['device'].found == 'a GPU, 16.0 GiB'
    assert rows['compute capability'].verdict == 'FAILED'  # too old for the Triton kernels
    assert rows['bandwidth of a copy'].raw['bytes_per_second'] == 2 * 1024 / 2e-3
    assert rows['nvidia-smi, idle'].found == 'not found'


def test_kernels_are_counted(behaviour, check_run, monkeypatch):
    def event(name, on_device=True):
        kind = torch.autograd.DeviceType.CUDA if on_device else torch.autograd.DeviceType.CPU
        return SimpleNamespace(name=name, device_type=kind)

    events = [event('a'), event('a'), event('Memset (Device)'), event('cuLaunchKernelEx', False), event('aten::sum', 0)]
    profiler = SimpleNamespace(events=lambda: events)
    monkeypatch.setattr(torch.profiler, 'profile', lambda **_: nullcontext(profiler))
    monkeypatch.setattr(behaviour, 'MOST_LAUNCHES', 1)

    row, *_ = check_run(behaviour.launches)

    assert (row.found, row.expected, row.verdict) == ('2', '<= 1', 'FAILED')
    assert row.raw['kernels'] == dict(a=2)
    assert row.raw['launch_calls'] == dict(cuLaunchKernelEx=1)
    events.clear()
    row, *_ = check_run(behaviour.launches)
    assert (row.found, row.verdict) == ('the profiler saw no kernel', 'info')
