"""The softmax operation on logits behind every weighted cross-entropy, registered with ``torch.library``.

The backward is a separate operation without an autograd formula, so double backward and forward-mode differentiation
raise instead of returning zeros. ``softmax_stats`` are the numbers per pixel that it needs of the forward, in a layout
that differs between back ends.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import torch
from mmseg_wce.kernels import reference, slabs
from mmseg_wce.kernels.backends import chosen_backend
from mmseg_wce.kernels.inputs import Inputs
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ['PixelMaps', 'PixelSums', 'check_shapes', 'check_target_dtype', 'pixel_maps', 'pixel_nll']

# Smaller images are merged into one if nothing is resized, even if that copies the logits.
_MIN_PIXELS_PER_IMAGE, _MIN_PIXELS_PER_IMAGE_ON_CPU = 4096, 64
_WITH_SUMS = ('cpu', 'triton')  # back ends that add up their maps


@torch.library.custom_op(
    'mmseg_wce::pixel_nll',
    mutates_args=(),
    schema=(
        '(Tensor logits, Tensor target, int ignore_index, Tensor? smoothing_weight, Tensor? class_weight, '
        'bool align_corners, str backend) -> '
        '(Tensor nll, Tensor smooth, Tensor correct, Tensor softmax_stats, Tensor loss_sum, Tensor smooth_sum, '
        'Tensor counts)'
    ),
)
def _forward(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, backend = Inputs(*arguments[:-1]), arguments[-1]
    if inputs.target.numel() == 0:
        outputs = _empty_outputs(*arguments)
        return *outputs[:4], *(x.zero_() for x in outputs[4:])
    nll, smooth, correct, softmax_stats, *sums = _sweeps(backend).forward(inputs)
    smooth = nll.new_empty(0) if smooth is None else smooth
    return nll, smooth, correct, softmax_stats, *(sums or (nll.new_zeros(shape) for shape in ((), (), 0)))


@_forward.register_fake
def _empty_outputs(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, backend = Inputs(*arguments[:-1]), arguments[-1]
    logits, shape = inputs.logits, inputs.target.shape
    dtype = torch.promote_types(logits.dtype, torch.float32)
    nll = logits.new_empty(shape, dtype=dtype)
    softmax_stats = torch.empty_like(nll)
    if backend == 'triton':
        softmax_stats = nll.new_empty(_sweeps(backend).softmax_stats_size(inputs))
    elif backend == 'cpu' and not inputs.is_resized:
        softmax_stats = nll.new_empty(shape[0], 2, *shape[1:])
    smooth = logits.new_empty(0 if inputs.smoothing_weight is None else shape, dtype=dtype)
    correct = logits.new_empty(shape, dtype=torch.bool)
    counts = nll.new_empty(0)
    if backend in _WITH_SUMS:  # float32 counts exactly up to 16 million only
        counts = nll.new_empty(4, dtype=torch.float64)
    return nll, smooth, correct, softmax_stats, nll.new_empty(()), nll.new_empty(()), counts


@torch.library.custom_op(
    'mmseg_wce::pixel_nll_backward',
    mutates_args=(),
    schema=(
        '(Tensor? grad_nll, Tensor? grad_smooth, Tensor? grad_loss_sum, Tensor? grad_smooth_sum, Tensor logits, '
        'Tensor target, Tensor softmax_stats, int ignore_index, Tensor? smoothing_weight, Tensor? class_weight, '
        'bool align_corners, str backend) -> Tensor'
    ),
)
def _backward(*arguments: Any) -> Tensor:
    grad_nll, grad_smooth, *grad_sums, logits, target, softmax_stats = arguments[:7]
    inputs, backend = Inputs(logits, target, *arguments[7:-1]), arguments[-1]
    if target.numel() == 0 or all(g is None for g in (grad_nll, grad_smooth, *grad_sums)):
        return _empty_gradient(*arguments).zero_()
    if backend == 'cpu':
        grad_sums = [0.0 if g is None else g.item() for g in grad_sums]
    if backend not in _WITH_SUMS:
        grad_sums = []
    return _sweeps(backend).backward(inputs, softmax_stats, grad_nll, grad_smooth, *grad_sums)


@_backward.register_fake
def _empty_gradient(*arguments: Any) -> Tensor:
    logits, backend = arguments[4], arguments[-1]
    return torch.empty_like(logits) if backend == 'triton' else logits.new_empty(logits.shape)


def _sweeps(backend: str) -> Any:
    """Return the module of a back end, imported on first use: Numba and Triton take a second."""
    return slabs if backend == 'slabs' else import_module(f'mmseg_wce.kernels.{backend}')


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    logits, target, ctx.ignore_index, smoothing_weight, class_weight, ctx.align_corners, ctx.backend = inputs
    ctx.save_for_backward(logits, target, output[3], smoothing_weight, class_weight)
    ctx.mark_non_differentiable(output[2], output[3], output[6])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, *gradients: Tensor | None) -> tuple:
    logits, target, softmax_stats, smoothing_weight, class_weight = ctx.saved_tensors
    grad_nll, grad_smooth, _, _, grad_loss_sum, grad_smooth_sum, _ = gradients
    if smoothing_weight is None:
        grad_smooth = grad_smooth_sum = None
    options = ctx.ignore_index, smoothing_weight, class_weight, ctx.align_corners, ctx.backend
    gradient = _backward(grad_nll, grad_smooth, grad_loss_sum, grad_smooth_sum, logits, target, softmax_stats, *options)
    return gradient, *[None] * 6


_forward.register_autograd(_gradients, setup_context=_setup_context)


class PixelSums(NamedTuple):
    """Scalar sums over the valid pixels. The first two are differentiable, the last three int64.

    Attributes:
        loss: sum of nll times the weight of the label.
        smooth: sum of ``smooth``, 0 without smoothing.
        weight: sum of the weights of the labels.
        valid: number of valid pixels.
        correct: number of correct pixels among them.
        invalid: number of pixels whose label is neither a class nor ``ignore_index``.
    """

    loss: Tensor
    smooth: Tensor
    weight: Tensor
    valid: Tensor
    correct: Tensor
    invalid: Tensor


class PixelMaps(NamedTuple):
    """The maps of :func:`pixel_nll` and, from the back ends 'cpu' and 'triton', their sums.

    Attributes:
        nll, smooth, correct: as :func:`pixel_nll` returns them.
        sums: None from other back ends.
        class_weight: the class weights used in the sums.
    """

    nll: Tensor
    smooth: Tensor
    correct: Tensor
    sums: PixelSums | None = None
    class_weight: Tensor | None = None

    def count_pixels(self, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
        """Return how many pixels are correct, and how many are not ignored.

        Args:
            target: labels that the maps were computed from.
            ignore_index: label of the pixels to ignore.
        """
        if self.sums is not None:
            return self.sums.correct, self.sums.valid
        return self.correct.count_nonzero(), (target != ignore_index).count_nonzero()


def pixel_nll(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int,
    smoothing_weight: Tensor | None = None,
    align_corners: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the negative log-likelihood of every pixel's label, from logits of any size.

    With ``z = F.interpolate(logits, size=target.shape[1:], mode='bilinear', align_corners=align_corners)`` and y the
    target, for each pixel that is not ignored::

        nll     = logsumexp_c(z_c) - z_y             # F.cross_entropy(z, target, reduction='none')
        smooth  = sum_c w_c (logsumexp_k(z_k) - z_c) # with w = smoothing_weight, over classes with w_c > 0
        correct = y is the arg-max of z              # at a tie: the lowest class

    Differentiable once, with respect to ``logits``; a second derivative and forward mode raise. Inside the transforms
    of ``torch.func``, and with ``backend='reference'``, it runs as plain PyTorch, which supports both.

    Args:
        logits: (N, C, h, w), or (N, C, ...) of the target's spatial size; float16, bfloat16, float32 or float64.
        target: (N, H, W) or (N, ...), int64: a class in [0, C) or ``ignore_index``.
        ignore_index: label of the pixels to ignore; may lie inside [0, C) or below zero.
        smoothing_weight: (C,), weights of ``smooth``, which is all zeros without them.
        align_corners: as in :func:`torch.nn.functional.interpolate`.
        backend: 'cpu' (Numba), 'slabs' (plain PyTorch), 'triton' or 'reference'. The default is the value of the
            environment variable ``MMSEG_WCE_BACKEND`` or, if it is not set, 'cpu' on the CPU, 'triton' on CUDA where
            Triton works (not for float64), and otherwise 'slabs', or 'reference' for small inputs. 'cpu' runs as
            'slabs' for float64 and if Numba is not installed.

    Returns:
        ``nll`` and ``smooth``, float32 (float64 for float64 logits), and ``correct``, bool, all of the target's shape.
        Ignored pixels get 0, 0 and False, and a gradient of exactly zero whatever their logits are. A target outside
        [0, C) that is not ignored is never used as an index: its ``nll`` and ``smooth`` are NaN.

    Raises:
        ValueError: the shapes do not fit, or the back end does not exist or does not support these logits.
        TypeError: the target is not int64.
        NotImplementedError: forward-mode differentiation.

    Example:
        >>> import torch
        >>> from mmseg_wce.kernels import pixel_nll
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
        >>> nll, smooth, correct = pixel_nll(logits, torch.tensor([0, 1, 255]), ignore_index=255)
        >>> nll
        tensor([0.1269, 2.1269, 0.0000])
        >>> correct
        tensor([ True, False, False])
    """
    return pixel_maps(
        logits,
        target,
        ignore_index=ignore_index,
        smoothing_weight=smoothing_weight,
        align_corners=align_corners,
        backend=backend,
    )[:3]


def pixel_maps(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int,
    smoothing_weight: Tensor | None = None,
    align_corners: bool = False,
    backend: str | None = None,
) -> PixelMaps:
    """Compute the maps of :func:`pixel_nll` and, with the back ends 'cpu' and 'triton', the sums for their mean.

    Args:
        logits: as in :func:`pixel_nll`.
        target: as in :func:`pixel_nll`.
        class_weight: (C,), weights of the labels in the sums; None for ones.
        ignore_index: as in :func:`pixel_nll`.
        smoothing_weight: as in :func:`pixel_nll`.
        align_corners: as in :func:`pixel_nll`.
        backend: as in :func:`pixel_nll`.

    Returns:
        The maps, and their sums or None.

    Raises:
        ValueError: as :func:`pixel_nll`.
        TypeError: as :func:`pixel_nll`.
        NotImplementedError: as :func:`pixel_nll`.

    Example:
        >>> import torch
        >>> from mmseg_wce.kernels import pixel_maps
        >>> maps = pixel_maps(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 255]), ignore_index=255)
        >>> maps.nll
        tensor([2.1269, 0.0000])
    """
    check_shapes(logits, target, smoothing_weight=smoothing_weight, class_weight=class_weight)
    check_target_dtype(target)
    return sweep_softmax(Inputs(logits, target, ignore_index, smoothing_weight, class_weight, align_corners), backend)


def sweep_softmax(inputs: Inputs, backend: str | None = None) -> PixelMaps:
    """Compute :func:`pixel_maps` from arguments that fit each other."""
    logits, target, ignore_index, smoothing_weight, class_weight, align_corners = inputs
    backend = chosen_backend(backend, logits.device, logits.dtype, logits.shape[1] * target.numel())
    if backend == 'reference' or is_transformed():
        return PixelMaps(*reference.pixel_nll(logits, target, ignore_index, smoothing_weight, align_corners))
    refuse_forward_mode(logits, 'pixel_nll', "use torch.func.jvp, or backend='reference'")
    shape, dtype = target.shape, torch.promote_types(logits.dtype, torch.float32)
    if logits.shape[2:] == shape[1:]:
        logits, target = _as_images(logits, target, backend)
    if smoothing_weight is not None:
        smoothing_weight = smoothing_weight.detach().to(dtype)
    weight = class_weight.detach().to(dtype) if class_weight is not None and backend in _WITH_SUMS else None
    nll, smooth, correct, _, loss_sum, smooth_sum, counts = _forward(
        logits, target, ignore_index, smoothing_weight, weight, align_corners, backend
    )
    smooth = nll.new_zeros(()).expand(shape) if smoothing_weight is None else smooth.reshape(shape)
    sums = None
    if backend in _WITH_SUMS:
        sums = PixelSums(loss_sum, smooth_sum, counts[0].to(dtype), *counts[1:].long().unbind())
    return PixelMaps(nll.reshape(shape), smooth, correct.reshape(shape), sums, class_weight)


def check_shapes(logits: Tensor, target: Tensor, **weights: Tensor | None) -> None:
    """Raise ValueError unless the shapes fit :func:`pixel_nll`.

    Args:
        logits: (N, C, h, w), or (N, C, ...) of the target's spatial size.
        target: (N, H, W) or (N, ...).
        weights: weights of the classes by the name of their argument, (C,) or None.
    """
    z, y = tuple(logits.shape), tuple(target.shape)
    shapes = f'logits {z} and target {y}'
    if len(z) < 2 or z[:1] != y[:1] or len(z) != len(y) + 1:
        raise ValueError(f'expected logits (N, C, ...) and target (N, ...), got {shapes}')
    if z[2:] != y[1:]:
        if len(z) != 4:
            raise ValueError(f'only logits (N, C, h, w) can be upsampled, got {shapes}')
        if 0 in z[2:] and 0 not in y:
            raise ValueError(f'empty logits cannot be upsampled: {shapes}')
    if z[1] == 0:
        raise ValueError(f'there are no classes in {shapes}')
    for name, weight in weights.items():
        if weight is not None and weight.shape != z[1:2]:
            raise ValueError(f'{name} {tuple(weight.shape)} must have one weight per class of {shapes}')


def check_target_dtype(target: Tensor) -> None:
    """Raise TypeError unless the target is int64."""
    if target.dtype != torch.int64:
        raise TypeError(f'target must be int64, got {target.dtype}: convert it with target.long()')


def is_transformed() -> bool:
    """Return whether a ``torch.func`` transform is active, for which torch.library operations have no rule."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def refuse_forward_mode(logits: Tensor, name: str, instead: str) -> None:
    """Raise NotImplementedError for a dual tensor, whose tangent a torch.library operation would silently drop."""
    if not torch.compiler.is_compiling() and forward_ad.unpack_dual(logits).tangent is not None:
        raise NotImplementedError(f'{name} has no forward-mode derivative: {instead}')


def _as_images(logits: Tensor, target: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Reshape to (N, C, h, w) and (N, h, w), nothing being resized; small images are merged into one."""
    if target.shape[1:].numel() < (_MIN_PIXELS_PER_IMAGE_ON_CPU if backend == 'cpu' else _MIN_PIXELS_PER_IMAGE):
        return logits.transpose(0, 1).flatten(1)[None, :, None], target.reshape(1, 1, -1)
    if backend == 'cpu':
        return logits, target  # this back end takes any dimensions and strides
    return logits.flatten(2).unsqueeze(2), target.flatten(1).unsqueeze(1)
