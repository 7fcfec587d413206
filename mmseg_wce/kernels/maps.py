"""What strips read and write for each pixel, whichever way its logits come about. TorchScript, see :mod:`workers`."""

from typing import NamedTuple

import torch
from mmseg_wce.kernels.tiles import LN_2, add_smoothing, differentiate
from torch import Tensor

# A loss that exceeds this either met a masked class or logits as large: then a closer look tells which.
LIMIT = 1e25
# Two logits closer than so many units in the last place are compared again.
_TIE = 8.0


class Image(NamedTuple):
    """One image, and its maps that the forward sweep writes and the backward one reads."""

    logits: Tensor  # (C, h, w)
    target: Tensor  # (H, W), int64
    ignore_index: int
    smoothing_weight: Tensor | None  # (C,)
    nll: Tensor  # (H, W): the loss in the forward sweep, its gradient in the backward one
    smooth: Tensor | None  # (H, W), likewise
    total: Tensor  # (H, W), sum of 2^z, z as in tiles.py; with a minus sign, that of 2^(z - max z), z unshifted


def labels(image: Image, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Target of some rows as an index that is within bounds, and which of them count."""
    target, channels = image.target[begin:end], image.logits.shape[0]
    y = target.clamp(0, channels - 1)
    valid = y == target
    if 0 <= image.ignore_index < channels:
        valid &= target != image.ignore_index
    return y, valid


def smooth_from(weight: Tensor, lse: Tensor, mean: Tensor, ln_2: float = LN_2) -> Tensor:
    """sum_c w_c (lse - z_c), with ``mean`` the sum of w_c z_c: linear in z, so it needs no pass over the classes."""
    return (lse * weight.sum() - mean).mul_(ln_2)


def nearly_tied(target_logit: Tensor, rival: Tensor, tie: float = _TIE) -> Tensor:
    """Where the target's logit and the largest of the others are equal but for rounding."""
    epsilon = 2.0**-52 if rival.dtype == torch.float64 else 2.0**-23
    return (target_logit - rival).abs_() <= rival.abs().add_(1).mul_(tie * epsilon)


def wins(logits: Tensor, y: Tensor) -> Tensor:
    """If y is the arg-max; at an exact tie the lowest class is.

    Args:
        logits: (n, C).
        y: (n,).

    Returns:
        (n,), bool.
    """
    label = y.unsqueeze(1)
    own = logits.gather(1, label)
    lower = torch.arange(logits.shape[1], device=logits.device) < label
    return ~((logits > own) | ((logits == own) & lower)).any(1)


def finish(image: Image, correct: Tensor, valid: Tensor, begin: int, end: int) -> None:
    """Mark some rows of the maps: 0 where the target is ignored, NaN where it is refused."""
    counted = image.target[begin:end] != image.ignore_index
    some_refused = bool((counted != valid).any())
    losses = [image.nll]
    smooth = image.smooth
    if smooth is not None:
        losses.append(smooth)
    for loss in losses:
        loss = loss[begin:end]
        loss.masked_fill_(~valid, 0)
        if some_refused:
            loss.masked_fill_(counted & ~valid, float('nan'))
    correct[begin:end].logical_and_(valid)


class Factors(NamedTuple):
    """The gradient of a pixel, in terms of 2^z: scale * (2^z - total * one_hot) + one_hot' * one_hot - smooth * w.

    d nll / dz = softmax - one_hot;  d smooth / dz = softmax * sum(w) - w
    """

    scale: Tensor
    minus_total: Tensor
    one_hot: Tensor | None  # with smoothing only, like the next
    smooth: Tensor | None


def factors(image: Image, valid: Tensor, begin: int, end: int) -> Factors:
    """From the gradient of some rows' maps; zero where the target does not count, whatever arrives there."""
    minus_total, ignored = image.total[begin:end].abs().neg_(), ~valid
    scale = image.nll[begin:end].to(minus_total.dtype).masked_fill(ignored, 0)
    weight, smooth = image.smoothing_weight, image.smooth
    if weight is None or smooth is None:
        return Factors(scale.div_(minus_total).neg_(), minus_total, None, None)
    smooth = smooth[begin:end].masked_fill(ignored, 0)
    one_hot = smooth * weight.sum()
    return Factors(scale.add_(one_hot).div_(minus_total).neg_(), minus_total, one_hot, smooth)


def in_float64(factors: Factors) -> Factors:
    one_hot, smooth = factors.one_hot, factors.smooth
    return Factors(
        factors.scale.to(torch.float64),
        factors.minus_total.to(torch.float64),
        None if one_hot is None else one_hot.to(torch.float64),
        None if smooth is None else smooth.to(torch.float64),
    )


def apply(factors: Factors, z: Tensor, y: Tensor, weight: Tensor | None, unshifted: bool, begin: int, end: int) -> None:
    """Turn a tile of logits, rows begin to end of those that the factors are for, into their gradient."""
    differentiate(z, y, factors.scale[begin:end], factors.minus_total[begin:end], unshifted)
    smooth, one_hot = factors.smooth, factors.one_hot
    if weight is not None and smooth is not None and one_hot is not None:
        add_smoothing(z, y, one_hot[begin:end], weight, smooth[begin:end])
