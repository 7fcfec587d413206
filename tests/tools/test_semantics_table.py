import json

import pytest


@pytest.fixture(scope='module')
def measured():
    return {}


@pytest.fixture
def tool(import_tool, measured):
    tool = import_tool('semantics_table')
    if not measured:
        measured.update(tool.measure())
    return tool


def test_this_stack_gives_what_the_tables_say(tool, measured):
    recorded = json.loads(tool.RESULTS.read_text())

    assert {name: recorded[name] for name in measured} == measured


def test_pytorch_gives_the_published_numbers(tool, measured):
    values = {
        (weights, ignored): measured[tool.PYTORCH][f'float32 | {weights} | {ignored} | not given']
        for weights in ('no', 'yes')
        for ignored in ('none', 'some')
    }

    assert values == {
        ('no', 'none'): '1.2784',
        ('no', 'some'): '1.5678',
        ('yes', 'none'): '1.4941',
        ('yes', 'some'): '1.5824',
    }


def test_ours_is_pytorchs_unless_told_otherwise(tool, measured):
    for row in tool.ROWS:
        key = ' | '.join(row)
        theirs, ours = measured[tool.PYTORCH][key], measured[tool.OURS][key]
        if row[2] == 'all':
            assert (theirs, float(ours)) == ('nan', 0)
        elif row[1:] != ('no', 'some', 'False'):  # avg_non_ignore=False counts ignored pixels
            assert float(ours) == pytest.approx(float(theirs), abs=2e-3 if row[0] == 'float16' else 0)


def test_the_pages_have_the_recorded_tables(tool, import_tool):
    read_table = import_tool('marked_tables').read_table

    tables = tool.tables(json.loads(tool.RESULTS.read_text()))

    assert len(tables) == 3
    for page, name, lines in tables:
        assert read_table(page, name) == lines


def test_prints_and_writes(tool, tmp_path, monkeypatch, capsys):
    page = tmp_path / 'page.md'
    page.write_text('Before.\n\n<!-- table: t -->\nold\n<!-- end of table -->\n\nAfter.\n')
    monkeypatch.setattr(tool, 'RESULTS', tmp_path / 'semantics.json')
    monkeypatch.setattr(tool, 'tables', lambda results: [(page, 't', tool.small_table(results))])

    tool.main([])
    assert '1.5824' in capsys.readouterr().out
    assert not (tmp_path / 'semantics.json').exists()

    for _ in range(2):
        tool.main(['--write'])
        text = page.read_text()
        assert text.startswith('Before.\n\n<!-- table: t -->\n\n| weights | ignored pixels |')
        assert text.endswith('|\n\n<!-- end of table -->\n\nAfter.\n')
    assert 'old' not in text


def test_a_page_without_a_place_for_the_table(import_tool, tmp_path):
    (tmp_path / 'page.md').write_text('Nothing here.\n')

    with pytest.raises(ValueError, match=r"page\.md has no place for the table 't'"):
        import_tool('marked_tables').replace_table(tmp_path / 'page.md', 't', [])
