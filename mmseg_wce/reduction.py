"""From the loss of every pixel to one number: weights of labels and pixels, and what the mean divides by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmseg_wce.arguments import Reduction, broadcast_pixel_weight
from mmseg_wce.targets import valid_pixels
from torch import Tensor

__all__ = ['label_weights', 'normalizing_sum', 'reduce_loss', 'weight_pixels']

_LARGEST_TABLE = 1 << 16
_MMSEG_EPS = torch.finfo(torch.float32).eps  # what mmseg divides by for avg_factor=0


def label_weights(
    target: Tensor, num_classes: int, class_weight: Tensor | None, ignore_index: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Guard the labels and look up the weight of each.

    Args:
        target: (N, ...), any integer dtype.
        num_classes: number of labels that count.
        class_weight: (num_classes,), or None.
        ignore_index: the label that does not count.
        dtype: of the weights.

    Returns:
        The target as int64, where it counts (bool), and the weight of every pixel's label, 0 where it does not count;
        None without weights.

    Raises:
        ValueError: as :func:`mmseg_wce.targets.valid_pixels`.
    """
    target = target.long()
    valid = valid_pixels(target, num_classes, ignore_index)
    if class_weight is None:
        return target, valid, None
    weight = class_weight.detach().to(dtype)
    if target.device.type == 'cpu' and 0 <= ignore_index <= _LARGEST_TABLE:
        # what passed valid_pixels on CPU is a class or ignore_index: one look-up, no index tensor of its own
        weight = torch.nn.functional.pad(weight, (0, max(ignore_index + 1 - num_classes, 0)))
        index = target
    else:
        weight = torch.nn.functional.pad(weight, (0, 1))
        index = torch.where(valid, target, num_classes)
    label_weight = weight.index_select(0, index.flatten()).view(target.shape)
    return target, valid, label_weight * valid if 0 <= ignore_index < num_classes else label_weight


def normalizing_sum(normalize_by: str, label_weight: Tensor | None, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what the mean divides by, as a scalar.

    Args:
        normalize_by: 'class_weight', 'valid' or 'all'.
        label_weight: (N, ...), 0 where a pixel does not count; None for ones.
        valid: (N, ...), bool.
        dtype: of the result.

    Returns:
        0-d, on the device of ``valid``.
    """
    if normalize_by == 'all':
        return torch.full((), valid.numel(), dtype=dtype, device=valid.device)
    if normalize_by == 'valid' or label_weight is None:
        return valid.count_nonzero().to(dtype)
    return label_weight.sum()


def weight_pixels(loss: Tensor, pixel_weight: Tensor | None, target: Tensor, valid: Tensor) -> Tensor:
    """Multiply the loss of pixels by their weights, and select away those that do not count: 0 * NaN is NaN.

    Args:
        loss: (N, ...), or (N, C, ...) for one of every element.
        pixel_weight: broadcastable to the target with as many dimensions, or None.
        target: (N, ...).
        valid: (N, ...), bool.

    Returns:
        As ``loss``.
    """
    if pixel_weight is None and not target.is_cuda:  # on CUDA a label may have been refused, which a later call raises
        return loss
    by_element = loss.dim() > target.dim()
    if pixel_weight is not None:
        weight = broadcast_pixel_weight(pixel_weight, target).to(loss.dtype)
        loss = loss * (weight.unsqueeze(1) if by_element else weight)
    return torch.where(valid.unsqueeze(1) if by_element else valid, loss, 0)


def reduce_loss(
    loss: Tensor, reduction: Reduction, avg_factor: float | Tensor | None, denominator: Callable[[], Tensor]
) -> Tensor:
    """Reduce weighted losses; a mean over nothing is 0 with zero gradient.

    Args:
        loss: any shape, 0 where nothing counts.
        reduction: 'mean', 'sum' or 'none'.
        avg_factor: replaces the denominator of the mean; 0 counts as 1.2e-7, as in mmseg.
        denominator: computes that of the mean; called only where it is needed.

    Returns:
        Scalar, or ``loss`` for reduction 'none'.
    """
    if reduction == 'none':
        return loss
    if reduction == 'sum':
        return loss.sum()
    if avg_factor is None:
        # x / inf is a zero that stays connected to the graph, and unlike x * 0 it does not hide a NaN
        divisor, instead_of_zero = denominator(), torch.inf
    else:
        divisor = torch.as_tensor(avg_factor, dtype=loss.dtype, device=loss.device).reshape(())
        instead_of_zero = _MMSEG_EPS
    return loss.sum() / torch.where(divisor == 0, instead_of_zero, divisor)
