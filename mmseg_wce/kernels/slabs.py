"""The op in plain PyTorch without full-size logits, for any device and dtype: one slab of output rows at a time.

A slab holds output rows between two neighbouring input rows, or any rows if nothing is resized. The forward keeps the
log-sum-exp of every pixel. The backward computes the logits of a slab again, turns them into their gradient and applies
the transpose of the interpolation. It uses no matrix product, which TF32 would round, and no operation whose bits
depend on the number of threads, such as ``sum``, ``lerp`` and ``addcmul``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from mmseg_wce.kernels.bilinear import cells_and_fractions
from mmseg_wce.kernels.inputs import Inputs
from torch import Tensor

_NUMBERS_IN_A_SLAB = 1 << 20  # at most, or one row
# If the largest logit is further below the subtracted maxima, digits were lost.
_MIN_SHIFTED_MAX = -40.0


class _Side(NamedTuple):
    """One side, left or right, of the output pixels of an axis: the input pixel there."""

    input_pixel: Tensor  # (outputs,), int64, input pixel on this side of each output pixel
    weight: Tensor  # (outputs,), its weight
    outputs: Tensor  # (k, inputs), int64, output pixels that have this input pixel on this side, padded with any
    output_weight: Tensor  # (k, inputs), their weights, 0 for the padding


@lru_cache(maxsize=32)
def _axis(inputs: int, outputs: int, align_corners: bool, dtype: torch.dtype, device: torch.device) -> list[_Side]:
    cell, fraction = cells_and_fractions(inputs, outputs, align_corners)
    sides = []
    for index, weight in (((cell - 1).clamp(min=0), 1 - fraction), (cell.clamp(max=inputs - 1), fraction)):
        num_outputs = torch.bincount(index, minlength=inputs)
        output = num_outputs.cumsum(0) - num_outputs + torch.arange(int(num_outputs.max()), device='cpu').unsqueeze(1)
        output_weight = torch.where(
            torch.arange(len(output), device='cpu').unsqueeze(1) < num_outputs, weight[output.clamp(max=outputs - 1)], 0
        )
        tensors = index, weight.to(dtype), output.clamp(max=outputs - 1), output_weight.to(dtype)
        sides.append(_Side(*(x.to(device) for x in tensors)))
    return sides


def _axes(
    inputs: torch.Size, outputs: torch.Size, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> list[list[_Side]]:
    """Return both sides of the rows and both sides of the columns."""
    return [_axis(*sizes, align_corners, dtype, device) for sizes in zip(inputs, outputs, strict=True)]


def _sum_first_dim(x: Tensor) -> Tensor:
    """Add up the first dimension in place, always in the same order: that of ``sum`` depends on the threads."""
    while (size := x.shape[0]) > 1:
        half = (size + 1) // 2
        x[: size - half] += x[half:]
        x = x[:half]
    return x[0]


def _masked_mul(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply, but return 0 where the weight is 0: 0 * NaN is NaN."""
    return (x * weight).masked_fill_(weight == 0, 0)


class _Slab(NamedTuple):
    """Some output rows of one image and, if they are resized, the input rows above and below."""

    image: int
    rows: slice
    above: int | None
    below: int | None
    z: Tensor  # (C, rows, W), logits minus an offset per pixel
    max_logit: Tensor  # (rows, W), maximum of z over the classes


def _slabs(logits: Tensor, size: torch.Size, align_corners: bool) -> Iterator[_Slab]:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    step = max(1, _NUMBERS_IN_A_SLAB // (logits.shape[1] * size[1]))
    if logits.shape[2:] == size:
        for n in range(logits.shape[0]):
            for rows in _cut(0, size[0], step):
                z = logits[n, :, rows].to(dtype, copy=True)
                yield _Slab(n, rows, None, None, z, z.amax(0))
        return
    row_sides, _ = _axes(logits.shape[2:], size, align_corners, dtype, torch.device('cpu'))
    input_rows = torch.stack([side.input_pixel for side in row_sides], 1)
    row_pairs, count = input_rows.unique_consecutive(dim=0, return_counts=True)
    accurate_dtype = dtype if logits.device.type == 'mps' else torch.float64  # MPS has no float64
    slabs = [
        (row_pair, rows)
        for row_pair, end, num_rows in zip(row_pairs.tolist(), count.cumsum(0).tolist(), count.tolist(), strict=True)
        for rows in _cut(end - num_rows, end, step)
    ]
    for n in range(logits.shape[0]):
        is_finite = bool(logits[n].isfinite().all())
        for (above, below), rows in slabs:
            options = (above, below), rows, size, align_corners, is_finite
            z = _resize_rows(logits[n], *options, dtype, shifted=True)
            max_logit = z.amax(0)
            if not (max_logit > _MIN_SHIFTED_MAX).all():
                z = _resize_rows(logits[n], *options, accurate_dtype, shifted=False)
                max_logit = z.amax(0)
            yield _Slab(n, rows, above, below, z, max_logit)


def _cut(begin: int, end: int, step: int) -> Iterator[slice]:
    """Cut rows into slices of at most ``step``."""
    return (slice(first, min(first + step, end)) for first in range(begin, end, step))


def _resize_rows(
    logits: Tensor,
    row_pair: tuple[int, int],
    rows: slice,
    size: torch.Size,
    align_corners: bool,
    is_finite: bool,
    dtype: torch.dtype,
    shifted: bool,
) -> Tensor:
    """Interpolate output rows between two input rows of logits (C, h, w); faster if all are finite (``is_finite``).

    With ``shifted``, the maximum over the classes is subtracted from each input pixel, so that an offset common to all
    logits of a pixel costs no digits. Where neighbouring input pixels differ so much that every class is far below
    those maxima, the subtraction costs the digits of every class.
    """
    row_sides, column_sides = _axes(logits.shape[1:], size, align_corners, dtype, logits.device)
    multiply = torch.mul if is_finite else _masked_mul

    def interpolate(inputs: list[Tensor]) -> Tensor:
        rows_sum = logits.new_zeros((), dtype=dtype)
        for x, row_side in zip(inputs, row_sides, strict=True):
            left, right = (multiply(x.index_select(1, side.input_pixel), side.weight) for side in column_sides)
            rows_sum = rows_sum + multiply((left + right).unsqueeze(1), row_side.weight[rows].unsqueeze(1))
        return rows_sum

    inputs = [logits[:, row].to(dtype) for row in row_pair]
    if shifted:
        maxima = [x.amax(0) for x in inputs]
        inputs = [x - maximum.masked_fill(maximum.isinf(), 0) for x, maximum in zip(inputs, maxima, strict=True)]
    if is_finite:
        return interpolate(inputs)
    masked = [x == -torch.inf for x in inputs]  # stays -inf where it has a weight: 0 * -inf is NaN
    z = interpolate([x.masked_fill(mask, 0) for x, mask in zip(inputs, masked, strict=True)])
    return z.masked_fill_(interpolate([mask.to(dtype) for mask in masked]) > 0, -torch.inf)


def forward(inputs: Inputs) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return nll, smooth, correct and the log-sum-exp relative to the maximum, each (N, H, W)."""
    logits, target, ignore_index, w, _, align_corners = inputs
    dtype, num_classes = torch.promote_types(logits.dtype, torch.float32), logits.shape[1]
    target = target.contiguous()  # PyTorch 2.4 gathers wrongly from a single transposed row
    nll = torch.empty(target.shape, dtype=dtype, device=target.device)
    smooth = None if w is None else torch.empty_like(nll)
    correct, log_sum_exp = torch.empty_like(nll, dtype=torch.bool), torch.empty_like(nll)
    for n, rows, _, _, z, max_logit in _slabs(logits, target.shape[1:], align_corners):
        label = target[n, rows]
        y = label.clamp(0, num_classes - 1)
        in_range, not_ignored = y == label, label != ignore_index
        label_logit = z.gather(0, y.unsqueeze(0))[0]
        is_argmax = (label_logit == max_logit).flatten()
        if is_argmax.any():  # the lowest class wins a tie
            pixels = is_argmax.nonzero().squeeze(1)
            ties = z.flatten(1)[:, pixels] == max_logit.flatten()[pixels]
            is_argmax[pixels] = ties.to(torch.uint8).argmax(0) == y.flatten()[pixels]
        correct[n, rows] = is_argmax.view(y.shape) & in_range & not_ignored
        z.sub_(max_logit)
        weighted_sum = None if w is None else _sum_first_dim(_masked_mul(z, w.view(-1, 1, 1)))
        slab_log_sum_exp = _sum_first_dim(z.exp_()).log_()
        log_sum_exp[n, rows] = slab_log_sum_exp
        # in this order: adding a maximum of 1e30 to the logarithm first would lose the logarithm
        losses = [(nll, slab_log_sum_exp - (label_logit - max_logit))]
        if w is not None and weighted_sum is not None and smooth is not None:
            losses.append((smooth, slab_log_sum_exp * w.sum() - weighted_sum))
        for out, loss in losses:
            out[n, rows] = loss.to(dtype).masked_fill_(~in_range, torch.nan).masked_fill_(~not_ignored, 0)
    return nll, smooth, correct, log_sum_exp


def backward(inputs: Inputs, log_sum_exp: Tensor, grad_nll: Tensor | None, grad_smooth: Tensor | None) -> Tensor:
    """Return the gradient of the logits, given the last result of :func:`forward` and the gradients of the maps."""
    logits, target, ignore_index, w, _, align_corners = inputs
    num_classes, dtype = logits.shape[1], log_sum_exp.dtype
    gradient = torch.zeros(logits.shape, dtype=dtype, device=logits.device)
    row_sides = column_sides = None
    if inputs.is_resized:
        row_sides, column_sides = _axes(logits.shape[2:], target.shape[1:], align_corners, dtype, logits.device)
    for n, rows, above, below, z, max_logit in _slabs(logits, target.shape[1:], align_corners):
        label, slab_log_sum_exp = target[n, rows], log_sum_exp[n, rows]
        y = label.clamp(0, num_classes - 1)
        valid = (y == label) & (label != ignore_index)
        nll_gradient, smooth_gradient = (
            None if g is None else torch.where(valid, g[n, rows].to(z.dtype), 0) for g in (grad_nll, grad_smooth)
        )
        p = z.sub_(max_logit).sub_(slab_log_sum_exp).exp_()
        slab_gradient = torch.zeros_like(p)
        if nll_gradient is not None:
            # subtracting before scaling keeps the digits of a probability close to 1
            slab_gradient += p.scatter_add(0, y.unsqueeze(0), p.new_full((1, *y.shape), -1)).mul_(nll_gradient)
        if smooth_gradient is not None and w is not None:
            slab_gradient += p.mul_(w.sum()).sub_(w.view(-1, 1, 1)).mul_(smooth_gradient)
        slab_gradient.masked_fill_(~valid, 0)  # not a product: 0 * NaN is NaN
        if row_sides is None or column_sides is None:
            gradient[n, :, rows] = slab_gradient
            continue
        for row, side in zip((above, below), row_sides, strict=True):
            row_gradient = _sum_first_dim(_masked_mul(slab_gradient, side.weight[rows].unsqueeze(1)).transpose(0, 1))
            for column_side in column_sides:
                for outputs, output_weight in zip(column_side.outputs, column_side.output_weight, strict=True):
                    gradient[n, :, row] += _masked_mul(row_gradient.index_select(1, outputs), output_weight)
    return gradient.to(logits.dtype)
