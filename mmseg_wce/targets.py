"""Check label values, and explain invalid labels.

A label outside [0, C) that is not ``ignore_index`` would make the loss read out of bounds (on CUDA a device-side assert
that ends the process). :func:`valid_pixels` checks labels before they are used as indices. On CPU it raises at once. On
CUDA, reading the result would synchronize in every iteration, so the result is copied to pinned memory and a later call
raises the error. Until then invalid pixels are ignored. The back ends 'cpu' and 'triton' never use invalid labels as
indices and count them in their sweep: losses call :func:`report_invalid` after it.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch
from mmseg_wce.kernels.backends import prefers_triton
from mmseg_wce.kernels.op import is_transformed
from mmseg_wce.kernels.units import NUM_LABEL_BINS
from mmseg_wce.label_causes import likely_causes
from mmseg_wce.label_evidence import LabelEvidence
from torch import Tensor

__all__ = ['LabelFindings', 'explain', 'name_sources', 'raise_pending', 'report_invalid', 'valid_pixels']

# Each bin has copies, so that fewer pixels of a class contend for the same atomic.
_NUM_COPIES = 64
_ALL_ONES = (2**16 - 1, 2**32 - 1)  # in 16 and 32 bits: a mark for pixels without a class

_sources: ContextVar[tuple[str, ...]] = ContextVar('mmseg_wce.targets.sources', default=())


def name_sources(names: Sequence[str]) -> None:
    """Set the files that the labels of the next calls were read from, so that an error names the file.

    Args:
        names: one file for each image of a batch; empty if unknown. Batches of another size ignore them.
    """
    _sources.set(tuple(names))


@dataclass(frozen=True)
class LabelFindings:
    """Label counts of a target with invalid labels, and the position of the first invalid label.

    Attributes:
        counts: pixels of every value, valid ones included. In counts from a CUDA device, -inf stands for all invalid
            values below 0, and inf for those above 255.
        first_value: the first invalid value in memory order, exact.
        first_index: index of the first invalid value in the target.
        shape: shape of the target.
        num_classes: C.
        ignore_index: the label that the loss ignores.
        source: file that the first invalid value was read from; None if unknown.
    """

    counts: Mapping[float, int]
    first_value: int
    first_index: tuple[int, ...]
    shape: tuple[int, ...]
    num_classes: int
    ignore_index: int
    source: str | None = None

    @property
    def evidence(self) -> LabelEvidence:
        """Label counts for the likely causes; the first invalid value stands for all that a device counted with it."""
        stands_for: dict[float, float] = {}
        if self.first_value < 0:
            stands_for[-math.inf] = self.first_value
        elif self.first_value in _ALL_ONES:
            stands_for[math.inf] = self.first_value
        counts = {stands_for.get(value, value): number for value, number in self.counts.items()}
        return LabelEvidence(counts, self.num_classes, self.ignore_index)

    @property
    def bad_counts(self) -> dict[float, int]:
        """Pixels of each invalid value."""
        is_valid = self.evidence.is_valid
        return {value: number for value, number in sorted(self.counts.items()) if not is_valid(value)}

    @property
    def num_bad(self) -> int:
        """Number of invalid pixels."""
        return sum(self.bad_counts.values())


def _find_valid(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    in_range = target >= 0
    in_range &= target < num_classes  # in place, without a temporary of the target's 8 bytes a pixel
    not_ignored = target != ignore_index
    valid = in_range & not_ignored if 0 <= ignore_index < num_classes else in_range
    if target.numel() == 0:
        return valid
    bad = valid != not_ignored
    if target.is_cuda:
        if not torch.cuda.is_current_stream_capturing():
            if prefers_triton(target.device.index):
                measured = _describe(target, num_classes, ignore_index, bad.count_nonzero())
            else:
                measured = _measure(target, bad, ignore_index)
            _report_later(target, num_classes, ignore_index, measured)
    elif bad.any():
        _raise_now(target, num_classes, ignore_index, bad)
    return valid


def _raise_now(target: Tensor, num_classes: int, ignore_index: int, bad: Tensor) -> None:
    values, counts = target.unique(return_counts=True)
    first = int(bad.flatten().to(torch.uint8).argmax())
    by_value = dict(zip(values.tolist(), counts.tolist(), strict=True))
    first_value = int(target.flatten()[first])
    raise ValueError(
        explain(_findings(by_value, first_value, first, target.shape, num_classes, ignore_index, _sources.get()))
    )


def _report_later(target: Tensor, num_classes: int, ignore_index: int, measured: Tensor) -> None:
    """Raise the errors of earlier calls that have arrived, and send what describes this target."""
    raise_pending(wait=False)
    in_flight = _InFlight.send(measured, target.shape, num_classes, ignore_index)
    with _lock:
        _pending.append(in_flight)


def _describe(target: Tensor, num_classes: int, ignore_index: int, num_invalid: Tensor) -> Tensor:
    """Compute :func:`_measure` in one kernel, which returns at once where no label is invalid."""
    kernels = import_module('mmseg_wce.kernels.triton')
    return kernels.describe_invalid_labels(target.contiguous(), num_invalid, num_classes, ignore_index)


def report_invalid(target: Tensor, num_classes: int, ignore_index: int, num_invalid: Tensor) -> None:
    """Report the invalid labels of a target that were counted elsewhere, as :func:`valid_pixels` does.

    Args:
        target: int64, any shape.
        num_classes: C.
        ignore_index: the label that the loss ignores.
        num_invalid: (), number of labels that are neither a class nor ignored.

    Raises:
        ValueError: as :func:`valid_pixels`: at once on the CPU, on CUDA in a later call.
    """
    if not target.is_cuda:
        if num_invalid > 0:
            valid_pixels(target, num_classes, ignore_index)
    elif not torch.cuda.is_current_stream_capturing():  # querying an event would end the capture
        measured = _describe(target, num_classes, ignore_index, num_invalid)
        _report_later(target, num_classes, ignore_index, measured)


_valid_pixels = torch.library.custom_op(
    'mmseg_wce::valid_pixels',
    _find_valid,
    mutates_args=(),
    schema='(Tensor target, int num_classes, int ignore_index) -> Tensor',
)


@_valid_pixels.register_fake
def _(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    return torch.empty_like(target, dtype=torch.bool)


def _measure(target: Tensor, bad: Tensor, ignore_index: int) -> Tensor:
    """Return the data of :class:`LabelFindings` as one int64 vector, without synchronization.

    Returns:
        (NUM_LABEL_BINS + 3,): pixels per bin, ignored pixels, first invalid flat index (numel if none), its value.
    """
    target, bad = target.flatten(), bad.flatten()
    position = torch.arange(target.numel(), device=target.device)
    bins = target.clamp(-1, 256) + 1 + ((target > 255) & ~bad)
    counts = torch.zeros(NUM_LABEL_BINS * _NUM_COPIES, dtype=torch.int64, device=target.device)
    counts.scatter_add_(0, bins + NUM_LABEL_BINS * (position % _NUM_COPIES), torch.ones_like(bins))
    first = torch.where(bad, position, target.numel()).amin()
    first_value = target.gather(0, first.clamp(max=target.numel() - 1).view(1))
    scalars = torch.stack([(target == ignore_index).sum(), first])
    return torch.cat([counts.view(_NUM_COPIES, NUM_LABEL_BINS).sum(0), scalars, first_value])


def _read(
    measured: Tensor, shape: torch.Size, num_classes: int, ignore_index: int, sources: tuple[str, ...]
) -> LabelFindings | None:
    """Return the findings in a measurement; None if all labels are valid."""
    values = measured.tolist()
    num_ignored, first, first_value = values[NUM_LABEL_BINS:]
    if first == shape.numel():
        return None
    below, *bytes_, above, large_classes = values[:NUM_LABEL_BINS]
    counts: dict[float, int] = dict(enumerate(bytes_))
    counts[-math.inf] = below - num_ignored * (ignore_index < 0)
    counts[math.inf] = above
    counts[256] = large_classes - num_ignored * (ignore_index > 255)  # stands for all classes from 256 on
    counts[ignore_index] = num_ignored
    counts = {value: n for value, n in counts.items() if n}
    return _findings(counts, first_value, first, shape, num_classes, ignore_index, sources)


def _findings(
    counts: dict[float, int],
    first_value: int,
    first: int,
    shape: torch.Size,
    num_classes: int,
    ignore_index: int,
    sources: tuple[str, ...],
) -> LabelFindings:
    """Return the findings, given the flat index of the first invalid label and the files of the batch, if known."""
    index = tuple(map(int, np.unravel_index(first, shape)))
    source = sources[index[0]] if shape and len(sources) == shape[0] else None
    return LabelFindings(counts, first_value, index, tuple(shape), num_classes, ignore_index, source)


@dataclass(frozen=True)
class _InFlight:
    """A measurement that is being copied from the device to pinned memory."""

    measured: Tensor
    arrived: torch.cuda.Event
    shape: torch.Size
    num_classes: int
    ignore_index: int
    sources: tuple[str, ...] = ()

    @classmethod
    def send(cls, measured: Tensor, shape: torch.Size, num_classes: int, ignore_index: int) -> _InFlight:
        pinned = torch.empty(measured.shape, dtype=measured.dtype, pin_memory=True)
        pinned.copy_(measured, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(measured.device))
        return cls(pinned, arrived, shape, num_classes, ignore_index, _sources.get())


_pending: deque[_InFlight] = deque()
_lock = threading.Lock()


def _next_arrived(wait: bool) -> _InFlight | None:
    """Take the oldest measurement, if there is one and it has arrived or is waited for."""
    with _lock:
        if not _pending or not (wait or _pending[0].arrived.query()):
            return None
        return _pending.popleft()


def raise_pending(wait: bool = True) -> None:
    """Raise the errors of earlier calls on CUDA. Every loss call raises those that have arrived.

    Args:
        wait: wait for results that are still being copied, as is needed after the last loss call.

    Raises:
        ValueError: a target of an earlier call held a label outside [0, C) that was not ignored.

    Example:
        >>> from mmseg_wce.targets import raise_pending
        >>> raise_pending()  # at the end of a custom training loop
    """
    while (oldest := _next_arrived(wait)) is not None:
        if wait:
            oldest.arrived.synchronize()
        findings = _read(oldest.measured, oldest.shape, oldest.num_classes, oldest.ignore_index, oldest.sources)
        if findings is not None:
            with _lock:
                _pending.clear()
            raise ValueError('In an earlier iteration: ' + explain(findings))


def explain(findings: LabelFindings) -> str:
    """Return the error message for an invalid target: values, pixel counts, first position and likely causes.

    Example:
        >>> from mmseg_wce.targets import LabelFindings, explain
        >>> counts = {5: 37, 254: 7, 255: 20}
        >>> findings = LabelFindings(counts, 254, (0, 3, 1), (1, 8, 8), num_classes=150, ignore_index=255)
        >>> print(explain(findings).split('. ')[1])
        The first is 254 at index (0, 3, 1)
    """
    f = findings
    num_pixels = math.prod(f.shape)
    shown = sorted(f.bad_counts.items(), key=lambda item: -item[1])[:8]
    num_others = f.num_bad - sum(n for _, n in shown)
    names = {-math.inf: 'below 0', math.inf: 'above 255'}
    listed = ', '.join(f'{names.get(value, value)} ({n} px)' for value, n in shown)
    listed += f', others ({num_others} px)' * (num_others > 0)
    source = '' if f.source is None else f', of {f.source!r}'
    return (
        f'{f.num_bad} of {num_pixels} pixels of the target {f.shape} have a label that is neither in '
        f'[0, {f.num_classes}) nor ignore_index={f.ignore_index}: {listed}. '
        f'The first is {f.first_value} at index {f.first_index}{source}. '
        f'Likely cause: {"; or ".join(likely_causes(f.evidence))}.'
    )


def valid_pixels(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return a mask of the pixels whose label is in [0, num_classes) and is not ``ignore_index``.

    Args:
        target: int64, any shape.
        num_classes: C.
        ignore_index: the label that the loss ignores.

    Returns:
        bool, of the target's shape. Works inside ``torch.compile(fullgraph=True)``.

    Raises:
        ValueError: a label is neither a class nor ignored. On CUDA a later call or :func:`raise_pending` raises the
            error, and until then the pixel is not valid; on other devices this call raises it. Labels are not reported
            during the capture of a CUDA graph.

    Example:
        >>> import torch
        >>> from mmseg_wce.targets import valid_pixels
        >>> valid_pixels(torch.tensor([0, 149, 255]), num_classes=150, ignore_index=255)
        tensor([ True,  True, False])
    """
    if is_transformed() and not torch._C._functorch.is_batchedtensor(target):
        return _find_valid(target, num_classes, ignore_index)  # PyTorch 2.4 cannot call the custom operator there
    return _valid_pixels(target, num_classes, ignore_index)
