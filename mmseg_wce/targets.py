"""Valid label values: the guard that every loss passes through, and the explanation of an invalid label.

A label outside [0, C) that is not ``ignore_index`` would be read out of bounds by the loss (on CUDA a device-side
assert that ends the process). :func:`valid_pixels` looks before anything is indexed. On CPU it raises at once. On CUDA
looking at the result would stall the queue at every iteration, so the finding travels to pinned memory and a later
call raises it; until then the bad pixels are simply not valid, and enter no sum.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from mmseg_wce.kernels.op import is_transformed
from mmseg_wce.label_causes import likely_causes
from mmseg_wce.label_evidence import LabelEvidence
from torch import Tensor

__all__ = ['LabelFindings', 'explain', 'name_sources', 'raise_pending', 'valid_pixels']

# Bins: values below 0, the values 0..255 that a mask file can hold, values above that are no class, and that are one.
_NUM_BINS = 259
# Each bin has copies, so that not all pixels of a class queue for the same atomic.
_NUM_COPIES = 64
_ALL_ONES = (2**16 - 1, 2**32 - 1)  # of 16 and 32 bits: no class is meant


_sources: ContextVar[tuple[str, ...]] = ContextVar('mmseg_wce.targets.sources', default=())


def name_sources(names: Sequence[str]) -> None:
    """Say which files the labels of the coming calls were read from, so that a refusal names the file.

    Args:
        names: one for each image of a batch; empty where they are not known. Batches of another size ignore them.
    """
    _sources.set(tuple(names))


@dataclass(frozen=True)
class LabelFindings:
    """Labels of a target, some of which are invalid, and where the first of those is.

    Attributes:
        counts: pixels of every value, valid ones included. Counted on a CUDA device, -inf stands for all invalid values
            below 0, inf for those above 255.
        first_value: the first invalid value in memory order, exact.
        first_index: its index in the target.
        shape: of the target.
        num_classes: C.
        ignore_index: the label that does not count.
        source: file that the first invalid value was read from, where that is known.
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
        """The counts for the likely causes; of values that a device counted together the first is known."""
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
        is_legal = self.evidence.is_legal
        return {value: number for value, number in sorted(self.counts.items()) if not is_legal(value)}

    @property
    def num_bad(self) -> int:
        """Number of invalid pixels."""
        return sum(self.bad_counts.values())


def _find_valid(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    in_range = target >= 0
    in_range &= target < num_classes  # no tensor of the target's eight bytes a pixel in between
    counted = target != ignore_index
    valid = in_range & counted if 0 <= ignore_index < num_classes else in_range
    if target.numel() == 0:
        return valid
    bad = valid != counted
    if target.is_cuda:
        if not torch.cuda.is_current_stream_capturing():  # asking an event would end the capture
            raise_pending(wait=False)
            _pending.append(
                _InFlight.send(_measure(target, bad, ignore_index), target.shape, num_classes, ignore_index)
            )
    elif bad.any():
        values, counts = target.unique(return_counts=True)
        first = int(bad.flatten().to(torch.uint8).argmax())
        findings = LabelFindings(
            dict(zip(values.tolist(), counts.tolist(), strict=True)),
            int(target.flatten()[first]),
            _unravel(first, target.shape),
            tuple(target.shape),
            num_classes,
            ignore_index,
        )
        raise ValueError(explain(_with_source(findings, _sources.get())))
    return valid


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
    """Return what :class:`LabelFindings` needs as one int64 vector, without a synchronisation.

    Returns: (_NUM_BINS + 3,): pixels per bin, ignored pixels, first bad flat index (numel if none), its value.
    """
    target, bad = target.flatten(), bad.flatten()
    position = torch.arange(target.numel(), device=target.device)
    bins = target.clamp(-1, 256) + 1 + ((target > 255) & ~bad)
    counts = torch.zeros(_NUM_BINS * _NUM_COPIES, dtype=torch.int64, device=target.device)
    counts.scatter_add_(0, bins + _NUM_BINS * (position % _NUM_COPIES), torch.ones_like(bins))
    first = torch.where(bad, position, target.numel()).amin()
    first_value = target.gather(0, first.clamp(max=target.numel() - 1).view(1))
    scalars = torch.stack([(target == ignore_index).sum(), first])
    return torch.cat([counts.view(_NUM_COPIES, _NUM_BINS).sum(0), scalars, first_value])


def _read(
    measured: Tensor, shape: torch.Size, num_classes: int, ignore_index: int, sources: tuple[str, ...]
) -> LabelFindings | None:
    """Read a measurement; None where no label is invalid."""
    values = measured.tolist()
    num_ignored, first, first_value = values[_NUM_BINS:]
    if first == shape.numel():
        return None
    below, *bytes_, above, large_classes = values[:_NUM_BINS]
    counts: dict[float, int] = dict(enumerate(bytes_))
    counts[-math.inf] = below - num_ignored * (ignore_index < 0)
    counts[math.inf] = above
    counts[256] = large_classes - num_ignored * (ignore_index > 255)  # any of the classes from 256 on
    counts[ignore_index] = num_ignored
    counts = {value: n for value, n in counts.items() if n}
    findings = LabelFindings(counts, first_value, _unravel(first, shape), tuple(shape), num_classes, ignore_index)
    return _with_source(findings, sources)


def _unravel(flat: int, shape: torch.Size) -> tuple[int, ...]:
    index: list[int] = []
    for size in reversed(shape):
        flat, remainder = divmod(flat, size)
        index.insert(0, remainder)
    return tuple(index)


def _with_source(findings: LabelFindings, sources: tuple[str, ...]) -> LabelFindings:
    shape = findings.shape
    return (
        replace(findings, source=sources[findings.first_index[0]]) if shape and len(sources) == shape[0] else findings
    )


@dataclass(frozen=True)
class _InFlight:
    """A measurement on its way from the device to pinned memory."""

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

    def findings(self) -> LabelFindings | None:
        return _read(self.measured, self.shape, self.num_classes, self.ignore_index, self.sources)


_pending: deque[_InFlight] = deque()


def raise_pending(wait: bool = True) -> None:
    """Raise what earlier calls on CUDA found. Every loss call does so for what has arrived; call it after the last one.

    Args:
        wait: wait for the findings still under way.

    Raises:
        ValueError: a target of an earlier call held a label outside [0, C) that was not ignored.

    Example:
        >>> from mmseg_wce.targets import raise_pending
        >>> raise_pending()  # at the end of a training loop of one's own
    """
    while _pending:
        oldest = _pending[0]
        if wait:
            oldest.arrived.synchronize()
        elif not oldest.arrived.query():
            return
        _pending.popleft()
        findings = oldest.findings()
        if findings is not None:
            _pending.clear()
            raise ValueError('In an earlier iteration: ' + explain(findings))


def explain(findings: LabelFindings) -> str:
    """Message for an invalid target: which values, how many pixels of each, where the first is, the likely causes.

    Example:
        >>> from mmseg_wce.targets import LabelFindings, explain
        >>> counts = {5: 37, 254: 7, 255: 20}
        >>> found = LabelFindings(counts, 254, (0, 3, 1), (1, 8, 8), num_classes=150, ignore_index=255)
        >>> print(explain(found).split('. ')[1])
        The first is 254 at index (0, 3, 1)
    """
    f = findings
    num_pixels = math.prod(f.shape)
    shown = sorted(f.bad_counts.items(), key=lambda item: -item[1])[:8]
    rest = f.num_bad - sum(n for _, n in shown)
    listed = ', '.join(f'{_bin_name(value)} ({n} px)' for value, n in shown) + (f', others ({rest} px)' * (rest > 0))
    place = '' if f.source is None else f', of {f.source!r}'
    return (
        f'{f.num_bad} of {num_pixels} pixels of the target {f.shape} have a label that is neither in '
        f'[0, {f.num_classes}) nor ignore_index={f.ignore_index}: {listed}. '
        f'The first is {f.first_value} at index {f.first_index}{place}. '
        f'Likely cause: {"; or ".join(likely_causes(f.evidence))}.'
    )


def _bin_name(value: float) -> str:
    return {-math.inf: 'below 0', math.inf: 'above 255'}.get(value, str(value))


def valid_pixels(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return a mask of the pixels that count: the label is in [0, num_classes) and not ``ignore_index``.

    Args:
        target: int64, any shape.
        num_classes: C.
        ignore_index: the label that does not count.

    Returns:
        bool, of the target's shape. Works inside ``torch.compile(fullgraph=True)``.

    Raises:
        ValueError: a label is neither. On CPU (and any device but CUDA) at once; on CUDA by a later call, or by
            :func:`raise_pending`, and until then the pixel is not valid. Nothing is reported from within the capture
            of a CUDA graph.

    Example:
        >>> import torch
        >>> from mmseg_wce.targets import valid_pixels
        >>> valid_pixels(torch.tensor([0, 149, 255]), num_classes=150, ignore_index=255)
        tensor([ True,  True, False])
    """
    if is_transformed() and not torch._C._functorch.is_batchedtensor(target):
        return _find_valid(target, num_classes, ignore_index)  # PyTorch 2.4 cannot call the operation there
    return _valid_pixels(target, num_classes, ignore_index)
