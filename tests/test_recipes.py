"""Every recipe is run as it stands; its loss is PyTorch's on upsampled logits, its prediction that of transformers."""

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


def check(names: dict, logits: torch.Tensor, size: tuple[int, int] = (16, 16)) -> None:
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

    check(names, before['logits'])


def test_module(root):
    torch.manual_seed(0)
    names = {}

    recipe(root, 'As a module', names)

    z = F.interpolate(names['model'](names['images']), size=(64, 64), mode='bilinear')
    weight = torch.from_numpy(class_weights(load_statistics('ade20k'), 'sqrt_inverse_frequency')).float()
    torch.testing.assert_close(names['loss'], F.cross_entropy(z, names['labels'], weight, ignore_index=255))
    assert all(p.grad is not None for p in names['model'].parameters())


def test_segformer_of_transformers(root):
    pytest.importorskip('transformers', reason='transformers is not installed')
    torch.manual_seed(0)

    names = {}
    recipe(root, 'SegFormer of `transformers`', names)

    check(names, names['logits'])


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


def test_segmentation_models_pytorch(root):
    pytest.importorskip('segmentation_models_pytorch', reason='segmentation_models_pytorch is not installed')
    torch.manual_seed(0)
    names = {}
    recipe(root, 'A model of `segmentation_models_pytorch`', names)

    check(names, names['logits'])


def test_torchvision(root):
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:  # the latter: it was built for another torch
        pytest.skip(f'torchvision is not installed, or broken: {error}')
    torch.manual_seed(0)
    names = {}
    recipe(root, 'A model of `torchvision`', names)

    check(names, names['logits'], size=(4, 4))
