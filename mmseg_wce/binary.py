"""The mathematics of weighted binary cross-entropy with an ignored label, for any PyTorch model. Knows no mmseg.

Each channel is a yes or no of its own: loss = -w log sigmoid(z) where the channel is the label's, -log(1 - sigmoid(z))
elsewhere. One channel tells label 1 from label 0.
"""

from __future__ import annotations

import torch
from mmseg_wce.arguments import (
    Normalizer,
    Reduction,
    check_class_weight_tensor,
    check_logits_and_target,
    check_options,
    resolve_ignore_index,
)
from mmseg_wce.kernels import pixel_bce
from mmseg_wce.kernels.binary import element_loss, positive_elements
from mmseg_wce.kernels.reference import resized
from mmseg_wce.reduction import label_weights, normalizing_sum, reduce_loss, weight_pixels
from torch import Tensor

__all__ = [
    'binary_normalizer',
    'check_binary_inputs',
    'summed_binary_loss',
    'weighted_binary_cross_entropy',
    'weights_of_labels',
]

BinaryPixels = tuple[Tensor, Tensor, Tensor]  # positive, negative, correct


def check_binary_inputs(logits: Tensor, target: Tensor, class_weight: Tensor | None) -> None:
    """Raise TypeError or ValueError where kinds, shapes, dtypes or devices do not fit; reads no values.

    Args:
        logits: (N, C, h, w), (N, C, ...) or (N, C), floating point, C >= 1.
        target: (N, H, W), (N, ...) or (N,), any integer dtype.
        class_weight: one number, (C,), or (2,) for one channel, floating point; or None.
    """
    check_logits_and_target(logits, target)
    check_class_weight_tensor(class_weight, logits)
    if class_weight is None or class_weight.shape in ((), (1,), (max(logits.shape[1], 2),)):
        return
    if logits.shape[1] == 1:
        allowed = 'one number, of label 1, or two, of labels 0 and 1,'
    else:
        allowed = f'one number for all channels, or one for each of the {logits.shape[1]} channels,'
    raise ValueError(
        f'class_weight must hold {allowed} of logits {tuple(logits.shape)}: got shape {tuple(class_weight.shape)}'
    )


def _check_normalizer(logits: Tensor, class_weight: Tensor | None, normalize_by: str) -> None:
    number = 0 if class_weight is None else class_weight.numel()
    if normalize_by == 'class_weight' and (logits.shape[1] > 1 or number != 2):
        raise ValueError(
            "normalize_by='class_weight' of a binary cross-entropy needs one channel and two class weights, of labels "
            f"0 and 1: got {number} for logits {tuple(logits.shape)}. Use 'valid' or 'all'"
        )


def weights_of_labels(class_weight: Tensor | None, num_channels: int) -> Tensor | None:
    """Expand class weights to one for each label.

    Args:
        class_weight: (C,), or (2,) for one channel, or one number: of all channels, or of label 1 of one channel.
        num_channels: C.

    Returns:
        (C,), or (2,) for one channel; None without weights.
    """
    if class_weight is None or class_weight.numel() > 1:
        return class_weight
    if num_channels > 1:
        return class_weight.reshape(1).expand(num_channels)
    return torch.nn.functional.pad(class_weight.reshape(1), (1, 0), value=1.0)


def _labels(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Guard the labels: target as int64, where it counts, and the weight of its own term."""
    num_channels, dtype = logits.shape[1], torch.promote_types(logits.dtype, torch.float32)
    weights = weights_of_labels(class_weight, num_channels)
    return label_weights(target, max(num_channels, 2), weights, ignore_index, dtype)


def _normalizing_sum(logits: Tensor, normalize_by: Normalizer, label_weight: Tensor | None, valid: Tensor) -> Tensor:
    """Count elements, or add up the two weights of one channel."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    if normalize_by == 'class_weight':
        return normalizing_sum(normalize_by, label_weight, valid, dtype)
    return logits.shape[1] * normalizing_sum(normalize_by, None, valid, dtype)


def binary_normalizer(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    normalize_by: Normalizer = 'valid',
) -> Tensor:
    """Return what :func:`weighted_binary_cross_entropy` divides by: known from the labels alone, no logit is read.

    Args:
        logits: (N, C, ...); their shape and dtype matter.
        target: (N, ...), any integer dtype.
        class_weight: as in :func:`weighted_binary_cross_entropy`.
        ignore_index: the label that does not count, 255 by default.
        normalize_by: as in :func:`weighted_binary_cross_entropy`.

    Returns:
        Scalar on the target's device, float32, or float64 for float64 logits.

    Raises:
        TypeError, ValueError: as :func:`weighted_binary_cross_entropy`.

    Example:
        >>> import torch
        >>> from mmseg_wce.functional import binary_normalizer
        >>> target = torch.tensor([[[0, 1], [2, 255]]])
        >>> [binary_normalizer(torch.zeros(1, 3, 2, 2), target, normalize_by=by).item() for by in ('valid', 'all')]
        [9.0, 12.0]
    """
    check_binary_inputs(logits, target, class_weight)
    ignore_index = resolve_ignore_index(ignore_index, logits.shape[1])
    check_options('mean', normalize_by, None, ignore_index)
    _check_normalizer(logits, class_weight, normalize_by)
    _, valid, label_weight = _labels(logits, target, class_weight, ignore_index)
    return _normalizing_sum(logits, normalize_by, label_weight, valid)


def summed_binary_loss(positive: Tensor, negative: Tensor, label_weight: Tensor | None, num_channels: int) -> Tensor:
    """Sum the weighted losses of a pixel's channels.

    Args:
        positive: (N, ...), of :func:`mmseg_wce.kernels.pixel_bce`.
        negative: (N, ...), likewise.
        label_weight: (N, ...), the weight of every pixel's label; None for ones.
        num_channels: C. The weight of label 0 of one channel, which has no channel of its own, is that of ``negative``.

    Returns:
        (N, ...).
    """
    if label_weight is None:
        return positive + negative
    if num_channels == 1:
        return label_weight * (positive + negative)
    return label_weight * positive + negative


def _losses_of_elements(
    logits: Tensor, target: Tensor, valid: Tensor, class_weight: Tensor | None, align_corners: bool
) -> Tensor:
    """Compute the weighted loss of every element, (N, C, ...), with full-size logits; 0 where ignored."""
    counted = valid.unsqueeze(1)
    z = torch.where(counted, resized(logits, target.shape[1:], align_corners), 0)
    positive = positive_elements(target, logits.shape[1])
    loss = element_loss(z, positive)
    weights = weights_of_labels(class_weight, logits.shape[1])
    if weights is not None:
        per_channel = weights.detach().to(loss.dtype).view(-1, *[1] * (target.dim() - 1))
        loss = torch.where(positive, per_channel * loss, loss)
    return torch.where(counted, loss, 0)


def weighted_binary_cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    pixel_weight: Tensor | None = None,
    reduction: Reduction = 'mean',
    normalize_by: Normalizer = 'valid',
    avg_factor: float | Tensor | None = None,
    align_corners: bool = False,
    pixels: BinaryPixels | None = None,
) -> Tensor:
    """Binary cross-entropy of every channel, with class weights, an ignored label and logits of any size.

    Same value and gradient as these lines of plain PyTorch, except that it is 0 with zero gradient, not NaN, where no
    pixel counts, and that ignored pixels contribute exactly nothing even where their logits are NaN or inf::

        z = F.interpolate(logits, size=target.shape[1:], mode='bilinear')
        counted = target != 255
        one_hot = F.one_hot(target.where(counted, 0), C).movedim(-1, 1).to(z.dtype)
        loss = F.binary_cross_entropy_with_logits(z, one_hot, pos_weight=class_weight.view(C, 1, 1), reduction='none')
        loss.movedim(1, -1)[counted].mean()

    One channel has the labels 0 and 1, and ``one_hot`` is ``target == 1``. Its class weight is one number, the
    ``pos_weight`` of label 1, or two, of labels 0 and 1: then the loss is :func:`weighted_cross_entropy` of the logits
    (0, z) with these weights, divided by their sum with ``normalize_by='class_weight'``.

    The mean is the sum of ``pixel_weight * loss`` over all channels of the pixels that count, divided by what
    ``normalize_by`` says:

    - 'valid': the number of their elements, C times that of pixels,
    - 'all': the number of all elements, ignored pixels included, mmseg's default,
    - 'class_weight': the sum of the labels' weights over the pixels that count; only for one channel with two weights,

    or by ``avg_factor`` where it is given. ``pixel_weight`` never enters a denominator.

    Args:
        logits: (N, C, h, w), upsampled bilinearly where its size is not the target's; or (N, C, ...) or (N, C) of the
            target's size. C >= 1. float16, bfloat16, float32 or float64; computed in float32 at least.
        target: (N, H, W), (N, ...) or (N,), any integer dtype: labels in [0, C), of one channel 0 and 1, or
            ``ignore_index``.
        class_weight: (C,), finite and not negative (:class:`mmseg_wce.losses.WeightedCrossEntropyLoss` checks the
            values once, when it is built; here they are taken as they are); or one number, () or (1,), for all
            channels; (2,) for one channel. No gradient flows to it.
        ignore_index: the label that does not count, 255 by default; may be negative or inside [0, C). A warning says so
            once where the default is a class.
        pixel_weight: shape of the target, or broadcastable to it with as many dimensions; enters the numerator.
        reduction: 'mean', 'sum', or 'none' for the losses of the elements: (N, C, ...), or (N, ...) for one channel;
            0 where ignored. For more than one channel it needs memory for full-size logits.
        normalize_by: what the mean divides by.
        avg_factor: one number or one-element tensor that replaces the denominator of the mean. As in mmseg, 0 counts
            as 1.2e-7, reduction 'none' does not look at it and 'sum' refuses it. The value of a tensor is not checked.
        align_corners: of the upsampling, as in :func:`torch.nn.functional.interpolate`.
        pixels: what :func:`mmseg_wce.kernels.pixel_bce` gave for these logits and this target, where it is known
            already; by default it is computed.

    Returns:
        Scalar, or the shape that reduction 'none' has. float32, or float64 for float64 logits.

    Raises:
        TypeError: a dtype that cannot be meant (float targets, integer logits).
        ValueError: shapes that do not fit, an option out of range, or a label out of range that is not ignored (see
            :mod:`mmseg_wce.targets`; on CUDA one of the next calls raises it).

    Example:
        >>> import torch
        >>> from mmseg_wce.functional import weighted_binary_cross_entropy
        >>> logits, target = torch.tensor([[2.0], [2.0], [-1.0]]), torch.tensor([1, 0, 255])
        >>> print(f'{weighted_binary_cross_entropy(logits, target):.4f}')  # (0.1269 + 2.1269) / 2
        1.1269
        >>> print(f'{weighted_binary_cross_entropy(logits, target, torch.tensor([3.0])):.4f}')  # (3 * 0.1269 + ...) / 2
        1.2539
    """
    check_binary_inputs(logits, target, class_weight)
    ignore_index = resolve_ignore_index(ignore_index, logits.shape[1])
    check_options(reduction, normalize_by, avg_factor, ignore_index)
    _check_normalizer(logits, class_weight, normalize_by)
    target, valid, label_weight = _labels(logits, target, class_weight, ignore_index)
    if reduction == 'none' and logits.shape[1] > 1:
        loss = _losses_of_elements(logits, target, valid, class_weight, align_corners)
    else:
        if pixels is None:
            pixels = pixel_bce(logits, target, ignore_index=ignore_index, align_corners=align_corners)
        loss = summed_binary_loss(pixels[0], pixels[1], label_weight, logits.shape[1])
    loss = weight_pixels(loss, pixel_weight, target, valid)
    return reduce_loss(loss, reduction, avg_factor, lambda: _normalizing_sum(logits, normalize_by, label_weight, valid))
