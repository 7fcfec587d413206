"""Stand-ins for the logits of mmseg's ``EncoderDecoder.inference``, resized a few channels at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mmseg_wce.upsampling import channel_slices, resize_channels
from torch import Tensor

__all__ = ['DeferredLogits', 'SlidingWindows']


@dataclass(frozen=True)
class DeferredLogits:
    """Logits of a batch, resized when they are read.

    Attributes:
        logits: (N, C, h, w), low-resolution logits of the head.
        size: (H, W) that mmseg resizes them to.
        align_corners: ``align_corners`` of the head.
    """

    logits: Tensor
    size: tuple[int, int]
    align_corners: bool

    @property
    def num_channels(self) -> int:
        return self.logits.shape[1]

    def slices(self, later_sizes: Sequence[Sequence[int]]) -> Iterator[slice]:
        """Yield slices of channels that can be read independently, given (H, W) of each later resize."""
        return channel_slices(self.logits, [self.size, *later_sizes])

    def read(self, channels: slice) -> Tensor:
        """Return a slice of channels, resized to ``size``, (N, number of channels, H, W)."""
        return resize_channels(self.logits, channels, [self.size], self.align_corners)


class SlidingWindows:
    """Logits of overlapping windows, averaged when they are read.

    Stores the low-resolution logits of all windows. If these would take more than half the memory of full-size logits,
    each window is added to full-size logits instead.

    Args:
        images: (N, 3, H, W).
        number: number of windows that will be added.

    Attributes:
        count: (N, 1, H, W), number of windows at each pixel, of the images' dtype.
    """

    def __init__(self, images: Tensor, number: int) -> None:
        self.count = images.new_zeros((images.shape[0], 1, *images.shape[2:]))
        self.size: tuple[int, int] = (images.shape[2], images.shape[3])
        self.num_channels = 0
        self._num_windows = number
        self._windows: list[tuple[DeferredLogits, int, int]] = []
        self._full_size_sum: Tensor | None = None

    def add(self, window: DeferredLogits, top: int, left: int) -> None:
        """Add the logits of a window whose first pixel is at (top, left) of the image."""
        _window_view(self.count, window, top, left).add_(1)
        if self.num_channels == 0:
            self.num_channels = window.num_channels
            full_size = self.count.numel() * self.num_channels * self.count.itemsize
            if 2 * self._num_windows * window.logits.numel() * window.logits.itemsize > full_size:
                self._full_size_sum = self.count.new_zeros((len(self.count), self.num_channels, *self.size))
        if self._full_size_sum is None:
            self._windows.append((window, top, left))
            return
        for channels in window.slices(()):
            _window_view(self._full_size_sum[:, channels], window, top, left).add_(window.read(channels))

    def slices(self, later_sizes: Sequence[Sequence[int]]) -> Iterator[slice]:
        """Yield slices of channels, as :meth:`DeferredLogits.slices`."""
        if self._full_size_sum is not None:
            return channel_slices(self._full_size_sum, later_sizes)
        sizes = [window.size for window, *_ in self._windows]
        return channel_slices(self._windows[0][0].logits, [*sizes, *later_sizes])

    def read(self, channels: slice) -> Tensor:
        """Return a slice of channels, averaged over the windows, (N, number of channels, H, W)."""
        if self._full_size_sum is not None:
            return self._full_size_sum[:, channels] / self.count
        window_sum = self.count.new_zeros((len(self.count), channels.stop - channels.start, *self.size))
        for window, top, left in self._windows:
            _window_view(window_sum, window, top, left).add_(window.read(channels))
        return window_sum.div_(self.count)


def _window_view(images: Tensor, window: DeferredLogits, top: int, left: int) -> Tensor:
    """Return the part of images (N, C, H, W) that a window covers, a view."""
    height, width = window.size
    return images[:, :, top : top + height, left : left + width]
