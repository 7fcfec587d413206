"""Pixel losses of full-size logits that arrive a few channels at a time. Independent of mmseg.

The maps are float64 and accurate to the rounding of float32 exponentials, also where the loss is close to 0: the term
of the largest logit in the sum of exponentials is exactly 1.
"""

from __future__ import annotations

import torch
from mmseg_wce.kernels.binary import element_loss, positive_elements
from torch import Tensor

__all__ = ['RunningLoss', 'RunningSigmoidLoss', 'RunningSoftmaxLoss']

ALL_ROWS = slice(None)


class RunningSoftmaxLoss:
    """The maps of :func:`mmseg_wce.kernels.pixel_nll`, by a running log-sum-exp.

    Args:
        label: (N, H, W), integer.
        smoothing_weight: (C,), or None without label smoothing.

    Example:
        >>> import torch
        >>> from mmseg_wce.running_losses import RunningSoftmaxLoss
        >>> logits, label = torch.tensor([2.0, 0.0, 1.0]).view(1, 3, 1, 1), torch.tensor([[[2]]])
        >>> loss = RunningSoftmaxLoss(label)
        >>> loss.update(logits[:, :2], first=0)
        >>> loss.update(logits[:, 2:], first=2)
        >>> print(f'{loss.maps()[0].item():.4f} {torch.nn.functional.cross_entropy(logits, label).item():.4f}')
        1.4076 1.4076
    """

    def __init__(self, label: Tensor, smoothing_weight: Tensor | None = None) -> None:
        # int16 is a quarter of the memory traffic of int64 per class; larger labels match no class
        self._label = label.long().clamp(-1, torch.iinfo(torch.int16).max - 1).short()
        self._present = set((self._label + 1).flatten().bincount().nonzero().sub(1).flatten().tolist())
        # classes of weight 0 are left out: 0 * -inf would be NaN
        weights = [] if smoothing_weight is None else smoothing_weight.tolist()
        self._smoothing_weight: dict[int, float] = {c: weight for c, weight in enumerate(weights) if weight > 0}
        self._max_logit: Tensor | None = None
        self._sum_exp = torch.zeros(label.shape, dtype=torch.float64, device=label.device)  # of exp(logit - max_logit)
        self._label_logit: Tensor | None = None
        self._weighted_logits = torch.zeros(label.shape if weights else (), dtype=torch.float64, device=label.device)

    def update(self, channels: Tensor, first: int) -> None:
        """Add a group of channels, (N, number of channels, H, W); ``first`` is the index of its first channel."""
        if channels.dtype != torch.float64:
            channels = channels.float()
        # where all logits so far are -inf, their difference is 0, not NaN
        max_logit = channels.amax(1).clamp_(min=torch.finfo(channels.dtype).min)
        if self._max_logit is not None:
            torch.maximum(max_logit, self._max_logit, out=max_logit)
            self._sum_exp *= self._max_logit.sub_(max_logit).exp_()
        if self._label_logit is None:
            self._label_logit = torch.zeros_like(max_logit)
        difference = torch.empty_like(max_logit)
        for c, channel in enumerate(channels.unbind(1), first):
            self._sum_exp += torch.sub(channel, max_logit, out=difference).exp_()
            if c in self._present:
                torch.where(self._label == c, channel, self._label_logit, out=self._label_logit)
            if c in self._smoothing_weight:
                self._weighted_logits.add_(channel, alpha=self._smoothing_weight[c])
        self._max_logit = max_logit

    def maps(self, rows: slice = ALL_ROWS) -> tuple[Tensor, Tensor]:
        """Return the negative log-likelihood and the smoothing map, float64, (N, number of rows, W) each.

        The smoothing map is 0 without smoothing. The maps of a large image need not be held at once: read some rows.
        """
        assert self._max_logit is not None, 'update() has not been called yet'
        assert self._label_logit is not None
        log_sum_exp, max_logit = self._sum_exp[:, rows].log(), self._max_logit[:, rows].double()
        nll = log_sum_exp + (max_logit - self._label_logit[:, rows].double())
        if not self._smoothing_weight:
            return nll, torch.zeros_like(nll)
        return nll, sum(self._smoothing_weight.values()) * (log_sum_exp + max_logit) - self._weighted_logits[:, rows]


class RunningSigmoidLoss:
    """The maps of :func:`mmseg_wce.kernels.pixel_bce`.

    Args:
        label: (N, H, W), integer.
        num_channels: C. A single channel distinguishes label 1 from label 0.
        focal_gamma: exponent of the focal loss, 0 for the cross-entropy.

    Example:
        >>> import torch
        >>> from mmseg_wce.running_losses import RunningSigmoidLoss
        >>> loss = RunningSigmoidLoss(torch.tensor([[[1, 0]]]), num_channels=1)
        >>> loss.update(torch.tensor([[[[2.0, 2.0]]]]), first=0)
        >>> positive, negative = loss.maps()
        >>> [[f'{x:.4f}' for x in row] for row in (positive[0, 0], negative[0, 0])]
        [['0.1269', '0.0000'], ['0.0000', '2.1269']]
    """

    def __init__(self, label: Tensor, num_channels: int, focal_gamma: float = 0.0) -> None:
        self._label, self._num_channels, self._focal_gamma = label.long(), num_channels, focal_gamma
        self._positive = torch.zeros(label.shape, dtype=torch.float64, device=label.device)
        self._negative = torch.zeros_like(self._positive)

    def update(self, channels: Tensor, first: int) -> None:
        """Add a group of channels, (N, number of channels, H, W); ``first`` is the index of its first channel."""
        if channels.dtype != torch.float64:
            channels = channels.float()
        positive = positive_elements(self._label, self._num_channels, first, channels.shape[1])
        loss = element_loss(channels, positive, self._focal_gamma)
        self._positive += torch.where(positive, loss, 0).sum(1, dtype=torch.float64)
        self._negative += torch.where(positive, 0, loss).sum(1, dtype=torch.float64)

    def maps(self, rows: slice = ALL_ROWS) -> tuple[Tensor, Tensor]:
        """Return the loss of the label's channel and that of all other channels, float64, (N, number of rows, W)."""
        return self._positive[:, rows], self._negative[:, rows]


RunningLoss = RunningSoftmaxLoss | RunningSigmoidLoss
