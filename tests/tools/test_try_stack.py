import json
import subprocess
import sys

import pytest
import torch


@pytest.fixture
def tool(import_tool):
    return import_tool('try_stack')


def test_the_page_has_the_recorded_tables(tool, import_tool):
    read_table = import_tool('marked_tables').read_table

    for page, name, lines in tool.tables(json.loads(tool.RESULTS.read_text())):
        assert read_table(page, name) == lines


@pytest.fixture
def recorded(tool):
    """The recorded outcomes of this stack."""
    return json.loads(tool.RESULTS.read_text())[tool.stack_name()]


@pytest.mark.parametrize('family', [pytest.param('ccnet', marks=pytest.mark.slow), 'cgnet', 'psanet'])
def test_families_are_as_recorded(tool, recorded, tmp_path, family):
    assert tool.try_family(tool.family_configs()[family], tmp_path) == recorded['families'][family]


def test_commands_are_as_recorded(tool, recorded, tmp_path):
    """Those that no other test runs: all tests import mmseg_wce before mmseg.models."""
    trials = tool.command_trials(tmp_path)
    assert list(trials) == list(recorded['commands'])

    for what, trial in trials.items():
        if what == '`import mmseg.models`' or '(mmcv op)' in what or what.startswith("mmseg's own `tools/train.py`, a"):
            assert tool.outcome(trial) == recorded['commands'][what]


def test_outcome_of_a_trial_is_one_line_of_text(tool):
    def raises(error):
        raise error

    assert tool.outcome(lambda: None) == 'yes'
    assert tool.outcome(lambda: 'nothing to convert') == 'nothing to convert'
    assert tool.outcome(lambda: raises(KeyError('a\nb'))) == "KeyError: 'a\\nb'"
    assert tool.outcome(lambda: raises(ValueError('first\nsecond'))) == 'ValueError: first'
    assert tool.outcome(lambda: raises(AssertionError())) == 'AssertionError: '


def test_a_command_that_fails_says_why(tool, tmp_path):
    with pytest.raises(subprocess.SubprocessError, match=r'^ZeroDivisionError: division by zero$'):
        tool.run(tool.sys.executable, '-c', '1 / 0', folder=tmp_path)
    with pytest.raises(subprocess.SubprocessError, match=r'^error: so it is$'):
        tool.run(tool.sys.executable, '-c', "raise SystemExit('error: so it is')", folder=tmp_path)


def test_a_family_from_trial_to_table(tool, tmp_path, monkeypatch, capsys):
    written = []
    monkeypatch.setattr(tool, 'RESULTS', tmp_path / 'stacks.json')
    monkeypatch.setattr(tool, 'command_trials', lambda folder: {'a command': lambda: None})
    monkeypatch.setattr(
        sys.modules['marked_tables'], 'replace_table', lambda page, name, lines: written.append((name, lines))
    )

    tool.main(['--families', 'fastscnn', 'maskformer', '--write'])

    stack = tool.stack_name()
    of_stack = json.loads((tmp_path / 'stacks.json').read_text())[stack]
    assert of_stack['commands'] == {'a command': 'yes'}
    assert of_stack['torch'] == torch.__version__
    assert of_stack['families']['fastscnn'] == {'as shipped': 'yes', 'converted': 'yes'}
    # MaskFormer has no loss on pixels, and needs mmdet
    assert of_stack['families']['maskformer']['converted'].startswith('nothing to convert')
    name, lines = written[0]
    assert name == 'stacks'
    assert lines == [f'| | {stack} |', '| --- | --- |', f'| torch | {torch.__version__} |', '| a command | yes |']
    name, lines = written[1]
    assert name == 'families'
    assert lines[2:4] == ['| families that train, as shipped | 1 of 2 |', '| families that train, converted | 1 of 1 |']
    assert lines[4].startswith('| maskformer, as shipped | ')
    assert 'maskformer' in capsys.readouterr().out
