"""Write checkpoints whose output bias is changed by class offsets."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmseg_wce.training.preflight import PreflightError
from mmseg_wce.training.resuming import read_checkpoint
from mmseg_wce.version import __version__
from torch import Tensor

__all__ = ['NOTE', 'check_layer', 'rebalancing_of', 'training_config_of', 'write_rebalanced']

NOTE = 'rebalanced'
"""Key of a checkpoint's ``meta``: a list with what was done, in order."""


def rebalancing_of(path: str) -> str:
    """Describe how a checkpoint was rebalanced; empty if it was not written by :func:`write_rebalanced`.

    Raises:
        PreflightError: the checkpoint cannot be read.
    """
    return '; '.join(f'tau {note["tau"]:g} from {note["source"]!r}' for note in _notes(_content(path)))


def training_config_of(path: str) -> str | None:
    """Return the text of the config that mmengine has put into a checkpoint; None if there is none.

    Raises:
        PreflightError: the checkpoint cannot be read.
    """
    text = (_content(path).get('meta') or {}).get('cfg')
    return text if isinstance(text, str) else None


def check_layer(path: str, layer: str, channels: int) -> None:
    """Raise PreflightError unless a checkpoint has a layer.

    Args:
        path: path of a checkpoint.
        layer: name of the layer.
        channels: number of its output channels.
    """
    _changed_states(path, _content(path), layer, torch.zeros(channels))


def write_rebalanced(source: str, target: str | os.PathLike, layer: str, offsets: Tensor, **note: Any) -> bool:
    """Write a checkpoint with offsets added to the bias of a layer; all other weights keep their bits.

    Averaged weights of mmengine's EMAHook are changed too. What only a training needs (optimizer, schedules, log) is
    left out.

    Args:
        source: path of a checkpoint of mmengine, or of a plain state dict.
        target: path to write.
        layer: name of the layer, as :func:`mmseg_wce.rebalancing.output_layer.find_output_layer` returns it.
        offsets: (channels of the layer,), float32.
        **note: added to the note in the checkpoint's ``meta['rebalanced']``: plain Python values.

    Returns:
        False if the layer had no bias and got one, which the model needs then, too; otherwise True.

    Raises:
        PreflightError: the checkpoint cannot be read, has no such layer, or the target is the source.
    """
    target = Path(target)
    if target.exists() and os.path.samefile(source, target):
        raise PreflightError(f'{str(target)!r} is the checkpoint itself: give the new one another name')
    content = _content(source)
    states, had_bias = _changed_states(source, content, layer, offsets)
    done = dict(note, source=source, layer=layer, offsets=offsets.tolist(), mmseg_wce=__version__)
    meta = dict(content.get('meta') or {}, **{NOTE: [*_notes(content), done]})
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + '.new')
    torch.save(dict(meta=meta, **states), temporary)
    os.replace(temporary, target)
    return had_bias


def _content(path: str) -> Mapping[str, Any]:
    content = read_checkpoint(path)
    if not isinstance(content, Mapping):
        raise PreflightError(f'{path!r} is not a checkpoint: it holds a {type(content).__name__}')
    return content if 'state_dict' in content else dict(state_dict=content)


def _notes(content: Mapping[str, Any]) -> list[dict]:
    return list((content.get('meta') or {}).get(NOTE, []))


def _changed_states(
    path: str, content: Mapping[str, Any], layer: str, offsets: Tensor
) -> tuple[dict[str, Mapping[str, Tensor]], bool]:
    """Return copies of the weights and averaged weights with offsets added, and whether the layer had a bias."""
    states, had_bias = {}, True
    for name in ('state_dict', 'ema_state_dict'):
        if name in content:
            place = f'{name} of checkpoint {path!r}'
            states[name], had_bias = _with_offsets(content[name], layer, offsets, place)
    return states, had_bias


def _with_offsets(state: Any, layer: str, offsets: Tensor, place: str) -> tuple[Any, bool]:
    prefix = next((prefix for prefix in ('', 'module.') if f'{prefix}{layer}.weight' in state), None)
    if prefix is None:
        raise PreflightError(f'{place} has no {layer}.weight: is it of this config?')
    weight, bias = state[f'{prefix}{layer}.weight'], state.get(f'{prefix}{layer}.bias')
    if len(weight) != len(offsets):
        raise PreflightError(f'{place} has {len(weight)} channels in {layer}, the model of the config {len(offsets)}')
    changed = copy.copy(state)  # keeps the versions of modules, which some read when they are loaded
    added = offsets.to(weight.dtype) if bias is None else (bias.double() + offsets.double()).to(bias.dtype)
    if not added.isfinite().all():
        raise PreflightError(f'{place}: the new bias of {layer} is not finite in {added.dtype}: take a tau nearer to 0')
    changed[f'{prefix}{layer}.bias'] = added
    return changed, bias is not None
