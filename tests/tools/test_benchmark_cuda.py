import importlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import fake_cuda
import pytest
import torch
from mmseg_wce.functional import weighted_cross_entropy

PROGRAM = Path(__file__).with_name('run_benchmark_without_mmseg.py')
WITHOUT_MMSEG = ['mmseg_wce', 'eager', 'built-in, written out', 'compiled']


def run(json_file: Path, *arguments: str) -> tuple[dict, str]:
    """Results and output of the tool in a process with torch, Triton and NumPy alone."""
    command = [sys.executable, '-W', 'ignore', str(PROGRAM), '--rounds', '2', '--json', str(json_file), *arguments]
    environment = {**os.environ, 'PATH': '/nowhere', 'PYTHONPATH': ''}
    process = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(json_file.read_text()), process.stdout


def test_runs_with_torch_triton_and_numpy_alone(tmp_path):
    results, output = run(tmp_path / 'results.json', '--cases', 'ade20k-weighted-bf16', 'ade20k-smoothed')

    weighted, smoothed = results['cases']
    for way in [*WITHOUT_MMSEG[:2], 'compiled']:
        assert weighted['ways'][way]['device']['median'] > 0
        assert smoothed['ways'][way]['wall']['median'] > 0
    assert weighted['ways']['built-in, written out']['device']['median'] > 0
    assert smoothed['ways']['built-in, written out'] == dict(not_measured="mmseg's loss has no label smoothing")
    assert weighted['ways']['built-in'] == dict(not_measured='mmseg is not installed')
    assert weighted['ways']['liger'] == dict(not_measured='liger_kernel is not installed')
    for case in results['cases']:
        assert case['ways']['mmseg_wce']['loss'] == pytest.approx(case['ways']['eager']['loss'], rel=1e-2)
        assert case['ways']['mmseg_wce']['megabytes'] == (fake_cuda.PEAK - fake_cuda.BEFORE) / 1e6
        assert case['ways']['mmseg_wce']['method'] == 'events'
    assert results['rates']['copied_bytes'] > 0
    assert results['environment']['torch'] == torch.__version__
    assert results['clocks'].startswith('not measured: ')
    assert 'liger: not measured: liger_kernel is not installed' in output
    assert 'mmseg_wce: timed with events, it cannot be captured: RuntimeError: no graphs here\n' in output
    assert 'mmseg_wce: kernels not measured: the profiler saw none' in output


def test_what_the_time_does_not_suffice_for_is_not_measured(tmp_path):
    results, output = run(tmp_path / 'results.json', '--cases', 'vit-14', 'vit-16', '--seconds', '0')

    assert [case['not_measured'] for case in results['cases']] == ['--seconds 0 were used up'] * 2
    assert output.count('not measured: --seconds 0 were used up') == 2


@pytest.fixture
def tool(import_tool, monkeypatch):
    tool = import_tool('benchmark_cuda')
    fake_cuda.install(monkeypatch.setattr)
    monkeypatch.setattr(tool, 'DEVICE', 'cpu')
    monkeypatch.setattr(sys.modules['cuda_timing'], 'SAMPLE_SECONDS', 0)
    monkeypatch.setattr(sys.modules['cuda_steps'], 'profile_kernels', lambda forward, backward: [])
    small = replace(tool.CUDA_CASES['ade20k'], images=1, classes=5, nodes=(4, 4), pixels=(8, 8))
    monkeypatch.setitem(tool.CUDA_CASES, 'ade20k', small)
    monkeypatch.setattr(tool, 'measure_rates', lambda device: (tool.Rates(1e12, 1e12), 'not measured: a test'))
    return tool


def measured(tool, file: Path, ways: list[str]) -> dict:
    tool.main(['--cases', 'ade20k', '--rounds', '1', '--json', str(file), '--ways', *ways])
    return json.loads(file.read_text())['cases'][0]


def test_the_built_in_loss_is_measured_where_mmseg_is(tool, tmp_path):
    ways = measured(tool, tmp_path / 'results.json', ['built-in', 'built-in, written out', 'eager'])['ways']

    assert ways['built-in']['device']['median'] > 0
    assert ways['built-in, written out'] == dict(not_measured='the built-in loss is')


def test_one_implementation_that_runs_out_of_memory_leaves_the_others(tool, tmp_path, monkeypatch, capsys):
    def too_large(*arguments):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 1 TiB')

    monkeypatch.setitem(tool.IMPLEMENTATIONS, 'eager', too_large)
    ways = measured(tool, tmp_path / 'results.json', ['mmseg_wce', 'eager'])['ways']

    assert ways['eager']['not_measured'] == 'out of memory'
    assert ways['mmseg_wce']['device']['median'] > 0
    assert 'eager: not measured: out of memory' in capsys.readouterr().out


def test_a_step_of_ours_that_fails_ends_with_an_error(tool, tmp_path, monkeypatch):
    def broken(logits, target, case):
        return weighted_cross_entropy(logits * torch.inf, target), logits.new_zeros(())

    monkeypatch.setitem(tool.IMPLEMENTATIONS, 'mmseg_wce', broken)
    with pytest.raises(SystemExit, match='error: mmseg_wce failed in ADE20K'):
        measured(tool, tmp_path / 'results.json', ['mmseg_wce', 'eager'])

    ways = json.loads((tmp_path / 'results.json').read_text())['cases'][0]['ways']
    assert ways['mmseg_wce']['not_measured'] == 'ValueError: the gradient is not finite'
    assert ways['eager']['device']['median'] > 0


def test_a_case_that_fails_leaves_the_others(tool, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'floor', lambda case, rates: 1 / 0)
    with pytest.raises(SystemExit, match='error: mmseg_wce failed in ADE20K'):
        measured(tool, tmp_path / 'results.json', ['mmseg_wce'])

    (case,) = json.loads((tmp_path / 'results.json').read_text())['cases']
    assert case['not_measured'] == 'ZeroDivisionError: division by zero'


def test_predictions_are_measured_when_asked(import_tool, monkeypatch, capsys):
    tool = import_tool('benchmark_cuda')
    monkeypatch.setattr(tool, 'DEVICE', 'cpu')
    wall = importlib.import_module('benchmark_wall_time')
    monkeypatch.setitem(wall.PHOTOS, 'photo', wall.Photo('a photo', (8, 8), (32, 32), (48, 40)))
    monkeypatch.setattr(wall, 'implementations_for', lambda photo: ['built-in', 'mmseg_wce'])
    monkeypatch.setattr(wall, 'extra_megabytes', lambda *arguments: 5.0)  # of a process of its own

    found = tool.measure_whole_models(Namespace(models=[], photos=['photo'], rounds=1))

    (photo,) = found['predictions']
    assert photo['case'] == 'a photo'
    assert photo['ways']['mmseg_wce']['median'] > 0
    assert 'Prediction after the network: a photo' in capsys.readouterr().out


def test_an_implementation_that_would_take_too_long_is_left_out(tool):
    budget = tool.Budget(seconds=100, cases=2)
    budget.durations = dict(compiled=60, eager=1)
    budget.next_case()

    assert not budget.has_time_for('compiled')  # 50 s for each case
    assert budget.has_time_for('eager')
    assert not budget.is_used_up()
    budget.next_case()
    assert budget.has_time_for('compiled')


def test_losses_agree(import_tool):
    cases, ways = import_tool('benchmark_cases'), import_tool('benchmark_implementations')
    case = cases.Case('small', 2, 7, (8, 8), (30, 33), label_smoothing=0.1)
    logits, target = case.make('cpu')
    weight = replace(case, weighted=True).class_weight('cpu')

    for arguments in ((), (weight,)):
        eager = ways.plain(logits, target, case, *arguments)
        torch.testing.assert_close(ways.ours(logits, target, case, *arguments), eager)
    unsmoothed = replace(case, label_smoothing=0.0)
    loss, percent = ways.built_in_written_out(logits, target, unsmoothed)
    for found, expected in zip((loss, percent), ways.built_in(logits, target, unsmoothed), strict=True):
        torch.testing.assert_close(found, expected)
    loss, _ = ways.built_in_written_out(logits, target, unsmoothed, weight)
    torch.testing.assert_close(loss, ways.plain(logits, target, unsmoothed, weight)[0])
