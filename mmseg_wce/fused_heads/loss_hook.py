"""Decode heads that compute resize, loss and accuracy in one sweep and never build full-size logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmseg.models.decode_heads import DDRHead, PIDHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import HOOKS
from mmseg.structures.sampler import OHEMPixelSampler
from mmseg_wce.fused_heads import head_losses
from mmseg_wce.hooks.models import unwrapped
from mmseg_wce.samplers import check_built_sampler
from torch import Tensor, nn

__all__ = ['FusedLossHook', 'fuse_decode_heads']

_FUSED: dict[Any, Callable[..., dict[str, Tensor]]] = {
    BaseDecodeHead.loss_by_feat: head_losses.standard,
    PIDHead.loss_by_feat: head_losses.of_pid_head,
    DDRHead.loss_by_feat: head_losses.of_ddr_head,
}


@HOOKS.register_module()
class FusedLossHook(Hook):
    """Fuses the decode and auxiliary heads of the model before a run, and logs which it left alone and why.

    ``custom_hooks = [dict(type='FusedLossHook')]``

    Args:
        built_in: fuse mmseg's ``CrossEntropyLoss`` and ``OhemCrossEntropy`` as well, with their own normalisation.

    Raises:
        ValueError: before a run, a head has a pixel sampler that cannot work with its losses.

    Example:
        >>> import mmseg_wce
        >>> from mmseg.registry import HOOKS
        >>> HOOKS.build(dict(type='FusedLossHook', built_in=True)).built_in
        True
    """

    def __init__(self, built_in: bool = False) -> None:
        self.built_in = built_in

    def before_run(self, runner: Runner) -> None:
        for line in fuse_decode_heads(unwrapped(runner), self.built_in):
            runner.logger.info(f'FusedLossHook: {line}')


def fuse_decode_heads(model: nn.Module, built_in: bool = False) -> list[str]:
    """Let every head that computes its loss in a way known here compute it from low-resolution logits.

    Args:
        model: an mmseg segmentor, with ``decode_head`` and perhaps ``auxiliary_head``, each a head or a list of heads.
        built_in: fuse mmseg's ``CrossEntropyLoss`` and ``OhemCrossEntropy`` as well, with their own normalisation.

    Returns:
        A line for each head that says what was fused in it, or why it was left alone.

    Raises:
        ValueError: a head has a pixel sampler that cannot work with its losses.

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
    heads = list(_heads(model))
    for name, head in heads:
        if conflict := check_built_sampler(head):
            raise ValueError(f'{name}: {conflict}')
    return [f'{name} ({type(head).__name__}): {_fuse(head, built_in)}' for name, head in heads]


def _heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name in ('decode_head', 'auxiliary_head'):
        heads = getattr(model, name, None)
        if isinstance(heads, nn.ModuleList):
            yield from ((f'{name}[{i}]', head) for i, head in enumerate(heads))
        elif heads is not None:
            yield name, heads


def _fuse(head: Any, built_in: bool) -> str:
    if _is_fused(head):
        del head.loss_by_feat
    own = getattr(type(head), 'loss_by_feat', None)
    method = _FUSED.get(own)
    if method is None or 'loss_by_feat' in vars(head):
        owner = own.__qualname__ if own and method is None else 'replaced'
        return f'left alone: it computes its loss in a way of its own ({owner})'
    if method is head_losses.standard and type(head.sampler) not in (OHEMPixelSampler, type(None)):
        return f'left alone: its sampler {type(head.sampler).__name__} needs full-size logits'
    losses, channels = head_losses.pixel_losses(head), head.out_channels
    others = [(loss, reason) for loss in losses if (reason := head_losses.needs_full_size(loss, channels, built_in))]
    if len(others) == len(losses):
        return 'left alone: ' + '; '.join(f'{loss.loss_name} is {reason}' for loss, reason in others)
    head.loss_by_feat = partial(method, head, built_in)
    names = ', '.join(f'{loss.loss_name} ({reason})' for loss, reason in others)
    return f'fused; full-size logits are still built for {names}' if names else 'fused'


def _is_fused(head: nn.Module) -> bool:
    own = vars(head).get('loss_by_feat')
    return isinstance(own, partial) and own.func in _FUSED.values()
