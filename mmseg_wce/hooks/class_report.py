"""Report per-class figures: named scalars, a line for the log, and warnings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mmseg_wce.hooks.class_tally import ClassFigures

__all__ = ['ClassReport']

_NUM_SHOWN = 5


class ClassReport:
    """Reports on the classes of one training.

    Args:
        names: names of the C classes.
        dataset_size: number of samples after which every class should have been seen.
        weighted: True if the loss has class weights.
    """

    def __init__(self, names: Sequence[str], dataset_size: int, weighted: bool) -> None:
        self._names, self._dataset_size, self._weighted = list(names), dataset_size, weighted
        self._seen = np.zeros(len(self._names), dtype=bool)
        self._has_warned_unseen = False
        self._warned_steep: set[int] = set()

    def scalars(self, figures: ClassFigures) -> dict[str, float]:
        """Return the scalars to log, to four digits; a class without pixels has no accuracy."""
        values = {'ignored': figures.ignored}
        for i, name in enumerate(self._names):
            values[f'pixels/{name}'] = figures.pixels[i]
            values[f'nll_share/{name}'] = figures.nll_share[i]
            if figures.pixels[i] > 0:
                values[f'acc/{name}'] = figures.accuracy[i]
        return {key: float(f'{value:.4g}') for key, value in values.items()}

    def line(self, figures: ClassFigures) -> str:
        """Return a line for the log: the classes with the largest shares of the loss, largest first."""
        self._seen |= figures.pixels > 0
        largest = np.argsort(-figures.nll_share, kind='stable')[:_NUM_SHOWN]
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
        """Return new warnings, each once; ``samples`` were seen since training began, over all ranks."""
        self._seen |= figures.pixels > 0
        warnings = []
        if samples >= self._dataset_size and not self._has_warned_unseen:
            self._has_warned_unseen = True
            warnings += self._warn_unseen(samples)
        return warnings + self._warn_steep(figures)

    def _warn_unseen(self, samples: int) -> list[str]:
        names = [name for name, seen in zip(self._names, self._seen, strict=True) if not seen]
        if not names:
            return []
        more = f' and {len(names) - 20} more' if len(names) > 20 else ''
        return [
            f'after {samples} samples, as many as the data set has, no pixel of {len(names)} of {len(self._names)} '
            f'classes was seen: {", ".join(names[:20])}{more}. The model learns never to predict them. Check that the '
            f'labels contain them, that reduce_zero_label is right, and that crops do not miss them'
        ]

    def _warn_steep(self, figures: ClassFigures) -> list[str]:
        if not self._weighted:
            return []
        steep = np.flatnonzero((figures.nll_share > 0.5) & (figures.unweighted_share <= 0.5))
        new = [i for i in steep.tolist() if i not in self._warned_steep]
        self._warned_steep.update(new)
        return [
            f'{self._names[i]} holds {figures.nll_share[i]:.1%} of the loss with {figures.pixels[i]:.1%} of the '
            f'pixels; without class weights it would be {figures.unweighted_share[i]:.1%}. The class weights are '
            f'steep: use a flatter scheme, or limit the largest weight, so that other classes keep a share of the loss'
            for i in new
        ]
