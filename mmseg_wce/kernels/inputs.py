"""The arguments of a sweep over the pixels, the same for every back end."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """Logits and labels of one call, and its options."""

    logits: Tensor  # (N, C, h, w), or (N, C, ...) of the target's size, any strides
    target: Tensor  # (N, H, W) or (N, ...), int64, any strides
    ignore_index: int  # label of the pixels to ignore
    smoothing_weight: Tensor | None  # (C,), weights of the map `smooth`
    class_weight: Tensor | None  # (C,), weights of the labels in sums, None for ones
    align_corners: bool  # of the interpolation

    @property
    def is_resized(self) -> bool:
        """True if the logits have another size than the target."""
        return self.logits.shape[2:] != self.target.shape[1:]
