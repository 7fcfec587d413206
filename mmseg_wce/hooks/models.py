"""What hooks look at of a Runner's model."""

from __future__ import annotations

from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

__all__ = ['main_head', 'unwrapped']


def unwrapped(runner: Runner) -> nn.Module:
    """The segmentor itself, without what distributes it."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def main_head(model: nn.Module) -> nn.Module | None:
    """The decode head, of a cascade the last; None where there is none."""
    head = getattr(model, 'decode_head', None)
    return head[-1] if isinstance(head, nn.ModuleList) else head
