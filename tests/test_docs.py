"""What README and docs show is run."""

import ast
import json
import re
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg_wce.class_weights import SCHEMES, class_weights, load_statistics

ROOT = Path(__file__).resolve().parent.parent
PAGES = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'configs/README.md']
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'docs').glob('*.md'))


def python_blocks(text: str) -> list[str]:
    return re.findall(r'```python\n(.*?)```', text, re.DOTALL)


def test_examples_of_the_semantics_print_what_they_say(root, capsys):
    code = ''.join(python_blocks((root / 'docs/semantics.md').read_text()))
    promised = re.findall(r'print\(.*\)  # (\S+)', code)

    exec(code, {})

    assert len(promised) == 2
    assert capsys.readouterr().out.split() == promised


def test_the_three_config_lines(root, tmp_path, monkeypatch):
    (block,) = [b for b in python_blocks((root / 'README.md').read_text()) if '_base_' in b]
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'my_config.py').write_text(block)
    (tmp_path / 'weights.json').write_text(json.dumps([1.0 + c for c in range(150)]))
    init_default_scope('mmseg')

    config = Config.fromfile('my_config.py')
    head = MODELS.build(config.model.decode_head)

    assert len(block.strip().splitlines()) == 3
    assert head.loss_decode.class_weight.tolist() == [1.0 + c for c in range(150)]


def test_the_recipes_for_configs(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    init_default_scope('mmseg')
    blocks = python_blocks((root / 'configs/README.md').read_text())

    types = []
    for block in blocks:
        (tmp_path / 'my_config.py').write_text(block)
        model = Config.fromfile('my_config.py').model
        heads = model.decode_head if isinstance(model.decode_head, list) else [model.decode_head, model.auxiliary_head]
        types += [head.loss_decode.type for head in heads]
    assert types == ['WeightedCrossEntropyLoss'] * 4


def test_every_config_is_in_the_table(root):
    table = (root / 'configs/README.md').read_text()

    for config in (root / 'configs').glob('[!_]*/*.py'):
        assert f'({config.relative_to(root / "configs")})' in table


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(root, page):
    text = (root / page).read_text()

    for target in re.findall(r'\]\((?!https?://)([^)#]+)', text):
        assert ((root / page).parent / target).exists(), target
    for file in re.findall(r'(?<![\w/])((?:tests|tools)/[\w/]+\.py)', text):
        assert (root / file).exists(), file


def test_the_table_of_schemes(root):
    rows = re.findall(r'^\| `(\w+)` \|(.*)$', (root / 'docs/class_weights.md').read_text(), re.MULTILINE)

    assert {scheme for scheme, _ in rows} == set(SCHEMES)
    for scheme, row in rows:
        weights = class_weights(load_statistics('ade20k'), scheme)
        expected = [weights.min(), weights.max(), weights.max() / weights.min()]
        assert [cell.strip() for cell in row.split('|')[1:4]] == [f'{value:.3g}' for value in expected]


def test_imports_point_down_the_layers_of_the_design(root):
    rows = re.findall(r'^\| (`.*?`) \|', (root / 'docs/design.md').read_text(), re.MULTILINE)
    layer_of = {name: i for i, row in enumerate(rows) for name in re.findall(r'`(\w+)`', row)}

    def imported(file: Path) -> set[str]:
        nodes = [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom) and n.module]
        modules = [n.module for n in nodes] + [f'{n.module}.{alias.name}' for n in nodes for alias in n.names]
        return {m.split('.')[1] for m in modules if m.startswith('mmseg_wce.')} & layer_of.keys()

    parts = {path.stem if path.suffix == '.py' else path.name for path in (root / 'mmseg_wce').glob('[!_]*')}
    assert layer_of.keys() == parts - {'version'} | {'tools'}
    for file in [*(root / 'mmseg_wce').rglob('*.py'), *(root / 'tools').glob('*.py')]:
        folder, *below = file.relative_to(root).parts
        own = folder if folder == 'tools' else below[0].removesuffix('.py')
        if own in layer_of:
            assert all(layer_of[other] >= layer_of[own] for other in imported(file)), file
