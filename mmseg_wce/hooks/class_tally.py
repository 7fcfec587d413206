"""What a loss did to every class: summed where the pixels are, and the figures read off the sums."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from mmseg_wce.losses import ObservedPixels
from torch import Tensor

__all__ = ['ClassFigures', 'ClassTally']

# Few classes are spread over about this many bins where they would queue for the same atomics.
_NUM_BINS = 4096
# On CPU, pieces too small for PyTorch to hand to threads: beside a busy neighbour each handing over waits for it, and
# a dozen of them cost ten times what they compute.
_SERIAL_DEVICES = ('cpu',)
_SERIAL_PIECE = 32000


class ClassTally:
    """Sums over the pixels of many batches; never waits for the device.

    Args:
        num_classes: C.
        device: of the pixels.

    Attributes:
        sums: (4, C + 1) float64, in which counts are exact (float32 where a device has no float64): pixels, correct
            ones, pixel weight times nll, the same times class weight. The last column holds the ignored pixels.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        dtype = torch.float32 if device.type == 'mps' else torch.float64
        self.num_classes = num_classes
        self.sums = torch.zeros(4, num_classes + 1, dtype=dtype, device=device)

    def add(self, seen: ObservedPixels) -> None:
        """Count the pixels of a call: an observer of :class:`mmseg_wce.losses.WeightedCrossEntropyLoss`.

        Raises:
            ValueError: its logits are for another number of classes.
        """
        if seen.num_classes != self.num_classes:
            raise ValueError(f'the loss got logits of {seen.num_classes} classes, its head has {self.num_classes}')
        batch = _sums(seen, self.sums.dtype)
        self.sums[:3] += batch
        weighted = batch[2, :-1] if seen.class_weight is None else batch[2, :-1] * seen.class_weight
        self.sums[3, :-1] += weighted

    def clear(self) -> None:
        """Start anew."""
        self.sums.zero_()


def _sums(seen: ObservedPixels, dtype: torch.dtype) -> Tensor:
    """(3, C + 1): pixels, correct ones, pixel weight times nll."""
    maps = [seen.label, seen.correct, seen.nll]
    if seen.pixel_weight is not None:
        maps.append(seen.pixel_weight.expand_as(seen.label))
    serial = seen.label.device.type in _SERIAL_DEVICES
    size = _SERIAL_PIECE if serial else max(1, seen.label.numel())
    copies = 1 if serial else max(1, _NUM_BINS // (seen.num_classes + 1))
    pieces = zip(*(m.flatten().split(size) for m in maps), strict=True)
    return torch.stack([_sums_of(seen, copies, dtype, *piece) for piece in pieces]).sum(0)


def _sums_of(
    seen: ObservedPixels,
    copies: int,
    dtype: torch.dtype,
    label: Tensor,
    correct: Tensor,
    nll: Tensor,
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """The same of some of the pixels, each (P,), each class summed in so many bins."""
    ignored = seen.num_classes
    counts = (label >= 0) & (label < ignored) & (label != seen.ignore_index)
    bins = torch.where(counts, label.long(), ignored)
    if copies > 1:
        bins = bins + (ignored + 1) * (torch.arange(bins.numel(), device=bins.device) % copies)
    if pixel_weight is not None:
        nll = nll * pixel_weight
    empty = torch.zeros(copies * (ignored + 1), dtype=dtype, device=bins.device)
    rows = counts.new_ones(1).expand_as(counts), correct, nll
    sums = [empty.scatter_add(0, bins, row.to(dtype)) for row in rows]
    return torch.stack(sums).view(3, copies, -1).sum(1)


@dataclass(frozen=True)
class ClassFigures:
    """Figures of the pixels that a tally counted.

    Attributes:
        pixels: (C,), share of the pixels that are not ignored.
        accuracy: (C,), share of the class's pixels that are correct; NaN where it has none.
        nll_share: (C,), share of the sum of class weight times pixel weight times nll.
        unweighted_share: (C,), the same without class weights.
        ignored: share of all pixels.
    """

    pixels: np.ndarray
    accuracy: np.ndarray
    nll_share: np.ndarray
    unweighted_share: np.ndarray
    ignored: float

    @classmethod
    def of(cls, sums: np.ndarray) -> ClassFigures:
        """Read what :attr:`ClassTally.sums`, perhaps of several ranks, amount to; shares of nothing are 0."""
        pixels, correct, nll, weighted = sums[:, :-1]
        with np.errstate(invalid='ignore', divide='ignore'):
            accuracy = correct / pixels
        ignored = sums[0, -1] / max(sums[0].sum(), 1)
        return cls(_share(pixels), accuracy, _share(weighted), _share(nll), float(ignored))


def _share(values: np.ndarray) -> np.ndarray:
    total = values.sum()
    return values / (total if total > 0 else 1)
