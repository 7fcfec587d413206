"""What labels may be: the guard that every loss passes through, and the explanation of a label that it refuses.

A label outside [0, C) that is not ``ignore_index`` would be read out of bounds by the loss (on CUDA a device-side
assert that ends the process). :func:`valid_pixels` looks before anything is indexed. On CPU it raises at once. On CUDA
looking at the result would stall the queue at every iteration, so the finding travels to pinned memory and a later
call raises it; until then the bad pixels are simply not valid, and enter no sum.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ['LabelFindings', 'explain', 'likely_causes', 'name_sources', 'raise_pending', 'valid_pixels']

# Bins of a finding: values below 0, the values 0..255 that a mask file can hold, values above.
_FIRST_BIN, _LAST_BIN = -1, 256
_BINS = (-math.inf, *range(256), math.inf)
_NUM_BINS = len(_BINS)
# Pixels with nothing to report are spread over this many more bins, where they do not queue for the same atomic.
_NUM_SPARE_BINS = 4096


_sources: ContextVar[tuple[str, ...]] = ContextVar('mmseg_wce.targets.sources', default=())


def name_sources(names: Sequence[str]) -> None:
    """Say which files the labels of the coming calls were read from, so that a refusal names the file.

    Args:
        names: one for each image of a batch; empty where they are not known. Batches of another size ignore them.
    """
    _sources.set(tuple(names))


@dataclass(frozen=True)
class LabelFindings:
    """Labels outside [0, num_classes) that are not ignored, and what helps to explain them.

    Attributes:
        bad_counts: pixels for each bad value. Counted on a CUDA device, -inf stands for all below 0, inf for all
            above 255.
        first_value: the first bad value in memory order, exact.
        first_index: its index in the target.
        num_zero: pixels with label 0.
        num_ignored: pixels with ``ignore_index``.
        num_pixels: all pixels.
        shape: of the target.
        num_classes: C.
        ignore_index: the label that does not count.
        reduce_zero_label: how the labels were made of raw values, where that is known.
        source: file that the first bad value was read from, where that is known.
    """

    bad_counts: dict[float, int]
    first_value: int
    first_index: tuple[int, ...]
    num_zero: int
    num_ignored: int
    num_pixels: int
    shape: tuple[int, ...]
    num_classes: int
    ignore_index: int
    reduce_zero_label: bool | None = None
    source: str | None = None

    @property
    def num_bad(self) -> int:
        return sum(self.bad_counts.values())


@torch.library.custom_op(
    'mmseg_wce::valid_pixels',
    mutates_args=(),
    schema='(Tensor target, int num_classes, int ignore_index) -> Tensor',
)
def _valid_pixels(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
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
        measured = _measure(target, bad, ignore_index)
        findings = _read(measured, target.shape, num_classes, ignore_index, _sources.get())
        values, counts = target[bad].unique(return_counts=True)
        exact = dict(zip(values.tolist(), counts.tolist(), strict=True))
        raise ValueError(explain(replace(findings, bad_counts=exact)))
    return valid


@_valid_pixels.register_fake
def _(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    return torch.empty_like(target, dtype=torch.bool)


def _measure(target: Tensor, bad: Tensor, ignore_index: int) -> Tensor:
    """What :class:`LabelFindings` needs as one int64 vector, without a synchronisation.

    Returns: (_NUM_BINS + 4,): pixels per bin, zeros, ignored pixels, first bad flat index (numel if none), its value.
    """
    target, bad = target.flatten(), bad.flatten()
    position = torch.arange(target.numel(), device=target.device)
    bins = torch.where(bad, target.clamp(_FIRST_BIN, _LAST_BIN) - _FIRST_BIN, _NUM_BINS + position % _NUM_SPARE_BINS)
    counts = torch.zeros(_NUM_BINS + _NUM_SPARE_BINS, dtype=torch.int64, device=target.device)
    counts.scatter_add_(0, bins, torch.ones_like(bins))
    first = torch.where(bad, position, target.numel()).amin()
    first_value = target.gather(0, first.clamp(max=target.numel() - 1).view(1))
    scalars = torch.stack([(target == 0).sum(), (target == ignore_index).sum(), first])
    return torch.cat([counts[:_NUM_BINS], scalars, first_value])


def _read(
    measured: Tensor, shape: torch.Size, num_classes: int, ignore_index: int, sources: tuple[str, ...]
) -> LabelFindings:
    values = measured.tolist()
    num_zero, num_ignored, first, first_value = values[_NUM_BINS:]
    first_index: list[int] = []
    for size in reversed(shape):
        first, remainder = divmod(first, size)
        first_index.insert(0, remainder)
    return LabelFindings(
        bad_counts={_BINS[i]: n for i, n in enumerate(values[:_NUM_BINS]) if n},
        first_value=first_value,
        first_index=tuple(first_index),
        num_zero=num_zero,
        num_ignored=num_ignored,
        num_pixels=shape.numel(),
        shape=tuple(shape),
        num_classes=num_classes,
        ignore_index=ignore_index,
        source=sources[first_index[0]] if shape and len(sources) == shape[0] else None,
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

    def findings(self) -> LabelFindings:
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
        if findings.num_bad:
            _pending.clear()
            raise ValueError('In an earlier iteration: ' + explain(findings))


def explain(findings: LabelFindings) -> str:
    """Message for a refused target: which values, how many pixels of each, where the first is, the likely causes.

    Example:
        >>> from mmseg_wce.targets import LabelFindings, explain
        >>> found = LabelFindings({254: 7}, 254, (0, 3, 1), 0, 20, 64, (1, 8, 8), num_classes=150, ignore_index=255)
        >>> print(explain(found).split('. ')[1])
        The first is 254 at index (0, 3, 1)
    """
    f = findings
    shown = sorted(f.bad_counts.items(), key=lambda item: -item[1])[:8]
    rest = f.num_bad - sum(n for _, n in shown)
    listed = ', '.join(f'{_bin_name(value)} ({n} px)' for value, n in shown) + (f', others ({rest} px)' * (rest > 0))
    place = '' if f.source is None else f', of {f.source!r}'
    return (
        f'{f.num_bad} of {f.num_pixels} pixels of the target {f.shape} have a label that is neither in '
        f'[0, {f.num_classes}) nor ignore_index={f.ignore_index}: {listed}. '
        f'The first is {f.first_value} at index {f.first_index}{place}. Likely cause: {"; or ".join(likely_causes(f))}.'
    )


def _bin_name(value: float) -> str:
    return {-math.inf: 'below 0', math.inf: 'above 255'}.get(value, str(value))


def likely_causes(f: LabelFindings) -> list[str]:
    """Why labels are what they are, and what to change; from the most to the least likely."""
    bad, num_classes = {*f.bad_counts, f.first_value}, f.num_classes
    beyond = sorted(v for v in bad if num_classes <= v <= 253)
    causes = []
    if 255 in bad and num_classes == 2 and f.num_zero + f.bad_counts[255] + f.num_ignored == f.num_pixels:
        causes.append('masks of 0 and 255 for a binary task: store 0 and 1')
    if 255 in bad:
        causes.append(
            f'255 marks pixels without a class (reduce_zero_label=True and padding write it), but ignore_index is '
            f'{f.ignore_index}: set ignore_index=255 in the head and in the loss'
        )
    if 254 in bad or -1 in bad:
        causes.append(
            'masks were shifted by code that does not keep 255 (255 - 1 = 254, 0 - 1 = -1), perhaps a second time '
            'after they had been shifted on disk: shift once, by reduce_zero_label=True, or not at all'
        )
    if min(bad) < 0:
        causes.append(
            f'negative labels mark pixels without a class (-1 is also 255 read as int8), but ignore_index is '
            f'{f.ignore_index}'
        )
    if beyond:
        causes += _causes_of_too_large(f, beyond)
    if beyond or max(bad) > 255:
        largest = max(v for v in bad if v < math.inf)
        causes.append(f'num_classes={num_classes} is too small: these labels need at least {largest + 1}')
    return causes


def _causes_of_too_large(f: LabelFindings, beyond: list[float]) -> list[str]:
    """For values from num_classes to 253: labels that were not shifted, or files that hold more than the classes."""
    found, raw = (f'{b[0]}..{b[-1]}' if len(b) > 1 else f'{b[0]}' for b in (beyond, [v + 1 for v in beyond]))
    shifted = (
        f'with reduce_zero_label=True, raw {raw} in the label files became {found} (only raw 0 and raw 255 become '
        f'255): the files hold values that are no class'
    )
    unshifted = (
        f'raw labels 0..{f.num_classes}, as ADE20K stores them (0 is "other"), that were not shifted: set '
        f'reduce_zero_label=True in the dataset and in LoadAnnotations'
    )
    if f.reduce_zero_label is not None:
        return [shifted] if f.reduce_zero_label else [unshifted] * (beyond == [f.num_classes])
    if f.ignore_index != 255:
        return [unshifted] * (beyond == [f.num_classes])
    if beyond != [f.num_classes]:
        return [shifted]
    # Shifted labels hold no raw 0 but many 255; raw ones hold few 0, "other", and 255 only where they were padded.
    looks_shifted = f.num_ignored > f.num_zero
    return [shifted, unshifted] if looks_shifted else [unshifted, shifted]


def valid_pixels(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Mask of the pixels that count: the label is in [0, num_classes) and not ``ignore_index``.

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
    return _valid_pixels(target, num_classes, ignore_index)
