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


class SlidingWindows:
    """Logits of overlapping windows, whose mean is taken when they are read.

    The logits are kept as the head made them. Where those of all windows would take more than half the memory of
    full-size logits, they are added up at full size instead, as each window comes.

    Args:
        images: (N, 3, H, W).
        number: of windows that will be added.

    Attributes:
        count: (N, 1, H, W), number of windows at each pixel, of the images' dtype.
    """

    def __init__(self, images: Tensor, number: int) -> None:
        self.count = images.new_zeros((images.shape[0], 1, *images.shape[2:]))
        self.size: tuple[int, int] = (images.shape[2], images.shape[3])
        self.num_channels = 0
        self._number = number
        self._windows: list[tuple[DeferredLogits, int, int]] = []
        self._total: Tensor | None = None

    def add(self, window: DeferredLogits, top: int, left: int) -> None:
        """Take a window.

        Args:
            window: its logits.
            top: row of its first pixel in the image.
            left: column of its first pixel.
        """
        _cut(self.count, window, top, left).add_(1)
        if self.num_channels == 0:
            self.num_channels = window.num_channels
            full_size = self.count.numel() * self.num_channels * self.count.itemsize
            if 2 * self._number * window.logits.numel() * window.logits.itemsize > full_size:
                self._total = self.count.new_zeros((len(self.count), self.num_channels, *self.size))
        if self._total is None:
            self._windows.append((window, top, left))
            return
        for channels in window.slices(()):
            _cut(self._total[:, channels], window, top, left).add_(window.read(channels))

    def slices(self, later_sizes: Sequence[Sequence[int]]) -> Iterator[slice]:
        """Divide the channels as :meth:`DeferredLogits.slices`."""
        if self._total is not None:
            return channel_slices(self._total, later_sizes)
        sizes = [window.size for window, *_ in self._windows]
        return channel_slices(self._windows[0][0].logits, [*sizes, *later_sizes])

    def read(self, channels: slice) -> Tensor:
        """Return some channels at the size that was tested, (N, number of channels, H, W)."""
        if self._total is not None:
            return self._total[:, channels] / self.count
        total = self.count.new_zeros((len(self.count), channels.stop - channels.start, *self.size))
        for window, top, left in self._windows:
            _cut(total, window, top, left).add_(window.read(channels))
        return total / self.count


def _cut(images: Tensor, window: DeferredLogits, top: int, left: int) -> Tensor:
    """Return the part of images (N, C, H, W) that a window covers, a view."""
    height, width = window.size
    return images[:, :, top : top + height, left : left + width]
