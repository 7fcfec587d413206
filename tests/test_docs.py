"""What README and docs show is run."""

import json
import re

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg_wce.class_weights import SCHEMES, class_weights, load_statistics


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


@pytest.mark.parametrize(
    'page',
    [
        'README.md',
        'CONTRIBUTING.md',
        'configs/README.md',
        'docs/semantics.md',
        'docs/benchmarks.md',
        'docs/class_weights.md',
        'docs/fused_loss.md',
        'docs/labels.md',
        'docs/monitoring.md',
        'docs/recipes.md',
        'docs/reliability.md',
        'docs/scaling.md',
        'docs/install.md',
    ],
)
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
