"""The op on CUDA, in Triton: deterministic, without atomics and without full-size logits.

:mod:`.tiles` cuts the work into programs, :mod:`.forward`, :mod:`.backward` and :mod:`.sums` are the kernels,
:mod:`.compiling` is how they are compiled, and they share :mod:`.coordinates`, :mod:`.interpolation`, :mod:`.pixels`,
:mod:`.blocks` (exponentials as geometric progressions) and :mod:`.strips`. docs/design.md explains them with a picture.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from mmseg_wce.kernels.inputs import Inputs
from mmseg_wce.kernels.triton.backward import differentiate_blocks, differentiate_cells, differentiate_same_size
from mmseg_wce.kernels.triton.forward import (
    find_maxima,
    measure_blocks,
    measure_in_float64,
    measure_resized,
    measure_same_size,
)
from mmseg_wce.kernels.triton.sums import add_up, add_up_focal, describe_labels, finish_sums
from mmseg_wce.kernels.triton.tiles import (
    TILES,
    Axis,
    Tiles,
    axis_numbers,
    band_rows,
    block_shape,
    classes_at_once,
    extent,
    is_wide,
    options,
    pixels_per_cell,
    rows_at_once,
)
from mmseg_wce.kernels.units import NUM_LABEL_BINS
from torch import Tensor

__all__ = ['TILES', 'Tiles', 'backward', 'describe_invalid_labels', 'focal_sum', 'forward', 'softmax_stats_size']


class _SoftmaxStats(NamedTuple):
    """Views of the float32 vector that the backward needs of the forward; forward.py explains them."""

    log_sums: Tensor  # (N * H * W,)
    max_logit: Tensor  # (N * h * w,)
    flag: Tensor  # (1,); like the next two, empty if nothing is resized
    origins: Tensor  # (N * H * W,)
    fine_log_sums: Tensor  # (N * H * W,)


def _softmax_stats_sizes(inputs: Inputs) -> tuple[int, int, int, int, int]:
    pixels, input_pixels = inputs.target.numel(), inputs.logits.numel() // inputs.logits.shape[1]
    return pixels, input_pixels, *((1, pixels, pixels) if inputs.is_resized else (0, 0, 0))


def softmax_stats_size(inputs: Inputs) -> int:
    """Return how many numbers the backward needs of the forward."""
    return sum(_softmax_stats_sizes(inputs))


class _Problem(NamedTuple):
    """The inputs of a sweep in the form that kernels take. If nothing is resized, images are single rows."""

    logits: Tensor  # (N, C, h, w)
    target: Tensor  # (N, H, W), contiguous
    block: tuple[int, int, int] | None  # scale, columns and rows of a block; None for the kernels for any scale
    axes: tuple[Axis, Axis]  # rows, columns
    smoothing: tuple[Tensor | None, Tensor | None]  # smoothing_weight (C,) and its sum (), float32

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """h, w, H, W."""
        return *self.logits.shape[2:], *self.target.shape[1:]

    @property
    def is_wide(self) -> bool:
        """True if positions inside an image do not fit into 32 bits."""
        (h, w, H, W), (rows, columns) = self.sizes, self.axes
        return is_wide(
            extent(self.logits, 2),
            4 * h * w,
            H * W,
            *(2 * (n + 1) * axis.denominator for n, axis in ((h, rows), (w, columns))),
        )


def _prepare(inputs: Inputs) -> _Problem:
    logits, target, _, smoothing_weight, _, align_corners = inputs
    if not inputs.is_resized:
        logits, target = logits.flatten(2).unsqueeze(2), target.flatten(1).unsqueeze(1)
    (h, w), (H, W) = logits.shape[2:], target.shape[1:]
    block = block_shape(h, w, H, W, align_corners)
    axes = axis_numbers(h, H, align_corners), axis_numbers(w, W, align_corners)
    weight = None if smoothing_weight is None else smoothing_weight.contiguous()
    return _Problem(logits, target.contiguous(), block, axes, (weight, None if weight is None else weight.sum()))


def forward(inputs: Inputs) -> tuple[Tensor | None, ...]:
    """Return nll, smooth, correct, statistics for the backward, and sums: see ``mmseg_wce::pixel_nll``.

    Logits are float32, float16 or bfloat16.
    """
    problem, is_smoothed, is_resized = _prepare(inputs), inputs.smoothing_weight is not None, inputs.is_resized
    z, target, W = problem.logits, problem.target, problem.sizes[3]
    images, channels = z.shape[:2]
    nll = torch.empty(inputs.target.shape, dtype=torch.float32, device=z.device)
    smooth = torch.empty_like(nll) if is_smoothed else None
    correct = torch.empty_like(nll, dtype=torch.bool)
    buffer = nll.new_empty(softmax_stats_size(inputs))
    stats = _SoftmaxStats(*buffer.split(_softmax_stats_sizes(inputs)))
    if is_resized:
        buffer[-2 * target.numel() :].zero_()  # the last two are mostly not written
    arguments = z, stats.max_logit, target, *problem.smoothing, nll, smooth, correct
    with torch.cuda.device_of(z):
        if not is_resized:
            tiles = triton.cdiv(W, TILES.lanes)
            measure_same_size[(images * tiles,)](
                *arguments, stats.log_sums, inputs.ignore_index, channels, W, tiles,
                z.stride(0), z.stride(1), z.stride(3), SMOOTHING=is_smoothed, CLASSES=TILES.loads,
                **options(TILES.lanes),
            )  # fmt: skip
        else:
            _measure(problem, inputs.ignore_index, arguments, stats, is_smoothed)
        return nll, smooth, correct, buffer, *_add_up(nll, smooth, correct, target, inputs)


def _measure(problem: _Problem, ignore_index: int, arguments: tuple, stats: _SoftmaxStats, is_smoothed: bool) -> None:
    """Fill the maps and statistics of resized logits."""
    (z, max_logit, *_), (h, w, H, W) = arguments, problem.sizes
    images, channels = z.shape[:2]
    maps = *arguments, stats.log_sums, stats.flag
    tiles, flags = triton.cdiv(h * w, TILES.lanes), dict(SMOOTHING=is_smoothed, WIDE=problem.is_wide)
    find_maxima[(images * tiles,)](
        z, max_logit, stats.flag, channels, h, w, *z.stride(),
        CLASSES=TILES.loads, **options(TILES.lanes),
    )  # fmt: skip
    if problem.block is not None:
        scale, block_w, block_h = problem.block
        tiles = triton.cdiv((h + 1) * (w + 1) * scale**2, block_w * block_h * TILES.block_lanes)
        measure_blocks[(images * tiles,)](
            *maps, ignore_index, channels, h, w, tiles, *z.stride(),
            SCALE=scale, BLOCK_W=block_w, BLOCK_H=block_h, **flags, **options(TILES.block_lanes, TILES.registers),
        )  # fmt: skip
    else:
        tiles = triton.cdiv(W, TILES.lanes)
        measure_resized[(images * (h + 1) * tiles,)](
            *maps, ignore_index, channels, h, w, H, W, tiles, *z.stride(), *problem.axes[0], *problem.axes[1],
            ROWS=rows_at_once(pixels_per_cell(problem.axes[0]), TILES.rows), **flags, **options(TILES.lanes),
        )  # fmt: skip
    tiles = triton.cdiv(H * W, TILES.pixels)
    measure_in_float64[(images * tiles,)](
        z, *arguments[2:], stats.log_sums, stats.origins, stats.fine_log_sums, stats.flag, channels,
        h, w, H, W, tiles, *z.stride(), *problem.axes[0], *problem.axes[1], PIXELS=TILES.pixels, **flags,
        **options(TILES.lanes),
    )  # fmt: skip


def _add_up(nll: Tensor, smooth: Tensor | None, correct: Tensor, target: Tensor, inputs: Inputs) -> tuple[Tensor, ...]:
    """Return the sums of loss and smoothing term, and the weights, valid, correct and invalid pixels, in float64."""
    programs = triton.cdiv(target.numel(), TILES.sum_rounds * TILES.sum_lanes)
    partial_sums = nll.new_empty(6, programs, dtype=torch.float64)
    loss_sum, smooth_sum, counts = nll.new_empty(()), nll.new_empty(()), partial_sums.new_empty(4)
    weight = None if inputs.class_weight is None else inputs.class_weight.contiguous()
    add_up[(programs,)](
        nll, smooth, correct, target, weight, partial_sums, inputs.ignore_index, inputs.logits.shape[1],
        target.numel(), programs, SMOOTHING=smooth is not None, ROUNDS=TILES.sum_rounds, **options(TILES.sum_lanes),
    )  # fmt: skip
    finish_sums[(6,)](partial_sums, loss_sum, smooth_sum, counts, programs, **options(TILES.sum_lanes))
    return loss_sum, smooth_sum, counts


def backward(
    inputs: Inputs,
    softmax_stats: Tensor,
    grad_nll: Tensor | None,
    grad_smooth: Tensor | None,
    grad_loss_sum: Tensor | None,
    grad_smooth_sum: Tensor | None,
) -> Tensor:
    """Return the gradient of the logits, with their strides where they are dense.

    Args:
        inputs: those of :func:`forward`.
        softmax_stats: statistics returned by :func:`forward`.
        grad_nll: gradient of the map, any strides, or None for zeros.
        grad_smooth: gradient of the map, any strides, or None for zeros.
        grad_loss_sum: (), gradient of the sum of weighted losses, or None for zero.
        grad_smooth_sum: (), gradient of the sum of smoothing terms, or None for zero.

    Returns:
        (N, C, ...), of the shape and dtype of the logits.
    """
    problem, is_smoothed = _prepare(inputs), inputs.smoothing_weight is not None
    z, target, is_resized = problem.logits, problem.target, inputs.is_resized
    (images, channels), (h, w, H, W) = z.shape[:2], problem.sizes
    stats = _SoftmaxStats(*softmax_stats.split(_softmax_stats_sizes(inputs)))
    result = torch.empty_like(inputs.logits)
    gradient = result if is_resized else result.flatten(2).unsqueeze(2)
    maps = (None if g is None else g.contiguous() for g in (grad_nll, grad_smooth))
    weight = None if inputs.class_weight is None else inputs.class_weight.contiguous()
    upstream = *maps, grad_loss_sum, grad_smooth_sum, weight
    with torch.cuda.device_of(z):
        if not is_resized:
            tiles = triton.cdiv(W, TILES.lanes)
            differentiate_same_size[(images * tiles,)](
                *upstream, z, stats.max_logit, target, stats.log_sums, *problem.smoothing, gradient,
                channels, W, tiles, *(x.stride(i) for x in (z, gradient) for i in (0, 1, 3)),
                SMOOTHING=is_smoothed, CLASSES=TILES.loads, **options(TILES.lanes),
            )  # fmt: skip
            return result
        is_tall = problem.block is not None and problem.block[0] > problem.block[2]
        classes = classes_at_once(channels, TILES.tall_classes if is_tall else TILES.classes)
        lanes = TILES.backward_lanes
        chunks = triton.cdiv(channels, classes)
        flags = dict(
            SMOOTHING=is_smoothed,
            WIDE=problem.is_wide or is_wide(extent(gradient, 2)),
            CLASSES=classes,
            **options(lanes, TILES.backward_registers),
        )

        def programs(columns_per_cell: int) -> tuple[int, ...]:
            """Return the number of programs, chunks of classes, strips of columns, bands, and input rows of a band."""
            columns, owned = (w + 1) * columns_per_cell, lanes - columns_per_cell
            rows = band_rows(h, triton.cdiv(images * chunks * columns, owned), TILES.programs, TILES.band)
            bands = triton.cdiv(h, rows)
            strips = triton.cdiv(bands * columns, owned)
            return images * chunks * strips, chunks, strips, bands, rows

        if problem.block is not None:
            scale, block_w, block_h = problem.block
            number, *cut = programs(scale // block_w)
            differentiate_blocks[(number,)](
                *upstream, z, stats.max_logit, target, stats.log_sums, *problem.smoothing, gradient,
                channels, h, w, *cut, *z.stride(), *gradient.stride(),
                SCALE=scale, BLOCK_W=block_w, BLOCK_H=block_h, **flags,
            )  # fmt: skip
        number, *cut = programs(1)
        for fine in (False, True) if problem.block is None else (True,):
            differentiate_cells[(number,)](
                *upstream, z, stats.max_logit, target, stats.log_sums, stats.origins, stats.fine_log_sums, stats.flag,
                *problem.smoothing, gradient, channels, h, w, H, W, *map(pixels_per_cell, problem.axes), *cut,
                *z.stride(), *gradient.stride(), *problem.axes[0], *problem.axes[1], FINE=fine, **flags,
            )  # fmt: skip
    return result


def focal_sum(
    nll: Tensor, target: Tensor, ignore_index: int, num_classes: int, class_weight: Tensor | None, gamma: float
) -> tuple[Tensor, Tensor]:
    """Compute the same as :func:`mmseg_wce.kernels.cpu.launch.focal_sum`, on CUDA."""
    pixels = nll.numel()
    programs = triton.cdiv(pixels, TILES.sum_rounds * TILES.sum_lanes)
    partial_sums = nll.new_empty(programs, dtype=torch.float64)
    slope, exponent = torch.empty_like(nll), nll.new_full((), gamma)
    with torch.cuda.device_of(nll):
        add_up_focal[(programs,)](
            nll, target.contiguous(), class_weight, slope, partial_sums, exponent, ignore_index, num_classes,
            pixels, ROUNDS=TILES.sum_rounds, **options(TILES.sum_lanes),
        )  # fmt: skip
    return partial_sums.sum().float(), slope


def run_smallest_kernel(device: torch.device) -> None:
    """Compile and run a kernel, which fails where Triton cannot be used."""
    logits, results = torch.zeros(1, 1, 1, 1, device=device), torch.empty(2, device=device)
    with torch.cuda.device_of(logits):
        find_maxima[(1,)](
            logits, results, results[1:], 1, 1, 1, *logits.stride(), CLASSES=TILES.loads, **options(TILES.lanes),
        )  # fmt: skip


def describe_invalid_labels(target: Tensor, num_invalid: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return what an error message needs of a target, if it has invalid labels, without synchronization.

    Args:
        target: int64, contiguous.
        num_invalid: (), number of invalid labels, float64.
        num_classes: C.
        ignore_index: the label that the loss ignores.

    Returns:
        (NUM_LABEL_BINS + 3,), int64: pixels per bin, ignored pixels, first invalid flat index (the number of pixels if
        there is none: the other numbers mean nothing then) and its value.
    """
    if target.numel() == 0:
        return target.new_zeros(NUM_LABEL_BINS + 3)
    report = target.new_empty(NUM_LABEL_BINS + 3)
    with torch.cuda.device_of(target):
        describe_labels[(NUM_LABEL_BINS + 2,)](
            target, num_invalid, report, ignore_index, num_classes, target.numel(),
            BINS=NUM_LABEL_BINS, **options(TILES.sum_lanes),
        )  # fmt: skip
    return report
