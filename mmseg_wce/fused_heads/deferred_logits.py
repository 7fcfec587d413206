"""Logits that stand for those of mmseg's ``EncoderDecoder.inference`` and are resized a few channels at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmseg_wce.upsampling import channel_slices, resize_channels
from torch import Tensor

__all__ = ['DeferredLogits', 'SlidingWindows']


@dataclass(frozen=True)
class DeferredLogits:
    """Logits of a batch that are resized when they are read.

    Attributes:
        logits: (N, C, h, w), as the head made them.
        size: (H, W) that mmseg resizes them to.
        align_corners: of the head.
    """

    logits: Tensor
    size: tuple[int, int]
    align_corners: bool

    @property
    def num_channels(self) -> int:
        return self.logits.shape[1]

    def slices(self, later_sizes: Sequence[Sequence[int]]) -> Iterator[slice]:
        """Divide the channels into groups that can be read alone.

        Args:
            later_sizes: (H, W) of everything that is resized again.
        """
        return channel_slices(self.logits, [self.size, *later_sizes])

    def read(self, channels: slice) -> Tensor:
        """Return some channels at the size that was tested, (N, number of channels, H, W)."""
        return resize_channels(self.logits, channels, [self.size], self.align_corners)


@dataclass(frozen=True)
class SlidingWindows:
    """Logits of overlapping windows, whose mean is taken when they are read.

    Attributes:
        windows: logits of each window, and the row and column in the image of its first pixel.
        count: (N, 1, H, W), number of windows at each pixel, of the images' dtype.
    """

    windows: Sequence[tuple[DeferredLogits, int, int]]
    count: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.count.shape[2], self.count.shape[3]

    @property
    def num_channels(self) -> int:
        return self.windows[0][0].num_channels

    def slices(self, later_sizes: Sequence[Sequence[int]]) -> Iterator[slice]:
        """Divide the channels as :meth:`DeferredLogits.slices`."""
        sizes = [window.size for window, *_ in self.windows]
        return channel_slices(self.windows[0][0].logits, [*sizes, *later_sizes])

    def read(self, channels: slice) -> Tensor:
        """Return some channels at the size that was tested, (N, number of channels, H, W)."""
        batch_size, _, height, width = self.count.shape
        total = self.count.new_zeros((batch_size, channels.stop - channels.start, height, width))
        for window, top, left in self.windows:
            window_height, window_width = window.size
            total[:, :, top : top + window_height, left : left + window_width] += window.read(channels)
        return total / self.count
