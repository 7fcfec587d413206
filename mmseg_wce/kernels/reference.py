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

    y = torch.where(valid, target, 0).unsqueeze(1)

    z = resized(logits, target.shape[1:], align_corners)
    z = torch.where(valid.unsqueeze(1), z, 0)  # not a product: 0 * NaN is NaN, in the value and in the gradient
    log_p = z.log_softmax(1)
    nll = -log_p.gather(1, y).squeeze(1)
    smooth = torch.zeros_like(nll)
    if smoothing_weight is not None:
        w = smoothing_weight.to(z.dtype).view(-1, *[1] * (z.dim() - 2))
        smooth = -torch.where(w == 0, 0, w * log_p).sum(1)  # 0 * -inf of a masked class would be NaN

    refused = counted & ~in_range
    nll, smooth = (torch.where(valid, x, 0).masked_fill(refused, torch.nan) for x in (nll, smooth))
    return nll, smooth, _is_arg_max(z.detach(), y) & valid


def _is_arg_max(z: Tensor, y: Tensor) -> Tensor:
    """If y is the lowest class with the highest logit, (N, ...) bool; argmax over a strided axis is slow on CPU."""
    z_y = z.gather(1, y)
    index = torch.arange(z.shape[1], device=z.device).view(-1, *[1] * (z.dim() - 2))
    return ((z < z_y) | ((z == z_y) & (index >= y))).all(1)


def resized(logits: Tensor, size: torch.Size, align_corners: bool, has_masked: bool = True) -> Tensor:
    """Upsample in float32 at least; a class at -inf is -inf wherever it has a weight, where 0 * -inf would be NaN.

    Args:
        logits: (N, C, h, w), or (N, C, ...) of the size already.
        size: (H, W), or (...).
        align_corners: as in :func:`torch.nn.functional.interpolate`.
        has_masked: False where it is known that no class is at -inf, which saves half of the work.

    Returns:
        (N, C, H, W) or (N, C, ...).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[2:] == size:
        return logits
    if 0 in size or logits.shape[0] == 0:  # F.interpolate refuses empty sizes
        return logits.flatten()[:0].reshape(*logits.shape[:2], *size)
    if not has_masked:
        return _interpolated(logits, size, align_corners)
    masked = logits.detach() == -torch.inf
    share = _interpolated(masked.to(logits.dtype), size, align_corners)
    z = _interpolated(torch.where(masked, 0, logits), size, align_corners)
    return z + torch.where(share > 0, -torch.inf, 0)


def _interpolated(x: Tensor, size: torch.Size, align_corners: bool) -> Tensor:
    return F.interpolate(x, size=size, mode='bilinear', align_corners=align_corners)
