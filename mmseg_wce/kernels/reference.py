"""The textbook version of :func:`mmseg_wce.kernels.pixel_nll`: the oracle that every faster back end has to equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_nll(
    logits: Tensor,  # (N, C, h, w) or (N, C, ...)
    target: Tensor,  # (N, H, W) or (N, ...), int64
    *,
    ignore_index: int,
    smoothing_weight: Tensor | None = None,  # (C,)
    align_corners: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Upsample, log-softmax, pick. Arguments, results and errors as in :func:`mmseg_wce.kernels.pixel_nll`."""
    in_range = (target >= 0) & (target < logits.shape[1])
    counted = target != ignore_index
    valid = in_range & counted

    z = _resize(_shift_to_zero_maximum(logits), target.shape[1:], align_corners)
    z = torch.where(valid.unsqueeze(1), z, 0)  # not a product: 0 * NaN is NaN, in the value and in the gradient
    log_p = z.log_softmax(1)
    correct = (z.argmax(1) == target) & valid

    nll = -log_p.gather(1, torch.where(valid, target, 0).unsqueeze(1)).squeeze(1)
    nll = torch.where(valid, nll, 0).masked_fill(counted & ~in_range, torch.nan)
    if smoothing_weight is None:
        return nll, torch.zeros_like(nll), correct
    w = smoothing_weight.to(z.dtype).view(-1, *[1] * (z.dim() - 2))
    smooth = -torch.where(w > 0, w * log_p, 0).sum(1)  # 0 * -inf of a masked class would be NaN
    return nll, torch.where(valid, smooth, 0).masked_fill(counted & ~in_range, torch.nan), correct


def _shift_to_zero_maximum(logits: Tensor) -> Tensor:
    """In float32 at least. Softmax does not see the shift; rounding after the interpolation does (offsets of 1e4)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits - logits.detach().amax(1, keepdim=True)


def _resize(logits: Tensor, size: torch.Size, align_corners: bool) -> Tensor:
    if logits.shape[2:] == size:
        return logits
    if 0 in size or logits.shape[0] == 0:  # F.interpolate refuses empty sizes
        return logits.flatten()[:0].reshape(*logits.shape[:2], *size)
    return F.interpolate(logits, size=size, mode='bilinear', align_corners=align_corners)
