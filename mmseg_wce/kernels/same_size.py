"""Strips of logits that have the target's size already: a lean ordinary cross-entropy, tile by tile.

TorchScript, see :mod:`mmseg_wce.kernels.workers`. Here h = H = 1: a tile is some columns of the only row.
"""

from __future__ import annotations

import torch
from mmseg_wce.kernels.maps import LIMIT, Image, apply, factors, finish, labels, nearly_tied, smooth_from, wins
from mmseg_wce.kernels.tiles import LN_2, measure, shift
from torch import Tensor


def _columns(image: Image, begin: int, end: int) -> Image:
    smooth = image.smooth
    return Image(
        image.logits[:, :, begin:end],
        image.target[:, begin:end],
        image.ignore_index,
        image.smoothing_weight,
        image.nll[:, begin:end],
        None if smooth is None else smooth[:, begin:end],
        image.total[:, begin:end],
    )


def _mark_masked(image: Image, y: Tensor, limit: float = LIMIT) -> None:
    """Losses become infinite where a class at -inf is why they are large."""
    nll, smooth, weight = image.nll, image.smooth, image.smoothing_weight
    if not bool(nll.amax() <= limit):
        own = image.logits[:, 0].gather(0, y)
        nll.masked_fill_((nll > limit) & (own == -float('inf')), float('inf'))
    if weight is not None and smooth is not None and not bool(smooth.amax() <= limit):
        masked = (image.logits[:, 0] == -float('inf')) & (weight > 0).unsqueeze(1)
        smooth.masked_fill_((smooth > limit) & masked.any(0), float('inf'))


def measure_columns(image: Image, correct: Tensor, begin: int, end: int, tile: Tensor, ln_2: float = LN_2) -> None:
    """Write the maps of some columns.

    Args:
        image: whose maps are written.
        correct: (1, W), bool, written.
        begin, end: the columns.
        tile: room for (C, columns).
    """
    image, correct = _columns(image, begin, end), correct[:, begin:end]
    y, valid = labels(image, 0, 1)
    z = tile.copy_(image.logits[:, 0])
    shift(z)
    mean = torch.zeros(0)
    weight, smooth = image.smoothing_weight, image.smooth
    if weight is not None:
        mean = torch.matmul(weight, z).unsqueeze(0)
    total = torch.empty(y.shape, dtype=tile.dtype, device=tile.device)
    target_logit, rival = torch.empty_like(total), torch.empty_like(total)
    measure(z, y, total, target_logit, rival)
    image.total.copy_(total)
    lse = total.log2()
    if weight is not None and smooth is not None:
        smooth.copy_(smooth_from(weight, lse, mean))
    image.nll.copy_(lse.sub_(target_logit).mul_(ln_2))
    _mark_masked(image, y)
    torch.gt(target_logit, rival, out=correct)
    tied = nearly_tied(target_logit, rival)
    if bool(tied.any()):
        column = tied.nonzero()[:, 1]
        correct[tied] = wins(image.logits[:, 0].index_select(1, column).t(), y[tied])
    finish(image, correct, valid, 0, 1)


def differentiate_columns(image: Image, gradient: Tensor, begin: int, end: int, tile: Tensor) -> None:
    """Write the gradient of some columns.

    Args:
        image: whose maps ``nll`` and ``smooth`` hold the gradient from above.
        gradient: (C, 1, W), written.
        begin, end: the columns.
        tile: room for (C, columns).
    """
    image = _columns(image, begin, end)
    y, valid = labels(image, 0, 1)
    z = tile.copy_(image.logits[:, 0])
    shift(z)
    apply(factors(image, valid, 0, 1), z, y, image.smoothing_weight, False, 0, 1)
    if bool(image.total.isnan().any()):
        z.masked_fill_(~valid, 0)
    gradient[:, 0, begin:end] = z
