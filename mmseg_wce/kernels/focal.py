"""Focal loss, a function of the negative log-likelihood alone (Lin et al. 2017, https://arxiv.org/abs/1708.02002)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ['focal_loss', 'focal_slope', 'focal_sum']

_CERTAINLY_WRONG = 100.0  # exp(-100) is 0 beside 1 even in float64


def focal_loss(nll: Tensor, gamma: float) -> Tensor:
    """Return (1 - p)^gamma * nll, with p = exp(-nll) the probability of the label.

    Value and gradient are finite wherever the loss is, also at p = 1 with gamma below 1, and 0 at p = 1.

    Args:
        nll: any shape, floating point, not negative but for rounding.
        gamma: at least 0; 0 returns ``nll`` itself.

    Returns:
        The shape of ``nll``.
    """
    if gamma == 0:
        return nll
    # not as a product: the gradient of a power of 0 is infinite for gamma below 1
    return torch.where(nll <= 0, 0, _wrong_probability(_bounded(nll)) ** gamma * nll)


def focal_slope(nll: Tensor, gamma: float) -> Tensor:
    """Return the derivative of :func:`focal_loss` with respect to ``nll``.

    Args:
        nll: any shape, floating point.
        gamma: at least 0.

    Returns:
        The shape of ``nll``.
    """
    bounded = _bounded(nll)
    wrong = _wrong_probability(bounded)
    return wrong**gamma * (1 + gamma * (bounded / wrong) * torch.exp(-bounded))


def _bounded(nll: Tensor) -> Tensor:
    return nll.clamp(torch.finfo(nll.dtype).tiny, _CERTAINLY_WRONG)


def _wrong_probability(bounded: Tensor) -> Tensor:
    return -torch.expm1(-bounded)


def focal_sum(
    nll: Tensor, target: Tensor, ignore_index: int, num_classes: int, class_weight: Tensor | None, gamma: float
) -> Tensor:
    """Add up the weighted focal losses of the valid pixels, in one sweep over them.

    Differentiable once, with respect to ``nll``. Needs Numba on the CPU and Triton on CUDA.

    Args:
        nll: (N, ...), float32, contiguous.
        target: (N, ...), int64.
        ignore_index: label of the pixels to ignore; invalid labels are ignored, too.
        num_classes: C.
        class_weight: (C,), or None for ones.
        gamma: above 0.

    Returns:
        Scalar, float32.
    """
    weight = None if class_weight is None else class_weight.detach().to(nll.dtype).contiguous()
    return _sum_with_slope(nll, target, ignore_index, num_classes, weight, gamma)[0]


@torch.library.custom_op(
    'mmseg_wce::focal_sum',
    mutates_args=(),
    schema=(
        '(Tensor nll, Tensor target, int ignore_index, int num_classes, Tensor? class_weight, float gamma) -> '
        '(Tensor loss_sum, Tensor slope)'
    ),
)
def _sum_with_slope(nll: Tensor, target: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    sweeps = import_module(f'mmseg_wce.kernels.{"triton" if nll.is_cuda else "cpu"}')
    return sweeps.focal_sum(nll.detach(), target, *options)


@_sum_with_slope.register_fake
def _(nll: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return nll.new_empty(()), torch.empty_like(nll)


# An operation without a derivative: a second one raises instead of being wrong.
@torch.library.custom_op(
    'mmseg_wce::focal_sum_backward', mutates_args=(), schema='(Tensor gradient, Tensor slope) -> Tensor'
)
def _backward(gradient: Tensor, slope: Tensor) -> Tensor:
    if slope.is_cuda:
        return gradient * slope
    # in NumPy: after an operation of PyTorch its threads wait for the next one, and take time from the kernels
    return torch.from_numpy(np.multiply(slope.numpy(), np.float32(gradient.item())))


@_backward.register_fake
def _(gradient: Tensor, slope: Tensor) -> Tensor:
    return torch.empty_like(slope)


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, gradient: Tensor, _: Any) -> tuple:
    return _backward(gradient, *ctx.saved_tensors), *[None] * 5


_sum_with_slope.register_autograd(_gradients, setup_context=_setup_context)
