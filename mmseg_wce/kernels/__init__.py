"""The one operation on logits that every weighted cross-entropy is made of. Knows neither mmseg nor mmengine."""

from __future__ import annotations

from mmseg_wce.kernels import reference
from torch import Tensor

__all__ = ['pixel_nll']


def pixel_nll(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int,
    smoothing_weight: Tensor | None = None,
    align_corners: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log-likelihood of every pixel's label, from logits of any size.

    With ``z = F.interpolate(logits, size=target.shape[1:], mode='bilinear', align_corners=align_corners)`` and y the
    target, for each pixel that is not ignored::

        nll     = logsumexp_c(z_c) - z_y             # F.cross_entropy(z, target, reduction='none')
        smooth  = sum_c w_c (logsumexp_k(z_k) - z_c) # with w = smoothing_weight, over classes with w_c > 0
        correct = y is the arg-max of z              # at a tie: the lowest class

    Args:
        logits: (N, C, h, w), or (N, C, ...) of the target's spatial size; float16, bfloat16, float32 or float64.
        target: (N, H, W) or (N, ...), int64: a class in [0, C) or ``ignore_index``.
        ignore_index: the label that does not count; may lie inside [0, C) or below zero.
        smoothing_weight: (C,), weights of ``smooth``, which is all zeros without them.
        align_corners: as in :func:`torch.nn.functional.interpolate`.

    Returns:
        ``nll`` and ``smooth``, float32 (float64 for float64 logits), and ``correct``, bool, all of the target's shape.
        At ignored pixels: 0, 0 and False, with a gradient of exactly zero whatever their logits hold. A target outside
        [0, C) that is not ignored is never used as an index: its ``nll`` and ``smooth`` are NaN.
    """
    return reference.pixel_nll(
        logits, target, ignore_index=ignore_index, smoothing_weight=smoothing_weight, align_corners=align_corners
    )
