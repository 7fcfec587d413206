"""Place output pixels between the input pixels of one axis of a bilinear resize.

Cell k lies between the input pixels k - 1 and k, for k = 0 to size; those outside the image repeat its edge. Positions
are computed in integers: no rounding decides which cell an output pixel belongs to.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ['Axis', 'axis', 'cells_and_fractions']


def cells_and_fractions(inputs: int, outputs: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Place the output pixels of an axis as :func:`torch.nn.functional.interpolate` does.

    Args:
        inputs: number of input pixels.
        outputs: number of output pixels.
        align_corners: as in F.interpolate.

    Returns:
        Cell of every output pixel, int64, and the weight of the second of its two input pixels, float64.
    """
    pixel = torch.arange(outputs, dtype=torch.int64, device='cpu')
    if align_corners:
        position, denominator = pixel * (inputs - 1), max(outputs - 1, 1)
    else:
        position, denominator = (2 * pixel + 1) * inputs - outputs, 2 * outputs
    cell = torch.div(position, denominator, rounding_mode='floor') + 1
    return cell, torch.remainder(position, denominator).double() / denominator


class Axis(NamedTuple):
    """The cells along one axis, as kernels look them up."""

    cell: Tensor  # (pixels,), int32
    fraction: Tensor  # (pixels,), float32, the weight of the second of its two nodes
    start: Tensor  # (nodes + 2,), int32, first pixel of each cell
    fine_fraction: Tensor  # as fraction, in float64


@lru_cache(maxsize=64)
def axis(nodes: int, pixels: int, align_corners: bool, device: torch.device) -> Axis:
    """From nodes to pixels, made once per size."""
    cell, fraction = cells_and_fractions(nodes, pixels, align_corners)
    return Axis(
        cell.int().to(device),
        fraction.float().to(device),
        torch.searchsorted(cell, torch.arange(nodes + 2, device='cpu')).int().to(device),
        fraction.to(device),
    )
