"""Arg-max of logits with offsets of several strengths, from groups of channels. Independent of mmseg."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmseg_wce.upsampling import RunningArgmax
from torch import Tensor

__all__ = ['RebalancedArgmax', 'RebalancedClasses']


class RebalancedClasses(NamedTuple):
    """Predicted classes for T rows of offsets. Most pixels have the same class for all of them.

    Attributes:
        lowest: (N, H, W), int64, the classes for the first row.
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
        """Return the classes of all pixels for one row, (N, H, W)."""
        return self.lowest.flatten().index_copy(0, self.moving, self.classes[t]).view(self.lowest.shape)


class RebalancedArgmax:
    """Arg-max of z + offsets for T rows of offsets, in two passes over the channels of the logits z.

    Between two knots the offset of every class is linear in tau. The largest of several lines is convex, so the classes
    that win follow one another and none comes back: where two neighbouring knots agree, all rows between them do. The
    first pass finds the classes at the knots, the second looks at all rows where these differ.

    Args:
        offsets: (T, C), by ascending tau.
        knots: indices of rows, ascending, from 0 to T - 1: each class's offset is linear in tau between two of them.

    Example:
        >>> import torch
        >>> from mmseg_wce.rebalanced_argmax import RebalancedArgmax
        >>> logits = torch.tensor([[[[3.0, 1.0]], [[2.0, 1.5]]]])  # two classes, 1 x 2 pixels
        >>> argmax = RebalancedArgmax(torch.tensor([[0.0, 0.0], [-1.0, 1.0]]), knots=[0, 1])
        >>> argmax.update(logits, first=0)
        >>> argmax.refine(logits, first=0)
        >>> [argmax.result.prediction(t).flatten().tolist() for t in (0, 1)]
        [[0, 1], [1, 1]]
    """

    def __init__(self, offsets: Tensor, knots: Sequence[int]) -> None:
        self._offsets = offsets.double().cpu()
        self._at_knots = {t: RunningArgmax() for t in knots}
        self._between = [t for t in range(len(offsets)) if t not in self._at_knots]
        self._refined = RunningArgmax()
        self._moving: Tensor | None = None

    def _added(self, channels: Tensor, first: int, rows: list[int]) -> Tensor:
        """Return the channels (1, K, ...) or (N, K, ...) with some rows of offsets added, one row or one image."""
        dtype = torch.promote_types(channels.dtype, torch.float32)
        offsets = self._offsets[rows, first : first + channels.shape[1]].to(channels.device, dtype)
        return channels + offsets.view(*offsets.shape, *[1] * (channels.dim() - 2))

    def update(self, channels: Tensor, first: int) -> None:
        """Add a group of channels in the first pass, (N, number of channels, H, W), the first of index ``first``."""
        for t, argmax in self._at_knots.items():
            argmax.update(self._added(channels, first, [t]), first)

    def refine(self, channels: Tensor, first: int) -> None:
        """Add a group of channels in the second pass, when the first is complete."""
        if self._moving is None:
            lowest, *others = (argmax.index for argmax in self._at_knots.values())
            differs = torch.zeros_like(lowest, dtype=torch.bool)
            for other in others:
                differs |= other != lowest
            self._moving = differs.flatten().nonzero().flatten()
        if self._between:
            moving = channels.movedim(1, 0).flatten(1)[:, self._moving]  # (number of channels, K)
            self._refined.update(self._added(moving[None], first, self._between), first)

    @property
    def result(self) -> RebalancedClasses:
        """Classes for each row: the lowest at a tie, and the first whose logit is NaN."""
        assert self._moving is not None, 'refine() has not been called yet'
        lowest = self._at_knots[0].index
        classes = lowest.new_empty(len(self._offsets), len(self._moving))
        for t, argmax in self._at_knots.items():
            classes[t] = argmax.index.flatten()[self._moving]
        if self._between:
            classes[self._between] = self._refined.index
        return RebalancedClasses(lowest, self._moving, classes)
