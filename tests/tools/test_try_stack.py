import json
import subprocess

import pytest


@pytest.fixture
def tool(import_tool):
    return import_tool('try_stack')


def test_the_page_has_the_recorded_tables(tool, import_tool):
    read_table = import_tool('marked_tables').read_table

    for page, name, lines in tool.tables(json.loads(tool.RESULTS.read_text())):
        assert read_table(page, name) == lines


def test_this_stack_is_recorded(tool):
    assert tool.stack_name() in json.loads(tool.RESULTS.read_text())


def test_outcomes(tool):
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
    monkeypatch.setattr(tool, 'of_the_command_line', lambda folder: {'a command': 'yes'})
    monkeypatch.setattr(tool, 'replace_table', lambda page, name, lines: written.append((name, lines)))

    tool.main(['--families', 'fastscnn', 'maskformer', '--write'])

    stack = tool.stack_name()
    of_stack = json.loads((tmp_path / 'stacks.json').read_text())[stack]
    assert of_stack['commands'] == {'a command': 'yes'}
    # FastSCNN's losses are sigmoids; MaskFormer has none on pixels, and needs mmdet
    assert of_stack['families']['fastscnn']['as shipped'] == 'yes'
    assert all(family['converted'].startswith('nothing to convert') for family in of_stack['families'].values())
    assert written[0] == ('stacks', [f'| | {stack} |', '| --- | --- |', '| a command | yes |'])
    name, lines = written[1]
    assert name == 'families'
    assert lines[2:4] == ['| families that train, as shipped | 1 of 2 |', '| families that train, converted | 0 of 0 |']
    assert lines[4].startswith('| maskformer, as shipped | ')
    assert 'maskformer' in capsys.readouterr().out
