"""Find the layer of a segmentor whose bias is added to the logits, and give it a bias where it has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.registry import HOOKS
from mmseg_wce.model_walk import main_head, unwrap_model
from torch import Tensor, nn

__all__ = ['OutputBiasHook', 'find_output_layer']

_LAYERS = nn.Conv2d, nn.ConvTranspose2d, nn.Linear
_DEFAULT_SIZE = 128, 128  # of test images, in pixels


@torch.no_grad()
def find_output_layer(model: Any) -> str:
    """Find the layer whose bias is added to the logits from which a segmentor predicts.

    It is tried out: different numbers are added to the bias of each class, and the logits of random images must change
    by just these.

    Args:
        model: segmentor of mmseg in evaluation mode, whose methods are mmseg's or fused by
            :func:`mmseg_wce.fused_heads.fuse_predict`. Its decode head, the last one of a cascade, is searched.

    Returns:
        Name of the layer in the model, such as 'decode_head.conv_seg'.

    Raises:
        ValueError: there is no such layer; the message names the head.
    """
    head = main_head(model)
    device = next(model.parameters()).device
    random = torch.Generator().manual_seed(0)
    images = torch.randn(1, *_image_shape(model), generator=random).to(device)
    logits = _head_logits(model, head, images)
    channels = logits.shape[1]
    added = torch.linspace(1, 2, channels, device=device)
    expected = logits + added.view(-1, 1, 1).to(logits.dtype)
    names = {module: name for name, module in model.named_modules()}
    layers = [module for module in head.modules() if isinstance(module, _LAYERS) and len(module.weight) == channels]
    for layer in reversed(layers):
        with _added_bias(layer, added):
            changed = _head_logits(model, head, images)
        if changed.shape == expected.shape and torch.allclose(changed, expected, rtol=1e-3, atol=1e-3):
            return names[layer]
    raise ValueError(
        f'{type(head).__name__} has no layer whose bias is added to the logits, so no bias can rebalance its classes'
    )


def _image_shape(model: Any) -> tuple[int, int, int]:
    """Return channels and a size that the model works with: of its windows, or of its training images."""
    preprocessor = model.data_preprocessor
    mean = getattr(preprocessor, 'mean', None)
    size = (model.test_cfg or {}).get('crop_size') or getattr(preprocessor, 'size', None) or _DEFAULT_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    return 3 if mean is None else len(mean), height, width


def _head_logits(model: Any, head: Any, images: Tensor) -> Tensor:
    """Return the logits of the head, (1, C, h, w), before they are resized."""
    seen: list[Tensor] = []

    def store(seg_logits: Tensor, batch_img_metas: list[dict]) -> Tensor:
        seen.append(seg_logits)
        return seg_logits

    shape = tuple(images.shape[2:])
    metas = [dict(ori_shape=shape, img_shape=shape, pad_shape=shape, padding_size=[0] * 4)]
    replaced = vars(head).get('predict_by_feat')
    head.predict_by_feat = store
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)  # SegNeXt's head starts from random numbers at every call
            model.encode_decode(images, metas)
    finally:
        del head.predict_by_feat
        if replaced is not None:
            head.predict_by_feat = replaced
    return seen[0]


@contextmanager
def _added_bias(layer: Any, added: Tensor) -> Iterator[None]:
    bias = layer.bias
    added = added.to(layer.weight.dtype)
    layer.bias = nn.Parameter(added if bias is None else bias + added)
    try:
        yield
    finally:
        layer.bias = bias


@HOOKS.register_module()
class OutputBiasHook(Hook):
    """Hook that gives a layer a bias before the checkpoint is loaded; ``tools/rebalance.py`` says where it is needed.

    ``custom_hooks = [dict(type='OutputBiasHook', layer='decode_head.conv_seg')]``

    Args:
        layer: name of a layer in the model. A bias that it has already stays.

    Raises:
        ValueError: the model has no such layer; raised when a run starts.
    """

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def before_run(self, runner: Runner) -> None:
        model = unwrap_model(runner)
        try:
            layer: Any = model.get_submodule(self.layer)
        except AttributeError as error:
            raise ValueError(f'OutputBiasHook: the model has no layer {self.layer!r}: {error}') from error
        if getattr(layer, 'bias', None) is None:
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
