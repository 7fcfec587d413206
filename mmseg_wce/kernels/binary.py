"""Binary cross-entropy of every channel, summed over the channels, without full-size logits.

The channels are independent of each other. Both sweeps upsample a few at a time, reduce them to maps of one number per
pixel and discard them. The backward upsamples them again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from mmseg_wce.kernels.focal import focal_loss, focal_slope
from mmseg_wce.kernels.op import check_shapes, check_target_dtype, is_transformed, refuse_forward_mode
from mmseg_wce.kernels.reference import resized
from torch import Tensor

__all__ = ['element_loss', 'pixel_bce', 'positive_elements']

# Bytes of one tensor of upsampled channels: the fastest size on CPU, and one that hides launches on accelerators.
_CHUNK_BYTES = 8 << 20
_CHUNK_BYTES_ON_ACCELERATORS = 64 << 20
# F.softplus is linear above its threshold. The default of 20 causes an error of 2e-9, visible in float64.
_softplus = partial(F.softplus, threshold=40.0)


def positive_elements(target: Tensor, num_channels: int, first: int = 0, number: int | None = None) -> Tensor:
    """Encode the labels one-hot for some channels.

    Args:
        target: (N, ...), int64.
        num_channels: C of the logits. A single channel is that of label 1.
        first: first of the channels to encode.
        number: number of channels; all by default.

    Returns:
        (N, number, ...), bool.
    """
    label = 1 if num_channels == 1 else first
    number = num_channels if number is None else number
    labels = torch.arange(label, label + number, device=target.device)
    return target.unsqueeze(1) == labels.view(-1, *[1] * (target.dim() - 1))


def element_loss(z: Tensor, positive: Tensor, focal_gamma: float = 0.0) -> Tensor:
    """Return the binary cross-entropy of every element, or its focal form.

    Args:
        z: full-size logits (N, C, ...), float32 or float64.
        positive: :func:`positive_elements`.
        focal_gamma: exponent of :func:`mmseg_wce.kernels.focal.focal_loss`.

    Returns:
        (N, C, ...).
    """
    return focal_loss(_softplus(torch.where(positive, -z, z)), focal_gamma)


def _chunks(logits: Tensor, target: Tensor, align_corners: bool) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield groups of channels: their slice, their full-size logits and where they are the label's channel."""
    budget = _CHUNK_BYTES if logits.device.type == 'cpu' else _CHUNK_BYTES_ON_ACCELERATORS
    bytes_per_channel = target.numel() * torch.promote_types(logits.dtype, torch.float32).itemsize
    num_channels, step = logits.shape[1], max(1, budget // bytes_per_channel)
    has_masked = bool((logits == -torch.inf).any())
    for first in range(0, num_channels, step):
        channels = slice(first, min(first + step, num_channels))
        positive = positive_elements(target, num_channels, first, channels.stop - first)
        yield channels, resized(logits[:, channels], target.shape[1:], align_corners, has_masked), positive


def _label_logit(z: Tensor, target: Tensor, num_channels: int, first: int) -> Tensor:
    """Gather the logit of the label's channel, (N, 1, ...); of any channel where these do not include the label's."""
    index = target.unsqueeze(1) - (1 if num_channels == 1 else first)
    return z.gather(1, index.clamp_(0, z.shape[1] - 1))


def _is_valid(target: Tensor, num_channels: int, ignore_index: int) -> Tensor:
    return (target >= 0) & (target < max(num_channels, 2)) & (target != ignore_index)


def _is_predicted(z: Tensor, threshold: float, target: Tensor) -> Tensor:
    """Return where a single channel predicts the label, by mmseg's rule."""
    z = z.squeeze(1)
    return ((z.sigmoid() > threshold) == (target == 1)) & ~z.isnan()


@torch.library.custom_op(
    'mmseg_wce::pixel_bce',
    mutates_args=(),
    schema=(
        '(Tensor logits, Tensor target, int ignore_index, float threshold, bool align_corners, float focal_gamma) -> '
        '(Tensor positive, Tensor negative, Tensor correct)'
    ),
)
def _forward(
    logits: Tensor, target: Tensor, ignore_index: int, threshold: float, align_corners: bool, focal_gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    negative_loss = logits.new_zeros(target.shape, dtype=dtype)
    if target.numel() == 0:
        return torch.zeros_like(negative_loss), negative_loss, target.new_zeros(target.shape, dtype=torch.bool)
    label_logit = torch.full_like(negative_loss, torch.inf)  # loss 0 where no channel is the label's
    max_logit, predicted = torch.full_like(negative_loss, -torch.inf), target.new_zeros(target.shape)
    for channels, z, positive in _chunks(logits, target, align_corners):
        candidate = _label_logit(z, target, logits.shape[1], channels.start)
        torch.where(positive.any(1), candidate.squeeze(1), label_logit, out=label_logit)
        if logits.shape[1] > 1:
            chunk_max, index = z.max(1)
            torch.where(chunk_max > max_logit, index.add_(channels.start), predicted, out=predicted)
            torch.maximum(max_logit, chunk_max, out=max_logit)
        negative_loss += focal_loss(_softplus(z), focal_gamma).masked_fill_(positive, 0).sum(1)
    valid = _is_valid(target, logits.shape[1], ignore_index)
    positive_loss = focal_loss(_softplus(label_logit.neg_()), focal_gamma)
    if logits.shape[1] == 1:
        correct = _is_predicted(z, threshold, target)
    else:
        correct = (predicted == target) & ~max_logit.isnan()
    for loss in (positive_loss, negative_loss):
        loss.masked_fill_(~valid, 0)
    return positive_loss, negative_loss, (correct & valid).contiguous()


@_forward.register_fake
def _(logits: Tensor, target: Tensor, *_: Any) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    maps = [logits.new_empty(target.shape, dtype=dtype) for _ in range(2)]
    return *maps, logits.new_empty(target.shape, dtype=torch.bool)


@torch.library.custom_op(
    'mmseg_wce::pixel_bce_backward',
    mutates_args=(),
    schema=(
        '(Tensor? grad_positive, Tensor? grad_negative, Tensor logits, Tensor target, int ignore_index, '
        'bool align_corners, float focal_gamma) -> Tensor'
    ),
)
def _backward(
    grad_positive: Tensor | None,
    grad_negative: Tensor | None,
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    align_corners: bool,
    focal_gamma: float,
) -> Tensor:
    gradient = torch.zeros_like(logits, memory_format=torch.contiguous_format)
    if target.numel() == 0 or (grad_positive is None and grad_negative is None):
        return gradient
    zero = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
    valid = _is_valid(target, logits.shape[1], ignore_index).unsqueeze(1)
    positive_grad, negative_grad = (zero if g is None else g.unsqueeze(1) for g in (grad_positive, grad_negative))
    for channels, z, positive in _chunks(logits, target, align_corners):
        label_logit = _label_logit(z, target, logits.shape[1], channels.start)
        label_gradient = -positive_grad * _slope(-label_logit, focal_gamma)
        chunk_gradient = _slope(z, focal_gamma).mul_(negative_grad)
        torch.where(positive, label_gradient, chunk_gradient, out=chunk_gradient)
        chunk_gradient.masked_fill_(~valid, 0)  # not a product: 0 * NaN is NaN
        if logits.shape[2:] != target.shape[1:]:
            chunk_gradient = _downsample(chunk_gradient, logits[:, channels].shape, align_corners)
        gradient[:, channels] = chunk_gradient
    return gradient


@_backward.register_fake
def _(grad_positive: Tensor | None, grad_negative: Tensor | None, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _slope(z: Tensor, focal_gamma: float) -> Tensor:
    """Return the derivative of an element's loss with respect to z, its logit with the sign of a negative element."""
    slope = z.sigmoid()
    return slope if focal_gamma == 0 else slope.mul_(focal_slope(_softplus(z), focal_gamma))


def _downsample(gradient: Tensor, shape: torch.Size, align_corners: bool) -> Tensor:
    """Apply the transpose of the bilinear upsampling, its backward: (N, k, H, W) -> ``shape`` (N, k, h, w)."""
    size = gradient.shape[2:]
    if gradient.is_cuda and torch.are_deterministic_algorithms_enabled():  # PyTorch's kernel adds atomically and raises
        return _downsample_by_matrices(gradient, shape, align_corners)
    return torch.ops.aten.upsample_bilinear2d_backward(gradient, size, shape, align_corners, None, None)


def _downsample_by_matrices(gradient: Tensor, shape: torch.Size, align_corners: bool) -> Tensor:
    """Apply the same transpose by two matrix products, whose order of summation is fixed."""
    rows, columns = (
        F.interpolate(
            torch.eye(inputs, dtype=gradient.dtype, device=gradient.device)[None],
            size=outputs,
            mode='linear',
            align_corners=align_corners,
        )[0]
        for inputs, outputs in zip(shape[2:], gradient.shape[2:], strict=True)
    )  # (h, H), (w, W)
    with torch.autocast(gradient.device.type, enabled=False):
        return rows @ (gradient @ columns.T)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    logits, target, ctx.ignore_index, _, ctx.align_corners, ctx.focal_gamma = inputs
    ctx.save_for_backward(logits, target)
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_positive: Tensor | None, grad_negative: Tensor | None, _: Any) -> tuple:
    logits, target = ctx.saved_tensors
    options = ctx.ignore_index, ctx.align_corners, ctx.focal_gamma
    return _backward(grad_positive, grad_negative, logits, target, *options), *[None] * 5


_forward.register_autograd(_gradients, setup_context=_setup_context)


def _with_full_size_logits(
    logits: Tensor, target: Tensor, ignore_index: int, threshold: float, align_corners: bool, focal_gamma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the same maps from full-size logits; autograd and torch.func differentiate them any number of times."""
    valid = _is_valid(target, logits.shape[1], ignore_index)
    z = torch.where(valid.unsqueeze(1), resized(logits, target.shape[1:], align_corners), 0)
    positive = positive_elements(target, logits.shape[1])
    loss = element_loss(z, positive, focal_gamma)
    positive_loss, negative_loss = (
        torch.where(mask & valid.unsqueeze(1), loss, 0).sum(1) for mask in (positive, ~positive)
    )
    z = z.detach()
    correct = z.max(1)[1] == target if z.shape[1] > 1 else _is_predicted(z, threshold, target)
    return positive_loss, negative_loss, correct & valid & ~z.isnan().any(1)


def pixel_bce(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int,
    threshold: float = 0.5,
    align_corners: bool = False,
    focal_gamma: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the binary cross-entropy of every pixel, summed over the channels, from logits of any size.

    With ``z = F.interpolate(logits, size=target.shape[1:], mode='bilinear', align_corners=align_corners)`` and y the
    target, for each pixel that is not ignored::

        positive = -log sigmoid(z_y)                        # the label's own channel
        negative = sum over c != y of -log(1 - sigmoid(z_c))  # all others
        correct  = y is the arg-max of z                    # at a tie: the lowest class

    With a single channel, where labels are 0 and 1::

        positive = -log sigmoid(z)        where y is 1, else 0
        negative = -log(1 - sigmoid(z))   where y is 0, else 0
        correct  = (sigmoid(z) > threshold) == y

    Class weights (PyTorch's ``pos_weight``) multiply ``positive``. Neither sweep holds more than a few channels at full
    size. Differentiable once, with respect to ``logits``; a second derivative and forward mode raise. Inside the
    transforms of ``torch.func`` it runs as plain PyTorch, which supports both.

    Args:
        logits: (N, C, h, w), or (N, C, ...) of the target's spatial size; float16, bfloat16, float32 or float64.
        target: (N, H, W) or (N, ...), int64: a label in [0, C), with a single channel 0 or 1, or ``ignore_index``.
        ignore_index: label of the pixels to ignore.
        threshold: probability above which a single channel predicts label 1.
        align_corners: as in :func:`torch.nn.functional.interpolate`.
        focal_gamma: if not 0, the loss l of every element is replaced by (1 - exp(-l))^focal_gamma * l, the focal loss.

    Returns:
        ``positive`` and ``negative``, float32 (float64 for float64 logits), and ``correct``, bool, all of the target's
        shape. Ignored pixels and labels out of range, which are never used as an index, get 0, 0 and False, and a
        gradient of exactly zero whatever their logits are.

    Raises:
        ValueError: the shapes do not fit.
        TypeError: the target is not int64.
        NotImplementedError: forward-mode differentiation.

    Example:
        >>> import torch
        >>> from mmseg_wce.kernels import pixel_bce
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        >>> positive, negative, correct = pixel_bce(logits, torch.tensor([0, 1, 255]), ignore_index=255)
        >>> positive
        tensor([0.1269, 0.6931, 0.0000])
        >>> negative
        tensor([0.6931, 2.1269, 0.0000])
        >>> correct
        tensor([ True, False, False])
    """
    check_shapes(logits, target)
    check_target_dtype(target)
    return sweep_sigmoid(logits, target, ignore_index, threshold, align_corners, focal_gamma)


def sweep_sigmoid(
    logits: Tensor, target: Tensor, ignore_index: int, threshold: float, align_corners: bool, focal_gamma: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute :func:`pixel_bce` from arguments that fit each other."""
    if is_transformed():
        return _with_full_size_logits(logits, target, ignore_index, threshold, align_corners, focal_gamma)
    refuse_forward_mode(logits, 'pixel_bce', 'use torch.func.jvp')
    return _forward(logits, target, ignore_index, threshold, align_corners, focal_gamma)
