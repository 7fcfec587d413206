"""What the figures of a scan show: values that are no class, masks shifted twice or never, files that were not read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np
from mmseg_wce.class_weights import LabelStatistics
from mmseg_wce.dataset_checks.findings import Finding, Severity
from mmseg_wce.targets import LabelFindings, likely_causes

__all__ = ['check_statistics']

_MANY_IMAGES = 100  # below, it says little that a class never occurs


def check_statistics(statistics: LabelStatistics) -> list[Finding]:
    """What the figures of a scan show, worst first.

    Example:
        >>> from dataclasses import replace
        >>> from mmseg_wce.class_weights import Convention, LabelStatistics
        >>> from mmseg_wce.dataset_checks import check_statistics
        >>> nothing = LabelStatistics.empty('mine', ['sky', 'road'], Convention())
        >>> (finding,) = check_statistics(replace(nothing, failed={'a.png': 'it is empty, or no image'}))
        >>> finding.what
        'label files cannot be read: it is empty, or no image'
    """
    s = statistics
    checks = (_failed, _unexpected, _binary_masks, _shifted_on_disk, _mostly_ignored, _without_label, _never, _storage)
    return sorted((finding for check in checks for finding in check(s)), key=lambda finding: -finding.severity)


def _failed(s: LabelStatistics) -> Iterator[Finding]:
    groups: dict[str, list[str]] = {}
    for file, reason in s.failed.items():
        groups.setdefault(re.sub(r'-?\d+', '#', reason), []).append(file)
    for files in groups.values():
        what = f'label files cannot be read: {s.failed[files[0]]}'
        yield Finding(Severity.ERROR, what, 'correct them, or take their images out', len(files), files[0])


def _binary_masks(s: LabelStatistics) -> Iterator[Finding]:
    """In two classes, files of 0 and 255 alone; where others do hold 1, a little 255 may be a border."""
    if len(s.classes) == 2 and s.zero_and_255 and all(c.ignore_index == 255 for c in s.conventions):
        tally, mixed = s.zero_and_255, 1 in s.raw_values
        little = tally.pixels < 0.1 * tally.files * s.num_pixels / s.num_images
        what = 'masks hold 0 and 255 only: 255 is not counted, so a foreground of 255 would be ignored'
        change = 'store 1 for the foreground, and leave reduce_zero_label=False'
        yield Finding(
            Severity.NOTE if mixed and little else Severity.WARNING,
            f'{what}; others hold 1' if mixed else what,
            change,
            tally.files,
            tally.example,
        )


def _unexpected(s: LabelStatistics) -> Iterator[Finding]:
    if not s.unexpected:
        return
    listed = sorted(s.unexpected.items(), key=lambda item: -item[1].pixels)
    names = [f'{value} ({_raw(s, value)}{tally.pixels} px)' for value, tally in listed[:6]]
    names += [f'{len(listed) - 6} more'] * (len(listed) > 6)
    worst = max(s.unexpected.values(), key=lambda tally: tally.files)
    convention = s.conventions[0]
    findings = LabelFindings(
        bad_counts={value: tally.pixels for value, tally in listed},
        first_value=min(s.unexpected),
        first_index=(),
        num_zero=int(s.pixels[0]),
        num_ignored=s.ignored_pixels,
        num_pixels=s.num_pixels,
        shape=(),
        num_classes=len(s.classes),
        ignore_index=convention.ignore_index,
        reduce_zero_label=convention.reduce_zero_label if len(s.conventions) == 1 else None,
    )
    few = s.num_images >= 10 and worst.files <= max(1, 0.05 * s.num_images)
    causes = likely_causes(findings)
    if few:
        causes = ['these few files were painted with values that are no class: correct them']
    yield Finding(
        Severity.ERROR,
        f'labels are neither in [0, {len(s.classes)}) nor ignore_index={convention.ignore_index}: {", ".join(names)}',
        f'likely cause: {"; or ".join(causes)}',
        worst.files,
        worst.example,
    )


def _raw(s: LabelStatistics, label: int) -> str:
    reduced = s.conventions[0].reduce_zero_label and s.conventions[0].label_map is None and len(s.conventions) == 1
    return f'raw {label + 1}, ' if reduced else ''


def _shifted_on_disk(s: LabelStatistics) -> Iterator[Finding]:
    """255 can hardly be in files before the shift: it is what the shift makes of 0."""
    convention, number, raw = s.conventions[0], len(s.classes), s.raw_values
    simple = len(s.conventions) == 1 and convention.label_map is None
    if not (simple and convention.reduce_zero_label and convention.ignore_index == 255):
        return
    if {0, number - 1, 255} <= set(raw) and number not in raw:
        yield Finding(
            Severity.WARNING,
            f'masks look shifted already: they hold 255 and values from 0 to {number - 1}, and never {number}, so '
            'reduce_zero_label=True would shift them a second time and ignore their class 0',
            'set reduce_zero_label=False in the dataset and in LoadAnnotations, or store the masks as they were',
            raw[255].files,
            raw[255].example,
        )
    elif 255 in raw and 0 in raw:
        what = 'both raw 0 and raw 255 become ignored'
        yield Finding(Severity.NOTE, what, 'look whether both are meant to', raw[255].files, raw[255].example)


def _mostly_ignored(s: LabelStatistics) -> Iterator[Finding]:
    zero = s.raw_values.get(0)
    if zero and any(c.reduce_zero_label for c in s.conventions) and zero.pixels > 0.5 * s.num_pixels:
        yield Finding(
            Severity.WARNING,
            f'raw 0 is {_percent(zero.pixels, s.num_pixels)} of all pixels, which reduce_zero_label=True ignores: it '
            'looks like a class (background), not like "other"',
            'if it is one, set reduce_zero_label=False in dataset and LoadAnnotations, and add it to the classes',
            zero.files,
            zero.example,
        )


def _without_label(s: LabelStatistics) -> Iterator[Finding]:
    empty = s.images_without_label
    if empty:
        yield Finding(
            Severity.WARNING,
            'labels have no valid pixel: nothing but ignored ones',
            'training learns nothing from these images: take them out, or look whether ignore_index is meant',
            empty.files,
            empty.example,
        )


def _never(s: LabelStatistics) -> Iterator[Finding]:
    if not s.absent or s.num_images == 0:
        return
    listed = ', '.join(name.strip() for name in s.absent[:6]) + (
        f' and {len(s.absent) - 6} more' if len(s.absent) > 6 else ''
    )
    largest = int(np.flatnonzero(s.pixels).max(initial=-1))
    ends = s.absent == list(s.classes[largest + 1 :])
    cause = f'is num_classes={len(s.classes)} too large'
    if s.conventions[0].reduce_zero_label:
        cause += ', or raw 0 a class that reduce_zero_label takes away'
    yield Finding(
        Severity.WARNING if ends and s.num_images >= _MANY_IMAGES else Severity.NOTE,
        f'{len(s.absent)} of the {len(s.classes)} classes never occur in {s.num_images} images: {listed}',
        f'labels end at {largest}: {cause}?' if ends else 'nothing can be learnt of them',
    )


def _storage(s: LabelStatistics) -> Iterator[Finding]:
    """How files hold their values is no mistake, but may become one."""
    for kind, tally in s.storage.items():
        if kind.startswith('P '):
            change = "their indices are read, as long as LoadAnnotations keeps imdecode_backend='pillow'"
            yield Finding(Severity.NOTE, 'labels have a palette', change, tally.files, tally.example)
        elif kind.endswith('JPEG'):
            change = 'JPEG changes values along borders, into those of other classes: store PNG'
            yield Finding(Severity.WARNING, 'labels are JPEG files', change, tally.files, tally.example)


def _percent(part: float, whole: float) -> str:
    return f'{100 * part / max(whole, 1):.{0 if math.isclose(part, whole) else 1}f} %'
