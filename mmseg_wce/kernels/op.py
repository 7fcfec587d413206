"""The one operation on logits that every weighted cross-entropy is made of, registered with ``torch.library``.

The backward is an operation of its own without an autograd formula: double backward and forward-mode differentiation
raise, and never give silent zeros.
"""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from mmseg_wce.kernels import reference
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ['BACKENDS', 'ENVIRONMENT_VARIABLE', 'check_shapes', 'chosen_backend', 'pixel_nll']

BACKENDS = ('strips', 'triton', 'reference')
ENVIRONMENT_VARIABLE = 'MMSEG_WCE_BACKEND'
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_OLDEST_TRITON = (3, 3)
_FEW_PIXELS = 4096  # images smaller than this are worked on together where nothing is resized


def _interpreted() -> bool:
    return os.environ.get('TRITON_INTERPRET') == '1'


def _has_triton() -> bool:
    """A version that the kernels compile with. A build of PyTorch that cannot use it is not made to wait for it."""
    if not (torch.version.cuda or torch.version.hip or _interpreted()):
        return False
    try:
        import triton
    except Exception:  # a broken installation is none
        return False
    return tuple(int(part) for part in triton.__version__.split('.')[:2]) >= _OLDEST_TRITON


_HAS_TRITON = _has_triton()


def chosen_backend(backend: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The back end that :func:`pixel_nll` takes.

    Args:
        backend: its argument.
        device: of the logits.
        dtype: of the logits.

    Returns:
        One of ``BACKENDS``.

    Raises:
        ValueError: there is no such back end, or it cannot work on these logits.
    """
    chosen = backend or os.environ.get(ENVIRONMENT_VARIABLE) or _default(device, dtype)
    origin = 'backend' if backend else ENVIRONMENT_VARIABLE
    if chosen not in BACKENDS:
        raise ValueError(f'{origin} must be one of {BACKENDS}, got {chosen!r}')
    if chosen == 'triton':
        _check_triton(origin, device, dtype)
    return chosen


def _default(device: torch.device, dtype: torch.dtype) -> str:
    if device.type == 'cuda':
        return 'triton' if _HAS_TRITON and dtype in _TRITON_DTYPES else 'strips'
    return 'strips' if device.type == 'cpu' else 'reference'


def _check_triton(origin: str, device: torch.device, dtype: torch.dtype) -> None:
    if device.type != 'cuda' and not _interpreted():
        raise ValueError(f"{origin}='triton' needs logits on a CUDA device, got {device}: use 'strips'")
    if not _HAS_TRITON:
        raise ValueError(f"{origin}='triton' needs the package triton, 3.3 or later: pip install triton")
    if dtype not in _TRITON_DTYPES:
        raise ValueError(f"{origin}='triton' takes float32, float16 and bfloat16 logits, got {dtype}: use 'strips'")


def _sweeps(backend: str) -> ModuleType:
    return None if backend == 'strips' else import_module('mmseg_wce.kernels.triton')


@torch.library.custom_op(
    'mmseg_wce::pixel_nll',
    mutates_args=(),
    schema=(
        '(Tensor logits, Tensor target, int ignore_index, Tensor? smoothing_weight, bool align_corners, '
        'str backend) -> (Tensor nll, Tensor smooth, Tensor correct, Tensor total)'
    ),
)
def _forward(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    smoothing_weight: Tensor | None,
    align_corners: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if target.numel() == 0:
        return _empty_maps(logits, target, ignore_index, smoothing_weight, align_corners, backend)
    sweep = _sweeps(backend).forward
    nll, smooth, correct, total = sweep(logits, target, ignore_index, smoothing_weight, align_corners)
    return nll, nll.new_empty(0) if smooth is None else smooth, correct, total


@_forward.register_fake
def _empty_maps(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    smoothing_weight: Tensor | None,
    align_corners: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    nll = logits.new_empty(target.shape, dtype=dtype)
    resized = logits.shape[2:] != target.shape[1:]
    total = nll.new_empty(2 if resized else 1, *target.shape) if backend == 'triton' else torch.empty_like(nll)
    smooth = logits.new_empty(0 if smoothing_weight is None else target.shape, dtype=dtype)
    return nll, smooth, logits.new_empty(target.shape, dtype=torch.bool), total


@torch.library.custom_op(
    'mmseg_wce::pixel_nll_backward',
    mutates_args=(),
    schema=(
        '(Tensor? grad_nll, Tensor? grad_smooth, Tensor logits, Tensor target, Tensor total, int ignore_index, '
        'Tensor? smoothing_weight, bool align_corners, str backend) -> Tensor'
    ),
)
def _backward(
    grad_nll: Tensor | None,
    grad_smooth: Tensor | None,
    logits: Tensor,
    target: Tensor,
    total: Tensor,
    ignore_index: int,
    smoothing_weight: Tensor | None,
    align_corners: bool,
    backend: str,
) -> Tensor:
    if target.numel() == 0 or (grad_nll is None and grad_smooth is None):
        return logits.new_zeros(logits.shape)
    sweep = _sweeps(backend).backward
    return sweep(grad_nll, grad_smooth, logits, target, total, ignore_index, smoothing_weight, align_corners)


@_backward.register_fake
def _(grad_nll: Tensor | None, grad_smooth: Tensor | None, logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    logits, target, ctx.ignore_index, smoothing_weight, ctx.align_corners, ctx.backend = inputs
    ctx.save_for_backward(logits, target, output[3], smoothing_weight)
    ctx.mark_non_differentiable(output[2], output[3])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_nll: Tensor | None, grad_smooth: Tensor | None, *_: Any) -> tuple:
    logits, target, total, smoothing_weight = ctx.saved_tensors
    if smoothing_weight is None:
        grad_smooth = None
    options = ctx.ignore_index, smoothing_weight, ctx.align_corners, ctx.backend
    return _backward(grad_nll, grad_smooth, logits, target, total, *options), None, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_setup_context)


def pixel_nll(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int,
    smoothing_weight: Tensor | None = None,
    align_corners: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Negative log-likelihood of every pixel's label, from logits of any size.

    With ``z = F.interpolate(logits, size=target.shape[1:], mode='bilinear', align_corners=align_corners)`` and y the
    target, for each pixel that is not ignored::

        nll     = logsumexp_c(z_c) - z_y             # F.cross_entropy(z, target, reduction='none')
        smooth  = sum_c w_c (logsumexp_k(z_k) - z_c) # with w = smoothing_weight, over classes with w_c > 0
        correct = y is the arg-max of z              # at a tie: the lowest class

    Differentiable once, with respect to ``logits``; a second time, or in forward mode, raises. Inside the transforms of
    ``torch.func``, and with ``backend='reference'``, it is plain PyTorch and can do both.

    Args:
        logits: (N, C, h, w), or (N, C, ...) of the target's spatial size; float16, bfloat16, float32 or float64.
        target: (N, H, W) or (N, ...), int64: a class in [0, C) or ``ignore_index``.
        ignore_index: the label that does not count; may lie inside [0, C) or below zero.
        smoothing_weight: (C,), weights of ``smooth``, which is all zeros without them.
        align_corners: as in :func:`torch.nn.functional.interpolate`.
        backend: 'strips', 'triton' or 'reference'; by default what the environment variable ``MMSEG_WCE_BACKEND``
            says, or else 'triton' on CUDA where it is installed (not for float64), 'strips' there without it and on
            CPU, 'reference' elsewhere.

    Returns:
        ``nll`` and ``smooth``, float32 (float64 for float64 logits), and ``correct``, bool, all of the target's shape.
        At ignored pixels: 0, 0 and False, with a gradient of exactly zero whatever their logits hold. A target outside
        [0, C) that is not ignored is never used as an index: its ``nll`` and ``smooth`` are NaN.

    Raises:
        ValueError: shapes that do not fit; a back end that is unknown or cannot work on these logits.
        TypeError: a target that is not int64.
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
    check_shapes(logits, target, smoothing_weight)
    if target.dtype != torch.int64:
        raise TypeError(f'target must be int64, got {target.dtype}: target.long()')
    backend = chosen_backend(backend, logits.device, logits.dtype)
    if backend == 'reference' or is_transformed():
        return reference.pixel_nll(
            logits, target, ignore_index=ignore_index, smoothing_weight=smoothing_weight, align_corners=align_corners
        )
    refuse_forward_mode(logits, 'pixel_nll', "use torch.func.jvp, or backend='reference'")
    shape = target.shape
    if logits.shape[2:] == shape[1:]:
        logits, target = _as_images(logits, target)
    if smoothing_weight is not None:
        smoothing_weight = smoothing_weight.detach().to(torch.promote_types(logits.dtype, torch.float32))
    nll, smooth, correct, _ = _forward(logits, target, ignore_index, smoothing_weight, align_corners, backend)
    smooth = nll.new_zeros(()).expand(shape) if smoothing_weight is None else smooth.reshape(shape)
    return nll.reshape(shape), smooth, correct.reshape(shape)


def check_shapes(logits: Tensor, target: Tensor, smoothing_weight: Tensor | None = None) -> None:
    """Raise ValueError where shapes do not fit :func:`pixel_nll`.

    Args:
        logits: (N, C, h, w), or (N, C, ...) of the target's spatial size.
        target: (N, H, W) or (N, ...).
        smoothing_weight: (C,), or None.
    """
    both = f'logits {tuple(logits.shape)} and target {tuple(target.shape)}'
    if logits.dim() < 2 or logits.shape[:1] != target.shape[:1] or logits.dim() != target.dim() + 1:
        raise ValueError(f'expected logits (N, C, ...) and target (N, ...), got {both}')
    if logits.shape[2:] != target.shape[1:]:
        if logits.dim() != 4:
            raise ValueError(f'only (N, C, h, w) is upsampled, got {both}')
        if 0 in logits.shape[2:] and target.numel() > 0:
            raise ValueError(f'empty logits cannot be upsampled: {both}')
    if logits.shape[1] == 0:
        raise ValueError(f'there are no classes in {both}')
    if smoothing_weight is not None and smoothing_weight.shape != logits.shape[1:2]:
        raise ValueError(f'smoothing_weight {tuple(smoothing_weight.shape)} has not one weight per class of {both}')


def is_transformed() -> bool:
    """Return whether a transform of ``torch.func`` is active: operations of torch.library have no rules for it."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def refuse_forward_mode(logits: Tensor, name: str, instead: str) -> None:
    """Raise NotImplementedError for a dual tensor: an operation of torch.library drops its tangent silently."""
    if not torch.compiler.is_compiling() and forward_ad.unpack_dual(logits).tangent is not None:
        raise NotImplementedError(f'{name} has no forward-mode derivative: {instead}')


def _as_images(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C, ...) and (N, ...) of one size as (N, C, h, w) and (N, h, w); images of few pixels in a single one."""
    if target.shape[1:].numel() < _FEW_PIXELS:
        return logits.transpose(0, 1).flatten(1)[None, :, None], target.reshape(1, 1, -1)
    return logits.flatten(2).unsqueeze(2), target.flatten(1).unsqueeze(1)
