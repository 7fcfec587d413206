"""What mmseg's own cross-entropies compute, from the maps of a sweep and with their own normalisation."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from mmseg.models.losses import CrossEntropyLoss, OhemCrossEntropy, cross_entropy
from mmseg_wce.class_weights import load_class_weight
from mmseg_wce.functional import Normalizer, Pixels, Reduction, weighted_binary_cross_entropy, weighted_cross_entropy
from torch import Tensor, nn

__all__ = ['built_in_class_weight', 'built_in_normalizer', 'built_in_value', 'is_hard', 'needs_full_size_built_in']


def needs_full_size_built_in(loss: nn.Module, channels: int, built_in: bool) -> str:
    """Explain why a loss of mmseg's, or of somebody else, cannot be computed from the maps.

    Args:
        loss: of a decode head.
        channels: of its logits.
        built_in: compute mmseg's losses from the maps.

    Returns:
        The reason; empty where it can.
    """
    if type(loss) not in (CrossEntropyLoss, OhemCrossEntropy):
        return f'a {type(loss).__name__}'
    if getattr(loss, 'use_mask', False):
        return 'a CrossEntropyLoss with use_mask'
    if getattr(loss, 'use_sigmoid', False):
        return _needs_full_size_sigmoid(loss, channels, built_in)
    if channels == 1:
        return f'a {type(loss).__name__} without use_sigmoid=True, and one channel is no softmax'
    return '' if built_in else f'a softmax {type(loss).__name__}, which built_in=True would fuse'


def _needs_full_size_sigmoid(loss: CrossEntropyLoss, channels: int, built_in: bool) -> str:
    if loss.class_weight is not None and np.size(loss.class_weight) > 1:
        return 'a CrossEntropyLoss with use_sigmoid and several class weights, by which mmseg weights columns or raises'
    if channels > 1 and loss.reduction == 'none':
        return "a CrossEntropyLoss with use_sigmoid and reduction='none', which is of full size itself"
    return '' if built_in else 'a CrossEntropyLoss with use_sigmoid, which built_in=True would fuse'


def built_in_value(loss: nn.Module, logits: Tensor, label: Tensor, pixels: Pixels, **options: Any) -> Tensor:
    """Compute what a loss of mmseg's gives: its own normalisation, its attributes as they are now.

    Args:
        loss: one for which :func:`needs_full_size_built_in` has no reason.
        logits: (N, C, h, w).
        label: (N, H, W).
        pixels: maps of :func:`mmseg_wce.kernels.pixel_nll`, or with ``use_sigmoid`` of
            :func:`mmseg_wce.kernels.pixel_bce`.
        **options: of the loss's forward.

    Returns:
        Scalar, or (N, H, W) for reduction 'none'.
    """
    if isinstance(loss, OhemCrossEntropy):
        return _ohem_value(loss, logits, label, pixels, **options)
    value = _binary_value if loss.use_sigmoid else _softmax_value
    return value(loss, logits, label, pixels, **options)


def _binary_value(
    loss: CrossEntropyLoss,
    logits: Tensor,
    label: Tensor,
    pixels: Pixels,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction_override: Reduction | None = None,
) -> Tensor:
    return loss.loss_weight * weighted_binary_cross_entropy(
        logits,
        label,
        built_in_class_weight(loss, logits.device),
        ignore_index=ignore_index,
        pixel_weight=weight,
        reduction=reduction_override or loss.reduction,
        normalize_by=built_in_normalizer(loss),
        pixels=(pixels[0], pixels[1], pixels[2]),
    )


def _softmax_value(
    loss: CrossEntropyLoss,
    logits: Tensor,
    label: Tensor,
    pixels: Pixels,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction_override: Reduction | None = None,
) -> Tensor:
    class_weight, avg_factor = built_in_class_weight(loss, logits.device), None
    reduction = reduction_override or loss.reduction
    is_class = -logits.shape[1] <= ignore_index < logits.shape[1]
    counts = is_class and not loss.avg_non_ignore and _mmseg_weighs_ignored_pixels()
    if class_weight is not None and counts and reduction == 'mean':
        avg_factor = class_weight[label.long()].sum()
    return loss.loss_weight * weighted_cross_entropy(
        logits,
        label,
        class_weight,
        ignore_index=ignore_index,
        pixel_weight=weight,
        reduction=reduction,
        avg_factor=avg_factor,
        normalize_by=built_in_normalizer(loss),
        pixels=pixels,
    )


@cache
def _mmseg_weighs_ignored_pixels() -> bool:
    """Whether its weighted mean counts ignored pixels with the weight of their label: upstream does, the fork not."""
    options = dict(class_weight=torch.ones(2), ignore_index=0)
    mean = cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), **options)  # log(2) over 2 pixels, or over 1
    return mean.item() < 0.5


def _ohem_value(loss: OhemCrossEntropy, logits: Tensor, label: Tensor, pixels: Pixels) -> Tensor:
    """What mmseg's ``OhemCrossEntropy`` gives; 0 with zero gradient, not NaN, where no pixel is hard."""
    losses = weighted_cross_entropy(
        logits,
        label,
        built_in_class_weight(loss, logits.device),
        ignore_index=loss.ignore_label,
        reduction='none',
        pixels=pixels,
    )
    hard = is_hard(pixels[0].detach(), label != loss.ignore_label, loss.min_kept, loss.thresh)
    return loss.loss_weight * (losses * hard).sum() / hard.count_nonzero().clamp(min=1)


def built_in_class_weight(
    loss: CrossEntropyLoss | OhemCrossEntropy, device: torch.device | str = 'cpu'
) -> Tensor | None:
    """Read the class weights of a loss of mmseg's, which may be one number for a sigmoid.

    Args:
        loss: of a decode head.
        device: of the weights.

    Returns:
        (C,) float32, or one number; None without weights.

    Raises:
        TypeError, ValueError: as :func:`mmseg_wce.class_weights.load_class_weight`.
    """
    single = bool(getattr(loss, 'use_sigmoid', False))
    return None if loss.class_weight is None else load_class_weight(loss.class_weight, single).to(device)


def built_in_normalizer(loss: CrossEntropyLoss) -> Normalizer:
    """Return what the mean of mmseg's ``CrossEntropyLoss`` divides by, as ``normalize_by`` names it.

    Args:
        loss: of a decode head.
    """
    if loss.use_sigmoid:
        return 'valid' if loss.avg_non_ignore else 'all'
    return 'class_weight' if loss.avg_non_ignore or loss.class_weight is not None else 'all'


def is_hard(nll: Tensor, valid: Tensor, kept: int, thresh: float) -> Tensor:
    """Find pixels whose label has a probability below ``thresh``, or below that of the ``kept`` hardest.

    Args:
        nll: (N, H, W), of a softmax.
        valid: (N, H, W), bool.
        kept: at least so many pixels are picked.
        thresh: of the probability.

    Returns:
        (N, H, W), bool.
    """
    probability = torch.where(valid, nll.neg().exp(), torch.inf)
    limit: Tensor | float = thresh
    number = int(valid.count_nonzero())
    if number > 0:
        place = min(kept, number - 1)
        if torch.are_deterministic_algorithms_enabled():  # which CUDA's kthvalue refuses
            value = probability.flatten().sort()[0][place]
        else:
            value = probability.flatten().kthvalue(place + 1)[0]
        limit = value.clamp(min=thresh)
    return probability < limit
