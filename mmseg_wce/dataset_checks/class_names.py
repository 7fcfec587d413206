"""Comparison of the class names of two data sets, ignoring case and separators."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ['Difference', 'find_difference', 'normalize']


class Difference(NamedTuple):
    """How the names of equally many classes differ: at which class first, and whether only their order does."""

    first: int
    is_order: bool


def find_difference(names: Sequence[str], others: Sequence[str]) -> Difference | None:
    """Compare the class names of two data sets.

    Args:
        names: names in the order of the classes.
        others: as many names.

    Returns:
        How they differ; None if they are the same.

    Raises:
        ValueError: the numbers of names differ.

    Example:
        >>> from mmseg_wce.dataset_checks.class_names import find_difference
        >>> find_difference(['road', 'Traffic-Sign'], ['road', 'traffic_sign'])
        >>> find_difference(['road', 'sky'], ['sky', 'road'])
        Difference(first=0, is_order=True)
    """
    one, other = (list(map(normalize, sequence)) for sequence in (names, others))
    differing = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    return Difference(differing[0], sorted(one) == sorted(other)) if differing else None


def normalize(name: str) -> str:
    """Return a name in lower case, its words separated by single spaces."""
    return re.sub(r'[\s_-]+', ' ', name.strip().lower())
