"""The op in plain PyTorch without full-size logits, for any device and dtype: one slab of output rows at a time.

A slab holds rows between two neighbouring input rows, or any rows where nothing is resized. Forward keeps the logarithm
of the normaliser of every pixel; backward computes the logits of a slab again, turns them into their gradient
and pushes it through the transpose of the interpolation. No matrix product, which TF32 would round, and no operation
whose bits depend on the number of threads, as those of ``sum``, ``lerp`` and ``addcmul`` do.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from mmseg_wce.kernels.bilinear import cells_and_fractions
from torch import Tensor

__all__ = ['backward', 'forward']

_NUMBERS_IN_A_SLAB = 1 << 20  # or one row
# The greatest logit is this far below the maxima that were subtracted where digits were lost.
_SMALLEST_PEAK = -40.0


class _Side(NamedTuple):
    """One of the two input pixels that each output pixel of an axis lies between."""

    pixel: Tensor  # (outputs,), the input pixel
    weight: Tensor  # (outputs,)
    back: Tensor  # (k, inputs), the output pixels that each input pixel is on this side of; any of them where there are
    back_weight: Tensor  # (k, inputs)  fewer than k, of weight 0


@lru_cache(maxsize=32)
def _axis(inputs: int, outputs: int, align_corners: bool, dtype: torch.dtype, device: torch.device) -> list[_Side]:
    cell, fraction = cells_and_fractions(inputs, outputs, align_corners)
    sides = []
    for index, weight in (((cell - 1).clamp(min=0), 1 - fraction), (cell.clamp(max=inputs - 1), fraction)):
        count = torch.bincount(index, minlength=inputs)
        back = count.cumsum(0) - count + torch.arange(int(count.max()), device='cpu').unsqueeze(1)
        back_weight = torch.where(
            torch.arange(len(back), device='cpu').unsqueeze(1) < count, weight[back.clamp(max=outputs - 1)], 0
        )
        tensors = index, weight.to(dtype), back.clamp(max=outputs - 1), back_weight.to(dtype)
        sides.append(_Side(*(x.to(device) for x in tensors)))
    return sides


def _axes(
    inputs: torch.Size, outputs: torch.Size, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> list[list[_Side]]:
    """Both sides of the rows, and of the columns."""
    return [_axis(*sizes, align_corners, dtype, device) for sizes in zip(inputs, outputs, strict=True)]


def _sum_of_first(x: Tensor) -> Tensor:
    """Add up the first dimension in place, always in the same order: that of ``sum`` depends on the threads."""
    while (size := x.shape[0]) > 1:
        kept = (size + 1) // 2
        x[: size - kept] += x[kept:]
        x = x[:kept]
    return x[0]


def _times(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply, with 0 where the weight is: 0 * NaN is NaN."""
    return (x * weight).masked_fill_(weight == 0, 0)


class _Slab(NamedTuple):
    """Some output rows of one image, and the input rows that they come from, if they are resized."""

    image: int
    rows: slice
    above: int | None
    below: int | None
    z: Tensor  # (C, rows, W), logits but for an offset of each pixel
    peak: Tensor  # (rows, W), their maximum


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
    pairs, count = torch.stack([side.pixel for side in row_sides], 1).unique_consecutive(dim=0, return_counts=True)
    fine = dtype if logits.device.type == 'mps' else torch.float64  # which it does not have
    slabs = [
        (between, rows)
        for between, end, number in zip(pairs.tolist(), count.cumsum(0).tolist(), count.tolist(), strict=True)
        for rows in _cut(end - number, end, step)
    ]
    for n in range(logits.shape[0]):
        is_finite = bool(logits[n].isfinite().all())
        for (above, below), rows in slabs:
            options = (above, below), rows, size, align_corners, is_finite
            z = _resized(logits[n], *options, dtype, shifted=True)
            peak = z.amax(0)
            if not (peak > _SMALLEST_PEAK).all():
                z = _resized(logits[n], *options, fine, shifted=False)
                peak = z.amax(0)
            yield _Slab(n, rows, above, below, z, peak)


def _cut(begin: int, end: int, step: int) -> Iterator[slice]:
    """Cut rows into slices of at most ``step``."""
    return (slice(first, min(first + step, end)) for first in range(begin, end, step))


def _resized(
    logits: Tensor,
    between: tuple[int, int],
    rows: slice,
    size: torch.Size,
    align_corners: bool,
    is_finite: bool,
    dtype: torch.dtype,
    shifted: bool,
) -> Tensor:
    """Output rows between two input rows of logits (C, h, w); ``is_finite`` if all of them are, which is faster.

    With ``shifted``, the maximum over the classes is subtracted from each input pixel: an offset of all logits of a
    pixel then costs no digits. Between input pixels that disagree so much that every class is far below those maxima,
    it costs the digits of all of them.
    """
    row_sides, column_sides = _axes(logits.shape[1:], size, align_corners, dtype, logits.device)

    times = torch.mul if is_finite else _times

    def interpolated(inputs: list[Tensor]) -> Tensor:
        total = logits.new_zeros((), dtype=dtype)
        for x, row_side in zip(inputs, row_sides, strict=True):
            first, second = (times(x.index_select(1, side.pixel), side.weight) for side in column_sides)
            total = total + times((first + second).unsqueeze(1), row_side.weight[rows].unsqueeze(1))
        return total

    inputs = [logits[:, row].to(dtype) for row in between]
    if shifted:
        peaks = [x.amax(0) for x in inputs]
        inputs = [x - peak.masked_fill(peak.isinf(), 0) for x, peak in zip(inputs, peaks, strict=True)]
    if is_finite:
        return interpolated(inputs)
    masked = [x == -torch.inf for x in inputs]  # such a class is -inf wherever it has a weight: 0 * -inf is NaN
    z = interpolated([x.masked_fill(where, 0) for x, where in zip(inputs, masked, strict=True)])
    return z.masked_fill_(interpolated([where.to(dtype) for where in masked]) > 0, -torch.inf)


def forward(
    logits: Tensor, target: Tensor, ignore_index: int, smoothing_weight: Tensor | None, align_corners: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Maps of :func:`mmseg_wce.kernels.pixel_nll` and, for :func:`backward`, the normaliser of each pixel.

    Args:
        logits: (N, C, h, w), any floating dtype, device and strides, not empty.
        target: (N, H, W), int64, not empty.
        ignore_index: the label that does not count.
        smoothing_weight: (C,), float32, or float64 for float64 logits.
        align_corners: of the interpolation.

    Returns:
        nll, smooth, correct, and the logarithm of the sum of exponentials relative to the maximum, each (N, H, W).
    """
    dtype, classes, w = torch.promote_types(logits.dtype, torch.float32), logits.shape[1], smoothing_weight
    target = target.contiguous()  # gather of PyTorch 2.4 reads wrong numbers at a single row of transposed labels
    nll = torch.empty(target.shape, dtype=dtype, device=target.device)
    smooth = None if w is None else torch.empty_like(nll)
    correct, total = torch.empty_like(nll, dtype=torch.bool), torch.empty_like(nll)
    for n, rows, _, _, z, peak in _slabs(logits, target.shape[1:], align_corners):
        label = target[n, rows]
        y = label.clamp(0, classes - 1)
        in_range, counted = y == label, label != ignore_index
        own = z.gather(0, y.unsqueeze(0))[0]
        is_greatest = (own == peak).flatten()
        if is_greatest.any():  # at a tie the lowest class counts
            at = is_greatest.nonzero().squeeze(1)
            ties = z.flatten(1)[:, at] == peak.flatten()[at]
            is_greatest[at] = ties.to(torch.uint8).argmax(0) == y.flatten()[at]
        correct[n, rows] = is_greatest.view(y.shape) & in_range & counted
        z.sub_(peak)
        distance = None if w is None else _weighted_sum(z, w)
        log_sum = _sum_of_first(z.exp_()).log_()
        total[n, rows] = log_sum
        losses = [(nll, log_sum - (own - peak))]  # the maximum is not added to the logarithm, which 1e30 would swallow
        if w is not None and distance is not None and smooth is not None:
            losses.append((smooth, log_sum * w.sum() - distance))
        for out, loss in losses:
            out[n, rows] = loss.to(dtype).masked_fill_(~in_range, torch.nan).masked_fill_(~counted, 0)
    return nll, smooth, correct, total


def _weighted_sum(z: Tensor, weight: Tensor) -> Tensor:
    """sum_c w_c z_c without the classes of weight 0, for which 0 * -inf would be NaN."""
    weight = weight.view(-1, 1, 1)
    return _sum_of_first(z.masked_fill(weight == 0, 0) * weight)


def backward(
    grad_nll: Tensor | None,
    grad_smooth: Tensor | None,
    logits: Tensor,
    target: Tensor,
    total: Tensor,
    ignore_index: int,
    smoothing_weight: Tensor | None,
    align_corners: bool,
) -> Tensor:
    """Gradient of the logits, from that of the maps.

    Args:
        grad_nll: (N, H, W), or None for zeros.
        grad_smooth: (N, H, W), or None for zeros.
        logits: as in :func:`forward`.
        target: as in :func:`forward`.
        total: what :func:`forward` returned last.
        ignore_index: as in :func:`forward`.
        smoothing_weight: as in :func:`forward`.
        align_corners: as in :func:`forward`.

    Returns:
        (N, C, h, w), in the dtype of the logits.
    """
    classes, w, dtype = logits.shape[1], smoothing_weight, total.dtype
    gradient = torch.zeros(logits.shape, dtype=dtype, device=logits.device)
    row_sides = column_sides = None
    if logits.shape[2:] != target.shape[1:]:
        row_sides, column_sides = _axes(logits.shape[2:], target.shape[1:], align_corners, dtype, logits.device)
    for n, rows, above, below, z, peak in _slabs(logits, target.shape[1:], align_corners):
        label, log_sum = target[n, rows], total[n, rows]
        y = label.clamp(0, classes - 1)
        valid = (y == label) & (label != ignore_index)
        of_nll, of_smooth = (
            None if g is None else torch.where(valid, g[n, rows].to(z.dtype), 0) for g in (grad_nll, grad_smooth)
        )
        p = z.sub_(peak).sub_(log_sum).exp_()
        slope = torch.zeros_like(p)
        if of_nll is not None:
            # subtracted before it is scaled, which keeps the digits where a probability is nearly 1
            slope += p.scatter_add(0, y.unsqueeze(0), p.new_full((1, *y.shape), -1)).mul_(of_nll)
        if of_smooth is not None and w is not None:
            slope += p.mul_(w.sum()).sub_(w.view(-1, 1, 1)).mul_(of_smooth)
        slope.masked_fill_(~valid, 0)  # not a product: 0 * NaN is NaN
        if row_sides is None or column_sides is None:
            gradient[n, :, rows] = slope
            continue
        for row, side in zip((above, below), row_sides, strict=True):
            of_row = _sum_of_first(_times(slope, side.weight[rows].unsqueeze(1)).transpose(0, 1))
            for column_side in column_sides:
                for index, weight in zip(column_side.back, column_side.back_weight, strict=True):
                    gradient[n, :, row] += _times(of_row.index_select(1, index), weight)
    return gradient.to(logits.dtype)
