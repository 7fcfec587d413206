import re

import pytest

PROPERTIES = """
import os
from hypothesis import given, settings
from hypothesis import strategies as st

def examples(number):
    return settings(max_examples=number * int(os.environ['MMSEG_WCE_FUZZ']), deadline=None)

@given(numbers=st.lists(st.integers()))
@examples(100)
def test_fails(numbers):
    assert sum(numbers) < 10

@given(st.integers())
@examples(100)
def test_fails_in_two_ways(number):
    assert number < 10
    if number < -5:
        raise ValueError
"""


def test_what_fails_becomes_a_test_case(tmp_path, import_tool, monkeypatch, capsys):
    fuzz = import_tool('fuzz')
    (tmp_path / 'tests').mkdir()
    (tmp_path / 'tests/test_numbers.py').write_text(PROPERTIES)
    (tmp_path / 'tests/conftest.py').touch()
    monkeypatch.setattr(fuzz, 'ROOT', tmp_path)
    monkeypatch.setenv('MMSEG_WCE_FUZZ', '1')

    status = fuzz.main(['--minutes', '5', '--times', '2', '--jobs', '2', '--out', str(tmp_path / 'found')])

    output = capsys.readouterr().out
    assert status == 1
    assert '2 of 2 tests failed' in output
    assert re.search(r'\d+  tests/test_numbers.py::test_fails\n', output)
    one, two = sorted((tmp_path / 'found').glob('*.py'), key=lambda file: 'two' in file.name)
    for file, function, arguments, error in (
        (one, 'test_found_0', 'numbers=[10],', AssertionError),
        (two, 'test_found_0', 'number=10,', AssertionError),
        (two, 'test_found_1', 'number=-6,', ValueError),
    ):
        assert arguments in file.read_text()
        found = {}
        with monkeypatch.context() as patch:
            patch.syspath_prepend('')  # what the file changes is taken back
            exec(file.read_text(), found)
            with pytest.raises(error):
                found[function]()


def test_nothing_to_fuzz(import_tool, monkeypatch, tmp_path):
    fuzz = import_tool('fuzz')
    monkeypatch.setattr(fuzz, 'ROOT', tmp_path)

    assert fuzz.main([]) == 2
