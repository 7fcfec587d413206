"""Weighted cross-entropies with an ignored label, for any PyTorch model. Imports no mmseg.

loss = sum_i w[y_i] * nll_i / sum_i w[y_i]      over the pixels i with y_i != ignore_index
"""

from __future__ import annotations

from mmseg_wce.arguments import (
    NORMALIZERS,
    REDUCTIONS,
    Normalizer,
    Reduction,
    check_call,
    check_focal_gamma,
    check_sigmoid_weight,
    check_smoothing,
    check_softmax_weight,
)
from mmseg_wce.class_weights import class_offsets
from mmseg_wce.kernels import PixelMaps
from mmseg_wce.pixel_batch import SigmoidBatch, SigmoidMaps, SoftmaxBatch, smoothing_weight
from mmseg_wce.upsampling import upsampled_argmax
from torch import Tensor

__all__ = [
    'NORMALIZERS',
    'REDUCTIONS',
    'binary_normalizer',
    'class_offsets',
    'normalizer',
    'smoothing_weight',
    'upsampled_argmax',
    'weighted_binary_cross_entropy',
    'weighted_cross_entropy',
]

Pixels = tuple[Tensor, Tensor, Tensor] | PixelMaps  # nll, smooth, correct; PixelMaps may also hold sums


def normalizer(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    normalize_by: Normalizer = 'class_weight',
) -> Tensor:
    """Return the denominator of :func:`weighted_cross_entropy`, computed from the labels alone.

    Args:
        logits: (N, C, ...); only their shape, dtype and device are read.
        target: (N, ...), any integer dtype: classes in [0, C) or ``ignore_index``.
        class_weight: (C,).
        ignore_index: the ignored label, 255 by default.
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
    ignore_index, _ = check_call(logits, target, ignore_index, normalize_by=normalize_by)
    check_softmax_weight(class_weight, logits)
    return SoftmaxBatch(logits, target.long(), class_weight, ignore_index).normalizer(normalize_by)


def binary_normalizer(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    normalize_by: Normalizer = 'valid',
) -> Tensor:
    """Return the denominator of :func:`weighted_binary_cross_entropy`, computed from the labels alone.

    Args:
        logits: (N, C, ...); only their shape, dtype and device are read.
        target: (N, ...), any integer dtype.
        class_weight: as in :func:`weighted_binary_cross_entropy`.
        ignore_index: the ignored label, 255 by default.
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
    ignore_index, _ = check_call(logits, target, ignore_index, normalize_by=normalize_by)
    check_sigmoid_weight(class_weight, logits, normalize_by)
    return SigmoidBatch(logits, target.long(), class_weight, ignore_index).normalizer(normalize_by)


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
    focal_gamma: float = 0.0,
    pixels: SigmoidMaps | None = None,
) -> Tensor:
    """Compute the binary cross-entropy of every channel, with class weights, an ignored label and logits of any size.

    Same value and gradient as these lines of plain PyTorch, with two differences: it is 0 with zero gradient, not NaN,
    if all pixels are ignored, and ignored pixels contribute nothing even if their logits are NaN or inf::

        z = F.interpolate(logits, size=target.shape[1:], mode='bilinear')
        valid = target != 255
        one_hot = F.one_hot(target.where(valid, 0), C).movedim(-1, 1).to(z.dtype)
        loss = F.binary_cross_entropy_with_logits(z, one_hot, pos_weight=class_weight.view(C, 1, 1), reduction='none')
        loss.movedim(1, -1)[valid].mean()

    One channel has the labels 0 and 1, and ``one_hot`` is ``target == 1``. Its class weight is one number, the
    ``pos_weight`` of label 1, or two, for labels 0 and 1. With two, the loss is :func:`weighted_cross_entropy` of the
    logits (0, z) with these weights; ``normalize_by='class_weight'`` divides by their sum over the pixels.

    The mean is the sum of ``pixel_weight * loss`` over all channels of the pixels that are not ignored, divided by
    ``avg_factor`` or, by default, by the denominator that ``normalize_by`` selects:

    - 'valid': the number of elements that are not ignored, C times the number of pixels,
    - 'all': the number of all elements, including ignored ones; mmseg's default,
    - 'class_weight': the sum of the labels' weights over the pixels that are not ignored; needs one channel and two
      weights.

    ``pixel_weight`` is never part of a denominator.

    Args:
        logits: (N, C, h, w), upsampled bilinearly if their size is not the target's; or (N, C, ...) or (N, C) of the
            target's size. C >= 1. float16, bfloat16, float32 or float64; computed in at least float32.
        target: (N, H, W), (N, ...) or (N,), any integer dtype: labels in [0, C), for one channel 0 and 1, or
            ``ignore_index``.
        class_weight: (C,), finite and not negative; or one number, () or (1,), for all channels; (2,) for one channel.
            The values are not checked here (:class:`mmseg_wce.losses.WeightedCrossEntropyLoss` checks them once, when
            it is built). No gradient flows to it.
        ignore_index: the ignored label, 255 by default; may be negative or in [0, C). Warns once if the default is a
            class.
        pixel_weight: as in :func:`weighted_cross_entropy`.
        reduction: 'mean', 'sum', or 'none' for the losses of the elements: (N, C, ...), or (N, ...) for one channel;
            0 where ignored. With more than one channel, 'none' needs memory for full-size logits.
        normalize_by: denominator of the mean.
        avg_factor: as in :func:`weighted_cross_entropy`.
        align_corners: as in :func:`weighted_cross_entropy`.
        focal_gamma: g >= 0. The loss of an element is multiplied by (1 - p)^g, p being the probability that the model
            gives to its label: the focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002) without its alpha.
        pixels: result of :func:`mmseg_wce.kernels.pixel_bce` for these logits, this target and this ``focal_gamma``;
            computed by default.

    Returns:
        Scalar, or for reduction 'none' the shape given there. float32, or float64 for float64 logits.

    Raises:
        TypeError: a wrong dtype (float targets, integer logits).
        ValueError: shapes do not fit, an option is out of range, or a label is out of range and not ignored (see
            :mod:`mmseg_wce.targets`; on CUDA a later call raises it).

    Example:
        >>> import torch
        >>> from mmseg_wce.functional import weighted_binary_cross_entropy
        >>> logits, target = torch.tensor([[2.0], [2.0], [-1.0]]), torch.tensor([1, 0, 255])
        >>> print(f'{weighted_binary_cross_entropy(logits, target):.4f}')  # (0.1269 + 2.1269) / 2
        1.1269
        >>> print(f'{weighted_binary_cross_entropy(logits, target, torch.tensor([3.0])):.4f}')  # (3 * 0.1269 + ...) / 2
        1.2539
    """
    options = pixel_weight, reduction, normalize_by, avg_factor
    ignore_index, pixel_weight = check_call(logits, target, ignore_index, *options)
    check_sigmoid_weight(class_weight, logits, normalize_by)
    check_focal_gamma(focal_gamma)
    batch = SigmoidBatch(logits, target.long(), class_weight, ignore_index, align_corners, pixels, focal_gamma)
    return batch.reduce(reduction, normalize_by, pixel_weight, avg_factor)


def weighted_cross_entropy(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
    pixel_weight: Tensor | None = None,
    reduction: Reduction = 'mean',
    normalize_by: Normalizer = 'class_weight',
    avg_factor: float | Tensor | None = None,
    align_corners: bool = False,
    pixels: Pixels | None = None,
) -> Tensor:
    """Compute the cross-entropy with class weights, an ignored label and logits of any size.

    Same value and gradient as this line of plain PyTorch, with two differences: it is 0 with zero gradient, not NaN, if
    all pixels are ignored, and ignored pixels contribute nothing even if their logits are NaN or inf::

        F.cross_entropy(F.interpolate(logits, size=target.shape[1:], mode='bilinear'), target, class_weight,
                        ignore_index=255, label_smoothing=label_smoothing)

    For a pixel with label y and softmax probabilities p, with class weights w (1 by default) and PyTorch's label
    smoothing e, the loss is::

        l = (1 - e) w_y (-log p_y) + (e / C) sum_c w_c (-log p_c)

    With ``focal_gamma`` g it is the focal loss (Lin et al. 2017, https://arxiv.org/abs/1708.02002) of a softmax::

        l = w_y (1 - p_y)^g (-log p_y)

    The mean is the sum of ``pixel_weight * l`` over the pixels that are not ignored, divided by ``avg_factor`` or, by
    default, by the denominator that ``normalize_by`` selects:

    - 'class_weight': the sum of w_y over the pixels that are not ignored, as in PyTorch,
    - 'valid': the number of pixels that are not ignored,
    - 'all': the number of all pixels, including ignored ones.

    ``pixel_weight`` is never part of a denominator.

    Args:
        logits: (N, C, h, w), upsampled bilinearly if their size is not the target's; or (N, C, ...) or (N, C) of the
            target's size. C >= 2. float16, bfloat16, float32 or float64; computed in at least float32.
        target: (N, H, W), (N, ...) or (N,), any integer dtype: classes in [0, C) or ``ignore_index``.
        class_weight: (C,), finite and not negative. The values are not checked here
            (:class:`mmseg_wce.losses.WeightedCrossEntropyLoss` checks them once, when it is built). No gradient flows
            to it.
        ignore_index: the ignored label, 255 by default; may be negative or in [0, C). Warns once if the default is a
            class.
        label_smoothing: e in [0, 1].
        focal_gamma: g >= 0: the larger, the less pixels count whose label has a high probability. Not together with
            ``label_smoothing``.
        pixel_weight: factor of each pixel's loss; shape of the target, or broadcastable to it with as many dimensions.
        reduction: 'mean', 'sum', or 'none' for the loss of each pixel, 0 where ignored.
        normalize_by: denominator of the mean.
        avg_factor: number or one-element tensor that replaces the denominator of the mean. As in mmseg, 0 is replaced
            by 1.2e-7, reduction 'none' ignores it and 'sum' raises an error. The value of a tensor is not checked.
        align_corners: option of the upsampling, as in :func:`torch.nn.functional.interpolate`.
        pixels: result of :func:`mmseg_wce.kernels.pixel_nll` or :func:`mmseg_wce.kernels.pixel_maps` for these logits
            and this target, with :func:`smoothing_weight`; computed by default.

    Returns:
        Scalar, or the target's shape for reduction 'none'. float32, or float64 for float64 logits.

    Raises:
        TypeError: a wrong dtype (float targets, integer logits).
        ValueError: shapes do not fit, an option is out of range, or a label is outside [0, C) and not ignored (see
            :mod:`mmseg_wce.targets`; on CUDA a later call raises it).

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
    options = pixel_weight, reduction, normalize_by, avg_factor
    ignore_index, pixel_weight = check_call(logits, target, ignore_index, *options)
    check_softmax_weight(class_weight, logits)
    check_smoothing(label_smoothing)
    check_focal_gamma(focal_gamma, label_smoothing)
    maps = pixels if pixels is None or isinstance(pixels, PixelMaps) else PixelMaps(*pixels)
    inputs = logits, target.long(), class_weight, ignore_index, align_corners
    batch = SoftmaxBatch(*inputs, maps, focal_gamma, label_smoothing)
    return batch.reduce(reduction, normalize_by, pixel_weight, avg_factor)
