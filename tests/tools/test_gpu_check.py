"""The checks for a GPU, as far as a CPU allows: how they are run, what they say, and that they notice errors."""

import importlib
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

# Stands in for gpu_check.py: a check that does what its name says. {folder} is for files of the test.
PROGRAM = """
import argparse, json, os, signal, subprocess, sys, time
parser = argparse.ArgumentParser()
for name in ('--run', '--rows', '--device', '--seconds'):
    parser.add_argument(name)
args = parser.parse_args()
row = dict(check=args.run, expected='', found=args.device, verdict='ok', advice='', raw={})
if args.run != 'silent':
    with open(args.rows, 'w') as file:
        file.write(json.dumps(row) + chr(10))
if args.run == 'crash':
    os.abort()
if args.run == 'error':
    raise ValueError('no such kernel')
if args.run == 'hang':
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])
    print(child.pid, flush=True)
    with open(os.path.join(sys.argv[0] + '.pid'), 'w') as file:
        file.write(str(child.pid))
    time.sleep(600)
"""


@pytest.fixture
def tool(import_tool):
    return import_tool('gpu_check')


@pytest.fixture
def results(tool):
    return importlib.import_module('gpu_checks.results')


@pytest.fixture
def runner(tool):
    return importlib.import_module('gpu_checks.runner')


@pytest.fixture
def run_stage(runner, tmp_path):
    """Run checks of PROGRAM; return their rows by the name of the check."""
    program = tmp_path / 'program.py'
    program.write_text(PROGRAM)

    def run(*names: str, limit: float = 60, seconds: float = 60, jobs: int = 2) -> dict[str, list]:
        checks = [
            runner.Check(name, '', limit, advice='try again', program=(sys.executable, str(program))) for name in names
        ]
        found = {}
        deadline = time.monotonic() + seconds
        runner.run_stage(
            checks, 'cpu', tmp_path, deadline, jobs, lambda check, rows: found.setdefault(check.name, rows)
        )
        return found

    return run


@pytest.fixture
def check_run(results, tmp_path):
    """Run a function of gpu_checks as a check of this process; return its rows."""

    def run(function, *arguments, device='cpu', seconds=60.0):
        path = tmp_path / 'rows.jsonl'
        path.unlink(missing_ok=True)
        function(results.CheckRun(path, device, seconds), *arguments)
        return results.read_rows(path)

    return run


def is_running(pid: int) -> bool:
    try:
        with open(f'/proc/{pid}/stat') as file:
            return file.read().rpartition(')')[2].split()[0] != 'Z'
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def wait_for(condition):
    for _ in range(400):
        if found := condition():
            return found
        time.sleep(0.05)
    return condition()


def test_a_crash_or_an_error_ends_no_other_check(run_stage):
    found = run_stage('crash', 'error', 'silent', 'fine')

    assert [row.verdict for row in found['fine']] == ['ok']
    assert [row.verdict for row in found['crash']] == ['ok', 'FAILED']
    assert found['crash'][1].found.startswith('killed by SIGABRT')
    assert found['error'][1].found == 'exit status 1: ValueError: no such kernel'
    assert 'Traceback' in found['error'][1].raw['output']
    assert [row.found for row in found['silent']] == ['ended without a result']
    assert found['silent'][0].advice == 'try again'


def test_a_check_that_hangs_is_stopped_with_what_it_started(run_stage, tmp_path):
    found = run_stage('hang', 'fine', limit=3, jobs=1)

    assert [row.verdict for row in found['hang']] == ['ok', 'FAILED']
    assert found['hang'][1].found == 'stopped after 3 s, 1 results before'
    assert [row.verdict for row in found['fine']] == ['ok']
    pid = int((tmp_path / 'program.py.pid').read_text())
    assert wait_for(lambda: not is_running(pid))


def test_checks_for_which_no_time_is_left_are_listed(run_stage, results):
    found = run_stage('fine', 'crash', seconds=1)

    assert [(row.verdict, row.found) for rows in found.values() for row in rows] == [('not run', 'no time left')] * 2
    assert results.exit_status(found['fine']) == 1


def test_a_device_is_handed_on(run_stage):
    assert run_stage('fine')['fine'][0].found == 'cpu'


def test_table_has_advice_for_what_failed(results):
    rows = [
        results.Row('first', '<= 25', '12', 'ok', advice='nothing'),
        results.Row('second', 'triton', 'x' * 200, 'FAILED', advice='pip install triton'),
        results.Row('third', '', 'not found', 'skipped'),
    ]

    head, _, first, second, advice, third = results.table(rows).splitlines()

    assert head.split() == ['check', 'expected', 'found', 'verdict']
    assert first.split() == ['first', '<=', '25', '12', 'ok']
    assert second.endswith('xxx...  FAILED')
    assert advice.strip() == 'try: pip install triton'
    assert third.split() == ['third', 'not', 'found', 'skipped']
    assert results.summarize(rows) == '1 ok, 1 FAILED, 1 skipped'


@pytest.mark.parametrize(
    ('verdicts', 'status'),
    [(['ok', 'info', 'skipped'], 0), (['ok', 'FAILED'], 1), (['ok', 'not run'], 1), ([], 1)],
)
def test_exit_status(results, verdicts, status):
    assert results.exit_status([results.Row('a', '', '', verdict) for verdict in verdicts]) == status


def test_an_exception_fails_its_own_row(results, check_run):
    def check(run):
        run.attempt('first', '', lambda: 1 / 0)
        run.attempt('second', '', lambda: ('fine', True, dict(error=float('nan'))))

    first, second = check_run(check)

    assert (first.verdict, first.found) == ('FAILED', 'ZeroDivisionError: division by zero')
    assert (second.verdict, second.raw) == ('ok', dict(error='nan'))


def test_a_lost_device_ends_the_check(results, check_run, tmp_path):
    def lose():
        raise RuntimeError('CUDA error: device-side assert triggered')

    def check(run):
        run.attempt('first', '', lose)
        run.attempt('second', '', lambda: ('fine', True, {}))

    with pytest.raises(RuntimeError, match='device-side assert'):
        check_run(check)
    assert [(row.check, row.verdict) for row in results.read_rows(tmp_path / 'rows.jsonl')] == [('first', 'FAILED')]


def test_a_row_that_was_cut_off_is_left_out(results, tmp_path):
    run = results.CheckRun(tmp_path / 'rows', 'cpu', 1)
    run.add('whole', '', '', True)
    with (tmp_path / 'rows').open('a') as file:
        file.write('{"check": "cut')

    assert [row.check for row in results.read_rows(tmp_path / 'rows')] == ['whole']


def test_every_check_has_a_function_and_a_name_of_its_own(tool):
    names = [check.name for stage in tool.STAGES for check in stage]

    assert len(set(names)) == len(names) == len(tool.CHECKS) - 1
    for check in tool.CHECKS.values():
        module, _, function = check.function.partition('.')
        assert callable(getattr(importlib.import_module(f'gpu_checks.{module}'), function))


def test_without_a_cuda_device(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)

    assert tool.main(['--json', str(tmp_path / 'found.json')]) == 2
    assert 'no CUDA device' in capsys.readouterr().err
    assert not (tmp_path / 'found.json').exists()


def test_checks_run_on_the_cpu(tool, tmp_path, capsys):
    checks = ['--only', 'versions', 'back end', 'bad label', 'slabs', 'launches']

    status = tool.main(['--device', 'cpu', '--json', str(tmp_path / 'found.json'), '--jobs', '1', *checks])

    output = capsys.readouterr().out
    assert status == 0, output
    found = json.loads((tmp_path / 'found.json').read_text())
    verdicts = {row['check']: row['verdict'] for row in found['rows']}
    assert found['device'] == 'cpu'
    assert verdicts['bad label, later call'] == verdicts['back end, float32'] == verdicts['slabs, a NaN'] == 'ok'
    assert not any(name.startswith('kernel launches') for name in verdicts)  # nothing that needs a GPU
    assert all(name in output for name in verdicts)
    assert ' s  bad label: 3 ok\n' in output


def test_no_time_left_for_any_check(tool, tmp_path, capsys):
    arguments = ['--device', 'cpu', '--only', 'bad label', '--seconds', '1', '--json', str(tmp_path / 'found.json')]

    assert tool.main(arguments) == 1
    (row,) = json.loads((tmp_path / 'found.json').read_text())['rows']
    assert (row['check'], row['verdict']) == ('bad label', 'not run')


@pytest.fixture
def correctness(tool):
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
def programs(tool):
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


BENCHMARKS = {
    'fine': ('ok', 'info', 'mmseg_wce 2.50 ms, built-in 20.00 ms'),
    'fails': ('raise ValueError("no such case")', 'FAILED', 'ValueError: no such case'),
    'misses': ('import no_such_module', 'skipped', "ModuleNotFoundError: No module named 'no_such_module'"),
    'hangs': ('import time; time.sleep(600)', 'FAILED', 'no time left'),
    'empty': ('json.dump({}, open("{out}", "w"))', 'FAILED', 'no benchmark.json with cases'),
}


@pytest.mark.parametrize('kind', BENCHMARKS)
def test_benchmark(programs, check_run, monkeypatch, kind):
    code, verdict, found = BENCHMARKS[kind]
    ways = {name: dict(both=dict(median=x)) for name, x in (('mmseg_wce', 2.5e-3), ('built-in', 2e-2))}
    cases = dict(cases=[dict(case='ADE20K', ways={**ways, 'failed': {}})])
    if kind == 'fine':
        code = f'json.dump({cases}, open("{{out}}", "w"))'

    def command(device, out):
        return [sys.executable, '-c', 'import json\n' + code.replace('{out}', str(out / 'benchmark.json'))]

    monkeypatch.setattr(programs, 'benchmark_command', command)

    (row,) = check_run(programs.benchmark, seconds=6.0)

    assert (row.verdict, row.found) == (verdict, found)


def test_the_benchmark_understands_its_command(programs, import_tool, tmp_path, monkeypatch):
    benchmark = import_tool('benchmark')
    measured = []
    monkeypatch.setattr(benchmark, 'measure_case', lambda case, _: measured.append(case.title) or 1 / 0)

    with pytest.raises(ZeroDivisionError):
        benchmark.main(programs.benchmark_command('cpu', tmp_path)[2:])
    assert len(measured) == 1
    assert set(programs.benchmark_command('cuda', tmp_path)) & set(benchmark.CASES)


def test_nvidia_smi(tool, check_run, tmp_path, monkeypatch):
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


def test_a_tool_that_is_stopped_stops_its_checks(tool, tmp_path):
    json_file = tmp_path / 'found.json'
    command = [sys.executable, tool.__file__, '--device', 'cpu', '--json', str(json_file), '--jobs', '1']
    # the first check ends, and writes the file, before the second does, which takes seconds
    process = subprocess.Popen([*command, '--only', 'back end', 'slabs'], stdout=subprocess.PIPE, text=True)
    assert 'back end: 4 ok' in process.stdout.readline()
    (child,) = wait_for(lambda: children(process.pid))

    process.terminate()

    assert process.wait(60) == 143
    assert wait_for(lambda: not is_running(child))
    assert len(json.loads(json_file.read_text())['rows']) == 4


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
def behaviour(tool):
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


def test_device_and_bandwidth(cuda, tool, check_run, monkeypatch):
    machine = importlib.import_module('gpu_checks.machine')
    monkeypatch.setattr(machine.shutil, 'which', lambda _: None)

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
