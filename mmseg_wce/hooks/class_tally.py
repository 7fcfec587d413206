"""Per-class sums of the loss, kept on the device of the pixels, and the figures computed from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from mmseg_wce.losses import ObservedPixels
from torch import Tensor

__all__ = ['ClassFigures', 'ClassTally']

# With few classes, many atomic additions hit the same bin; each class is spread over several, about so many in all.
_NUM_BINS = 4096
# On CPU, pixels are added in chunks too small for PyTorch to split over threads: on a busy machine every split waits
# for its slowest thread, and a dozen splits take ten times as long as the sums.
_SERIAL_DEVICES = ('cpu',)
_SERIAL_CHUNK = 32000


class ClassTally:
    """Per-class sums over the pixels of many batches; never waits for the device.

    Args:
        num_classes: C.
        device: device of the pixels.

    Attributes:
        sums: (4, C + 1) float64, so that counts are exact (float32 on devices without float64). Rows: number of pixels,
            number of correct pixels, sum of pixel weight * nll, sum of class weight * pixel weight * nll. The last
            column holds the ignored pixels.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        dtype = torch.float32 if device.type == 'mps' else torch.float64
        self.num_classes = num_classes
        self.sums = torch.zeros(4, num_classes + 1, dtype=dtype, device=device)

    def add(self, observed: ObservedPixels) -> None:
        """Add the pixels of a call; used as observer of :class:`mmseg_wce.losses.WeightedCrossEntropyLoss`.

        Raises:
            ValueError: the logits have another number of classes.
        """
        if observed.num_classes != self.num_classes:
            raise ValueError(f'the loss got logits of {observed.num_classes} classes, its head has {self.num_classes}')
        batch = _sum_pixels(observed, self.sums.dtype)
        self.sums[:3] += batch
        weighted = batch[2, :-1] if observed.class_weight is None else batch[2, :-1] * observed.class_weight
        self.sums[3, :-1] += weighted

    def clear(self) -> None:
        """Reset the sums to zero."""
        self.sums.zero_()


def _sum_pixels(observed: ObservedPixels, dtype: torch.dtype) -> Tensor:
    """Return number of pixels, number of correct pixels and sum of pixel weight * nll, (3, C + 1)."""
    maps = [observed.label, observed.correct, observed.nll]
    if observed.pixel_weight is not None:
        maps.append(observed.pixel_weight.expand_as(observed.label))
    serial = observed.label.device.type in _SERIAL_DEVICES
    size = _SERIAL_CHUNK if serial else max(1, observed.label.numel())
    copies = 1 if serial else max(1, _NUM_BINS // (observed.num_classes + 1))
    chunks = zip(*(m.flatten().split(size) for m in maps), strict=True)
    return torch.stack([_sum_chunk(observed, copies, dtype, *chunk) for chunk in chunks]).sum(0)


def _sum_chunk(
    observed: ObservedPixels,
    copies: int,
    dtype: torch.dtype,
    label: Tensor,
    correct: Tensor,
    nll: Tensor,
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """Return the sums (3, C + 1) over a chunk of pixels, (P,) each; each class is summed in ``copies`` bins."""
    ignored_bin = observed.num_classes
    is_counted = (label >= 0) & (label < ignored_bin) & (label != observed.ignore_index)
    bins = torch.where(is_counted, label.long(), ignored_bin)
    if copies > 1:
        bins = bins + (ignored_bin + 1) * (torch.arange(bins.numel(), device=bins.device) % copies)
    if pixel_weight is not None:
        nll = nll * pixel_weight
    empty = torch.zeros(copies * (ignored_bin + 1), dtype=dtype, device=bins.device)
    rows = is_counted.new_ones(1).expand_as(is_counted), correct, nll
    sums = [empty.scatter_add(0, bins, row.to(dtype)) for row in rows]
    return torch.stack(sums).view(3, copies, -1).sum(1)


@dataclass(frozen=True)
class ClassFigures:
    """Per-class figures of the pixels in a :class:`ClassTally`.

    Attributes:
        pixels: (C,), share of the pixels that are not ignored.
        accuracy: (C,), share of the class's pixels that are correct; NaN for a class without pixels.
        nll_share: (C,), share of the sum of class weight * pixel weight * nll.
        unweighted_share: (C,), share of the sum of pixel weight * nll.
        ignored: share of the ignored pixels in all pixels.
    """

    pixels: np.ndarray
    accuracy: np.ndarray
    nll_share: np.ndarray
    unweighted_share: np.ndarray
    ignored: float

    @classmethod
    def from_sums(cls, sums: np.ndarray) -> ClassFigures:
        """Compute the figures from :attr:`ClassTally.sums`, which may be added over ranks; a share of 0 is 0."""
        pixels, correct, nll, weighted = sums[:, :-1]
        with np.errstate(invalid='ignore', divide='ignore'):
            accuracy = correct / pixels
        ignored = sums[0, -1] / max(sums[0].sum(), 1)
        return cls(_share(pixels), accuracy, _share(weighted), _share(nll), float(ignored))


def _share(values: np.ndarray) -> np.ndarray:
    total = values.sum()
    return values / (total if total > 0 else 1)
