"""Softmax over the channels of one tile of pixels, in place, in units of log 2. TorchScript, see :mod:`workers`.

Logits z come shifted, so that they are at most 0 and usually near it, and multiplied by log2(e): exp2 is twice as fast
as exp. A tile is (..., C, K), what it holds per pixel (..., 1, K): reductions over C are vectorised along K.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LOG2_E = math.log2(math.e)
LN_2 = math.log(2)
# What a logit of -inf becomes, since 0 * -inf is NaN: probability 0 after any interpolation, and finite.
MASKED = -1e36
# A sum of exponentials below this has lost digits: the shift is far above the largest logit.
SMALLEST_SUM = 2.0**-57


def shift(logits: Tensor, log2_e: float = LOG2_E, masked: float = MASKED) -> None:
    """Subtract the maximum over the channels, in place, and change to the units of a tile.

    Args:
        logits: (..., C, K).
    """
    logits.sub_(logits.amax(-2, keepdim=True)).mul_(log2_e).clamp_(min=masked)


def measure(z: Tensor, y: Tensor, total: Tensor, target_logit: Tensor, rival: Tensor, exact: bool) -> None:
    """Sum of the exponentials, the target's logit and the largest of the others. Overwrites z.

    Args:
        z: (..., C, K).
        y: (..., 1, K), int64, in [0, C).
        total: (..., 1, K), gets the sum of 2^z; with ``exact`` that of 2^(z - max z).
        target_logit, rival: (..., 1, K).
        exact: subtract each pixel's own maximum first.
    """
    torch.gather(z, -2, y, out=target_logit)
    z.scatter_(-2, y, -math.inf)
    torch.amax(z, [-2], keepdim=True, out=rival)
    z.scatter_(-2, y, target_logit)
    if exact:
        z.sub_(torch.maximum(rival, target_logit))
    torch.sum(z.exp2_(), [-2], keepdim=True, out=total)


def differentiate(z: Tensor, y: Tensor, scale: Tensor, minus_total: Tensor, exact: bool) -> None:
    """Gradient with respect to the logits, in place of them: scale * (2^z - total * one_hot(y)).

    Subtracting before scaling keeps the digits of a target whose probability is nearly 1.

    Args:
        z: (..., C, K).
        y: (..., 1, K), int64, in [0, C).
        scale: (..., 1, K).
        minus_total: (..., 1, K).
        exact: as in :func:`measure`.
    """
    if exact:
        z.sub_(z.amax(-2, keepdim=True))
    z.exp2_().scatter_add_(-2, y, minus_total).mul_(scale)


def add_smoothing(z: Tensor, y: Tensor, one_hot: Tensor, weight: Tensor, scale: Tensor) -> None:
    """Add one_hot * one_hot(y) - scale * weight to a gradient.

    Args:
        z: (..., C, K).
        y: (..., 1, K), int64, in [0, C).
        one_hot: (..., 1, K).
        weight: (C,).
        scale: (..., 1, K).
    """
    z.scatter_add_(-2, y, one_hot).addcmul_(weight.unsqueeze(1), scale, value=-1.0)
