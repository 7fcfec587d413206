"""Checks of a scan's statistics: invalid values, values that reading changes, shifts, missing files."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from mmseg_wce.class_weights import LabelStatistics
from mmseg_wce.dataset_checks.findings import Finding, Severity
from mmseg_wce.label_causes import likely_causes, mapping_advice
from mmseg_wce.label_evidence import LabelEvidence

__all__ = ['check_statistics']

_MANY_IMAGES = 100  # among fewer images a class may be absent by chance


def check_statistics(statistics: LabelStatistics, changed_later_by: str = '') -> list[Finding]:
    """Return the findings in the statistics of a scan, worst first.

    Args:
        statistics: statistics of label files that are read in the same way, so of one of several joined data sets.
        changed_later_by: name of a custom ``data_preprocessor`` that may still turn invalid labels into classes.

    Returns:
        The findings; empty if nothing looks wrong.

    Example:
        >>> from dataclasses import replace
        >>> from mmseg_wce.class_weights import LabelEncoding, LabelStatistics
        >>> from mmseg_wce.dataset_checks import check_statistics
        >>> empty = LabelStatistics.empty('mine', ['sky', 'road'], LabelEncoding())
        >>> (finding,) = check_statistics(replace(empty, failed={'a.png': 'it is empty or not an image'}))
        >>> finding.what
        'label files cannot be read: it is empty or not an image'
    """
    findings = [
        *_failed(statistics),
        *_altered(statistics),
        *_unexpected(statistics, changed_later_by),
        *_image_mismatches(statistics),
        *_binary_masks(statistics),
        *_shifted_on_disk(statistics),
        *_mostly_ignored(statistics),
        *_without_label(statistics),
        *_absent_classes(statistics),
        *_storage(statistics),
        *_dropped(statistics),
    ]
    return sorted(findings, key=lambda finding: -finding.severity)


def _failed(s: LabelStatistics) -> Iterator[Finding]:
    groups: dict[str, list[str]] = {}
    for file, reason in s.failed.items():
        groups.setdefault(re.sub(r'-?\d+', '#', reason), []).append(file)
    for files in groups.values():
        what = f'label files cannot be read: {s.failed[files[0]]}'
        yield Finding(Severity.ERROR, what, 'correct them, or remove their images', len(files), files[0])


_FULL_PIPELINE = 'whole pipeline'
_ALTERED = {
    'not finite': (
        Severity.ERROR,
        'labels are not finite',
        'NaN and infinities are no labels: write the ignored label, {ignored}, where there is no data',
    ),
    'fraction': (
        Severity.ERROR,
        'labels are not integers, and their fraction is cut off',
        'store class indices; resize masks with nearest neighbour, not with interpolation',
    ),
    'wrapped': (
        Severity.ERROR,
        'values do not fit into the 8 bits that LoadAnnotations keeps, and wrap to other values',
        'store class indices in 8 bits, or load them with a transform that keeps all of them',
    ),
    'wrapped before others': (
        Severity.WARNING,
        'values do not fit into the 8 bits that LoadAnnotations keeps, and wrap before other transforms run',
        'unless one of these reads the file again: store class indices in 8 bits, or load them with a transform that '
        'keeps all of them',
    ),
    'wrapped to ignored': (
        Severity.WARNING,
        'values do not fit into the 8 bits that LoadAnnotations keeps, and wrap to the ignored label',
        'store {ignored} for pixels without a class, or load them with a transform that keeps all values',
    ),
    'all ones': (
        Severity.NOTE,
        'values wrap to the ignored label in the 8 bits that LoadAnnotations keeps, as seems to be intended',
        'nothing has to be changed, but {ignored} would be clearer',
    ),
    _FULL_PIPELINE: (
        Severity.NOTE,
        'transforms need others that are left out, so labels were counted after crops and flips',
        'the figures are those of one crop',
    ),
}


def _altered(s: LabelStatistics) -> Iterator[Finding]:
    for kind, tally in s.altered.items():
        severity, what, change = _ALTERED[kind]
        detail = tally.detail if kind == _FULL_PIPELINE else f'the first is {tally.detail}'
        what = f'{what}: {tally.pixels} px, {detail}'
        yield Finding(severity, what, change.format(ignored=s.conventions[0].ignore_index), tally.files, tally.example)


_IMAGE_MISMATCHES = {
    'size': (
        Severity.ERROR,
        'image and label differ in size (width x height)',
        'make the labels at the size of the images',
    ),
    'stretched': (
        Severity.WARNING,
        'image and label differ in size and shape (width x height) until the pipeline resizes both',
        'make the labels at the size of the images: the resize stretches them differently',
    ),
    'resized': (
        Severity.NOTE,
        'image and label differ in size (width x height) until the pipeline resizes both',
        'a validation at the size of the images would need labels of that size',
    ),
    'turned': (
        Severity.ERROR,
        'EXIF turns the image when it is read, but not its label',
        "store the images upright, or set color_type='color_ignore_orientation' in LoadImageFromFile",
    ),
    'resized before': (
        Severity.WARNING,
        'image and label differ in size (width x height) until transforms before the loader of labels change the image',
        'a validation at the size of the images would need labels of that size',
    ),
    'resized by others': (
        Severity.WARNING,
        'image and label differ in shape after transforms that change the size of one of them',
        'check these transforms: a training needs both at the same size before it crops',
    ),
    'missing': (
        Severity.ERROR,
        'labels have no image',
        'correct their suffix or folder, or remove these labels',
    ),
    'unreadable': (Severity.ERROR, 'images cannot be read', 'correct or remove them'),
    'unknown': (Severity.NOTE, 'sizes of images are not known', 'they were not compared; the other checks were made'),
}


def _image_mismatches(s: LabelStatistics) -> Iterator[Finding]:
    for kind, tally in s.image_mismatches.items():
        severity, what, change = _IMAGE_MISMATCHES[kind]
        yield Finding(severity, what, change, tally.files, tally.detail)


def _binary_masks(s: LabelStatistics) -> Iterator[Finding]:
    """Find masks of 0 and 255 only; a little 255 may be a border if other files hold 1 or there are many classes."""
    tally, reduced = s.zero_and_255, s.conventions[0].reduce_zero_label
    if tally is None or any(c.ignore_index != 255 for c in s.conventions):
        return
    has_ones = 1 in s.raw_values if s.raw_values else s.pixels[1:].any()
    is_little = tally.pixels < 0.1 * tally.files * s.num_pixels / s.num_images
    if len(s.classes) > 2 and (has_ones or is_little or s.pixels[1:].any() or tally.files < s.num_images):
        return
    what = 'masks hold 0 and 255 only: 255 is not counted, so a foreground of 255 would be ignored'
    reset = 'set reduce_zero_label=False in the dataset and in LoadAnnotations, and ' * reduced
    yield Finding(
        Severity.NOTE if has_ones and is_little else Severity.WARNING,
        f'{what}; others hold 1' if has_ones else what,
        f'{reset}{mapping_advice({255: 1})}; or store 1 for the foreground',
        tally.files,
        tally.example,
    )


def _unexpected(s: LabelStatistics, changed_later_by: str) -> Iterator[Finding]:
    if not s.unexpected:
        return
    listed = sorted(s.unexpected.items(), key=lambda item: -item[1].pixels)
    evidence = _evidence(s)
    raw = (lambda value: f'raw {value + 1}, ') if evidence.reduce_zero_label else (lambda _: '')
    names = [f'{value} ({raw(value)}{tally.pixels} px)' for value, tally in listed[:6]]
    num_others = len(listed) - 6
    names += [f'{num_others}{" or more" * (s.more_unexpected > 0)} others'] * (num_others > 0)
    worst = max(s.unexpected.values(), key=lambda tally: tally.files)
    in_few_files = s.num_images >= 10 and worst.files <= max(1, 0.05 * s.num_images)
    causes = likely_causes(evidence)
    jpeg = next((tally for kind, tally in s.storage.items() if kind.endswith('JPEG')), None)
    if in_few_files and evidence.continues_classes:
        causes = [*causes, 'these few files were painted with values that are not a class: check them']
    elif in_few_files:
        causes = ['these few files were painted with values that are not a class: correct them']
    elif jpeg is not None and 'JPEG' not in causes[0] and sum(map(evidence.share, evidence.bad)) < 0.2:
        causes = ['JPEG changes values along borders, into those of other classes: save the masks as PNG', *causes]
    ignored = s.conventions[0].ignore_index
    later = f', unless {changed_later_by} changes them, which is not looked into' if changed_later_by else ''
    yield Finding(
        Severity.WARNING if changed_later_by else Severity.ERROR,
        f'labels are neither in [0, {len(s.classes)}) nor ignore_index={ignored}: {", ".join(names)}{later}',
        f'likely cause: {"; or ".join(causes)}',
        worst.files,
        worst.example,
    )


def _evidence(s: LabelStatistics) -> LabelEvidence:
    """Return the label values and pixel counts, from which likely causes are derived."""
    convention = s.conventions[0]
    counts: dict[float, int] = {value: tally.pixels for value, tally in s.unexpected.items()}
    counts |= {c: int(pixels) for c, pixels in enumerate(s.pixels) if pixels}
    if s.ignored_pixels:
        counts[convention.ignore_index] = s.ignored_pixels
    is_known = len(s.conventions) == 1 and convention.label_map is None and bool(s.raw_values)
    reduced = convention.reduce_zero_label if is_known else None
    return LabelEvidence(counts, len(s.classes), convention.ignore_index, reduced)


def _shifted_on_disk(s: LabelStatistics) -> Iterator[Finding]:
    """Find masks that were shifted on disk: the shift turns 0 into 255, which other files hardly hold."""
    convention, number, raw = s.conventions[0], len(s.classes), s.raw_values
    is_plain = len(s.conventions) == 1 and convention.label_map is None
    if not (is_plain and convention.reduce_zero_label and convention.ignore_index == 255):
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
        yield Finding(Severity.NOTE, what, 'check that this is intended', raw[255].files, raw[255].example)


def _mostly_ignored(s: LabelStatistics) -> Iterator[Finding]:
    zero = s.raw_values.get(0)
    if zero is None or not any(c.reduce_zero_label for c in s.conventions):
        return
    has_no_other_class = len(s.classes) <= 2 and not s.pixels[1:].any()
    if zero.pixels > 0.5 * s.num_pixels or has_no_other_class:
        percent = f'{100 * zero.pixels / max(s.num_pixels, 1):.{0 if zero.pixels == s.num_pixels else 1}f} %'
        yield Finding(
            Severity.WARNING,
            f'raw 0 is {percent} of all pixels, which reduce_zero_label=True ignores: it '
            'looks like a class (background), not like "other"',
            'if it is one, set reduce_zero_label=False in dataset and LoadAnnotations, and add it to the classes',
            zero.files,
            zero.example,
        )


def _without_label(s: LabelStatistics) -> Iterator[Finding]:
    empty = s.images_without_label
    if empty:
        what = 'labels have no valid pixel, only ignored ones'
        change = 'training learns nothing from these images: remove them, or correct ignore_index'
        yield Finding(Severity.WARNING, what, change, empty.files, empty.example)


def _absent_classes(s: LabelStatistics) -> Iterator[Finding]:
    if not s.absent or s.num_images == 0:
        return
    listed = ', '.join(map(str.strip, s.absent[:6])) + f' and {len(s.absent) - 6} more' * (len(s.absent) > 6)
    largest = int(np.flatnonzero(s.pixels).max(initial=-1))
    are_last = s.absent == list(s.classes[largest + 1 :])
    cause = f'is num_classes={len(s.classes)} too large'
    reduced, only_last = s.conventions[0].reduce_zero_label, s.absent == list(s.classes[-1:])
    if reduced:
        cause += ', or raw 0 a class that reduce_zero_label removes'
    # raw values would show masks that were shifted on disk
    may_be_shifted = reduced and only_last and s.ignored_pixels > 0 and not s.raw_values and s.num_images >= 10
    yield Finding(
        Severity.WARNING if may_be_shifted or (are_last and s.num_images >= _MANY_IMAGES) else Severity.NOTE,
        f'{len(s.absent)} of the {len(s.classes)} classes never occur in {s.num_images} images: {listed}',
        f'labels end at {largest}: {cause}?' if are_last else 'a model cannot learn them',
    )


def _dropped(s: LabelStatistics) -> Iterator[Finding]:
    if s.dropped is None:
        return
    are_all = s.num_images == 0 and not s.failed
    what = f'{"all " * are_all}samples are left out of the training: {s.dropped.detail} returns None for them'
    severity = Severity.ERROR if are_all else Severity.NOTE
    yield Finding(severity, what, 'check that this is intended', s.dropped.files, s.dropped.example)


def _storage(s: LabelStatistics) -> Iterator[Finding]:
    """Find labels with a palette and JPEG files."""
    for kind, tally in s.storage.items():
        if kind.startswith('P '):
            change = "their indices are read, as long as LoadAnnotations keeps imdecode_backend='pillow'"
            yield Finding(Severity.NOTE, 'labels have a palette', change, tally.files, tally.example)
        elif kind.endswith('JPEG'):
            change = 'JPEG changes values along borders, into those of other classes: store PNG'
            yield Finding(Severity.WARNING, 'labels are JPEG files', change, tally.files, tally.example)
