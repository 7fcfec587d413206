"""Test how the checks for a GPU are run, and the table they make."""

import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

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
def runner(gpu_check):
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


def test_checks_for_which_no_time_is_left_are_listed(run_stage, gpu_results):
    found = run_stage('fine', 'crash', seconds=1)

    assert [(row.verdict, row.found) for rows in found.values() for row in rows] == [('not run', 'no time left')] * 2
    assert gpu_results.exit_status(found['fine']) == 1


def test_a_device_is_handed_on(run_stage):
    assert run_stage('fine')['fine'][0].found == 'cpu'


def test_table_has_advice_for_what_failed(gpu_results):
    rows = [
        gpu_results.Row('first', '<= 25', '12', 'ok', advice='nothing'),
        gpu_results.Row('second', 'triton', 'x' * 200, 'FAILED', advice='pip install triton'),
        gpu_results.Row('third', '', 'not found', 'skipped'),
    ]

    head, _, first, second, advice, third = gpu_results.table(rows).splitlines()

    assert head.split() == ['check', 'expected', 'found', 'verdict']
    assert first.split() == ['first', '<=', '25', '12', 'ok']
    assert second.endswith('xxx...  FAILED')
    assert advice.strip() == 'try: pip install triton'
    assert third.split() == ['third', 'not', 'found', 'skipped']
    assert gpu_results.summarize(rows) == '1 ok, 1 FAILED, 1 skipped'


@pytest.mark.parametrize(
    ('verdicts', 'status'),
    [(['ok', 'info', 'skipped'], 0), (['ok', 'FAILED'], 1), (['ok', 'not run'], 1), ([], 1)],
)
def test_exit_status(gpu_results, verdicts, status):
    assert gpu_results.exit_status([gpu_results.Row('a', '', '', verdict) for verdict in verdicts]) == status


def test_an_exception_fails_its_own_row(gpu_results, check_run):
    def check(run):
        run.attempt('first', '', lambda: 1 / 0)
        run.attempt('second', '', lambda: ('fine', True, dict(error=float('nan'))))

    first, second = check_run(check)

    assert (first.verdict, first.found) == ('FAILED', 'ZeroDivisionError: division by zero')
    assert (second.verdict, second.raw) == ('ok', dict(error='nan'))


def test_a_lost_device_ends_the_check(gpu_results, check_run, tmp_path):
    def lose():
        raise RuntimeError('CUDA error: device-side assert triggered')

    def check(run):
        run.attempt('first', '', lose)
        run.attempt('second', '', lambda: ('fine', True, {}))

    with pytest.raises(RuntimeError, match='device-side assert'):
        check_run(check)
    assert [(row.check, row.verdict) for row in gpu_results.read_rows(tmp_path / 'rows.jsonl')] == [('first', 'FAILED')]


def test_a_row_that_was_cut_off_is_left_out(gpu_results, tmp_path):
    run = gpu_results.CheckRun(tmp_path / 'rows', 'cpu', 1)
    run.add('whole', '', '', True)
    with (tmp_path / 'rows').open('a') as file:
        file.write('{"check": "cut')

    assert [row.check for row in gpu_results.read_rows(tmp_path / 'rows')] == ['whole']


def test_every_check_has_a_function_and_a_name_of_its_own(gpu_check):
    names = [check.name for stage in gpu_check.STAGES for check in stage]

    assert len(set(names)) == len(names) == len(gpu_check.CHECKS) - 1
    for check in gpu_check.CHECKS.values():
        module, _, function = check.function.partition('.')
        assert callable(getattr(importlib.import_module(f'gpu_checks.{module}'), function))


def test_without_a_cuda_device(gpu_check, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)

    assert gpu_check.main(['--json', str(tmp_path / 'found.json')]) == 2
    assert 'no CUDA device' in capsys.readouterr().err
    assert not (tmp_path / 'found.json').exists()


def test_checks_run_on_the_cpu(gpu_check, tmp_path, capsys):
    checks = ['--only', 'versions', 'back end', 'bad label', 'slabs', 'launches']

    status = gpu_check.main(['--device', 'cpu', '--json', str(tmp_path / 'found.json'), '--jobs', '1', *checks])

    output = capsys.readouterr().out
    assert status == 0, output
    found = json.loads((tmp_path / 'found.json').read_text())
    verdicts = {row['check']: row['verdict'] for row in found['rows']}
    assert found['device'] == 'cpu'
    assert verdicts['bad label, later call'] == verdicts['back end, float32'] == verdicts['slabs, a NaN'] == 'ok'
    assert not any(name.startswith('kernel launches') for name in verdicts)  # nothing that needs a GPU
    assert all(name in output for name in verdicts)
    assert ' s  bad label: 3 ok\n' in output


def test_no_time_left_for_any_check(gpu_check, tmp_path, capsys):
    arguments = ['--device', 'cpu', '--only', 'bad label', '--seconds', '1', '--json', str(tmp_path / 'found.json')]

    assert gpu_check.main(arguments) == 1
    (row,) = json.loads((tmp_path / 'found.json').read_text())['rows']
    assert (row['check'], row['verdict']) == ('bad label', 'not run')


def test_a_tool_that_is_stopped_stops_its_checks(gpu_check, tmp_path):
    json_file = tmp_path / 'found.json'
    command = [sys.executable, gpu_check.__file__, '--device', 'cpu', '--json', str(json_file), '--jobs', '1']
    # the first check ends, and writes the file, before the second does, which takes seconds
    process = subprocess.Popen([*command, '--only', 'back end', 'slabs'], stdout=subprocess.PIPE, text=True)
    assert 'back end: 4 ok' in process.stdout.readline()
    (child,) = wait_for(lambda: children(process.pid))

    process.terminate()

    assert process.wait(60) == 143
    assert wait_for(lambda: not is_running(child))
    assert len(json.loads(json_file.read_text())['rows']) == 4
