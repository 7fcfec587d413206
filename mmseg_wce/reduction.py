"""Means from sums, on one process or over several ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ['MeanOverRanks', 'averages_gradients', 'divide_or_zero']


def divide_or_zero(loss: Tensor, divisor: Tensor) -> Tensor:
    """Divide; return 0 with zero gradient if the divisor is 0.

    Args:
        loss: scalar.
        divisor: scalar.

    Returns:
        Scalar.
    """
    # x / inf is 0 and stays connected to the graph; unlike x * 0 it does not hide a NaN
    return loss / torch.where(divisor == 0, torch.inf, divisor)


def averages_gradients(logits: Tensor) -> bool:
    """Return True if the gradients of these logits are averaged over several ranks."""
    needs_grad = torch.is_grad_enabled() and logits.requires_grad
    return needs_grad and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class MeanOverRanks:
    """Mean of a number over all ranks, by an asynchronous all-reduce.

    Args:
        number: scalar; modified in place.
    """

    def __init__(self, number: Tensor) -> None:
        self._number = number
        self._all_reduce = dist.all_reduce(number, async_op=True)

    def wait(self) -> Tensor:
        """Wait for the all-reduce and return the mean, a scalar."""
        self._all_reduce.wait()
        return self._number / dist.get_world_size()
