"""The one operation on logits that every weighted cross-entropy is made of, registered with ``torch.library``.

The backward is an operation of its own without an autograd formula: double backward and forward-mode differentiation
raise, and never give silent zeros.
"""

from __future__ import annotations

import os
import warnings
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from mmseg_wce.kernels import reference, slabs
from torch import Tensor
from torch.autograd import forward_ad

__all__ = [
    'BACKENDS',
    'ENVIRONMENT_VARIABLE',
    'PixelMaps',
    'PixelSums',
    'check_shapes',
    'chosen_backend',
    'pixel_maps',
    'pixel_nll',
]

BACKENDS = ('cpu', 'slabs', 'triton', 'reference')
ENVIRONMENT_VARIABLE = 'MMSEG_WCE_BACKEND'
_AT_IMPORT = os.environ.get(ENVIRONMENT_VARIABLE)  # old versions of torch.compile cannot trace a look at it
_COMPILED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # of Numba and Triton
_OLDEST_TRITON = (3, 3)
_FEW_NUMBERS = 1 << 20  # full-size logits up to which the reference is faster than slabs, of twenty operations each
# Images of fewer pixels are worked on together where nothing is resized, although logits may have to be copied for it.
_FEW_PIXELS = dict(cpu=64, slabs=4096, triton=4096)


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


def _has_numba() -> bool:
    """Look for Numba without importing it, which takes a second."""
    try:
        found = find_spec('numba') is not None
    except ValueError:  # somebody has put None in its place
        found = False
    return found and os.environ.get('NUMBA_DISABLE_JIT', '0') in ('', '0')


@lru_cache
def _numba_works() -> bool:
    try:
        import_module('numba')
    except Exception as error:  # it refuses versions of NumPy that it does not know
        warnings.warn(f'Numba cannot be used, so the loss takes a slower way on the CPU: {error}', stacklevel=5)
        return False
    return True


_HAS_TRITON = _has_triton()
_HAS_NUMBA = _has_numba()


def chosen_backend(backend: str | None, device: torch.device, dtype: torch.dtype, numbers: int = 2**63) -> str:
    """Choose the back end of :func:`pixel_nll`.

    Args:
        backend: its argument. 'strips', a name of the past, is 'cpu' on CPU and 'slabs' elsewhere, with a warning.
        device: of the logits.
        dtype: of the logits.
        numbers: in full-size logits; where they are few, the reference is faster than 'slabs'.

    Returns:
        One of ``BACKENDS``.

    Raises:
        ValueError: there is no such back end, or it cannot work on these logits.
    """
    asked = _AT_IMPORT if torch.compiler.is_compiling() else os.environ.get(ENVIRONMENT_VARIABLE)
    chosen = backend or asked or _default(device, dtype, numbers)
    origin = 'backend' if backend else ENVIRONMENT_VARIABLE
    if chosen == 'strips':
        chosen = 'cpu' if device.type == 'cpu' else 'slabs'
        _warn_of_strips(origin, chosen)
    if chosen not in BACKENDS:
        raise ValueError(f'{origin} must be one of {BACKENDS}, got {chosen!r}')
    if chosen == 'triton':
        _check_triton(origin, device, dtype)
    if chosen == 'cpu':
        if device.type != 'cpu':
            raise ValueError(f"{origin}='cpu' needs logits on the CPU, got {device}: use 'slabs'")
        return 'cpu' if _can_use_numba(dtype) else 'slabs'
    return chosen


@lru_cache
def _warn_of_strips(origin: str, instead: str) -> None:
    warnings.warn(f"{origin}='strips' is now called {instead!r}", DeprecationWarning, stacklevel=4)


def _can_use_numba(dtype: torch.dtype) -> bool:
    return dtype in _COMPILED_DTYPES and _HAS_NUMBA and (torch.compiler.is_compiling() or _numba_works())


def _default(device: torch.device, dtype: torch.dtype, numbers: int) -> str:
    if device.type == 'meta':
        return 'reference'
    if device.type == 'cuda' and dtype in _COMPILED_DTYPES and _HAS_TRITON:
        return 'triton'
    if device.type == 'cpu' and _can_use_numba(dtype):
        return 'cpu'
    return 'slabs' if numbers > _FEW_NUMBERS else 'reference'


def _check_triton(origin: str, device: torch.device, dtype: torch.dtype) -> None:
    if device.type != 'cuda' and not _interpreted():
        raise ValueError(f"{origin}='triton' needs logits on a CUDA device, got {device}: use 'slabs'")
    if not _HAS_TRITON:
        raise ValueError(f"{origin}='triton' needs the package triton, 3.3 or later: pip install triton")
    if dtype not in _COMPILED_DTYPES:
        raise ValueError(f"{origin}='triton' takes float32, float16 and bfloat16 logits, got {dtype}: use 'slabs'")


@torch.library.custom_op(
    'mmseg_wce::pixel_nll',
    mutates_args=(),
    schema=(
        '(Tensor logits, Tensor target, int ignore_index, Tensor? smoothing_weight, Tensor? class_weight, '
        'bool align_corners, str backend) -> '
        '(Tensor nll, Tensor smooth, Tensor correct, Tensor total, Tensor loss_sum, Tensor smooth_sum, Tensor counts)'
    ),
)
def _forward(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    smoothing_weight: Tensor | None,
    class_weight: Tensor | None,
    align_corners: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    if target.numel() == 0:
        outputs = _empty_outputs(logits, target, ignore_index, smoothing_weight, class_weight, align_corners, backend)
        return *outputs[:4], *(x.zero_() for x in outputs[4:])
    if backend == 'cpu':
        cpu = import_module('mmseg_wce.kernels.cpu')
        *maps, sums = cpu.forward(logits, target, ignore_index, class_weight, smoothing_weight, align_corners)
    else:
        sweep = slabs if backend == 'slabs' else import_module('mmseg_wce.kernels.triton')
        maps = sweep.forward(logits, target, ignore_index, smoothing_weight, align_corners)
        sums = maps[0].new_zeros(2, dtype=torch.float64)
    nll, smooth, correct, total = maps
    smooth = nll.new_empty(0) if smooth is None else smooth
    counts = sums[2:] if class_weight is not None else sums[:0]
    return nll, smooth, correct, total, *(x.to(nll.dtype, copy=True) for x in (sums[0], sums[1], counts))


@_forward.register_fake
def _empty_outputs(
    logits: Tensor,
    target: Tensor,
    ignore_index: int,
    smoothing_weight: Tensor | None,
    class_weight: Tensor | None,
    align_corners: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    nll = logits.new_empty(target.shape, dtype=dtype)
    resized = logits.shape[2:] != target.shape[1:]
    total = torch.empty_like(nll)
    if backend == 'triton':
        total = nll.new_empty(2 if resized else 1, *target.shape)
    elif backend == 'cpu' and not resized:
        total = nll.new_empty(target.shape[0], 2, *target.shape[1:])
    smooth = logits.new_empty(0 if smoothing_weight is None else target.shape, dtype=dtype)
    counts = nll.new_empty(0 if class_weight is None or backend != 'cpu' else 4)
    return (
        nll,
        smooth,
        logits.new_empty(target.shape, dtype=torch.bool),
        total,
        nll.new_empty(()),
        nll.new_empty(()),
        counts,
    )


@torch.library.custom_op(
    'mmseg_wce::pixel_nll_backward',
    mutates_args=(),
    schema=(
        '(Tensor? grad_nll, Tensor? grad_smooth, Tensor? grad_loss_sum, Tensor? grad_smooth_sum, Tensor logits, '
        'Tensor target, Tensor total, int ignore_index, Tensor? smoothing_weight, Tensor? class_weight, '
        'bool align_corners, str backend) -> Tensor'
    ),
)
def _backward(
    grad_nll: Tensor | None,
    grad_smooth: Tensor | None,
    grad_loss_sum: Tensor | None,
    grad_smooth_sum: Tensor | None,
    logits: Tensor,
    target: Tensor,
    total: Tensor,
    ignore_index: int,
    smoothing_weight: Tensor | None,
    class_weight: Tensor | None,
    align_corners: bool,
    backend: str,
) -> Tensor:
    if target.numel() == 0:
        return logits.new_zeros(logits.shape)
    maps = grad_nll, grad_smooth
    problem = logits, target, total, ignore_index
    if backend == 'cpu':
        of_sums = (0.0 if g is None else g.item() for g in (grad_loss_sum, grad_smooth_sum))
        cpu = import_module('mmseg_wce.kernels.cpu')
        return cpu.backward(*maps, *of_sums, *problem, class_weight, smoothing_weight, align_corners)
    if grad_nll is None and grad_smooth is None:
        return logits.new_zeros(logits.shape)
    sweep = slabs if backend == 'slabs' else import_module('mmseg_wce.kernels.triton')
    return sweep.backward(*maps, *problem, smoothing_weight, align_corners)


@_backward.register_fake
def _(*arguments: Any) -> Tensor:
    logits = arguments[4]
    return logits.new_empty(logits.shape)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    logits, target, ctx.ignore_index, smoothing_weight, class_weight, ctx.align_corners, ctx.backend = inputs
    ctx.save_for_backward(logits, target, output[3], smoothing_weight, class_weight)
    ctx.mark_non_differentiable(output[2], output[3], output[6])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, *gradients: Tensor | None) -> tuple:
    logits, target, total, smoothing_weight, class_weight = ctx.saved_tensors
    of_nll, of_smooth, _, _, of_loss_sum, of_smooth_sum, _ = gradients
    if smoothing_weight is None:
        of_smooth = of_smooth_sum = None
    options = ctx.ignore_index, smoothing_weight, class_weight, ctx.align_corners, ctx.backend
    gradient = _backward(of_nll, of_smooth, of_loss_sum, of_smooth_sum, logits, target, total, *options)
    return gradient, *[None] * 6


_forward.register_autograd(_gradients, setup_context=_setup_context)


class PixelSums(NamedTuple):
    """Sums over the pixels that count, all scalars; the first two are differentiable.

    Attributes:
        loss: nll times the weight of the label.
        smooth: ``smooth``, 0 without smoothing.
        weight: weights of the labels.
        valid: number of the pixels.
        correct: number of those that are correct.
        invalid: number of pixels whose label is neither a class nor ignored.
    """

    loss: Tensor
    smooth: Tensor
    weight: Tensor
    valid: Tensor
    correct: Tensor
    invalid: Tensor


class PixelMaps(NamedTuple):
    """What :func:`pixel_nll` returns, and sums of it where they cost nothing.

    Attributes:
        nll, smooth, correct: as :func:`pixel_nll` returns them.
        sums: None where the back end does not make them.
        class_weight: those that the sums are for.
    """

    nll: Tensor
    smooth: Tensor
    correct: Tensor
    sums: PixelSums | None = None
    class_weight: Tensor | None = None


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
        backend: 'cpu' (Numba), 'slabs' (plain PyTorch), 'triton' or 'reference'; by default what the environment
            variable ``MMSEG_WCE_BACKEND`` says, or else 'cpu' on the CPU, 'triton' on CUDA where it is installed (not
            for float64), and otherwise 'slabs', or 'reference' for small inputs. 'cpu' is 'slabs' for float64 and where
            Numba is not installed.

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
    backend = chosen_backend(backend, logits.device, logits.dtype, logits.shape[1] * target.numel())
    maps = _maps(logits, target, None, backend, False, ignore_index, smoothing_weight, align_corners)
    return maps.nll, maps.smooth, maps.correct


def pixel_maps(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int,
    smoothing_weight: Tensor | None = None,
    align_corners: bool = False,
) -> PixelMaps:
    """The maps of :func:`pixel_nll` and, on the CPU, the sums that a mean is made of, added up in the same sweep.

    Args:
        logits: as in :func:`pixel_nll`.
        target: as in :func:`pixel_nll`.
        class_weight: (C,), of the sums; None for ones.
        ignore_index: as in :func:`pixel_nll`.
        smoothing_weight: as in :func:`pixel_nll`.
        align_corners: as in :func:`pixel_nll`.

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
    check_shapes(logits, target, smoothing_weight)
    backend = chosen_backend(None, logits.device, logits.dtype, logits.shape[1] * target.numel())
    sums = backend == 'cpu'
    return _maps(logits, target, class_weight, backend, sums, ignore_index, smoothing_weight, align_corners)


def _maps(
    logits: Tensor,
    target: Tensor,
    class_weight: Tensor | None,
    backend: str,
    sums: bool,
    ignore_index: int,
    smoothing_weight: Tensor | None,
    align_corners: bool,
) -> PixelMaps:
    if backend == 'reference' or is_transformed():
        return PixelMaps(
            *reference.pixel_nll(
                logits,
                target,
                ignore_index=ignore_index,
                smoothing_weight=smoothing_weight,
                align_corners=align_corners,
            )
        )
    refuse_forward_mode(logits, 'pixel_nll', "use torch.func.jvp, or backend='reference'")
    shape, weight, dtype = target.shape, None, torch.promote_types(logits.dtype, torch.float32)
    if sums:
        weight = (
            logits.new_ones(logits.shape[1], dtype=dtype) if class_weight is None else class_weight.detach().to(dtype)
        )
    if logits.shape[2:] == shape[1:]:
        logits, target = _as_images(logits, target, backend)
    if smoothing_weight is not None:
        smoothing_weight = smoothing_weight.detach().to(dtype)
    nll, smooth, correct, _, *totals, counts = _forward(
        logits, target, ignore_index, smoothing_weight, weight, align_corners, backend
    )
    smooth = nll.new_zeros(()).expand(shape) if smoothing_weight is None else smooth.reshape(shape)
    maps = nll.reshape(shape), smooth, correct.reshape(shape)
    return PixelMaps(*maps, PixelSums(*totals, *counts.unbind()) if sums else None, class_weight)


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


def _as_images(logits: Tensor, target: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """(N, C, ...) and (N, ...) of one size as (N, C, h, w) and (N, h, w); images of few pixels in a single one."""
    if target.shape[1:].numel() < _FEW_PIXELS[backend]:
        return logits.transpose(0, 1).flatten(1)[None, :, None], target.reshape(1, 1, -1)
    if backend == 'cpu':
        return logits, target  # takes any dimensions and strides
    return logits.flatten(2).unsqueeze(2), target.flatten(1).unsqueeze(1)
