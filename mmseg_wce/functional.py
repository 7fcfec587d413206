"""The mathematics of weighted cross-entropy with an ignored label, for any PyTorch model. Knows no mmseg.

loss = sum_i w[y_i] * nll_i / sum_i w[y_i]      over the pixels i with y_i != ignore_index
"""

from __future__ import annotations

from numbers import Integral
from typing import Literal

import torch
from mmseg_wce.kernels import check_shapes, pixel_nll
from mmseg_wce.targets import valid_pixels
from torch import Tensor

__all__ = [
    'NORMALIZERS',
    'REDUCTIONS',
    'check_inputs',
    'normalizer',
    'smoothing_weight',
    'weighted_cross_entropy',
]

Reduction = Literal['mean', 'sum', 'none']
Normalizer = Literal['class_weight', 'valid', 'all']
Pixels = tuple[Tensor, Tensor, Tensor]  # nll, smooth, correct
REDUCTIONS: tuple[Reduction, ...] = ('mean', 'sum', 'none')
NORMALIZERS: tuple[Normalizer, ...] = ('class_weight', 'valid', 'all')

_LOGITS_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST_TABLE = 1 << 16
_MMSEG_EPS = torch.finfo(torch.float32).eps  # what mmseg divides by for avg_factor=0


def check_inputs(logits: Tensor, target: Tensor, class_weight: Tensor | None) -> None:
    """Raise TypeError or ValueError where kinds, shapes, dtypes or devices do not fit; reads no values.

    Args:
        logits: (N, C, h, w), (N, C, ...) or (N, C), floating point, C >= 2.
        target: (N, H, W), (N, ...) or (N,), any integer dtype.
        class_weight: (C,), floating point, or None.
    """
    _check_logits_and_target(logits, target)
    _check_class_weight(class_weight, logits)


def _check_logits_and_target(logits: Tensor, target: Tensor) -> None:
    for name, value in (('logits', logits), ('target', target)):
        if not isinstance(value, Tensor):
            raise TypeError(f'{name} must be a tensor, got {type(value).__name__}')
    both = f'logits {tuple(logits.shape)} {logits.dtype}, target {tuple(target.shape)} {target.dtype}'
    if logits.dtype not in _LOGITS_DTYPES:
        raise TypeError(f'logits must be float16, bfloat16, float32 or float64: got {both}')
    if target.dtype == torch.bool or target.is_floating_point() or target.is_complex():
        raise TypeError(f'target must hold class indices in an integer dtype, not {target.dtype}: got {both}')
    if logits.device != target.device:
        raise ValueError(f'logits are on {logits.device}, target is on {target.device}: got {both}')
    if logits.dim() < 2:
        raise ValueError(f'logits must be (N, C) or (N, C, ...): got {both}')
    if target.dim() != logits.dim() - 1:
        raise ValueError(
            f'target must be (N, ...) for logits (N, C, ...), one dimension less: got {both}{_hint(target)}'
        )
    if target.shape[0] != logits.shape[0]:
        raise ValueError(f'logits and target differ in batch size: got {both}')
    if logits.shape[1] < 2:
        raise ValueError(
            f'a softmax over {logits.shape[1]} channel(s) is constant and has no gradient: got {both}. For a binary '
            "task use two channels (out_channels=2), or one channel with mmseg's CrossEntropyLoss(use_sigmoid=True)"
        )
    check_shapes(logits, target)


def _hint(target: Tensor) -> str:
    if target.dim() != 4:
        return ''
    for dim in (1, -1):
        if target.shape[dim] == 1:
            return f'. Remove the channel dimension: target.squeeze({dim})'
    if target.shape[-1] in (3, 4) or target.shape[1] in (3, 4):
        return (
            '. The labels have colour channels: they were read from RGB masks or from palette PNGs that the reader '
            'expanded (OpenCV does). Store the class index in a single-channel PNG'
        )
    return ''


def _check_class_weight(class_weight: Tensor | None, logits: Tensor) -> None:
    if class_weight is None:
        return
    if not isinstance(class_weight, Tensor):
        raise TypeError(f'class_weight must be a tensor, got {type(class_weight).__name__}')
    if not class_weight.is_floating_point():
        raise TypeError(f'class_weight must be a floating-point tensor, got {class_weight.dtype}')
    if class_weight.shape != (logits.shape[1],):
        raise ValueError(
            f'class_weight must hold one weight for each of the {logits.shape[1]} channels of logits '
            f'{tuple(logits.shape)}: got shape {tuple(class_weight.shape)}'
        )
    if class_weight.device != logits.device:
        raise ValueError(f'class_weight is on {class_weight.device}, logits are on {logits.device}')


def _check_options(
    reduction: str, normalize_by: str, label_smoothing: float, avg_factor: float | Tensor | None, ignore_index: int
) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction must be one of {REDUCTIONS}, got {reduction!r}')
    if normalize_by not in NORMALIZERS:
        raise ValueError(f'normalize_by must be one of {NORMALIZERS}, got {normalize_by!r}')
    if not isinstance(label_smoothing, (int, float, torch.SymFloat)):
        raise TypeError(f'label_smoothing must be a number, got {label_smoothing!r}')
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f'label_smoothing must be between 0 and 1, got {label_smoothing}')
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, Integral, torch.SymInt)):
        raise TypeError(f'ignore_index must be an int, got {ignore_index!r}')
    if avg_factor is None:
        return
    if reduction == 'sum':
        raise ValueError("avg_factor can not be used with reduction='sum'")
    if isinstance(avg_factor, Tensor):
        if avg_factor.numel() != 1:
            raise ValueError(f'avg_factor must be one number, got a tensor of shape {tuple(avg_factor.shape)}')
    elif not 0 <= avg_factor < torch.inf:
        raise ValueError(f'avg_factor must be finite and not negative, got {avg_factor}')


def _broadcast_pixel_weight(pixel_weight: Tensor, target: Tensor) -> Tensor:
    if not isinstance(pixel_weight, Tensor):
        raise TypeError(f'pixel_weight must be a tensor, got {type(pixel_weight).__name__}')
    if pixel_weight.device != target.device:
        raise ValueError(f'pixel_weight is on {pixel_weight.device}, target is on {target.device}')
    fits = pixel_weight.dim() == target.dim() and all(
        p in (1, t) for p, t in zip(pixel_weight.shape, target.shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f'pixel_weight must have the shape of the target {tuple(target.shape)}, got {tuple(pixel_weight.shape)}'
        )
    if pixel_weight.is_complex():
        raise TypeError(f'pixel_weight must be real, got {pixel_weight.dtype}')
    return pixel_weight.expand(target.shape)


def _labels(
    logits: Tensor, target: Tensor, class_weight: Tensor | None, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Target as int64, where it counts, and the class weight of every pixel's label: 0 where it does not count."""
    target, num_classes = target.long(), logits.shape[1]
    valid = valid_pixels(target, num_classes, ignore_index)
    if class_weight is None:
        return target, valid, None
    weight = class_weight.detach().to(torch.promote_types(logits.dtype, torch.float32))
    if target.device.type == 'cpu' and 0 <= ignore_index <= _LARGEST_TABLE:
        # what passed valid_pixels on CPU is a class or ignore_index: one look-up, no index tensor of its own
        weight = torch.nn.functional.pad(weight, (0, max(ignore_index + 1 - num_classes, 0)))
        index = target
    else:
        weight = torch.nn.functional.pad(weight, (0, 1))
        index = torch.where(valid, target, num_classes)
    label_weight = weight.index_select(0, index.flatten()).view(target.shape)
    return target, valid, label_weight * valid if 0 <= ignore_index < num_classes else label_weight


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


def _per_pixel(
    nll: Tensor,
    smooth: Tensor,
    label_weight: Tensor | None,
    label_smoothing: float,
    num_classes: int,
) -> Tensor:
    """Loss of every pixel before any reduction."""
    loss = nll if label_weight is None else label_weight * nll
    if label_smoothing > 0:
        loss = (1 - label_smoothing) * loss + (label_smoothing / num_classes) * smooth
    return loss


def _sum_of(normalize_by: str, label_weight: Tensor | None, valid: Tensor, dtype: torch.dtype) -> Tensor:
    if normalize_by == 'all':
        return torch.full((), valid.numel(), dtype=dtype, device=valid.device)
    if normalize_by == 'valid' or label_weight is None:
        return valid.count_nonzero().to(dtype)
    return label_weight.sum()


def normalizer(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
    normalize_by: Normalizer = 'class_weight',
) -> Tensor:
    """What :func:`weighted_cross_entropy` divides by: known from the labels alone, no logit is read.

    Args:
        logits: (N, C, ...); their shape and dtype matter.
        target: (N, ...), any integer dtype: classes in [0, C) or ``ignore_index``.
        class_weight: (C,).
        ignore_index: the label that does not count.
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
    _check_options('mean', normalize_by, 0.0, None, ignore_index)
    _, valid, label_weight = _labels(logits, target, class_weight, ignore_index)
    return _sum_of(normalize_by, label_weight, valid, torch.promote_types(logits.dtype, torch.float32))


def weighted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int = 255,
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
        ignore_index: the label that does not count; may be negative or inside [0, C).
        label_smoothing: e in [0, 1].
        pixel_weight: shape of the target, or broadcastable to it with as many dimensions; enters the numerator.
        reduction: 'mean', 'sum', or 'none' for the map of the pixels' losses, 0 where ignored.
        normalize_by: what the mean divides by.
        avg_factor: one number or one-element tensor that replaces the denominator of the mean. As in mmseg, 0 counts
            as 1.2e-7, reduction 'none' does not look at it and 'sum' refuses it. The value of a tensor is not checked.
        align_corners: of the upsampling, as in :func:`torch.nn.functional.interpolate`.
        pixels: what :func:`mmseg_wce.kernels.pixel_nll` gave for these logits and this target, with
            :func:`smoothing_weight`, where it is known already; by default it is computed.

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
    _check_options(reduction, normalize_by, label_smoothing, avg_factor, ignore_index)
    target, valid, label_weight = _labels(logits, target, class_weight, ignore_index)
    if pixels is None:
        weight = smoothing_weight(logits, class_weight, label_smoothing)
        pixels = pixel_nll(
            logits, target, ignore_index=ignore_index, smoothing_weight=weight, align_corners=align_corners
        )
    nll, smooth, _ = pixels
    loss = _per_pixel(nll, smooth, label_weight, label_smoothing, logits.shape[1])
    if pixel_weight is not None:
        loss = loss * _broadcast_pixel_weight(pixel_weight, target).to(loss.dtype)
    if pixel_weight is not None or target.is_cuda:  # 0 * NaN; and on CUDA a refused label's NaN is still here
        loss = torch.where(valid, loss, 0)
    if reduction == 'none':
        return loss
    if reduction == 'sum':
        return loss.sum()
    if avg_factor is None:
        # x / inf is a zero that stays connected to the graph, and unlike x * 0 it does not hide a NaN
        denominator, instead_of_zero = _sum_of(normalize_by, label_weight, valid, loss.dtype), torch.inf
    else:
        denominator = torch.as_tensor(avg_factor, dtype=loss.dtype, device=loss.device).reshape(())
        instead_of_zero = _MMSEG_EPS
    return loss.sum() / torch.where(denominator == 0, instead_of_zero, denominator)
