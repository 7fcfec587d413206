"""Figures of the classes as a person reads them: scalars with names, a line for the log, warnings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmseg_wce.hooks.class_tally import ClassFigures

__all__ = ['ClassReport']

_SHOWN = 5


class ClassReport:
    """What is said of the classes of one training, from logging point to logging point.

    Args:
        names: of the C classes.
        dataset_size: samples after which every class should have been seen.
        weighted: whether the loss has class weights.
    """

    def __init__(self, names: Sequence[str], dataset_size: int, weighted: bool) -> None:
        self._names, self._dataset_size, self._weighted = list(names), dataset_size, weighted
        self._seen = np.zeros(len(self._names), dtype=bool)
        self._said_unseen = False
        self._said_steep: set[int] = set()

    def scalars(self, figures: ClassFigures) -> dict[str, float]:
        """Four digits each; a class without pixels has no accuracy."""
        found = {'ignored': figures.ignored}
        for i, name in enumerate(self._names):
            found[f'pixels/{name}'] = figures.pixels[i]
            found[f'nll_share/{name}'] = figures.nll_share[i]
            if figures.pixels[i] > 0:
                found[f'acc/{name}'] = figures.accuracy[i]
        return {key: float(f'{value:.4g}') for key, value in found.items()}

    def line(self, figures: ClassFigures) -> str:
        """The classes that the loss is about, most of it first."""
        self._seen |= figures.pixels > 0
        largest = np.argsort(-figures.nll_share, kind='stable')[:_SHOWN]
        shares = ', '.join(
            f'{self._names[i]} {figures.nll_share[i]:.1%} (of {figures.pixels[i]:.1%} of the pixels)'
            for i in largest
            if figures.nll_share[i] > 0
        )
        unseen = (~self._seen).sum()
        return (
            f'ignored {figures.ignored:.1%} of the pixels; share of the loss: {shares or "none"}; '
            f'{unseen} of {len(self._names)} classes not seen yet'
        )

    def warnings(self, figures: ClassFigures, samples: int) -> list[str]:
        """Warnings that have become due, each once.

        Args:
            figures: of the interval.
            samples: since the training began, over all ranks.
        """
        self._seen |= figures.pixels > 0
        due = []
        if samples >= self._dataset_size and not self._said_unseen:
            self._said_unseen = True
            due += self._unseen(samples)
        return due + self._steep(figures)

    def _unseen(self, samples: int) -> list[str]:
        names = [name for name, seen in zip(self._names, self._seen, strict=True) if not seen]
        if not names:
            return []
        more = f' and {len(names) - 20} more' if len(names) > 20 else ''
        return [
            f'after {samples} samples, as many as the data set has, no pixel of {len(names)} of {len(self._names)} '
            f'classes was seen: {", ".join(names[:20])}{more}. Their outputs are only ever pushed down. Do the labels '
            f'hold them, is reduce_zero_label right, do crops miss them?'
        ]

    def _steep(self, figures: ClassFigures) -> list[str]:
        if not self._weighted:
            return []
        steep = np.flatnonzero((figures.nll_share > 0.5) & (figures.unweighted_share <= 0.5))
        new = [i for i in steep.tolist() if i not in self._said_steep]
        self._said_steep.update(new)
        return [
            f'{self._names[i]} holds {figures.nll_share[i]:.1%} of the loss with {figures.pixels[i]:.1%} of the '
            f'pixels; without class weights it would be {figures.unweighted_share[i]:.1%}. The class weights are '
            f'steep: a flatter scheme, or a limit to the largest, leaves the other classes something to learn from'
            for i in new
        ]
