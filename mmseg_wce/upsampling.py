"""Arg-max of resized logits, computed a few channels at a time. Independent of mmseg.

Resizing ``(N, C, h, w)`` logits to the size of an image takes C full-size maps; the arg-max needs two. Here a few
channels at a time are resized, to the same bits as in a resize of all channels, compared with the largest logit so far
and discarded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['RunningArgmax', 'channel_slices', 'resize_channels', 'upsampled_argmax']

# Fewest channels of a group where PyTorch resizes channel after channel: fewer take another kernel.
_MIN_CHANNELS = 4
# Elsewhere PyTorch computes as many channels at once as a register holds, at most 64 bytes, and the remaining channels
# by other instructions, which round differently. On CUDA, channels_last logits of 16 channels or more take another
# kernel.
_REGISTER_BYTES, _MIN_CHANNELS_STRIDED = 64, 16
_MAX_SMALL_OUTPUT = 128  # height plus width up to which every CPU computes the output in registers


def channel_slices(logits: Tensor, sizes: Sequence[Sequence[int]] = ()) -> Iterator[slice]:
    """Divide the channels into groups whose resize has the same bits as a resize of all channels.

    Args:
        logits: (N, C, h, w).
        sizes: (H, W) of each resize.

    Yields:
        Slices of the channels in order.
    """
    has_small_output = any(height + width <= _MAX_SMALL_OUTPUT for height, width in sizes)
    if logits.device.type == 'cpu' and _memory_format(logits) is torch.contiguous_format and not has_small_output:
        size = min_channels = _MIN_CHANNELS
    else:
        size, min_channels = max(_REGISTER_BYTES // logits.itemsize, _MIN_CHANNELS_STRIDED), _MIN_CHANNELS_STRIDED
    first, num_channels = 0, logits.shape[1]
    while num_channels - first >= size + min_channels:
        yield slice(first, first + size)
        first += size
    yield slice(first, num_channels)


def _memory_format(logits: Tensor) -> torch.memory_format | None:
    """Return the memory format in which PyTorch resizes (a single pixel fits both), or None for other strides."""
    formats = [torch.contiguous_format, torch.channels_last]
    if logits.stride(1) < logits.stride(3):
        formats.reverse()
    return next((memory_format for memory_format in formats if logits.is_contiguous(memory_format=memory_format)), None)


def resize_channels(
    logits: Tensor, channels: slice, sizes: Sequence[Sequence[int]], align_corners: bool = False
) -> Tensor:
    """Resize some channels to the same bits as in a resize of all channels.

    Args:
        logits: (N, C, h, w), floating point.
        channels: one of :func:`channel_slices`.
        sizes: (H, W) of each resize, in order; if empty, the logits are returned unchanged.
        align_corners: as in :func:`torch.nn.functional.interpolate`.

    Returns:
        (N, number of channels, H, W), in the logits' dtype or, under autocast, the dtype of F.interpolate.
    """
    resized, memory_format = logits[:, channels], _memory_format(logits)
    if memory_format is not None:
        resized = resized.contiguous(memory_format=memory_format)
    for size in sizes:
        resized = F.interpolate(resized, size=tuple(map(int, size)), mode='bilinear', align_corners=align_corners)
    return resized


class RunningArgmax:
    """Running arg-max over groups of channels, with PyTorch's rules for ties and NaN.

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
        self._max_logit: Tensor | None = None
        self._index: Tensor | None = None
        self._is_nan: Tensor | None = None

    @property
    def index(self) -> Tensor:
        """Channel with the largest value so far, (N, ...) int64: the lowest at a tie, and the first that is NaN."""
        assert self._index is not None, 'update() has not been called yet'
        return self._index.long()

    def update(self, channels: Tensor, first: int) -> None:
        """Add a group of channels, (N, number of channels, ...); ``first`` is the index of its first channel."""
        if self._max_logit is None or self._index is None:
            self._max_logit = torch.full_like(channels[:, 0], -torch.inf)
            # takes half the time of int64 on a CPU
            self._index = torch.zeros_like(self._max_logit, dtype=torch.int16)
        if channels.device.type == 'cpu':
            self._update_one_by_one(channels, first, self._max_logit, self._index)
        else:
            self._update_together(channels, first, self._max_logit, self._index)

    def _update_one_by_one(self, channels: Tensor, first: int, max_logit: Tensor, index: Tensor) -> None:
        """Compare one channel at a time, which is vectorized, unlike a maximum over a dimension."""
        is_greater = torch.empty_like(max_logit, dtype=torch.bool)
        for i in range(channels.shape[1]):
            torch.gt(channels[:, i], max_logit, out=is_greater)
            torch.maximum(channels[:, i], max_logit, out=max_logit)  # stays NaN from the first NaN on
            index.masked_fill_(is_greater, first + i)
        if max_logit.numel() > 0 and max_logit.amax().isnan():
            is_nan = max_logit.isnan()
            is_new_nan = is_nan if self._is_nan is None else is_nan & ~self._is_nan
            index.copy_(torch.where(is_new_nan, first + channels.max(1).indices, index))
            self._is_nan = is_nan

    def _update_together(self, channels: Tensor, first: int, max_logit: Tensor, index: Tensor) -> None:
        """Compare with the maximum of the new channels: few launches, without synchronizing with the host."""
        group_max, group_argmax = channels.max(1)
        is_greater = ~(group_max <= max_logit) & ~max_logit.isnan()
        max_logit.copy_(torch.where(is_greater, group_max, max_logit))
        index.copy_(torch.where(is_greater, first + group_argmax, index))


@torch.no_grad()
def upsampled_argmax(logits: Tensor, *sizes: Sequence[int], align_corners: bool = False) -> Tensor:
    """Predict the class of every pixel of an image from logits of a lower resolution.

    The classes equal those of the following code at every pixel, with the memory of a few channels instead of all::

        for size in sizes:
            logits = F.interpolate(logits, size=size, mode='bilinear', align_corners=align_corners)
        logits.argmax(dim=1)

    Args:
        logits: (N, C, h, w), floating point, C >= 1.
        sizes: (H, W) of consecutive resizes: mmseg resizes to the input size of the network and then to the size of the
            original image. Without sizes, the logits are not resized.
        align_corners: as in :func:`torch.nn.functional.interpolate`.

    Returns:
        (N, H, W), int64: the class with the largest logit, the lowest at a tie, or the first class whose logit is NaN.

    Raises:
        TypeError: the logits are not a floating-point tensor, or a size is not a pair of integers.
        ValueError: the logits are not (N, C, h, w) or have no channel, or a size is below 1.

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
        if len(pair) != 2 or not all(isinstance(length, Integral) and not isinstance(length, bool) for length in pair):
            raise TypeError(f'a size must be two integers, (height, width), got {size!r}: pass one pair per resize')
        if min(pair) < 1:
            raise ValueError(f'a size must be at least (1, 1), got {pair}')
