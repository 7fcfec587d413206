"""Focal loss, a function of the negative log-likelihood alone (Lin et al. 2017, https://arxiv.org/abs/1708.02002)."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['focal_loss', 'focal_slope']

_CERTAINLY_WRONG = 100.0  # exp(-100) is 0 beside 1 even in float64


def focal_loss(nll: Tensor, gamma: float) -> Tensor:
    """Return (1 - p)^gamma * nll, with p = exp(-nll) the probability of the label.

    Value and gradient are finite wherever the loss is, also at p = 1 with gamma below 1, and 0 at p = 1.

    Args:
        nll: any shape, floating point, not negative but for rounding.
        gamma: at least 0; 0 returns ``nll`` itself.
    """
    if gamma == 0:
        return nll
    # not as a product: the gradient of a power of 0 is infinite for gamma below 1
    return torch.where(nll <= 0, 0, _wrong_probability(nll) ** gamma * nll)


def focal_slope(nll: Tensor, gamma: float) -> Tensor:
    """Return the derivative of :func:`focal_loss` with respect to ``nll``; where p is 1, its limit for small gamma."""
    wrong, bounded = _wrong_probability(nll), _bounded(nll)
    return wrong**gamma * (1 + gamma * (bounded / wrong) * torch.exp(-bounded))


def _bounded(nll: Tensor) -> Tensor:
    return nll.clamp(torch.finfo(nll.dtype).tiny, _CERTAINLY_WRONG)


def _wrong_probability(nll: Tensor) -> Tensor:
    return -torch.expm1(-_bounded(nll))
