"""Strips of logits that are upsampled on the way: a band of nodes, a few rows of pixels at a time.

TorchScript, see :mod:`mmseg_wce.kernels.workers`.
"""

from __future__ import annotations

import torch
from mmseg_wce.kernels.bilinear import Grid, at, expand, expand_finely, gather, reduce, spread, to_pixels, to_slots
from mmseg_wce.kernels.maps import (
    LIMIT,
    Factors,
    Image,
    apply,
    factors,
    finish,
    in_float64,
    labels,
    nearly_tied,
    smooth_from,
    wins,
)
from mmseg_wce.kernels.tiles import (
    LN_2,
    LOG2_E,
    MASKED_IN_FLOAT64,
    SMALLEST_SUM,
    measure,
    measure_unshifted,
    shift,
)
from torch import Tensor


def steps(grid: Grid, first: int, last: int, height: int) -> list[tuple[int, int, int, int]]:
    """What a tile of at most ``height`` rows holds, for the rows of cells of a band.

    Returns:
        First row of cells and number of them, begin and end of the output rows: some output rows of one row of cells,
        or all those of several rows of cells with equally many.
    """
    found: list[tuple[int, int, int, int]] = []
    cell = first
    while cell < last:
        each, stop = grid.starts[cell + 1] - grid.starts[cell], cell + 1
        while stop < last and grid.starts[stop + 1] - grid.starts[stop] == each and (stop + 1 - cell) * each <= height:
            stop += 1
        for row in range(grid.starts[cell], grid.starts[stop], height):
            found.append((cell, stop - cell, row, min(row + height, grid.starts[stop])))
        cell = stop
    return found


def fill_corners(
    logits: Tensor,
    grid: Grid,
    first: int,
    last: int,
    corners: Tensor,
    unshifted: bool = False,
    masked: float = MASKED_IN_FLOAT64,
) -> None:
    """Nodes left and right of every cell, in the rows of nodes around a band.

    Each node's maximum over the channels is subtracted. This interpolates to an upper bound of the maximum at every
    pixel: no pass over the pixels, and no digits lost to a common offset.

    Args:
        logits: (C, h, w).
        first, last: the rows of cells.
        corners: (last - first + 1, 2, C, K), overwritten.
        unshifted: logits as they are, in natural units; then corners are float64.
    """
    begin, end = max(first - 1, 0), min(last, grid.nodes[0])  # rows of nodes inside the image
    nodes = torch.empty([end - begin, logits.shape[0], grid.nodes[1]], dtype=corners.dtype, device=corners.device)
    nodes.copy_(logits[:, begin:end].transpose(0, 1))
    if unshifted:
        nodes.clamp_(min=masked)
    else:
        shift(nodes)
    offset = begin - (first - 1)
    spread(nodes, grid, corners[offset : offset + end - begin])
    if first == 0:
        corners[0] = corners[1]
    if last > grid.nodes[0]:
        corners[-1] = corners[-2]


def _is_settled(
    total: Tensor,
    target_logit: Tensor,
    valid: Tensor,
    grid: Grid,
    weighted: Tensor | None,
    smallest_sum: float = SMALLEST_SUM,
    limit: float = LIMIT,
) -> bool:
    """If float32 and the maxima of the nodes were good enough for a band.

    They are not where neighbours disagree so much that the bound of the maximum is far above it (the classes between
    have lost their digits), where a loss is so large that it may be that of a masked class, and where there is a NaN.
    """
    if not bool(total.amin() >= smallest_sum):
        return False
    if weighted is not None and not bool(weighted.amin() >= -limit):
        return False
    if bool(target_logit.amin() >= -limit):
        return True
    counts = to_slots(valid.to(torch.int64), grid) == 1
    return not bool(((target_logit < -limit) & counts).any())


def measure_band(
    image: Image,
    correct: Tensor,
    grid: Grid,
    first: int,
    last: int,
    height: int,
    corners: Tensor,
    tile: Tensor,
    ln_2: float = LN_2,
) -> None:
    """Write the maps of one band.

    Args:
        image: whose maps are written.
        correct: (H, W), bool, written.
        first, last: the rows of cells of the band.
        height: how many rows of pixels a tile may hold.
        corners, tile: room for (last - first + 1, 2, C, K) and (height, S, C, K).
    """
    begin, end = grid.starts[first], grid.starts[last]
    if begin == end:
        return
    fill_corners(image.logits, grid, first, last, corners)
    y, valid = labels(image, begin, end)
    y = to_slots(y, grid)
    total = torch.empty(y.shape, dtype=corners.dtype, device=corners.device)
    target_logit, rival = torch.empty_like(total), torch.empty_like(total)
    parts = steps(grid, first, last, height)
    for cell, number, row, stop in parts:
        z, a, b = tile[: stop - row], row - begin, stop - begin
        expand(corners[cell - first : cell - first + number + 1], grid, row, stop, z)
        measure(z, y[a:b], total[a:b], target_logit[a:b], rival[a:b])

    weight, smooth, weighted = image.smoothing_weight, image.smooth, torch.zeros(0)
    if weight is not None and smooth is not None:
        weighted = torch.matmul(weight, corners).unsqueeze(2)  # (rows, 2, 1, K)
    if not _is_settled(total, target_logit, valid, grid, None if weight is None else weighted):
        _measure_finely(image, correct, grid, first, last, parts, y)
        finish(image, correct, valid, begin, end)
        return

    lse = total.log2()
    to_pixels(total, grid, image.total[begin:end])
    if weight is not None and smooth is not None:
        mean = torch.empty_like(lse)
        for cell, number, row, stop in parts:
            expand(
                weighted[cell - first : cell - first + number + 1], grid, row, stop, mean[row - begin : stop - begin]
            )
        to_pixels(smooth_from(weight, lse, mean), grid, smooth[begin:end])
    to_pixels(lse.sub_(target_logit).mul_(ln_2), grid, image.nll[begin:end])
    _compare(image, correct, grid, first, begin, end, corners, y, target_logit, rival)
    finish(image, correct, valid, begin, end)


def _measure_finely(
    image: Image,
    correct: Tensor,
    grid: Grid,
    first: int,
    last: int,
    parts: list[tuple[int, int, int, int]],
    y: Tensor,
    ln_2: float = LN_2,
    log2_e: float = LOG2_E,
) -> None:
    """The maps of a band in float64, from logits as they are.

    A maximum that is subtracted from a node takes the digits of its small logits along. Elsewhere that does no harm,
    since these classes hardly count; between neighbours that disagree they may be all there is. Nor are nodes scaled to
    units of log 2: neighbours of few digits, which cancel exactly, would no longer.
    """
    begin, end = grid.starts[first], grid.starts[last]
    shape = [last - first + 1, 2, image.logits.shape[0], grid.cells]
    corners = torch.empty(shape, dtype=torch.float64, device=y.device)
    fill_corners(image.logits, grid, first, last, corners, True)
    total = torch.empty(y.shape, dtype=torch.float64, device=y.device)
    target_logit, rival, mean = torch.empty_like(total), torch.empty_like(total), torch.zeros_like(total)
    weight, smooth = image.smoothing_weight, image.smooth
    if weight is not None:
        weight = weight.to(torch.float64)
    for cell, number, row, stop in parts:
        a, b = row - begin, stop - begin
        z = expand_finely(corners[cell - first : cell - first + number + 1], grid, row, stop).mul_(log2_e)
        measure_unshifted(z, y[a:b], total[a:b], target_logit[a:b], rival[a:b], weight, mean[a:b])
    log_sum, peak = total.log2(), torch.maximum(target_logit, rival)
    dtype = image.nll.dtype
    to_pixels(total.neg_().to(dtype), grid, image.total[begin:end])
    if weight is not None and smooth is not None:
        to_pixels(smooth_from(weight, log_sum, mean).to(dtype), grid, smooth[begin:end])
    # the maximum is not added to the logarithm of the sum first, which would vanish beside 1e30
    to_pixels(log_sum.sub_(target_logit - peak).mul_(ln_2).to(dtype), grid, image.nll[begin:end])
    _compare(image, correct, grid, first, begin, end, corners, y, target_logit, rival)


def _compare(
    image: Image,
    correct: Tensor,
    grid: Grid,
    first: int,
    begin: int,
    end: int,
    corners: Tensor,
    y: Tensor,
    target_logit: Tensor,
    rival: Tensor,
) -> None:
    """Where the target is the arg-max."""
    right = target_logit > rival
    tied = nearly_tied(target_logit, rival)
    if bool(tied.any()):
        index = tied.nonzero()
        logits = at(corners, grid, first, index[:, 0] + begin, index[:, 1], index[:, 3])
        right[tied] = wins(logits, y[tied])
    to_pixels(right, grid, correct[begin:end])


def differentiate_band(
    image: Image,
    gradient: Tensor,
    grid: Grid,
    first: int,
    last: int,
    height: int,
    corners: Tensor,
    tile: Tensor,
    corner_gradient: Tensor,
    log2_e: float = LOG2_E,
) -> tuple[Tensor, Tensor]:
    """Write the gradient of the rows of nodes that no other band shares; return what it adds to those it does share.

    Args:
        image: whose maps ``nll`` and ``smooth`` hold the gradient from above.
        gradient: (C, h, w), written.
        corner_gradient: room for (last - first + 1, 2, C, K); the rest as in :func:`measure_band`.
    """
    begin, end = grid.starts[first], grid.starts[last]
    finely = begin < end and not bool(image.total[begin:end].amin() > 0)  # as the forward sweep decided, or NaN
    if finely:
        corners = torch.empty(corners.shape, dtype=torch.float64, device=corners.device)
    fill_corners(image.logits, grid, first, last, corners, finely)
    corner_gradient.zero_()
    if begin < end:
        y, valid = labels(image, begin, end)
        of_pixels = factors(image, valid, begin, end)
        one_hot, smooth = of_pixels.one_hot, of_pixels.smooth
        of_slots = Factors(
            to_slots(of_pixels.scale, grid),
            to_slots(of_pixels.minus_total, grid),
            None if one_hot is None else to_slots(one_hot, grid),
            None if smooth is None else to_slots(smooth, grid),
        )
        y, ignored = to_slots(y, grid), torch.zeros(0)
        poisoned = bool(image.total[begin:end].isnan().any())
        if poisoned:
            ignored = to_slots(valid.to(y.dtype), grid) == 0
        weight = image.smoothing_weight
        if finely:
            of_slots = in_float64(of_slots)
            if weight is not None:
                weight = weight.to(torch.float64)
        for cell, number, row, stop in steps(grid, first, last, height):
            z, a, b = tile[: stop - row], row - begin, stop - begin
            around = corners[cell - first : cell - first + number + 1]
            if finely:
                fine = expand_finely(around, grid, row, stop).mul_(log2_e)
                apply(of_slots, fine, y[a:b], weight, True, a, b)
                z.copy_(fine)
            else:
                expand(around, grid, row, stop, z)
                apply(of_slots, z, y[a:b], weight, False, a, b)
            if poisoned:
                z.masked_fill_(ignored[a:b], 0)
            reduce(z, grid, row, stop, corner_gradient[cell - first : cell - first + number + 1])
    nodes = gather(corner_gradient, grid)
    if first == 0:  # nodes outside the image repeat its edge
        nodes[1].add_(nodes[0])
    if last > grid.nodes[0]:
        nodes[-2].add_(nodes[-1])
    gradient[:, first : last - 1] = nodes[1:-1].transpose(0, 1)
    return nodes[0].clone(), nodes[-1].clone()
