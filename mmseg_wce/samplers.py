"""Find pixel samplers that fail with a head's losses, before the training does."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from mmseg.registry import MODELS
from mmseg.structures import OHEMPixelSampler
from mmseg_wce.config_walk import class_of, type_name
from mmseg_wce.safe_io.errors import in_one_line
from torch import nn

__all__ = ['check_built_sampler', 'check_sampler']


def check_sampler(head: Mapping[str, Any]) -> str:
    """Explain why the sampler of a head's config cannot pick pixels for its losses.

    Args:
        head: config of a decode head.

    Returns:
        What is wrong and what to do; empty where nothing is, and where the losses cannot be built.

    Example:
        >>> from mmseg_wce.samplers import check_sampler
        >>> loss = dict(type='WeightedCrossEntropyLoss', use_sigmoid=True)
        >>> head = dict(type='FCNHead', num_classes=19, loss_decode=loss, sampler=dict(type='OHEMPixelSampler'))
        >>> check_sampler(head)[:69]
        'FCNHead: OHEMPixelSampler without thresh ranks pixels by their losses'
        >>> check_sampler(dict(head, sampler=dict(type='OHEMPixelSampler', thresh=0.7)))
        ''
    """
    sampler, channels = head.get('sampler'), head.get('out_channels') or head.get('num_classes')
    if not isinstance(sampler, Mapping) or type_name(sampler) != 'OHEMPixelSampler' or not isinstance(channels, int):
        return ''
    listed = head.get('loss_decode') or dict(type='CrossEntropyLoss')
    try:
        losses = [MODELS.build(copy.deepcopy(loss)) for loss in ([listed] if isinstance(listed, Mapping) else listed)]
    except Exception:  # the losses of others raise anything; what is wrong with them is said where the head is built
        return ''
    return _conflict(class_of(head, MODELS), losses, channels, sampler.get('thresh'))


def check_built_sampler(head: Any) -> str:
    """Explain the same of a decode head that has been built; empty where nothing is wrong."""
    sampler: Any = getattr(head, 'sampler', None)
    if type(sampler) is not OHEMPixelSampler:
        return ''
    listed = head.loss_decode if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]
    try:
        losses = [copy.deepcopy(loss).cpu() for loss in listed]
    except Exception:  # one that holds an open file, say
        return ''
    return _conflict(type(head), losses, head.out_channels, sampler.thresh)


def _conflict(kind: type | None, losses: Sequence[nn.Module], channels: int, thresh: float | None) -> str:
    """Let mmseg's sampler pick pixels of a few random logits; explain what it raises."""
    if kind is None or not _asks_sampler(kind) or _failure(losses, channels):
        return ''
    error = _failure(losses, channels, dict(thresh=thresh))
    if not error:
        return ''
    names = ', '.join(dict.fromkeys(map(_described, losses)))
    if thresh is None:
        how, other = 'without thresh ranks pixels by their losses', 0.7
        change = 'give thresh, to pick pixels by the softmax probability of their labels'
    else:
        how, other = f'with thresh={thresh} picks pixels by the softmax probability of their labels', None
        change = 'leave thresh out, to rank pixels by their losses'
    works = not _failure(losses, channels, dict(thresh=other))
    return (
        f'{kind.__name__}: OHEMPixelSampler {how}, which fails with {names} and {channels} '
        f'channel{"s" * (channels > 1)} ({error}): {f"{change}, or " * works}leave the sampler out'
    )


def _described(loss: nn.Module) -> str:
    return type(loss).__name__ + ' with use_sigmoid=True' * bool(getattr(loss, 'use_sigmoid', False))


def _asks_sampler(head: type) -> bool:
    """Return True where the loss of a head uses its sampler; heads with a loss of their own may not."""
    for kind in head.__mro__:
        if 'loss_by_feat' in vars(kind):
            code = getattr(inspect.unwrap(vars(kind)['loss_by_feat']), '__code__', None)
            names = () if code is None else code.co_names
            if 'loss_by_feat' not in names:  # that of its base class
                return 'sampler' in names
    return False


def _failure(losses: Sequence[nn.Module], channels: int, sampler: dict[str, Any] | None = None) -> str:
    """Return the error of one loss step on the CPU, with a sampler or without; empty where there is none."""
    logits = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(128) % max(channels, 2)).view(2, 1, 8, 8)
    weight, ignored = None, -100  # a label that no pixel has
    try:
        with torch.no_grad():
            if sampler is not None:
                modules = nn.ModuleList(losses) if len(losses) > 1 else losses[0]
                context = SimpleNamespace(loss_decode=modules, ignore_index=ignored)
                weight = OHEMPixelSampler(context, min_kept=8, **sampler).sample(logits, labels)
            for loss in losses:
                loss(logits, labels.squeeze(1), weight=weight, ignore_index=ignored)
    except Exception as error:  # the losses of others raise anything
        return in_one_line(error)
    return ''
