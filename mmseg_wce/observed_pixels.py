"""Pixels of a call that an observer of :class:`mmseg_wce.losses.WeightedCrossEntropyLoss` receives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mmseg_wce.kernels.focal import focal_loss
from mmseg_wce.pixel_batch import SigmoidBatch, SoftmaxBatch
from torch import Tensor

__all__ = ['ObservedPixels']


@dataclass(frozen=True)
class ObservedPixels:
    """Pixels of one call of the loss, passed to its observer. Without gradients; must not be modified.

    With ``use_sigmoid=True`` one channel counts as two classes. With more channels ``nll`` is the weighted loss, summed
    over the channels, because a class weight then applies to the label's channel and not to the pixel.

    Attributes:
        label: (N, ...), int64.
        nll: (N, ...), negative log-likelihood, or focal loss, without weights and smoothing; 0 where ignored.
        correct: (N, ...), bool, False where ignored. True if the label has the greatest logit; for one channel, if the
            label is 1 and the probability of label 1 is above the threshold, or if neither holds.
        pixel_weight: (N, ...), or None.
        class_weight: (C,) float32, (2,) for one channel; None without weights, and with a sigmoid for C >= 2.
        num_classes: C, or 2 for one channel.
        ignore_index: the ignored label.

    Example:
        >>> import torch
        >>> from mmseg_wce.losses import WeightedCrossEntropyLoss
        >>> loss = WeightedCrossEntropyLoss()
        >>> loss.observer = lambda pixels: print(pixels.label.tolist(), pixels.correct.tolist())
        >>> logits = torch.tensor([[2.0, 0.0]]).expand(3, 2).requires_grad_()
        >>> _ = loss(logits, torch.tensor([0, 1, 255]))
        [0, 1, 255] [True, False, False]
    """

    label: Tensor
    nll: Tensor
    correct: Tensor
    pixel_weight: Tensor | None
    class_weight: Tensor | None
    num_classes: int
    ignore_index: int

    @classmethod
    @torch.no_grad()
    def from_batch(cls, batch: SoftmaxBatch | SigmoidBatch, pixel_weight: Tensor | None) -> ObservedPixels:
        """Return the pixels of a batch whose loss has been computed."""
        label, ignore_index, weights = batch.target, batch.ignore_index, batch.label_class_weight
        if isinstance(batch, SoftmaxBatch):
            nll, correct = focal_loss(batch.maps.nll.detach(), batch.focal_gamma), batch.maps.correct
            return cls(label, nll, correct, pixel_weight, weights, batch.num_channels, ignore_index)
        positive, negative, correct = (x.detach() for x in batch.maps)
        if batch.num_channels == 1:
            return cls(label, positive + negative, correct, pixel_weight, weights, 2, ignore_index)
        loss = batch.pixel_losses().detach()
        return cls(label, loss, correct, pixel_weight, None, batch.num_channels, ignore_index)
