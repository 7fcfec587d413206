"""Parts of a built segmentor: its heads and their losses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

__all__ = ['heads_of', 'losses_of', 'main_head', 'unwrap_model']


def unwrap_model(runner: Runner) -> nn.Module:
    """Return the segmentor of a Runner, without a wrapper for distributed training."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def heads_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the decode heads, then the auxiliary heads, each with its name such as ``decode_head[0]``."""
    for name in ('decode_head', 'auxiliary_head'):
        heads = getattr(model, name, None)
        if isinstance(heads, nn.ModuleList):
            yield from ((f'{name}[{i}]', head) for i, head in enumerate(heads))
        elif heads is not None:
            yield name, heads


def main_head(model: nn.Module) -> Any:
    """Return the decode head, the last one of a cascade; None if there is none."""
    decode_heads = [head for name, head in heads_of(model) if name.startswith('decode_head')]
    return decode_heads[-1] if decode_heads else None


def losses_of(head: Any) -> list[nn.Module]:
    """Return the losses of a head, empty if it has no ``loss_decode``."""
    losses = getattr(head, 'loss_decode', None)
    if isinstance(losses, nn.ModuleList):
        return list(losses)
    return [] if losses is None else [losses]
