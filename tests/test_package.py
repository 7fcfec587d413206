import ast
import subprocess
import sys
from pathlib import Path

import mmseg_wce
import pytest
from stacks import FORK


def run(code: str) -> str:
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout + process.stderr


def test_works_without_openmmlab():
    output = run(
        'import sys\n'
        "for name in ('mmseg', 'mmengine', 'mmcv'): sys.modules[name] = None\n"
        'import torch, mmseg_wce\n'
        'loss = mmseg_wce.functional.weighted_cross_entropy(torch.zeros(1, 4, 2, 2), torch.zeros(1, 8, 8).long())\n'
        'module = mmseg_wce.WeightedCrossEntropyLoss(class_weight=[1.0, 3.0])\n'
        'weighted = module(torch.tensor([[2.0, 0.0]]).expand(3, 2), torch.tensor([0, 1, 255]))\n'
        "print(round(loss.item(), 4), round(weighted.item(), 4), hasattr(mmseg_wce, 'hooks'))\n"
        "try: mmseg_wce.WeightedCrossEntropyLoss(class_weight='nowhere.json')\n"
        'except ValueError as error: print(error)'
    )

    first, second, *_ = output.splitlines()
    assert first.split() == ['1.3863', '1.6269', 'False']
    assert second.startswith("class_weight file 'nowhere.json' cannot be read from ")
    assert second.endswith('the file does not exist')


@pytest.mark.parametrize(
    'breakage',
    [
        "sys.modules['mmcv'] = None",
        pytest.param(
            "import mmcv; mmcv.__version__ = '2.2.0'",
            marks=pytest.mark.skipif(FORK, reason='the fork does not look at the version of mmcv'),
        ),
    ],
)
def test_broken_mmseg_does_not_take_the_functional_down(breakage):
    output = run(
        f'import sys\n{breakage}\nimport mmseg_wce\nprint(mmseg_wce.functional.weighted_cross_entropy.__name__)'
    )

    assert 'weighted_cross_entropy' in output
    assert 'mmseg is installed but cannot be imported' in output


def test_importing_registers_with_mmseg():
    output = run(
        'import mmseg_wce\n'
        'from mmseg.registry import DATASETS, MODELS\n'
        "print(MODELS.get('WeightedCrossEntropyLoss'))\n"
        "print(DATASETS.get('CamVidDataset'), DATASETS.get('DemoScenesDataset'))"
    )

    assert 'None' not in output


PACKAGE = Path(mmseg_wce.__file__).parent
CORE = [PACKAGE / f'{name}.py' for name in ('functional', 'losses', 'observed_pixels', 'pixel_batch', 'arguments')]
CORE += [PACKAGE / f'{name}.py' for name in ('targets', 'label_causes', 'upsampling', 'running_losses')]
CORE += sorted((PACKAGE / 'kernels').rglob('*.py'))


@pytest.mark.parametrize('module', CORE, ids=lambda path: path.stem)
def test_the_core_knows_no_openmmlab(module):
    tree = ast.parse(module.read_text())
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]

    assert imported
    assert not [name for name in imported if name.split('.')[0] in ('mmseg', 'mmengine', 'mmcv')]


def test_says_that_it_has_types():
    assert (PACKAGE / 'py.typed').is_file()


def test_version_is_in_the_changelog(root):
    assert f'## {mmseg_wce.__version__}' in (root / 'CHANGELOG.md').read_text()
