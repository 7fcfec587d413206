"""Find pixel samplers that cannot work with a head's losses, before the training does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

__all__ = ['check_built_sampler', 'check_sampler']

_SAMPLER = 'OHEMPixelSampler'
_SIGMOID_LOSSES = ('CrossEntropyLoss', 'WeightedCrossEntropyLoss')
_HEADS_WITHOUT_SAMPLER = ('DDRHead', 'PIDHead', 'PointHead')  # they take the argument and never use it


def check_sampler(head: Mapping[str, Any]) -> str:
    """Explain why the sampler of a head's config cannot pick pixels for its losses.

    Args:
        head: config of a decode head.

    Returns:
        What is wrong and what to do; empty where nothing is.

    Example:
        >>> from mmseg_wce.samplers import check_sampler
        >>> loss = dict(type='WeightedCrossEntropyLoss', use_sigmoid=True)
        >>> head = dict(type='FCNHead', num_classes=19, loss_decode=loss, sampler=dict(type='OHEMPixelSampler'))
        >>> check_sampler(head)[:69]
        'FCNHead: OHEMPixelSampler without thresh ranks pixels by their losses'
        >>> check_sampler(dict(head, sampler=dict(type='OHEMPixelSampler', thresh=0.7)))
        ''
    """
    sampler, losses = head.get('sampler'), head.get('loss_decode') or {}
    channels = head.get('out_channels') or head.get('num_classes')
    if not isinstance(sampler, Mapping) or _name(sampler) != _SAMPLER or not isinstance(channels, int):
        return ''
    listed = [losses] if isinstance(losses, Mapping) else losses
    sigmoids = [_name(loss) for loss in listed if _name(loss) in _SIGMOID_LOSSES and loss.get('use_sigmoid')]
    return _conflict(_name(head), channels, sampler.get('thresh'), sigmoids)


def check_built_sampler(head: Any) -> str:
    """Explain the same of a decode head that has been built; empty where nothing is wrong."""
    sampler: Any = getattr(head, 'sampler', None)
    if type(sampler).__name__ != _SAMPLER:
        return ''
    losses = head.loss_decode if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]
    names = [type(loss).__name__ for loss in losses if getattr(loss, 'use_sigmoid', False)]
    sigmoids = [name for name in names if name in _SIGMOID_LOSSES]
    return _conflict(type(head).__name__, head.out_channels, sampler.thresh, sigmoids)


def _name(config: Mapping[str, Any]) -> str:
    kind = config.get('type')
    return kind.__name__ if isinstance(kind, type) else str(kind).split('.')[-1]


def _conflict(head: str, channels: int, thresh: float | None, sigmoids: Iterable[str]) -> str:
    losses = ', '.join(dict.fromkeys(sigmoids))
    if head in _HEADS_WITHOUT_SAMPLER:
        return ''
    if channels == 1 and thresh is not None:
        return (
            f'{head}: {_SAMPLER} with thresh={thresh} picks pixels by the softmax probability of their labels, but the '
            f'head has one channel{f", for {losses} with use_sigmoid=True" if losses else ""}: leave thresh out, to '
            'rank pixels by their losses'
        )
    if channels > 1 and thresh is None and losses:
        return (
            f'{head}: {_SAMPLER} without thresh ranks pixels by their losses, but {losses} with use_sigmoid=True has '
            f'one for each of the {channels} channels: give thresh, to pick pixels by the softmax probability of their '
            'labels, or use a softmax loss'
        )
    return ''
