"""The mathematics of weighted cross-entropy with an ignored label, for any PyTorch model. Knows no mmseg.

loss = sum_i w[y_i] * nll_i / sum_i w[y_i]      over the pixels i with y_i != ignore_index
"""

from __future__ import annotations

from typing import Any

import torch
from mmseg_wce.arguments import (
    NORMALIZERS,
    REDUCTIONS,
    Normalizer,
    Reduction,
    check_class_weight_tensor,
    check_logits_and_target,
    check_options,
    resolve_ignore_index,
)
from mmseg_wce.binary import binary_normalizer, check_binary_inputs, weighted_binary_cross_entropy
from mmseg_wce.kernels import PixelMaps, PixelSums, pixel_maps
from mmseg_wce.reduction import label_weights, normalizing_sum, reduce_loss, weight_pixels
from mmseg_wce.targets import valid_pixels
from mmseg_wce.upsampling import upsampled_argmax
from torch import Tensor

__all__ = [
    'NORMALIZERS',
    'REDUCTIONS',
    'binary_normalizer',
    'check_binary_inputs',
    'check_inputs',
    'normalizer',
    'smoothing_weight',
    'upsampled_argmax',
    'weighted_binary_cross_entropy',
    'weighted_cross_entropy',
]

Pixels = tuple[Tensor, Tensor, Tensor] | PixelMaps  # nll, smooth, correct, and sums of them or not


def check_inputs(logits: Tensor, target: Tensor, class_weight: Tensor | None) -> None:
    """Raise TypeError or ValueError where kinds, shapes, dtypes or devices do not fit; reads no values.

    Args:
        logits: (N, C, h, w), (N, C, ...) or (N, C), floating point, C >= 2.
        target: (N, H, W), (N, ...) or (N,), any integer dtype.
        class_weight: (C,), floating point, or None.
    """
    check_logits_and_target(logits, target)
    both = f'logits {tuple(logits.shape)}, target {tuple(target.shape)}'
    if logits.shape[1] < 2:
        raise ValueError(
            f'a softmax over {logits.shape[1]} channel(s) is constant and has no gradient: got {both}. For a binary '
            'task use two channels (out_channels=2), or one channel with use_sigmoid=True in the loss '
            '(functional.weighted_binary_cross_entropy)'
        )
    check_class_weight_tensor(class_weight, logits)
    if class_weight is not None and class_weight.shape != (logits.shape[1],):
        raise ValueError(
            f'class_weight must hold one weight for each of the {logits.shape[1]} channels of logits '
            f'{tuple(logits.shape)}: got shape {tuple(class_weight.shape)}'
        )


def _check_smoothing(label_smoothing: float) -> None:
    if not isinstance(label_smoothing, (int, float, torch.SymFloat)):
        raise TypeError(f'label_smoothing must be a number, got {label_smoothing!r}')
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f'label_smoothing must be between 0 and 1, got {label_smoothing}')


def smoothing_weight(logits: Tensor, class_weight: Tensor | None, label_smoothing: float) -> Tensor | None:
    """What :func:`mmseg_wce.kernels.pixel_nll` weights its map ``smooth`` by.

    Args:
        logits: (N, C, ...); their shape, dtype and device matter.
        class_weight: (C,), or None.
        label_smoothing: in [0, 1].

    Returns:
        (C,): the class weights, or ones without them; None without smoothing.

    Example:
        >>> import torch
        >>> from mmseg_wce.functional import smoothing_weight
        >>> smoothing_weight(torch.zeros(2, 3, 4, 4), None, label_smoothing=0.1)
        tensor([1., 1., 1.])
    """
    if label_smoothing == 0:
        return None
    return logits.new_ones(logits.shape[1]) if class_weight is None else class_weight.detach()


def _smoothed(weighted_nll: Tensor, smooth: Tensor, label_smoothing: float, num_classes: int) -> Tensor:
    """Mix the losses of pixels, or sums of them."""
    if label_smoothing == 0:
        return weighted_nll
    return (1 - label_smoothing) * weighted_nll + (label_smoothing / num_classes) * smooth


def normalizer(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    normalize_by: Normalizer = 'class_weight',
) -> Tensor:
    """What :func:`weighted_cross_entropy` divides by: known from the labels alone, no logit is read.

    Args:
        logits: (N, C, ...); their shape and dtype matter.
        target: (N, ...), any integer dtype: classes in [0, C) or ``ignore_index``.
        class_weight: (C,).
        ignore_index: the label that does not count, 255 by default.
        normalize_by: as in :func:`weighted_cross_entropy`.

    Returns:
        Scalar on the target's device, float32, or float64 for float64 logits.

    Raises:
        TypeError, ValueError: as :func:`weighted_cross_entropy`.

    Example:
        >>> import torch
        >>> from mmseg_wce.functional import normalizer
        >>> logits, target = torch.zeros(1, 3, 2, 2), torch.tensor([[[0, 1], [2, 255]]])
        >>> weight = torch.tensor([0.25, 0.5, 2.0])
        >>> [normalizer(logits, target, weight, normalize_by=by).item() for by in ('class_weight', 'valid', 'all')]
        [2.75, 3.0, 4.0]
    """
    check_inputs(logits, target, class_weight)
    ignore_index = resolve_ignore_index(ignore_index, logits.shape[1])
    check_options('mean', normalize_by, None, ignore_index)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    _, valid, label_weight = label_weights(target, logits.shape[1], class_weight, ignore_index, dtype)
    return normalizing_sum(normalize_by, label_weight, valid, dtype)


def weighted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    pixel_weight: Tensor | None = None,
    reduction: Reduction = 'mean',
    normalize_by: Normalizer = 'class_weight',
    avg_factor: float | Tensor | None = None,
    align_corners: bool = False,
    pixels: Pixels | None = None,
) -> Tensor:
    """Cross-entropy with class weights, an ignored label and logits of any size.

    Same value and gradient as this line of plain PyTorch, except that it is 0 with zero gradient, not NaN, where no
    pixel counts, and that ignored pixels contribute exactly nothing even where their logits are NaN or inf::

        F.cross_entropy(F.interpolate(logits, size=target.shape[1:], mode='bilinear'), target, class_weight,
                        ignore_index=255, label_smoothing=label_smoothing)

    For the label y of a pixel, its softmax probabilities p and class weights w (1 where none are given), with label
    smoothing e as PyTorch defines it, the pixel's loss is::

        l = (1 - e) w_y (-log p_y) + (e / C) sum_c w_c (-log p_c)

    and the mean is the sum of ``pixel_weight * l`` over the pixels that count, divided by what ``normalize_by`` says:

    - 'class_weight': the sum of w_y over the pixels that count, PyTorch's mean; without class weights their number,
    - 'valid': the number of pixels that count, also with class weights,
    - 'all': the number of pixels, ignored ones included,

    or by ``avg_factor`` where it is given. ``pixel_weight`` never enters a denominator.

    Args:
        logits: (N, C, h, w), upsampled bilinearly where its size is not the target's; or (N, C, ...) or (N, C) of the
            target's size. C >= 2. float16, bfloat16, float32 or float64; computed in float32 at least.
        target: (N, H, W), (N, ...) or (N,), any integer dtype: classes in [0, C) or ``ignore_index``.
        class_weight: (C,), finite and not negative (:class:`mmseg_wce.losses.WeightedCrossEntropyLoss` checks the
            values once, when it is built; here they are taken as they are). No gradient flows to it.
        ignore_index: the label that does not count, 255 by default; may be negative or inside [0, C). A warning says so
            once where the default is a class.
        label_smoothing: e in [0, 1].
        pixel_weight: shape of the target, or broadcastable to it with as many dimensions; enters the numerator.
        reduction: 'mean', 'sum', or 'none' for the map of the pixels' losses, 0 where ignored.
        normalize_by: what the mean divides by.
        avg_factor: one number or one-element tensor that replaces the denominator of the mean. As in mmseg, 0 counts
            as 1.2e-7, reduction 'none' does not look at it and 'sum' refuses it. The value of a tensor is not checked.
        align_corners: of the upsampling, as in :func:`torch.nn.functional.interpolate`.
        pixels: what :func:`mmseg_wce.kernels.pixel_nll` or :func:`mmseg_wce.kernels.pixel_maps` gave for these logits
            and this target, with :func:`smoothing_weight`, where it is known already; by default it is computed.

    Returns:
        Scalar, or the target's shape for reduction 'none'. float32, or float64 for float64 logits.

    Raises:
        TypeError: a dtype that cannot be meant (float targets, integer logits).
        ValueError: shapes that do not fit, an option out of range, or a label outside [0, C) that is not ignored (see
            :mod:`mmseg_wce.targets`; on CUDA one of the next calls raises it).

    Example:
        >>> import torch
        >>> from mmseg_wce.functional import weighted_cross_entropy
        >>> logits = torch.tensor([[-0.7795, -1.7373, 0.3856], [0.4031, -0.5632, -0.2389], [-2.3908, 0.7452, 0.7748]])
        >>> target = torch.tensor([0, 1, 2])
        >>> weight = torch.tensor([0.3, 0.6, 0.1])
        >>> print(f'{weighted_cross_entropy(logits, target):.4f}')
        1.2784
        >>> print(f'{weighted_cross_entropy(logits, target, weight, ignore_index=2):.4f}')
        1.5824
    """
    check_inputs(logits, target, class_weight)
    ignore_index = resolve_ignore_index(ignore_index, logits.shape[1])
    check_options(reduction, normalize_by, avg_factor, ignore_index)
    _check_smoothing(label_smoothing)
    if pixels is None:
        weight = smoothing_weight(logits, class_weight, label_smoothing)
        options: dict[str, Any] = dict(ignore_index=ignore_index, smoothing_weight=weight, align_corners=align_corners)
        pixels = pixel_maps(logits, target.long(), class_weight, **options)
    sums = None if reduction == 'none' or pixel_weight is not None else _sums_for(pixels, class_weight)
    if sums is not None:
        if sums.invalid > 0:
            valid_pixels(target.long(), logits.shape[1], ignore_index)  # raises
        loss = _smoothed(sums.loss, sums.smooth, label_smoothing, logits.shape[1])
        totals = dict(class_weight=sums.weight, valid=sums.valid, all=torch.full_like(sums.valid, target.numel()))
        return reduce_loss(loss, reduction, avg_factor, lambda: totals[normalize_by].to(loss.dtype))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    target, valid, label_weight = label_weights(target, logits.shape[1], class_weight, ignore_index, dtype)
    nll, smooth, _ = pixels[:3]
    loss = _smoothed(nll if label_weight is None else label_weight * nll, smooth, label_smoothing, logits.shape[1])
    loss = weight_pixels(loss, pixel_weight, target, valid)
    return reduce_loss(loss, reduction, avg_factor, lambda: normalizing_sum(normalize_by, label_weight, valid, dtype))


def _sums_for(pixels: Pixels, class_weight: Tensor | None) -> PixelSums | None:
    """Sums that the loss can be made of; none while compiling, since they are asked whether labels were invalid."""
    if torch.compiler.is_compiling() or not isinstance(pixels, PixelMaps) or pixels.class_weight is not class_weight:
        return None
    return pixels.sums
