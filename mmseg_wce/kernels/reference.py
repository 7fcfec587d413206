"""Textbook implementation of :func:`mmseg_wce.kernels.pixel_nll`: the oracle that the faster back ends must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pixel_nll(
    logits: Tensor,  # (N, C, h, w) or (N, C, ...)
    target: Tensor,  # (N, H, W) or (N, ...), int64
    ignore_index: int,
    smoothing_weight: Tensor | None,  # (C,)
    align_corners: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Upsample, take the log-softmax and gather. Arguments and results as in :func:`mmseg_wce.kernels.pixel_nll`."""
    in_range = (target >= 0) & (target < logits.shape[1])
    not_ignored = target != ignore_index
    valid = in_range & not_ignored

    y = torch.where(valid, target, 0).unsqueeze(1)

    z = resized(logits, target.shape[1:], align_corners)
    z = torch.where(valid.unsqueeze(1), z, 0)  # not a product: 0 * NaN is NaN, in the value and in the gradient
    log_p = z.log_softmax(1)
    nll = -log_p.gather(1, y).squeeze(1)
    smooth = torch.zeros_like(nll)
    if smoothing_weight is not None:
        w = smoothing_weight.to(z.dtype).view(-1, *[1] * (z.dim() - 2))
        smooth = -torch.where(w == 0, 0, w * log_p).sum(1)  # 0 * -inf of a masked class would be NaN

    invalid = not_ignored & ~in_range
    nll, smooth = (torch.where(valid, x, 0).masked_fill(invalid, torch.nan) for x in (nll, smooth))
    return nll, smooth, _is_argmax(z.detach(), y) & valid


def _is_argmax(z: Tensor, y: Tensor) -> Tensor:
    """Return where y is the lowest class with the highest logit, (N, ...) bool; argmax over dim 1 is slow on CPU."""
    z_y = z.gather(1, y)
    index = torch.arange(z.shape[1], device=z.device).view(-1, *[1] * (z.dim() - 2))
    return ((z < z_y) | ((z == z_y) & (index >= y))).all(1)


def resized(logits: Tensor, size: torch.Size, align_corners: bool, has_masked: bool = True) -> Tensor:
    """Upsample in at least float32; a class at -inf stays -inf where it has a weight, and causes no NaN elsewhere.

    Args:
        logits: (N, C, h, w), or (N, C, ...) that already have the size.
        size: (H, W), or (...).
        align_corners: as in :func:`torch.nn.functional.interpolate`.
        has_masked: False if no logit is -inf, which saves half of the work.

    Returns:
        (N, C, H, W) or (N, C, ...).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if logits.shape[2:] == size:
        return logits
    if 0 in size or logits.shape[0] == 0:  # F.interpolate rejects empty sizes
        return logits.flatten()[:0].reshape(*logits.shape[:2], *size)
    if not has_masked:
        return _interpolate(logits, size, align_corners)
    masked = logits.detach() == -torch.inf
    masked_weight = _interpolate(masked.to(logits.dtype), size, align_corners)
    z = _interpolate(torch.where(masked, 0, logits), size, align_corners)
    return z + torch.where(masked_weight > 0, -torch.inf, 0)


def _interpolate(x: Tensor, size: torch.Size, align_corners: bool) -> Tensor:
    return F.interpolate(x, size=size, mode='bilinear', align_corners=align_corners)
