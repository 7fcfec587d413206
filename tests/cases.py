"""Random losses for the property-based tests, and PyTorch's answer to each of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


@dataclass(frozen=True)
class Case:
    """One weighted cross-entropy: logits (N, C, h, w) or (N, C, ...), target (N, H, W) or (N, ...)."""

    logits: Tensor
    target: Tensor
    class_weight: Tensor | None
    ignore_index: int
    label_smoothing: float
    align_corners: bool

    @property
    def valid(self) -> Tensor:
        return self.target.long() != self.ignore_index

    def resized(self, logits: Tensor) -> Tensor:
        if logits.shape[2:] == self.target.shape[1:]:
            return logits
        return F.interpolate(logits, size=self.target.shape[1:], mode='bilinear', align_corners=self.align_corners)

    def oracle(self, logits: Tensor, reduction: str) -> Tensor:
        """``F.cross_entropy`` on upsampled logits."""
        return F.cross_entropy(
            self.resized(logits),
            self.target.long(),
            None if self.class_weight is None else self.class_weight.to(logits.dtype),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=reduction,
        )

    def options(self) -> dict:
        return dict(
            class_weight=self.class_weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            align_corners=self.align_corners,
        )


@st.composite
def cases(draw, dtypes=(torch.float64,), resize=True, scale=(0.1, 1.0, 20.0), all_ignored=True) -> Case:
    """Shapes, dtypes, ignored fractions (0, some, all), weights with zeros, smoothing, any layout in memory."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, classes = draw(st.integers(1, 3)), draw(st.integers(2, 7))
    size = tuple(draw(st.lists(st.integers(1, 7), min_size=0, max_size=3)))
    target_size = size
    if resize and len(size) == 2 and draw(st.booleans()):
        target_size = tuple(draw(st.lists(st.integers(1, 13), min_size=2, max_size=2)))
    ignore_index = draw(st.sampled_from((255, -1, -100, 0, classes - 1)))
    integer = draw(st.sampled_from(INTEGERS if ignore_index >= 0 else INTEGERS[:3]))

    logits = torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64)
    logits = (logits * draw(st.sampled_from(scale))).to(draw(st.sampled_from(dtypes)))
    target = torch.randint(0, classes, (batch, *target_size), generator=generator)
    fraction = draw(st.sampled_from((0.0, 0.3, 1.0) if all_ignored else (0.0, 0.3)))
    target[torch.rand(target.shape, generator=generator) < fraction] = ignore_index
    weight = None
    if draw(st.booleans()):
        weight = torch.rand(classes, generator=generator) + 0.05
        weight[draw(st.integers(0, classes - 1))] *= draw(st.sampled_from((0.0, 1.0, 100.0)))
    layout = draw(st.sampled_from(('contiguous', 'strided', 'channels_last')))
    if layout == 'strided':
        logits = torch.stack([logits, logits], -1)[..., 0]
        target = torch.stack([target, target], -1)[..., 0]
    elif layout == 'channels_last' and logits.dim() == 4:
        logits = logits.to(memory_format=torch.channels_last)
    smoothing = draw(st.sampled_from((0.0, 0.0, 0.1, 1.0)))
    return Case(logits, target.to(integer), weight, ignore_index, smoothing, draw(st.booleans()))
