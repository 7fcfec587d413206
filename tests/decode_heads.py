"""Decode heads of mmseg, labels for them, and what a training step makes of both."""

import copy

import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_wce.fused_heads import fuse_decode_heads
from torch import nn


class Model(nn.Module):
    """Heads where a segmentor has them."""

    def __init__(self, decode_head, auxiliary_head=None):
        super().__init__()
        self.decode_head, self.auxiliary_head = decode_head, auxiliary_head


def head(loss, kind='FCNHead', **options) -> nn.Module:
    """A decode head of mmseg in float64, the same at every call; of five classes unless the options say otherwise."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    options = dict(num_classes=5, dropout_ratio=0, align_corners=False) | options
    options = dict(in_channels=6, channels=8, norm_cfg=dict(type='BN')) | options
    return MODELS.build(dict(type=kind, loss_decode=loss, **options)).double()


def fused_copy(plain: nn.Module, built_in: bool = True) -> tuple[nn.Module, str]:
    """A fused copy of a head, and what is said about it."""
    fused = copy.deepcopy(plain)
    (line,) = fuse_decode_heads(Model(fused), built_in)
    return fused, line


def samples(height=32, width=40, labels=5) -> list:
    """Two label maps; part of the first is ignored."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(0, labels, (2, 1, height, width), generator=generator)
    maps[0, :, :9] = 255
    return [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in maps]


def sweep(head: nn.Module, data: list):
    """Losses, and the gradient of all weights for their sum."""
    features = torch.randn(2, 6, 8, 10, generator=torch.Generator().manual_seed(1)).double()
    losses = head.loss([features], data, {})
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    gradients = [p.grad.clone() for p in head.parameters() if p.grad is not None]
    head.zero_grad()
    return {k: v.detach() for k, v in losses.items()}, gradients


def sweep_autocast(head: nn.Module, labels: int):
    """Loss and gradients of a step in bfloat16."""
    features = torch.randn(2, 6, 8, 10, generator=torch.Generator().manual_seed(1))
    with torch.autocast('cpu', torch.bfloat16):
        loss = head.loss([features], samples(labels=labels), {})['loss_ce']
    loss.backward()
    return loss.detach(), *(p.grad for p in head.parameters() if p.grad is not None)


def two_branches(losses, kind, **options) -> tuple[nn.Module, list]:
    """A PIDHead or DDRHead and the features it takes."""
    generator = torch.Generator().manual_seed(1)
    built = head(losses, kind=kind, in_channels=8, **options).train()
    channels = dict(PIDHead=(4, 8, 4), DDRHead=(4, 8))[kind]
    return built, [torch.randn(2, c, 8, 10, generator=generator).double() for c in channels]


def sweep_branches(built: nn.Module, features: list, labels=5):
    """Losses, and the gradient of every weight for their sum."""
    data = samples(labels=labels)
    generator = torch.Generator().manual_seed(2)
    for sample in data:
        sample.gt_edge_map = PixelData(data=torch.randint(0, 2, (1, 32, 40), generator=generator))
    losses = built.loss(features, data, {})
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    gradients = {name: p.grad.clone() for name, p in built.named_parameters() if p.grad is not None}
    built.zero_grad()
    return {k: v.detach() for k, v in losses.items()}, gradients
