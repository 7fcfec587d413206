"""docs/tutorial.ipynb runs, and its outputs are fit to be shown."""

import json
import re
import tempfile
import warnings

import matplotlib
import pytest


@pytest.fixture
def notebook(root) -> dict:
    return json.loads((root / 'docs/tutorial.ipynb').read_text(encoding='utf-8'))


def code_of(notebook: dict) -> list[str]:
    return [''.join(cell['source']) for cell in notebook['cells'] if cell['cell_type'] == 'code']


def outputs_of(notebook: dict) -> list[dict]:
    return [output for cell in notebook['cells'] for output in cell.get('outputs', [])]


@pytest.mark.heavy
def test_its_cells_run_in_order(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(matplotlib, 'rcParams', matplotlib.rcParams.copy())
    matplotlib.use('Agg')
    names = {}

    with warnings.catch_warnings():
        for code in code_of(notebook):
            code = re.sub(r'^ITERATIONS = \d+', 'ITERATIONS = 2', code, flags=re.MULTILINE)
            code = re.sub(r'^IMAGES = \d+', 'IMAGES = 20', code, flags=re.MULTILINE)
            exec(compile(code, 'docs/tutorial.ipynb', 'exec'), names)

    assert names['ITERATIONS'] == 2
    assert [runner.iter for runner in names['runners'].values()] == [2, 2]
    assert names['losses']() == pytest.approx(names['before'], abs=1e-4)
    assert names['value'].item() == pytest.approx(names['full_size']().item(), rel=1e-5)


def test_cells_hold_no_magics(notebook):
    for code in code_of(notebook):
        compile(code, 'docs/tutorial.ipynb', 'exec')


def test_it_is_shown_with_its_outputs(notebook):
    pictures = [output for output in outputs_of(notebook) if 'image/png' in output.get('data', {})]

    assert len(pictures) == 4
    assert [cell['execution_count'] for cell in notebook['cells'] if cell['cell_type'] == 'code'] == list(
        range(1, len(code_of(notebook)) + 1)
    )


def test_outputs_hold_no_paths_and_no_noise(notebook):
    for output in outputs_of(notebook):
        assert output['output_type'] in ('stream', 'display_data')
        assert output.get('name', 'stdout') == 'stdout'
        text = ''.join(output.get('text', [])) + ''.join(output.get('data', {}).get('text/plain', []))
        assert not re.search(r'(?<![\w.])/\w+/', text), text  # an absolute path
        assert not re.search(r'[A-Z]:\\|file://|Warning', text), text


def test_links_lead_somewhere(notebook, root):
    text = ''.join(''.join(cell['source']) for cell in notebook['cells'] if cell['cell_type'] == 'markdown')
    links = re.findall(r'\]\((?!https?://)([^)#]+)', text)

    assert links
    assert [link for link in links if not (root / 'docs' / link).exists()] == []


def test_the_notebook_is_small(root):
    assert (root / 'docs/tutorial.ipynb').stat().st_size < 1_500_000
