"""The values of mmseg's own cross-entropies, from per-pixel maps and with mmseg's normalisation."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from mmseg.models.losses import CrossEntropyLoss, OhemCrossEntropy, cross_entropy
from mmseg_wce.arguments import Normalizer, Reduction, check_sigmoid_weight, check_softmax_weight
from mmseg_wce.class_weights import load_class_weight
from mmseg_wce.pixel_batch import SigmoidBatch, SoftmaxBatch
from torch import Tensor, nn

__all__ = [
    'built_in_batch',
    'built_in_class_weight',
    'built_in_normalizer',
    'built_in_value',
    'is_hard',
    'needs_full_size_built_in',
]


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


def built_in_value(
    loss: CrossEntropyLoss | OhemCrossEntropy,
    batch: SoftmaxBatch | SigmoidBatch,
    weight: Tensor | None = None,
    reduction_override: Reduction | None = None,
) -> Tensor:
    """Compute the value of a loss of mmseg's: its own normalisation, its attributes as they are now.

    Args:
        loss: one for which :func:`needs_full_size_built_in` has no reason.
        batch: of :func:`built_in_batch`.
        weight: weight of every pixel, (N, H, W), or None.
        reduction_override: replaces the reduction of the loss.

    Returns:
        Scalar, or (N, H, W) for reduction 'none'.
    """
    if isinstance(loss, OhemCrossEntropy):
        losses = batch.reduce('none', 'valid')
        hard = is_hard(batch.maps[0].detach(), batch.target != batch.ignore_index, loss.min_kept, loss.thresh)
        return loss.loss_weight * (losses * hard).sum() / hard.count_nonzero().clamp(min=1)  # 0 where none is hard
    reduction, avg_factor = reduction_override or loss.reduction, None
    if reduction == 'mean' and _weighs_ignored_pixels(loss, batch) and batch.class_weight is not None:
        _ = batch.valid  # refuses labels that are no index
        avg_factor = batch.class_weight[batch.target].sum()
    return loss.loss_weight * batch.reduce(reduction, built_in_normalizer(loss), weight, avg_factor)


def _weighs_ignored_pixels(loss: CrossEntropyLoss, batch: SoftmaxBatch | SigmoidBatch) -> bool:
    """Return whether the mean of a loss counts ignored pixels with the weight of their label."""
    is_class = -batch.num_channels <= batch.ignore_index < batch.num_channels
    return is_class and not loss.use_sigmoid and not loss.avg_non_ignore and _mmseg_weighs_ignored_pixels()


def built_in_batch(
    loss: nn.Module, logits: Tensor, target: Tensor, ignore_index: int, align_corners: bool
) -> SoftmaxBatch | SigmoidBatch:
    """Make the batch of a loss of mmseg's.

    Args:
        loss: one for which :func:`needs_full_size_built_in` has no reason.
        logits: (N, C, h, w).
        target: (N, H, W), int64.
        ignore_index: as the head passes it.
        align_corners: of the head.

    Returns:
        The batch, with the class weights of the loss.

    Raises:
        TypeError, ValueError: class weights that do not fit the logits.
    """
    class_weight = built_in_class_weight(loss, logits.device)
    inputs = logits, target, class_weight, ignore_index, align_corners
    if getattr(loss, 'use_sigmoid', False):
        check_sigmoid_weight(class_weight, logits)
        return SigmoidBatch(*inputs)
    check_softmax_weight(class_weight, logits)
    return SoftmaxBatch(*inputs)


@cache
def _mmseg_weighs_ignored_pixels() -> bool:
    """Whether its weighted mean counts ignored pixels with the weight of their label: upstream does, the fork not."""
    options = dict(class_weight=torch.ones(2), ignore_index=0)
    mean = cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), **options)  # log(2) over 2 pixels, or over 1
    return mean.item() < 0.5


# Of each loss: its class weights as given, kept alive so that no other tensor gets their id, their state, and as read.
_class_weights: WeakKeyDictionary[nn.Module, tuple[Any, Any, Tensor]] = WeakKeyDictionary()


def built_in_class_weight(
    loss: CrossEntropyLoss | OhemCrossEntropy, device: torch.device | str = 'cpu'
) -> Tensor | None:
    """Return the class weights of a loss of mmseg's; read and checked again only after they have changed.

    Args:
        loss: of a decode head.
        device: of the weights.

    Returns:
        (C,) float32, or for a sigmoid perhaps one number; None without weights.

    Raises:
        TypeError, ValueError: as :func:`mmseg_wce.class_weights.load_class_weight`.
    """
    given = loss.class_weight
    if given is None:
        return None
    state = _state(given)
    kept = _class_weights.get(loss)
    if kept is None or kept[1] != state or kept[2].device != torch.device(device):
        single = bool(getattr(loss, 'use_sigmoid', False))
        kept = _class_weights[loss] = given, state, load_class_weight(given, single).to(device)
    return kept[2]


def _state(class_weight: Any) -> Any:
    """Return what changes whenever class weights do. That of a tensor is read without waiting for its device."""
    if isinstance(class_weight, Tensor):
        return id(class_weight), class_weight._version
    return class_weight.tolist() if isinstance(class_weight, np.ndarray) else copy.copy(class_weight)


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
