"""What an observer of :class:`mmseg_wce.losses.WeightedCrossEntropyLoss` sees of a call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mmseg_wce.pixel_batch import SigmoidBatch, SoftmaxBatch
from torch import Tensor

__all__ = ['ObservedPixels', 'observe']


@dataclass(frozen=True)
class ObservedPixels:
    """Pixels of one call of the loss, as its observer sees them. No gradient flows; not to be changed.

    With ``use_sigmoid=True`` one channel is shown as two classes. Of more channels, where a class weight belongs to the
    label's channel and not to the pixel, ``nll`` is the weighted loss, summed over the channels.

    Attributes:
        label: (N, ...), int64.
        nll: (N, ...), negative log-likelihood without any weight or smoothing; 0 where ignored.
        correct: (N, ...), bool: the label has the greatest logit, or of one channel, the probability of label 1 is
            above the threshold and the label is 1, or neither; False where ignored.
        pixel_weight: broadcastable to (N, ...), or None.
        class_weight: (C,) float32, (2,) for one channel; None without weights, and with a sigmoid for C >= 2.
        num_classes: C, or 2 for one channel.
        ignore_index: the label that does not count.

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


@torch.no_grad()
def observe(batch: SoftmaxBatch | SigmoidBatch, pixel_weight: Tensor | None) -> ObservedPixels:
    """Show a batch to an observer.

    Args:
        batch: whose loss has been computed.
        pixel_weight: (N, ...), or None.

    Returns:
        Its pixels, without gradients.
    """
    label, ignored, weights = batch.target, batch.ignore_index, batch.weights_of_labels
    if isinstance(batch, SoftmaxBatch):
        nll, correct = batch.maps.nll.detach(), batch.maps.correct
        return ObservedPixels(label, nll, correct, pixel_weight, weights, batch.num_channels, ignored)
    positive, negative, correct = (x.detach() for x in batch.maps)
    if batch.num_channels == 1:
        return ObservedPixels(label, positive + negative, correct, pixel_weight, weights, 2, ignored)
    loss = batch.pixel_losses().detach()
    return ObservedPixels(label, loss, correct, pixel_weight, None, batch.num_channels, ignored)
