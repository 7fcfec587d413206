"""Arg-max of logits with offsets of several strengths, from groups of channels. Independent of mmseg."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmseg_wce.upsampling import RunningArgmax
from torch import Tensor

__all__ = ['RebalancedArgmax']


class RebalancedArgmax:
    """Arg-max of z + tau * direction for T values of tau, in two passes over the channels of the logits z.

    The largest of several lines over tau is convex, so the classes that win follow one another and none comes back:
    where the smallest and the largest tau agree, all between them do. The first pass finds these two, the second looks
    at all tau where they differ.

    Args:
        direction: (C,), offsets of the classes for tau = 1.
        taus: T finite numbers.

    Example:
        >>> import torch
        >>> from mmseg_wce.rebalanced_argmax import RebalancedArgmax
        >>> logits = torch.tensor([[[[3.0, 1.0]], [[2.0, 1.5]]]])  # two classes, 1 x 2 pixels
        >>> argmax = RebalancedArgmax(torch.tensor([-1.0, 1.0]), taus=[0.0, 1.0])
        >>> argmax.update(logits, first=0)
        >>> argmax.refine(logits, first=0)
        >>> argmax.index
        tensor([[[[0, 1]]],
        <BLANKLINE>
        <BLANKLINE>
                [[[1, 1]]]])
    """

    def __init__(self, direction: Tensor, taus: Sequence[float]) -> None:
        self._offsets = torch.tensor(taus, dtype=torch.float64).view(-1, 1) * direction.double().cpu()
        self._ends = taus.index(min(taus)), taus.index(max(taus))
        self._at_ends = RunningArgmax(), RunningArgmax()
        self._refined = [RunningArgmax() for _ in taus]
        self._moving: Tensor | None = None

    def _added(self, channels: Tensor, first: int, t: int) -> Tensor:
        dtype = torch.promote_types(channels.dtype, torch.float32)
        offset = self._offsets[t, first : first + channels.shape[1]].to(channels.device, dtype)
        return channels + offset.view(-1, *[1] * (channels.dim() - 2))

    def update(self, channels: Tensor, first: int) -> None:
        """Add a group of channels in the first pass, (N, number of channels, H, W), the first of index ``first``."""
        for argmax, t in zip(self._at_ends, self._ends, strict=True):
            argmax.update(self._added(channels, first, t), first)

    def refine(self, channels: Tensor, first: int) -> None:
        """Add a group of channels in the second pass, when the first is complete."""
        if self._moving is None:
            lowest, highest = (argmax.index for argmax in self._at_ends)
            self._moving = (lowest != highest).flatten().nonzero().flatten()
        moving = channels.movedim(1, 0).flatten(1)[None, :, self._moving]  # (1, number of channels, moving pixels)
        for t, argmax in enumerate(self._refined):
            argmax.update(self._added(moving, first, t), first)

    @property
    def index(self) -> Tensor:
        """Class for each tau, (T, N, H, W), int64: the lowest at a tie, and the first whose logit is NaN."""
        assert self._moving is not None, 'refine() has not been called yet'
        lowest = self._at_ends[0].index
        classes = lowest.repeat(len(self._refined), *[1] * lowest.dim())
        classes.view(len(self._refined), -1)[:, self._moving] = torch.cat([argmax.index for argmax in self._refined])
        return classes
