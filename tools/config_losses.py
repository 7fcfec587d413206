"""Losses of an mmseg config: the place of each, and whether it is a cross-entropy on pixels."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import mmseg_wce  # noqa: F401  (first: makes mmseg.models importable on mmcv-lite)
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from mmseg_wce.config_walk import class_of, classifies_masks, has_one_channel, type_name

OURS, ALREADY_OURS = 'WeightedCrossEntropyLoss', 'already ours'
SLOTS = ('decode_head', 'auxiliary_head')


@dataclass(frozen=True)
class Loss:
    """A loss of a config."""

    place: str  # as Python code
    type: str
    skip_reason: str  # reason why it is not mmseg's cross-entropy on pixels; empty if it is
    settings: dict = field(default_factory=dict)
    head: dict = field(default_factory=dict)


def losses(config: Config) -> list[Loss]:
    """Return every loss of every head, and an entry for each head that has none."""
    init_default_scope('mmseg')
    model_losses = list(_model_losses('model', config.model))
    return model_losses or [Loss('model', type_name(config.model), 'it has no decode_head and no auxiliary_head')]


def _model_losses(place: str, model: ConfigDict) -> Iterator[Loss]:
    for key, value in model.items():
        for part_place, part in _with_places(f'{place}.{key}', value):
            if key in SLOTS and isinstance(part, dict):
                yield from _head_losses(part_place, part)
            elif isinstance(part, dict):  # for example the student of a distillation
                yield from _model_losses(part_place, part)


def _with_places(place: str, value) -> Iterator[tuple[str, ConfigDict]]:
    if isinstance(value, list | tuple):
        yield from ((f'{place}[{i}]', element) for i, element in enumerate(value))
    elif value is not None:
        yield place, value


def _head_losses(place: str, head: ConfigDict) -> Iterator[Loss]:
    inner = [(key, value) for key, value in head.items() if isinstance(value, dict) and 'loss_decode' in value]
    for key, value in inner:  # K-Net's head contains another head
        yield from _head_losses(f'{place}.{key}', value)
    if 'loss_decode' in head:
        for loss_place, loss in _with_places(f'{place}.loss_decode', head.loss_decode):
            yield Loss(loss_place, type_name(loss), _skip_reason(head, loss), loss, head)
    elif not inner:
        kind = class_of(head, MODELS)
        if kind is None:
            yield Loss(place, type_name(head), 'no such head is registered, so its losses cannot be known')
            return
        if not issubclass(kind, BaseDecodeHead) or kind.loss_by_feat is not BaseDecodeHead.loss_by_feat:
            yield Loss(place, type_name(head), 'it has no loss on pixels')
            return
        yield Loss(f'{place}.loss_decode', "mmseg's default", _one_channel_reason(head), head=head)
    for key, value in head.items():
        if key.startswith('loss_') and key != 'loss_decode' and isinstance(value, dict):
            yield Loss(f'{place}.{key}', type_name(value), 'not the loss on pixels')


def _skip_reason(head: ConfigDict, loss: ConfigDict) -> str:
    kind = type_name(loss)
    if kind != 'CrossEntropyLoss':
        return ALREADY_OURS if kind == OURS else 'another loss'
    if loss.get('use_mask'):
        return 'use_mask=True: a loss on masks'
    if classifies_masks(head):
        return 'it classifies masks, not pixels'
    return '' if loss.get('use_sigmoid') else _one_channel_reason(head)


def _one_channel_reason(head: ConfigDict) -> str:
    return 'one channel is no softmax' if has_one_channel(head) else ''
