"""Label values with their pixel counts, from which the likely causes are derived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

__all__ = ['LabelEvidence']


@dataclass(frozen=True)
class LabelEvidence:
    """Label values of a batch or of a data set.

    Attributes:
        counts: pixels of every value, legal ones included. -inf stands for all values below 0, and inf for all
            values above 255 that are not a class, if these were counted together.
        num_classes: C; labels go from 0 to C - 1.
        ignore_index: the label that the loss ignores.
        reduce_zero_label: the setting with which the files were read; None if unknown.
    """

    counts: Mapping[float, int]
    num_classes: int
    ignore_index: int
    reduce_zero_label: bool | None = None

    def is_valid(self, value: float) -> bool:
        """Return True for a value that is a class or ignored."""
        return 0 <= value < self.num_classes or value == self.ignore_index

    @cached_property
    def bad(self) -> list[float]:
        """Values that are neither a class nor ignored, in order."""
        return sorted(value for value in self.counts if not self.is_valid(value))

    @cached_property
    def labels(self) -> list[float]:
        """Values that are not ignored, in order."""
        return sorted(value for value in self.counts if value != self.ignore_index)

    @cached_property
    def num_pixels(self) -> int:
        """Number of all pixels."""
        return sum(self.counts.values())

    def share(self, value: float) -> float:
        """Return the share of all pixels that have a value."""
        return self.counts.get(value, 0) / max(self.num_pixels, 1)

    @cached_property
    def continues_classes(self) -> bool:
        """True if the values that are not a class follow the classes without a gap: C, C + 1, ..."""
        return self.bad == list(range(self.num_classes, self.num_classes + len(self.bad)))
