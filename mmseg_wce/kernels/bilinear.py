"""Positions of the output pixels between the input pixels, along one axis of a bilinear resize.

Cell k lies between the input pixels k - 1 and k, for k = 0 to size; neighbours outside the image repeat its edge.
Positions are computed in integers, so rounding never moves an output pixel to another cell.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['cells_and_fractions']


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
