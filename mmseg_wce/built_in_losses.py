"""Values of mmseg's own cross-entropies, computed from per-pixel maps with mmseg's normalisation."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from mmseg.models.losses import CrossEntropyLoss, OhemCrossEntropy, cross_entropy
from mmseg_wce.arguments import Normalizer, Reduction
from mmseg_wce.class_weights import load_class_weight
from mmseg_wce.losses import WeightedCrossEntropyLoss
from mmseg_wce.pixel_batch import SigmoidBatch, SoftmaxBatch
from torch import Tensor, nn

__all__ = [
    'built_in_class_weight',
    'built_in_normalizer',
    'built_in_value',
    'is_hard',
    'needs_full_size',
    'unsupported_reason',
]


def unsupported_reason(loss: Any, channels: int) -> str:
    """Explain why a loss is not a cross-entropy that the per-pixel maps give.

    Args:
        loss: loss of a decode head.
        channels: number of channels of its logits.

    Returns:
        The reason; empty if it is one.
    """
    kind, is_ours = type(loss).__name__, isinstance(loss, WeightedCrossEntropyLoss)
    if is_ours and type(loss).forward is not WeightedCrossEntropyLoss.forward:
        return f'a {kind}, which overrides forward'
    if not is_ours and type(loss) not in (CrossEntropyLoss, OhemCrossEntropy):
        return f'a {kind}'
    if getattr(loss, 'use_mask', False):
        return f'a {kind} with use_mask'
    if channels == 1 and not getattr(loss, 'use_sigmoid', False):
        return f'a {kind} without use_sigmoid=True, and a softmax needs two channels'
    return ''


def needs_full_size(loss: Any, channels: int, built_in: bool) -> str:
    """Explain why the value of a loss in training cannot be computed from the per-pixel maps.

    Args:
        loss: loss of a decode head.
        channels: number of channels of its logits.
        built_in: compute mmseg's losses from the maps.

    Returns:
        The reason; empty if it can be computed.
    """
    if reason := unsupported_reason(loss, channels):
        return reason
    kind, use_sigmoid = type(loss).__name__, bool(getattr(loss, 'use_sigmoid', False))
    is_ours = isinstance(loss, WeightedCrossEntropyLoss)
    if use_sigmoid and not is_ours and loss.class_weight is not None and np.size(loss.class_weight) > 1:
        return f'a {kind} with use_sigmoid and several class weights, which mmseg applies to columns or rejects'
    if use_sigmoid and channels > 1 and loss.reduction == 'none':
        return f"a {kind} with use_sigmoid=True and reduction='none', whose value has full size itself"
    if is_ours or built_in:
        return ''
    return f'a {f"{kind} with use_sigmoid" if use_sigmoid else f"softmax {kind}"}, which built_in=True would fuse'


def built_in_value(
    loss: CrossEntropyLoss | OhemCrossEntropy,
    batch: SoftmaxBatch | SigmoidBatch,
    weight: Tensor | None = None,
    reduction_override: Reduction | None = None,
) -> Tensor:
    """Compute the value of one of mmseg's losses, with mmseg's normalisation and the loss's current attributes.

    Args:
        loss: a loss for which :func:`needs_full_size` returns no reason.
        batch: logits, labels and the class weights of the loss.
        weight: pixel weights, (N, H, W), or None.
        reduction_override: replaces the reduction of the loss.

    Returns:
        Scalar, or (N, H, W) for reduction 'none'.
    """
    if isinstance(loss, OhemCrossEntropy):
        losses = batch.reduce('none', 'valid')
        hard = is_hard(batch.maps[0].detach(), batch.target != batch.ignore_index, loss.min_kept, loss.thresh)
        return loss.loss_weight * (losses * hard).sum() / hard.count_nonzero().clamp(min=1)  # 0 if no pixel is hard
    reduction, avg_factor = reduction_override or loss.reduction, None
    if reduction == 'mean' and _counts_ignored_weights(loss, batch) and batch.class_weight is not None:
        _ = batch.valid  # raises for labels that cannot be an index
        avg_factor = batch.class_weight[batch.target].sum()
    return loss.loss_weight * batch.reduce(reduction, built_in_normalizer(loss), weight, avg_factor)


def _counts_ignored_weights(loss: CrossEntropyLoss, batch: SoftmaxBatch | SigmoidBatch) -> bool:
    """Return True if the denominator of the mean includes the class weights of ignored pixels."""
    is_class = -batch.num_channels <= batch.ignore_index < batch.num_channels
    return is_class and not loss.use_sigmoid and not loss.avg_non_ignore and _mmseg_counts_ignored_weights()


@cache
def _mmseg_counts_ignored_weights() -> bool:
    """Return True if mmseg's weighted mean divides by the class weights of ignored pixels too.

    Upstream mmseg does, the maintained fork does not.
    """
    options = dict(class_weight=torch.ones(2), ignore_index=0)
    mean = cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), **options)  # log(2) over 2 pixels, or over 1
    return mean.item() < 0.5


# For each loss: its class weights, kept alive so that no other tensor gets their id; their state; the loaded weights.
_class_weights: WeakKeyDictionary[nn.Module, tuple[Any, Any, Tensor]] = WeakKeyDictionary()


def built_in_class_weight(
    loss: CrossEntropyLoss | OhemCrossEntropy, device: torch.device | str = 'cpu'
) -> Tensor | None:
    """Return the class weights of one of mmseg's losses; cached until they change.

    Args:
        loss: loss of a decode head.
        device: device of the returned weights.

    Returns:
        (C,) float32, or for a sigmoid possibly one number; None without weights.

    Raises:
        TypeError, ValueError: as :func:`mmseg_wce.class_weights.load_class_weight`.
    """
    class_weight = loss.class_weight
    if class_weight is None:
        return None
    state = _state_of(class_weight)
    cached = _class_weights.get(loss)
    if cached is None or cached[1] != state or cached[2].device != torch.device(device):
        single = bool(getattr(loss, 'use_sigmoid', False))
        cached = _class_weights[loss] = class_weight, state, load_class_weight(class_weight, single).to(device)
    return cached[2]


def _state_of(class_weight: Any) -> Any:
    """Return a value that changes whenever the class weights change.

    Reading a tensor on an accelerator would wait for the device: there its version counts, which ``.data`` bypasses.
    """
    if isinstance(class_weight, Tensor) and class_weight.device.type != 'cpu':
        return object() if class_weight.is_inference() else (id(class_weight), class_weight._version)
    return class_weight.tolist() if isinstance(class_weight, Tensor | np.ndarray) else copy.copy(class_weight)


def built_in_normalizer(loss: CrossEntropyLoss) -> Normalizer:
    """Return the ``normalize_by`` that equals the mean of mmseg's ``CrossEntropyLoss``.

    Args:
        loss: loss of a decode head.
    """
    if loss.use_sigmoid:
        return 'valid' if loss.avg_non_ignore else 'all'
    return 'class_weight' if loss.avg_non_ignore or loss.class_weight is not None else 'all'


def is_hard(nll: Tensor, valid: Tensor, min_kept: int, thresh: float) -> Tensor:
    """Select pixels whose label has a probability below ``thresh``, and at least the ``min_kept`` hardest pixels.

    Args:
        nll: (N, H, W), negative log-likelihood of a softmax.
        valid: (N, H, W), bool.
        min_kept: minimum number of selected pixels.
        thresh: threshold of the probability.

    Returns:
        (N, H, W), bool.
    """
    probability = torch.where(valid, nll.neg().exp(), torch.inf)
    limit: Tensor | float = thresh
    number = int(valid.count_nonzero())
    if number > 0:
        rank = min(min_kept, number - 1)
        if torch.are_deterministic_algorithms_enabled():  # CUDA's kthvalue is not deterministic
            value = probability.flatten().sort()[0][rank]
        else:
            value = probability.flatten().kthvalue(rank + 1)[0]
        limit = value.clamp(min=thresh)
    return probability < limit
