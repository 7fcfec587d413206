"""From sums to a mean, on one process or over several ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ['MeanOverRanks', 'averages_gradients', 'divide_or_zero']


def divide_or_zero(loss: Tensor, divisor: Tensor) -> Tensor:
    """Divide; where the divisor is 0 the quotient is 0 with zero gradient.

    Args:
        loss: scalar.
        divisor: scalar.

    Returns:
        Scalar.
    """
    # x / inf is a zero that stays connected to the graph, and unlike x * 0 it does not hide a NaN
    return loss / torch.where(divisor == 0, torch.inf, divisor)


def averages_gradients(logits: Tensor) -> bool:
    """Return True where gradients of these logits are averaged over several ranks."""
    trains = torch.is_grad_enabled() and logits.requires_grad
    return trains and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class MeanOverRanks:
    """The mean of a number over all ranks, sent while something else is computed.

    Args:
        number: scalar; changed in place.
    """

    def __init__(self, number: Tensor) -> None:
        self._number = number
        self._sending = dist.all_reduce(number, async_op=True)

    def wait(self) -> Tensor:
        """Return the mean, a scalar."""
        self._sending.wait()
        return self._number / dist.get_world_size()
