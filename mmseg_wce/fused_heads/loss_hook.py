"""Fuse resize, loss and accuracy of decode heads, without full-size logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.models.decode_heads import DDRHead, PIDHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import HOOKS
from mmseg.structures.sampler import OHEMPixelSampler
from mmseg_wce.built_in_losses import needs_full_size
from mmseg_wce.fused_heads import head_losses
from mmseg_wce.model_walk import heads_of, unwrap_model
from mmseg_wce.samplers import check_built_sampler
from torch import Tensor, nn

__all__ = ['FusedLossHook', 'fuse_decode_heads']

_FUSED: dict[Any, Callable[..., dict[str, Tensor]]] = {
    BaseDecodeHead.loss_by_feat: head_losses.base_loss_by_feat,
    PIDHead.loss_by_feat: head_losses.pid_loss_by_feat,
    DDRHead.loss_by_feat: head_losses.ddr_loss_by_feat,
}


@HOOKS.register_module()
class FusedLossHook(Hook):
    """Hook that fuses the decode and auxiliary heads of the model before a run; logs which it left alone and why.

    ``custom_hooks = [dict(type='FusedLossHook')]``

    Args:
        built_in: fuse mmseg's ``CrossEntropyLoss`` and ``OhemCrossEntropy`` as well, with their own normalisation.

    Raises:
        ValueError: before a run, a head has a pixel sampler that fails with its losses.

    Example:
        >>> import mmseg_wce
        >>> from mmseg.registry import HOOKS
        >>> HOOKS.build(dict(type='FusedLossHook', built_in=True)).built_in
        True
    """

    def __init__(self, built_in: bool = False) -> None:
        self.built_in = built_in

    def before_run(self, runner: Runner) -> None:
        for line in fuse_decode_heads(unwrap_model(runner), self.built_in):
            runner.logger.info(f'FusedLossHook: {line}')


def fuse_decode_heads(model: nn.Module, built_in: bool = False) -> list[str]:
    """Make heads compute their loss from low-resolution logits, if their ``loss_by_feat`` is supported.

    Args:
        model: mmseg segmentor with ``decode_head`` and optionally ``auxiliary_head``, each a head or a list of heads.
        built_in: fuse mmseg's ``CrossEntropyLoss`` and ``OhemCrossEntropy`` as well, with their own normalisation.

    Returns:
        A line for each head: what was fused, or why it was left alone.

    Raises:
        ValueError: a head has a pixel sampler that fails with its losses.

    Example:
        >>> import torch
        >>> from mmseg.registry import MODELS
        >>> from mmseg_wce.fused_heads import fuse_decode_heads
        >>> head = dict(type='mmseg.FCNHead', in_channels=8, channels=8, num_classes=3, num_convs=1)
        >>> model = torch.nn.Module()
        >>> model.decode_head = MODELS.build(dict(head, loss_decode=dict(type='WeightedCrossEntropyLoss')))
        >>> model.auxiliary_head = MODELS.build(head)
        >>> for line in fuse_decode_heads(model):
        ...     print(line)
        decode_head (FCNHead): fused
        auxiliary_head (FCNHead): left alone: loss_ce is a softmax CrossEntropyLoss, which built_in=True would fuse
    """
    heads = list(heads_of(model))
    for name, head in heads:
        if conflict := check_built_sampler(head):
            raise ValueError(f'{name}: {conflict}')
    return [f'{name} ({type(head).__name__}): {_fuse(head, built_in)}' for name, head in heads]


def _fuse(head: Any, built_in: bool) -> str:
    replaced = vars(head).get('loss_by_feat')
    if isinstance(replaced, partial) and replaced.func in _FUSED.values():
        del head.loss_by_feat
    class_method = getattr(type(head), 'loss_by_feat', None)
    method = _FUSED.get(class_method)
    if method is None or 'loss_by_feat' in vars(head):
        owner = class_method.__qualname__ if class_method and method is None else 'replaced'
        return f'left alone: it overrides loss_by_feat ({owner})'
    if method is head_losses.base_loss_by_feat and type(head.sampler) not in (OHEMPixelSampler, type(None)):
        return f'left alone: its sampler {type(head.sampler).__name__} needs full-size logits'
    losses, channels = head_losses.pixel_losses(head), head.out_channels
    unfused = [(loss, reason) for loss in losses if (reason := needs_full_size(loss, channels, built_in))]
    if len(unfused) == len(losses):
        return 'left alone: ' + '; '.join(f'{loss.loss_name} is {reason}' for loss, reason in unfused)
    head.loss_by_feat = partial(method, head, built_in)
    names = ', '.join(f'{loss.loss_name} ({reason})' for loss, reason in unfused)
    return f'fused; full-size logits are still built for {names}' if names else 'fused'
