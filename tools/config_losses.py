"""The losses of an mmseg config: where each stands, and whether it is a cross-entropy on pixels."""

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
    """A loss of a config.

    Attributes:
        place: in the config, as Python code.
        type: its name.
        stays: why it is no cross-entropy on pixels of mmseg's; empty where it is one.
        settings: the dict in the config.
    """

    place: str
    type: str
    stays: str
    settings: dict = field(default_factory=dict)


def losses(config: Config) -> list[Loss]:
    """Every loss of every head, and a line for each head that has none."""
    init_default_scope('mmseg')
    found = list(_of_model('model', config.model))
    return found or [Loss('model', type_name(config.model), 'it has no decode_head and no auxiliary_head')]


def _of_model(place: str, model: ConfigDict) -> Iterator[Loss]:
    for key, value in model.items():
        for at, part in _listed(f'{place}.{key}', value):
            if key in SLOTS and isinstance(part, dict):
                yield from _of_head(at, part)
            elif isinstance(part, dict):  # the student of a distillation, say
                yield from _of_model(at, part)


def _listed(place: str, value) -> Iterator[tuple[str, ConfigDict]]:
    if isinstance(value, list | tuple):
        yield from ((f'{place}[{i}]', element) for i, element in enumerate(value))
    elif value is not None:
        yield place, value


def _of_head(place: str, head: ConfigDict) -> Iterator[Loss]:
    inner = [(key, value) for key, value in head.items() if isinstance(value, dict) and 'loss_decode' in value]
    for key, value in inner:  # K-Net keeps a head of its own in it
        yield from _of_head(f'{place}.{key}', value)
    if 'loss_decode' in head:
        for at, loss in _listed(f'{place}.loss_decode', head.loss_decode):
            yield Loss(at, type_name(loss), _stays(head, loss), loss)
    elif not inner:
        kind = class_of(head, MODELS)
        if kind is None:
            yield Loss(place, type_name(head), 'no such head is registered, so its losses cannot be known')
            return
        if not issubclass(kind, BaseDecodeHead) or kind.loss_by_feat is not BaseDecodeHead.loss_by_feat:
            yield Loss(place, type_name(head), 'it has no loss on pixels')
            return
        yield Loss(f'{place}.loss_decode', "mmseg's default", _one_channel(head))
    for key, value in head.items():
        if key.startswith('loss_') and key != 'loss_decode' and isinstance(value, dict):
            yield Loss(f'{place}.{key}', type_name(value), 'not the loss on pixels')


def _stays(head: ConfigDict, loss: ConfigDict) -> str:
    kind = type_name(loss)
    if kind != 'CrossEntropyLoss':
        return ALREADY_OURS if kind == OURS else 'another loss'
    if loss.get('use_mask'):
        return 'use_mask=True: a loss on masks'
    if classifies_masks(head):
        return 'it classifies masks, not pixels'
    return '' if loss.get('use_sigmoid') else _one_channel(head)


def _one_channel(head: ConfigDict) -> str:
    return 'one channel is no softmax' if has_one_channel(head) else ''
