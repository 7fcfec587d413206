"""Find pixel samplers that fail with a head's losses, before training starts."""

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
from mmseg_wce.model_walk import losses_of
from mmseg_wce.safe_io.errors import in_one_line
from torch import nn

__all__ = ['check_built_sampler', 'check_sampler']


def check_sampler(head: Mapping[str, Any]) -> str:
    """Explain why the sampler of a head's config cannot pick pixels for its losses.

    Args:
        head: config of a decode head.

    Returns:
        The problem and what to do about it; empty if there is none, or if the losses cannot be built.

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
    configs = head.get('loss_decode') or dict(type='CrossEntropyLoss')
    try:
        losses = [
            MODELS.build(copy.deepcopy(loss)) for loss in ([configs] if isinstance(configs, Mapping) else configs)
        ]
    except Exception:  # third-party losses can raise anything; building the head reports it
        return ''
    return _explain_conflict(class_of(head, MODELS), losses, channels, sampler.get('thresh'))


def check_built_sampler(head: Any) -> str:
    """Explain why the sampler of a built decode head cannot pick pixels for its losses; empty if it can."""
    sampler: Any = getattr(head, 'sampler', None)
    if type(sampler) is not OHEMPixelSampler:
        return ''
    try:
        losses = [copy.deepcopy(loss).cpu() for loss in losses_of(head)]
    except Exception:  # e.g. a loss that holds an open file
        return ''
    return _explain_conflict(type(head), losses, head.out_channels, sampler.thresh)


def _explain_conflict(kind: type | None, losses: Sequence[nn.Module], channels: int, thresh: float | None) -> str:
    """Let mmseg's sampler pick pixels from a few random logits, and explain the error it raises."""
    if kind is None or not _uses_sampler(kind) or _loss_step_error(losses, channels):
        return ''
    error = _loss_step_error(losses, channels, dict(thresh=thresh))
    if not error:
        return ''
    names = ', '.join(dict.fromkeys(map(_describe_loss, losses)))
    if thresh is None:
        behaviour, alternative = 'without thresh ranks pixels by their losses', 0.7
        advice = 'give thresh, to pick pixels by the softmax probability of their labels'
    else:
        behaviour, alternative = f'with thresh={thresh} picks pixels by the softmax probability of their labels', None
        advice = 'leave thresh out, to rank pixels by their losses'
    alternative_works = not _loss_step_error(losses, channels, dict(thresh=alternative))
    return (
        f'{kind.__name__}: OHEMPixelSampler {behaviour}, which fails with {names} and {channels} '
        f'channel{"s" * (channels > 1)} ({error}): {f"{advice}, or " * alternative_works}leave the sampler out'
    )


def _describe_loss(loss: nn.Module) -> str:
    return type(loss).__name__ + ' with use_sigmoid=True' * bool(getattr(loss, 'use_sigmoid', False))


def _uses_sampler(head: type) -> bool:
    """Return True if ``loss_by_feat`` of a head uses its sampler; heads that override it may not."""
    for kind in head.__mro__:
        if 'loss_by_feat' in vars(kind):
            code = getattr(inspect.unwrap(vars(kind)['loss_by_feat']), '__code__', None)
            names = () if code is None else code.co_names
            if 'loss_by_feat' not in names:  # else it calls that of its base class
                return 'sampler' in names
    return False


def _loss_step_error(losses: Sequence[nn.Module], channels: int, sampler: dict[str, Any] | None = None) -> str:
    """Return the error of one loss step on the CPU, with a sampler or without; empty if it succeeds."""
    logits = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(128) % max(channels, 2)).view(2, 1, 8, 8)
    weight, ignore_index = None, -100  # no pixel has this label
    try:
        with torch.no_grad():
            if sampler is not None:
                modules = nn.ModuleList(losses) if len(losses) > 1 else losses[0]
                context = SimpleNamespace(loss_decode=modules, ignore_index=ignore_index)
                weight = OHEMPixelSampler(context, min_kept=8, **sampler).sample(logits, labels)
            for loss in losses:
                loss(logits, labels.squeeze(1), weight=weight, ignore_index=ignore_index)
    except Exception as error:  # third-party losses can raise anything
        return in_one_line(error)
    return ''
