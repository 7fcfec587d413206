"""Arg-max of logits with offsets of several strengths, from groups of channels. Independent of mmseg."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmseg_wce.upsampling import RunningArgmax
from torch import Tensor

__all__ = ['RebalancedArgmax', 'RebalancedClasses']


class RebalancedClasses(NamedTuple):
    """Predicted classes for T values of tau. Most pixels have the same class for all of them.

    Attributes:
        lowest: (N, H, W), int64, the classes for the smallest tau.
        moving: (K,), int64, indices into the flattened ``lowest`` of the pixels whose class changes.
        classes: (T, K), int64, the classes of these pixels.

    Example:
        >>> import torch
        >>> from mmseg_wce.rebalanced_argmax import RebalancedClasses
        >>> classes = RebalancedClasses(torch.tensor([[[3, 1]]]), torch.tensor([1]), torch.tensor([[1], [2]]))
        >>> classes.prediction(1)
        tensor([[[3, 2]]])
    """

    lowest: Tensor
    moving: Tensor
    classes: Tensor

    def prediction(self, t: int) -> Tensor:
        """Return the classes of all pixels for one tau, (N, H, W)."""
        return self.lowest.flatten().index_copy(0, self.moving, self.classes[t]).view(self.lowest.shape)


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
        >>> [argmax.result.prediction(t).flatten().tolist() for t in (0, 1)]
        [[0, 1], [1, 1]]
    """

    def __init__(self, direction: Tensor, taus: Sequence[float]) -> None:
        self._offsets = torch.tensor(taus, dtype=torch.float64).view(-1, 1) * direction.double().cpu()
        self._ends = [taus.index(min(taus)), taus.index(max(taus))]
        self._between = [t for t in range(len(taus)) if t not in self._ends]
        self._lowest, self._highest, self._refined = RunningArgmax(), RunningArgmax(), RunningArgmax()
        self._moving: Tensor | None = None

    def _added(self, channels: Tensor, first: int, rows: list[int]) -> Tensor:
        """Return the channels (1, K, ...) or (N, K, ...) with some rows of offsets added, one row or one image."""
        dtype = torch.promote_types(channels.dtype, torch.float32)
        offsets = self._offsets[rows, first : first + channels.shape[1]].to(channels.device, dtype)
        return channels + offsets.view(*offsets.shape, *[1] * (channels.dim() - 2))

    def update(self, channels: Tensor, first: int) -> None:
        """Add a group of channels in the first pass, (N, number of channels, H, W), the first of index ``first``."""
        for argmax, t in zip((self._lowest, self._highest), self._ends, strict=True):
            argmax.update(self._added(channels, first, [t]), first)

    def refine(self, channels: Tensor, first: int) -> None:
        """Add a group of channels in the second pass, when the first is complete."""
        if self._moving is None:
            self._moving = (self._lowest.index != self._highest.index).flatten().nonzero().flatten()
        if self._between:
            moving = channels.movedim(1, 0).flatten(1)[:, self._moving]  # (number of channels, K)
            self._refined.update(self._added(moving[None], first, self._between), first)

    @property
    def result(self) -> RebalancedClasses:
        """Classes for each tau: the lowest at a tie, and the first whose logit is NaN."""
        assert self._moving is not None, 'refine() has not been called yet'
        lowest, highest = self._lowest.index, self._highest.index
        classes = lowest.new_empty(len(self._offsets), len(self._moving))
        for t, at_end in zip(self._ends, (lowest, highest), strict=True):
            classes[t] = at_end.flatten()[self._moving]
        if self._between:
            classes[self._between] = self._refined.index
        return RebalancedClasses(lowest, self._moving, classes)
