"""Every recipe is run as it stands; its loss is PyTorch's on upsampled logits, its prediction that of transformers."""

import importlib
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from blocks import python_blocks
from mmseg_wce.class_weights import class_weights, load_statistics


def recipe(root, title: str, names: dict) -> None:
    section = (root / 'docs/recipes.md').read_text().split(f'## {title}')[1].split('\n## ')[0]
    (code,) = python_blocks(section)
    exec(code, names)


def check(names: dict, logits: torch.Tensor, size: tuple[int, int]) -> None:
    assert logits.shape[2:] == size
    z = F.interpolate(logits, size=names['labels'].shape[1:], mode='bilinear')
    torch.testing.assert_close(names['loss'], F.cross_entropy(z, names['labels'], ignore_index=255))
    assert all(p.grad is not None for p in names['model'].parameters() if p.requires_grad)


def test_plain_loop(root):
    torch.manual_seed(0)
    names, before, sgd = {}, {}, torch.optim.SGD.step

    def step(self, *args):  # the logits that the loss was computed from
        before['logits'] = names['model'](names['images']).detach()
        return sgd(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, 'step', step)
        recipe(root, 'A plain PyTorch loop', names)

    check(names, before['logits'], (16, 16))


def test_module_of_the_recipe(root):
    torch.manual_seed(0)
    names = {}

    recipe(root, 'As a module', names)

    z = F.interpolate(names['model'](names['images']), size=(64, 64), mode='bilinear')
    weight = torch.from_numpy(class_weights(load_statistics('ade20k'), 'sqrt_inverse_frequency')).float()
    torch.testing.assert_close(names['loss'], F.cross_entropy(z, names['labels'], weight, ignore_index=255))
    assert all(p.grad is not None for p in names['model'].parameters())


@pytest.mark.parametrize(
    ('title', 'size'),
    [
        ('SegFormer of `transformers`', (16, 16)),
        ('A model of `segmentation_models_pytorch`', (16, 16)),
        ('A model of `torchvision`', (4, 4)),
    ],
)
def test_model_of_another_package(root, title, size):
    package = title.split('`')[1]
    try:
        importlib.import_module(package)
    except (ImportError, RuntimeError) as error:  # the latter: torchvision was built for another torch
        pytest.skip(f'{package} is not installed, or broken: {error}')
    torch.manual_seed(0)
    names = {}

    recipe(root, title, names)

    check(names, names['logits'], size)


def test_predictions_of_transformers(root):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed')
    torch.manual_seed(0)

    names = {}
    recipe(root, 'Predictions of `transformers`', names)

    outputs = SimpleNamespace(logits=names['logits'])
    processor = transformers.SegformerImageProcessor()
    (expected,) = processor.post_process_semantic_segmentation(outputs, [names['photo_size']])
    assert torch.equal(names['prediction'], expected)
    assert expected.unique().numel() > 1


def test_rebalanced_transformers(root):
    pytest.importorskip('transformers', reason='transformers is not installed')
    torch.manual_seed(0)
    names = {}

    recipe(root, 'Rebalance a trained model of `transformers`', names)

    offsets = names['class_offsets'](names['counts'], 0.25)
    expected = names['before'] + offsets.view(3, 1, 1)
    torch.testing.assert_close(names['after'], expected)
