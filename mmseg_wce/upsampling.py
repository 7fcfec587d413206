"""The class with the greatest logit after a resize, read a few channels at a time. Knows no mmseg.

Resizing ``(N, C, h, w)`` logits to the size of an image takes C full-size maps; the arg-max needs two of them. So a few
channels are resized by the same operation as all of them would be, compared with the greatest logit so far, and
discarded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['RunningArgmax', 'channel_slices', 'resize_channels', 'upsampled_argmax']

# A group may have any size from 4 on where PyTorch resizes one channel after the other: fewer take another kernel.
_CHANNELS = 4
# Elsewhere it computes as many channels at once as a register holds, at most 64 bytes, and those that are left over by
# other instructions, which round differently; on CUDA another kernel takes channels_last logits from 16 channels on.
_BYTES_OF_REGISTER, _CHANNELS_OF_CUDA_KERNEL = 64, 16
_SIDES_OF_SMALL_OUTPUT = 128  # height and width added up; up to there it is computed in registers on every CPU


def channel_slices(logits: Tensor, sizes: Sequence[Sequence[int]] = ()) -> Iterator[slice]:
    """Divide the channels into groups in which a resize computes the same as among all channels.

    Args:
        logits: (N, C, h, w).
        sizes: (H, W) of each resize.

    Yields:
        Slices of the channels in order.
    """
    small = any(height + width <= _SIDES_OF_SMALL_OUTPUT for height, width in sizes)
    if logits.device.type == 'cpu' and _memory_format(logits) is torch.contiguous_format and not small:
        size = least = _CHANNELS
    else:
        size, least = max(_BYTES_OF_REGISTER // logits.itemsize, _CHANNELS_OF_CUDA_KERNEL), _CHANNELS_OF_CUDA_KERNEL
    first, num_channels = 0, logits.shape[1]
    while num_channels - first >= size + least:
        yield slice(first, first + size)
        first += size
    yield slice(first, num_channels)


def _memory_format(logits: Tensor) -> torch.memory_format | None:
    """Return the one that PyTorch resizes in; of one pixel both would be right. None for other strides."""
    formats = [torch.contiguous_format, torch.channels_last]
    if logits.stride(1) < logits.stride(3):
        formats.reverse()
    return next((one for one in formats if logits.is_contiguous(memory_format=one)), None)


def resize_channels(
    logits: Tensor, channels: slice, sizes: Sequence[Sequence[int]], align_corners: bool = False
) -> Tensor:
    """Resize some channels as they would be resized among all others, to the last bit.

    Args:
        logits: (N, C, h, w), floating point.
        channels: one of :func:`channel_slices`.
        sizes: (H, W) of each resize, in order; none leaves the logits as they are.
        align_corners: as in :func:`torch.nn.functional.interpolate`.

    Returns:
        (N, number of channels, H, W), of the logits' dtype or, under autocast, what it makes of it.
    """
    resized, memory_format = logits[:, channels], _memory_format(logits)
    if memory_format is not None:
        resized = resized.contiguous(memory_format=memory_format)
    for size in sizes:
        resized = F.interpolate(resized, size=tuple(map(int, size)), mode='bilinear', align_corners=align_corners)
    return resized


class RunningArgmax:
    """The arg-max over channels that come a few at a time, with PyTorch's rules for ties and NaN.

    Example:
        >>> import torch
        >>> from mmseg_wce.upsampling import RunningArgmax
        >>> argmax = RunningArgmax()
        >>> argmax.update(torch.tensor([[[[1.0, 5.0]], [[2.0, 0.0]]]]), first=0)
        >>> argmax.update(torch.tensor([[[[2.0, 9.0]]]]), first=2)
        >>> argmax.index
        tensor([[[1, 2]]])
    """

    def __init__(self) -> None:
        self._greatest: Tensor | None = None
        self._index: Tensor | None = None
        self._is_nan: Tensor | None = None

    @property
    def index(self) -> Tensor:
        """Channel with the greatest value so far, (N, ...) int64; the lowest of several, and the first that is NaN."""
        assert self._index is not None, 'no channel has come yet'
        return self._index.long()

    def update(self, channels: Tensor, first: int) -> None:
        """Take further channels.

        Args:
            channels: (N, number of channels, ...).
            first: index of the first of them among all.
        """
        if self._greatest is None or self._index is None:
            self._greatest = torch.full_like(channels[:, 0], -torch.inf)
            # half the time of int64 on a CPU
            self._index = torch.zeros_like(self._greatest, dtype=torch.int16)
        if channels.device.type == 'cpu':
            self._update_one_by_one(channels, first, self._greatest, self._index)
        else:
            self._update_together(channels, first, self._greatest, self._index)

    def _update_one_by_one(self, channels: Tensor, first: int, greatest: Tensor, index: Tensor) -> None:
        """Compare one channel at a time: vectorized, unlike a maximum over a dimension."""
        is_greater = torch.empty_like(greatest, dtype=torch.bool)
        for i in range(channels.shape[1]):
            torch.gt(channels[:, i], greatest, out=is_greater)
            torch.maximum(channels[:, i], greatest, out=greatest)  # NaN from the first one on
            index.masked_fill_(is_greater, first + i)
        if greatest.numel() > 0 and greatest.amax().isnan():
            is_nan = greatest.isnan()
            appeared = is_nan if self._is_nan is None else is_nan & ~self._is_nan
            index.copy_(torch.where(appeared, first + channels.max(1).indices, index))
            self._is_nan = is_nan

    def _update_together(self, channels: Tensor, first: int, greatest: Tensor, index: Tensor) -> None:
        """Compare with the maximum of the new channels: few launches, and the host waits for nothing."""
        value, channel = channels.max(1)
        is_greater = ~(value <= greatest) & ~greatest.isnan()
        greatest.copy_(torch.where(is_greater, value, greatest))
        index.copy_(torch.where(is_greater, first + channel, index))


@torch.no_grad()
def upsampled_argmax(logits: Tensor, *sizes: Sequence[int], align_corners: bool = False) -> Tensor:
    """Predict the class of every pixel of an image from logits of a lower resolution.

    Same classes, to the last pixel, as this, in a few channels' memory instead of all::

        for size in sizes:
            logits = F.interpolate(logits, size=size, mode='bilinear', align_corners=align_corners)
        logits.argmax(dim=1)

    Args:
        logits: (N, C, h, w), floating point, C >= 1.
        sizes: (H, W) of one or several resizes in a row: mmseg resizes to the size that the network saw, and from
            there to that of the photo. Without any the logits are taken as they are.
        align_corners: as in :func:`torch.nn.functional.interpolate`.

    Returns:
        (N, H, W), int64: the lowest of several classes with the greatest logit, and the first class whose logit is NaN.

    Raises:
        TypeError: logits that are no floating-point tensor; a size that is no pair of integers.
        ValueError: logits that are not (N, C, h, w) or have no channel; a size below 1.

    Example:
        >>> import torch
        >>> from mmseg_wce.functional import upsampled_argmax
        >>> logits = torch.tensor([[[[2.0, 0.0]], [[1.0, 1.0]]]])  # two classes, 1 x 2 pixels
        >>> upsampled_argmax(logits, (1, 4))
        tensor([[[0, 0, 1, 1]]])
    """
    _check_arguments(logits, sizes)
    argmax = RunningArgmax()
    for channels in channel_slices(logits, sizes):
        argmax.update(resize_channels(logits, channels, sizes, align_corners), channels.start)
    return argmax.index


def _check_arguments(logits: Tensor, sizes: Sequence[Sequence[int]]) -> None:
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(
            f'logits must be a floating-point tensor, got {getattr(logits, "dtype", type(logits).__name__)}'
        )
    if logits.dim() != 4 or logits.shape[1] == 0:
        raise ValueError(f'logits must be (N, C, h, w) with C >= 1, got {tuple(logits.shape)}')
    for size in sizes:
        pair = tuple(size) if isinstance(size, Sequence) else ()
        if len(pair) != 2 or not all(isinstance(side, Integral) and not isinstance(side, bool) for side in pair):
            raise TypeError(f'a size must be two integers, (height, width), got {size!r}; each resize has its own')
        if min(pair) < 1:
            raise ValueError(f'a size must be at least (1, 1), got {pair}')
