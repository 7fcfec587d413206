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
# What a logit of -inf becomes, since 0 * -inf is NaN: probability 0 after any interpolation, and finite. In float64 it
# also stays apart from every logit that float32 can hold.
MASKED = -1e36
MASKED_IN_FLOAT64 = -1e300
_LOWEST_IN_FLOAT64 = -1e200  # below it there is nothing but masked classes, interpolated
# A sum of exponentials below this has lost digits: the shift is far above the largest logit.
SMALLEST_SUM = 2.0**-57


def shift(logits: Tensor, log2_e: float = LOG2_E, masked: float = MASKED) -> None:
    """Subtract the maximum over the channels, in place, and change to the units of a tile.

    Args:
        logits: (..., C, K).
    """
    logits.sub_(logits.amax(-2, keepdim=True)).mul_(log2_e).clamp_(min=masked)


def measure(z: Tensor, y: Tensor, total: Tensor, target_logit: Tensor, rival: Tensor) -> None:
    """Sum of the exponentials, the target's logit and the largest of the others. Overwrites z.

    Args:
        z: (..., C, K).
        y: (..., 1, K), int64, in [0, C).
        total: (..., 1, K), gets the sum of 2^z.
        target_logit, rival: (..., 1, K).
    """
    _compare(z, y, target_logit, rival)
    torch.sum(z.exp2_(), [-2], keepdim=True, out=total)


def measure_unshifted(
    z: Tensor,
    y: Tensor,
    total: Tensor,
    target_logit: Tensor,
    rival: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    lowest: float = _LOWEST_IN_FLOAT64,
) -> None:
    """As :func:`measure`, of float64 logits, with the maximum of each pixel subtracted before the exponential.

    Args:
        total: gets the sum of 2^(z - max z); NaN where every class is masked, since that is no distribution.
        target_logit, rival: not relative to the maximum; a masked target's gets -inf.
        weight: (C,).
        mean: (..., 1, K), gets the sum of weight * (z - max z) where there are weights.
    """
    _compare(z, y, target_logit, rival)
    peak = torch.maximum(rival, target_logit)
    z.sub_(peak)
    if weight is not None:
        mean.copy_(torch.matmul(weight, z).unsqueeze(-2))
    torch.sum(z.exp2_(), [-2], keepdim=True, out=total)
    total.masked_fill_(peak < lowest, math.nan)
    target_logit.masked_fill_(target_logit < lowest, -math.inf)
    mean.masked_fill_(mean < lowest, -math.inf)


def _compare(z: Tensor, y: Tensor, target_logit: Tensor, rival: Tensor) -> None:
    torch.gather(z, -2, y, out=target_logit)
    z.scatter_(-2, y, -math.inf)
    torch.amax(z, [-2], keepdim=True, out=rival)
    z.scatter_(-2, y, target_logit)


def differentiate(z: Tensor, y: Tensor, scale: Tensor, minus_total: Tensor, unshifted: bool) -> None:
    """Gradient with respect to the logits, in place of them: scale * (2^z - total * one_hot(y)).

    Subtracting before scaling keeps the digits of a target whose probability is nearly 1.

    Args:
        z: (..., C, K).
        y: (..., 1, K), int64, in [0, C).
        scale: (..., 1, K).
        minus_total: (..., 1, K).
        unshifted: if the maximum of each pixel is still to subtract, as in :func:`measure_unshifted`.
    """
    if unshifted:
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
