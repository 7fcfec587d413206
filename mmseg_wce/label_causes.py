"""Likely causes of invalid labels, and advice: one table of rules for the loss, the hook and the tools.

The rules see only the label values and their pixel counts, since the loss on CUDA knows no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from statistics import median

from mmseg_wce.known_label_ids import KNOWN_IDS
from mmseg_wce.label_evidence import LabelEvidence

__all__ = ['likely_causes', 'mapping_advice']

# Shares of all pixels.
_RARE_ZERO = 0.2  # "other", as ADE20K has it, covers less
_VERY_RARE = 0.1  # times the median share of the other values: 0 is "other" below this
_FREQUENT = 0.05  # values made by interpolation cover less
_STRAY = 0.001  # values painted by mistake cover less
# Interpolation and JPEG make at least this many values.
_MANY_VALUES = 8
# Grey levels differ by at least this much, while class indices are consecutive.
_GREY_STEP = 6
_MANY_CLASSES = 10  # a batch does not hold all of so many classes
_MAX_MAPPING_ENTRIES = 40
_MAX_CAUSES = 3
_PLACE = 'directly after the transform that loads labels (LoadAnnotations)'


def mapping_advice(mapping: Mapping[int, int]) -> str:
    """Return the advice to map label values in the pipeline, with the transform to add.

    Args:
        mapping: class index of each value.

    Example:
        >>> from mmseg_wce.label_causes import mapping_advice
        >>> mapping_advice({255: 1})[-40:]
        "dict(type='MapLabels', mapping={255: 1})"
    """
    shown = ', '.join(f'{old}: {new}' for old, new in list(mapping.items())[:_MAX_MAPPING_ENTRIES])
    more = ', ...' if len(mapping) > _MAX_MAPPING_ENTRIES else ''
    line = f"dict(type='MapLabels', mapping={{{shown}{more}}})"
    return f'map them in every pipeline, {_PLACE}: {line}'


def likely_causes(evidence: LabelEvidence) -> list[str]:
    """Return likely causes of invalid labels with advice, the likeliest first; at least one sentence.

    Args:
        evidence: label values, at least one of them invalid.

    Example:
        >>> from mmseg_wce.label_causes import likely_causes
        >>> from mmseg_wce.label_evidence import LabelEvidence
        >>> likely_causes(LabelEvidence({0: 500, 127: 300, 254: 200}, num_classes=3, ignore_index=255))[0][:57]
        'these are grey levels or colours, not class indices (0..2'
    """
    causes = list(dict.fromkeys(cause for rule in _RULES if (cause := rule(evidence))))[:_MAX_CAUSES]
    largest = evidence.num_classes - 1
    return causes or [f'these values are not class indices (0..{largest}): correct the files, or map the values']


def _one_class(e: LabelEvidence) -> str | None:
    """Explain background and foreground with ``num_classes=1``."""
    foreground = e.labels[-1]
    is_mask = foreground in (1, 255) or (e.labels[0] == 0 and math.isfinite(foreground))
    if e.num_classes != 1 or len(e.labels) > 2 or not is_mask:
        return None
    mapped = '' if foreground == 1 else f'; and {mapping_advice({int(foreground): 1})}'
    return (
        'background and foreground are two classes: set num_classes=2 in every head, with out_channels=1 and '
        "use_sigmoid=True in the loss or with two channels and a softmax, and name both, classes=('background', ...). "
        f"With one class mmseg's IoUMetric counts background as a hit{mapped}"
    )


def _interpolated(e: LabelEvidence) -> str | None:
    """Explain many rare values between two frequent ones."""
    peaks = _peaks(e)
    rare = [value for value in e.bad if value not in peaks]
    if len(e.labels) == e.num_classes:  # _ids_with_gaps explains these
        return None
    if len(rare) < _MANY_VALUES or len(peaks) < 2 or sum(map(e.share, rare)) > 0.6:
        return None
    anchors = sorted({*peaks, e.ignore_index} & set(e.counts))
    low, high = max(pairwise(anchors), key=lambda gap: gap[1] - gap[0])
    between = [value for value in rare if anchors[0] < value < anchors[-1]]
    # values that were not interpolated do not reach the end of the widest gap: 100..149 below 255, for example
    fills_gap = any(low + 0.8 * (high - low) <= value < high for value in rare)
    if 2 * len(between) < len(rare) or not fills_gap:
        return None
    values = ', '.join(f'{value:.0f}' for value in [value for value in rare if math.isfinite(value)][:3])
    cause = (
        f'masks were resized with interpolation or saved as JPEG, which makes values such as {values}: '
        'resize masks with nearest neighbour (cv2.INTER_NEAREST, PIL.Image.NEAREST) and save them as PNG'
    )
    classes = sorted(value for value in peaks if value != e.ignore_index or len(peaks) == e.num_classes)
    if len(classes) > e.num_classes or all(value < e.num_classes for value in classes):
        return cause
    return f'{cause}; then {mapping_advice({int(value): i for i, value in enumerate(classes)})}'


def _peaks(e: LabelEvidence) -> list[float]:
    """Return the frequent values, at most C + 1; the next value is at most a third as frequent."""
    candidates = [value for value in e.counts if not _is_next_to_peak(e, value)]
    ordered = sorted(candidates, key=lambda value: -e.counts[value])
    steps = enumerate(pairwise(map(e.counts.__getitem__, ordered)), 1)
    ends = [k for k, (count, following) in steps if 2 <= k <= e.num_classes + 1 and count >= 3 * following]
    return ordered[: ends[-1]] if ends else []


def _is_next_to_peak(e: LabelEvidence, value: float) -> bool:
    """Return True if a value up to 3 away is more frequent (5 times for a class), as beside peaks in JPEG files."""
    factor = 5 if 0 <= value < e.num_classes else 1
    return any(e.counts.get(value + step, 0) > factor * e.counts[value] for step in (-3, -2, -1, 1, 2, 3))


def _known_ids(e: LabelEvidence) -> str | None:
    """Explain the ids of a known data set."""
    if _find_extra_value(e) is not None:
        return None
    for known in KNOWN_IDS:
        if e.num_classes == known.num_classes and known.matches(e.labels[0], e.labels[-1], set(e.labels)):
            return f'these look like {known.name}: {known.advice}'
    return None


def _grey_levels(e: LabelEvidence) -> str | None:
    """Explain a few values that are far apart."""
    values = _values_in_files(e)
    steps = [b - a for a, b in pairwise(values)]
    far_apart = steps and min(steps) >= _GREY_STEP and values[-1] >= 3 * e.num_classes
    if not far_apart or len(values) > e.num_classes + 1 or _is_stray(e):
        return None
    if e.bad == [254] and len(e.labels) != e.num_classes:  # 255 - 1
        return None
    return f'these are grey levels or colours, not class indices (0..{e.num_classes - 1}): {_map_ascending(e, values)}'


def _ids_with_gaps(e: LabelEvidence) -> str | None:
    """Explain as many values as classes, with gaps between them."""
    values = _values_in_files(e)
    has_gaps = len(values) > 1 and values[-1] - values[0] + 1 > len(values)
    explained = _find_extra_value(e) is not None or _grey_levels(e) is not None or e.bad == [254]
    if not has_gaps or len(values) != e.num_classes or values[0] < 0 or explained or _is_stray(e):
        return None
    return f'these ids have gaps, and class indices (0..{e.num_classes - 1}) have none: {_map_ascending(e, values)}'


def _values_in_files(e: LabelEvidence) -> list[int]:
    """Return the values before reduce_zero_label, with 255 if there are C values only with it."""
    values = [int(value) for value in e.labels if math.isfinite(value)]
    if e.reduce_zero_label:
        return [0] * (e.counts.get(255, 0) > 0) + [value + 1 for value in values]
    if e.ignore_index == 255 and 255 in e.counts and len(values) == e.num_classes - 1:
        values.append(255)
    return values


def _map_ascending(e: LabelEvidence, values: list[int]) -> str:
    """Return the advice to map the values in ascending order; the lowest ones are ignored if there are too many."""
    surplus = len(values) - e.num_classes
    if surplus < 0:
        return (
            f'map every value of the data set to its class in every pipeline, {_PLACE}: '
            "dict(type='MapLabels', mapping={value: class, ...})"
        )
    mapping = {value: i - surplus if i >= surplus else e.ignore_index for i, value in enumerate(values)}
    first = 'set reduce_zero_label=False in the dataset and in LoadAnnotations, and ' * bool(e.reduce_zero_label)
    lowest = f', and that {values[0]} is not a class' * (surplus > 0)
    return f'{first}{mapping_advice(mapping)} (check that the values are in the order of the classes{lowest})'


def _extra_value(e: LabelEvidence) -> str | None:
    """Explain one value that follows the classes after a gap."""
    value = _find_extra_value(e)
    if value is None:
        return None
    once = f"dict(type='MapLabels', mapping={{{value}: {e.ignore_index}}})"
    return (
        f'{value} perhaps marks pixels without a class: map it to the ignored label in every pipeline, {_PLACE}: '
        f'{once} (or replace {e.ignore_index} by {value} everywhere: ignore_index in every '
        'head, in the data sets, in RandomCrop and IoUMetric, seg_pad_val in data_preprocessor and RandomRotate)'
    )


def _find_extra_value(e: LabelEvidence) -> int | None:
    """Return the only value above C, if most classes occur too; other rules explain 254 and 255."""
    value = e.bad[0]
    if len(e.bad) != 1 or not e.num_classes < value < math.inf or value in (254, 255):
        return None
    if e.num_classes == 1 or _is_stray(e):
        return None
    share_of_classes = (len(e.labels) - 1) / e.num_classes
    return int(value) if share_of_classes == 1 or (e.num_classes >= _MANY_CLASSES and share_of_classes >= 0.5) else None


def _is_stray(e: LabelEvidence) -> bool:
    """Return True if so few pixels are invalid that they were painted by mistake."""
    return sum(map(e.share, e.bad)) < _STRAY


def _zero_and_255(e: LabelEvidence) -> str | None:
    """Explain a binary task with masks of 0 and 255."""
    if e.num_classes != 2 or 255 not in e.bad or not set(e.counts) <= {0, 255, e.ignore_index}:
        return None
    return f'masks of 0 and 255 for a binary task: {mapping_advice({255: 1})}, or store 0 and 1'


def _ignored_255(e: LabelEvidence) -> str | None:
    """Explain 255 where another label is ignored."""
    if 255 not in e.bad:
        return None
    return (
        f'255 marks pixels without a class (reduce_zero_label=True and padding write it), but ignore_index is '
        f'{e.ignore_index}: set ignore_index=255 in the head and in the loss'
    )


def _shifted_twice(e: LabelEvidence) -> str | None:
    """Explain 254 as 255 - 1."""
    if 254 not in e.bad:
        return None
    return (
        'masks were shifted by code that does not keep 255 (255 - 1 = 254), perhaps a second time after they had been '
        'shifted on disk: shift once, by reduce_zero_label=True, or not at all'
    )


def _negative(e: LabelEvidence) -> str | None:
    """Explain negative labels."""
    if e.bad[0] >= 0:
        return None
    if e.bad[0] == -1:
        return (
            '-1 marks pixels without a class (unlabelled, or 0 - 1 = -1 where code shifts labels itself), but '
            f'ignore_index is {e.ignore_index}: {mapping_advice({-1: e.ignore_index})}'
        )
    cause = f'negative labels mark pixels without a class, but ignore_index is {e.ignore_index}'
    known = [int(value) for value in e.bad if -math.inf < value < 0]
    return f'{cause}: {mapping_advice(dict.fromkeys(known, e.ignore_index))}' if known else cause


def _too_few_classes(e: LabelEvidence) -> str | None:
    """Explain values that continue the classes without a gap, with 0 as frequent as a class."""
    above = _above_classes(e)
    contiguous = above == [e.num_classes + i for i in range(len(above))]
    if not above or not contiguous or _looks_shifted(e) or 0 not in e.counts:
        return None
    return None if len(above) == 1 and _looks_unshifted(e) else _num_classes(e)


def _not_shifted(e: LabelEvidence) -> str | None:
    """Explain 0..C or 1..C; unless 0 is very rare, it may be "other" or a class."""
    if _above_classes(e) != [e.num_classes] or e.reduce_zero_label or e.num_classes == 1:
        return None
    shift = _shift(e)
    if not _may_be_other_or_class(e):
        return f'raw labels 0..{e.num_classes}, as ADE20K stores them (0 is "other"), that were not shifted: {shift}'
    number = e.num_classes + 1
    return (
        f'labels go from 0 to {e.num_classes}, one more than num_classes={e.num_classes}: if 0 means "other", as in '
        f'ADE20K, {shift}; if 0 is a class, these labels need num_classes={number} in every head, and a name for each '
        'in classes'
    )


def _shift(e: LabelEvidence) -> str:
    """Return the advice to ignore 0; ``reduce_zero_label`` turns it into 255, whatever label is ignored."""
    if e.ignore_index == 255 and e.num_classes <= 255:
        return 'set reduce_zero_label=True in the dataset and in LoadAnnotations'
    mapping = f'{{0: {e.ignore_index}, **{{k: k - 1 for k in range(1, {e.num_classes + 1})}}}}'
    return f"map them in every pipeline, {_PLACE}: dict(type='MapLabels', mapping={mapping})"


def _shifted_one_too_many(e: LabelEvidence) -> str | None:
    """Explain shifted labels of files that hold 1..C + 1."""
    return _more_values_than_classes(e) if _above_classes(e) == [e.num_classes] and _looks_shifted(e) else None


def _more_values_than_classes(e: LabelEvidence) -> str | None:
    """Explain files that hold more values than classes, with ``reduce_zero_label=True``."""
    above = _above_classes(e)
    if not above or above[-1] > 253 or e.reduce_zero_label is False:
        return None
    bad_share = sum(map(e.share, e.bad))
    if e.reduce_zero_label is None and (e.ignore_index != 255 or (255 not in e.counts and bad_share > _FREQUENT)):
        return None
    labels, raw = (_range(values) for values in (above, [value + 1 for value in above]))
    return (
        f'with reduce_zero_label=True, raw {raw} in the label files became {labels} (only raw 0 and raw 255 become '
        '255): the files hold values that are not a class'
    )


def _num_classes(e: LabelEvidence) -> str | None:
    """Explain all other values above the classes."""
    above = _above_classes(e)
    if not above or _may_be_other_or_class(e):
        return None
    values = [value for value in e.labels if 0 <= value <= above[-1]]
    one_channel = ' (without out_channels=1, where one channel was enough for two classes)' * (e.num_classes == 2)
    enough = f'num_classes={above[-1] + 1:.0f} in every head{one_channel}, and a name for each in classes'
    if 2 * len(values) >= above[-1] + 1 or e.num_classes == 1:
        return f'num_classes={e.num_classes} is too small: these labels need {enough}'
    return (
        f'labels go from 0 to {e.num_classes - 1} for num_classes={e.num_classes}, and {_range(above)} are ids of '
        f'another kind: map every id to its class in every pipeline, {_PLACE}: '
        f"dict(type='MapLabels', mapping={{id: class, ...}}); if there are as many classes, these labels need {enough}"
    )


def _above_classes(e: LabelEvidence) -> list[float]:
    """Return the values from C on, without 254 and 255, which other rules explain."""
    return [value for value in e.bad if e.num_classes <= value < math.inf and value not in (254, 255)]


def _range(values: list[float]) -> str:
    return f'{values[0]:.0f}..{values[-1]:.0f}' if len(values) > 1 else f'{values[0]:.0f}'


def _looks_unshifted(e: LabelEvidence) -> bool:
    """Return True if 0 is as rare as "other" in files that were not shifted."""
    return not e.reduce_zero_label and e.num_classes > 1 and (e.share(0) < _RARE_ZERO or _is_other(e))


def _may_be_other_or_class(e: LabelEvidence) -> bool:
    """Return True for 0..C, if 0 is neither as rare as "other" nor as frequent as a large class."""
    return _above_classes(e) == [e.num_classes] and _looks_unshifted(e) and not _is_other(e)


def _is_other(e: LabelEvidence) -> bool:
    """Return True for ADE20K's 0, or a 0 much rarer than the classes."""
    classes = [e.share(value) for value in e.labels if value != 0]
    return e.num_classes == 150 or e.share(0) < _VERY_RARE * median(classes)


def _looks_shifted(e: LabelEvidence) -> bool:
    """Return True if 255 is more frequent than 0, as after a shift, and ``reduce_zero_label`` is unknown."""
    may_shift = e.reduce_zero_label is None and e.ignore_index == 255
    return may_shift and e.counts.get(255, 0) > e.counts.get(0, 0)


# Each rule returns a cause with advice, or None; causes of earlier rules are likelier.
_RULES: tuple[Callable[[LabelEvidence], str | None], ...] = (
    _one_class,
    _zero_and_255,
    _known_ids,
    _interpolated,
    _grey_levels,
    _ids_with_gaps,
    _extra_value,
    _ignored_255,
    _shifted_twice,
    _negative,
    _too_few_classes,
    _shifted_one_too_many,
    _not_shifted,
    _more_values_than_classes,
    _num_classes,
)
