"""Scores over tau: the choice of a tau, tables and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from drawing import MAX_NAMES, plain, save
from label_arguments import console
from marked_tables import markdown
from mmseg_wce.metrics import MEANS, area_scores, mean_scores
from mmseg_wce.training.preflight import PreflightError
from rich.table import Table

SCORES = dict(IoU='IoU', Acc='recall', Precision='precision')


@dataclass(frozen=True)
class Sweep:
    """Scores for T taus, on the images that tau is chosen on and on those of the report.

    Attributes:
        taus: T numbers, ascending, with 0.
        classes: names of the C classes.
        chosen_on: the images that tau is chosen on, in words.
        reported_on: the images of the report, in words.
        choice: (T, 3, C), pixels that are right, predicted and labelled, of the images that tau is chosen on.
        report: (T, 3, C), of the images of the report.
    """

    taus: Sequence[float]
    classes: Sequence[str]
    chosen_on: str
    reported_on: str
    choice: np.ndarray
    report: np.ndarray

    @classmethod
    def from_counts(
        cls, taus: Sequence[float], classes: Sequence[str], counted: dict[str, np.ndarray], share: float | None
    ) -> 'Sweep':
        """Add up the counts of images, (N, T, 3, C) for each split; the first ``share`` of the only split chooses."""
        (first, counts), *others = counted.items()
        number = len(counts)
        if others:
            ((second, report),) = others
            names = f'the {number} images of {first}', f'the {len(report)} images of {second}'
            return cls(taus, classes, *names, counts.sum(0), report.sum(0))
        if share is None:
            name = f'the {number} images of {first}'
            return cls(taus, classes, name, name, counts.sum(0), counts.sum(0))
        cut = cls.check_share(share, number)
        names = f'the first {cut} of {number} images of {first}', f'the other {number - cut} images of {first}'
        return cls(taus, classes, *names, counts[:cut].sum(0), counts[cut:].sum(0))

    @staticmethod
    def check_share(share: float | None, number: int) -> int:
        """Return how many images are the first share of a number; raise PreflightError if none or all are."""
        if share is None:
            return number
        cut = round(share * number)
        if not 0 < cut < number:
            raise PreflightError(f'--choose-on {share} divides {number} images into {cut} and {number - cut}')
        return cut

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> 'Sweep':
        """Return the scores that :meth:`to_json` has written."""
        counts = (np.array(content[name]) for name in ('choice', 'report'))
        return cls(content['taus'], content['classes'], content['chosen_on'], content['reported_on'], *counts)

    def choose(self, score: str, accuracy_loss: float | None = None) -> int:
        """Return the index of the tau with the best score; at a tie the one that is nearest to 0."""
        values, means = self._values(score), mean_scores(self.choice)
        allowed = np.isfinite(values)
        if not allowed.any():
            raise PreflightError(f'--best {score}: it has no value on {self.chosen_on}')
        if accuracy_loss is not None:
            allowed &= means['aAcc'] >= means['aAcc'][self.taus.index(0.0)] - accuracy_loss
        if not allowed.any():
            raise PreflightError(
                f'--best {score}: on {self.chosen_on} it has no value where pixel accuracy falls by at most '
                f'{accuracy_loss} points'
            )
        return max(np.flatnonzero(allowed).tolist(), key=lambda t: (values[t], -abs(self.taus[t])))

    def _values(self, score: str) -> np.ndarray:
        if score in MEANS:
            return mean_scores(self.choice)[score]
        name, _, wanted = score.partition('/')
        return area_scores(self.choice)[name][:, list(self.classes).index(wanted)]

    def to_json(self) -> dict[str, Any]:
        """Return all counts as plain Python values."""
        return dict(
            taus=list(self.taus),
            classes=list(self.classes),
            chosen_on=self.chosen_on,
            reported_on=self.reported_on,
            choice=self.choice.tolist(),
            report=self.report.tolist(),
        )


def check_score(score: str, classes: Sequence[str]) -> None:
    """Raise PreflightError for a score that there is not: it must be a mean, or that of a class."""
    name, _, wanted = score.partition('/')
    if score not in MEANS and (name not in SCORES or wanted not in classes):
        scores = ', '.join([*MEANS, *(f'{key}/CLASS' for key in SCORES)])
        raise PreflightError(f'--best {score}: give one of {scores}, with one of the classes {", ".join(classes)}')


def print_sweep(result: Sweep, t: int, how: str) -> None:
    """Print the means for every tau, and the scores of every class before and after."""
    console.print(f'tau {result.taus[t]:g}, {how}')
    parts = {result.chosen_on: result.choice, result.reported_on: result.report}
    for name, areas in parts.items():
        table, means = Table(title=name), mean_scores(areas)
        for column in ('tau', *MEANS):
            table.add_column(column, justify='right')
        for i, tau in enumerate(result.taus):
            mark = ' <' if i == t else ''
            row = (f'{means[score][i]:.2f}' for score in MEANS)
            table.add_row(f'{tau:g}{mark}', *row, style='bold' if i == t else None)
        console.print(table)
    zero, scores = result.taus.index(0.0), area_scores(result.report)
    table = Table(title=f'Every class on {result.reported_on}: as trained, and with tau {result.taus[t]:g}')
    table.add_column('class')
    for title in SCORES.values():
        table.add_column(title, justify='right')
    for c, name in enumerate(result.classes):
        pairs = [(scores[key][zero, c], scores[key][t, c]) for key in SCORES]
        table.add_row(name, *(f'{_number(before)} -> {_number(after)}' for before, after in pairs))
    console.print(table)


def write_tables(path: Path, result: Sweep, t: int, how: str) -> None:
    """Write the means and the scores of every class for every tau, in Markdown."""
    lines = [f'tau {result.taus[t]:g}, {how}', '']
    for name, areas in {result.chosen_on: result.choice, result.reported_on: result.report}.items():
        means = mean_scores(areas)
        rows = [[f'{tau:g}', *(f'{means[score][i]:.2f}' for score in MEANS)] for i, tau in enumerate(result.taus)]
        lines += [f'## {name[0].upper()}{name[1:]}', '', *markdown(['tau', *MEANS], rows), '']
        for key, title in SCORES.items():
            values = area_scores(areas)[key]
            rows = [[c, *map(_number, values[:, i])] for i, c in enumerate(result.classes)]
            taus = [f'tau {tau:g}' for tau in result.taus]
            lines += [f'### {title[0].upper()}{title[1:]}, {name}', '', *markdown(['class', *taus], rows), '']
    path.write_text('\n'.join(lines))


def _number(value: float) -> str:
    return '-' if np.isnan(value) else f'{value:.1f}'


def draw_sweep(path: Path, result: Sweep, t: int, share: np.ndarray) -> None:
    """Draw the means and the scores of every class over tau; a line marks the chosen one.

    Args:
        path: PNG file to write.
        result: the scores.
        t: index of the chosen tau.
        share: (C,), share of each class in the training labels.
    """
    order = np.argsort(-share, kind='stable')[-MAX_NAMES:]
    figure, axes = plt.subplots(
        2,
        3,
        figsize=(14, 4.2 + 0.26 * len(order)),
        height_ratios=[3.4, 0.6 + 0.26 * len(order)],
        layout='constrained',
    )
    parts = {result.reported_on: result.report}
    if result.chosen_on != result.reported_on:
        parts = {f'{result.chosen_on} (chosen on these)': result.choice, **parts}
    for axis, score, title in zip(axes[0], MEANS, ('mean IoU', 'mean class accuracy', 'pixel accuracy'), strict=True):
        for (name, areas), color in zip(parts.items(), ('#6b7785', '#1c7ed6')[-len(parts) :], strict=True):
            axis.plot(result.taus, mean_scores(areas)[score], 'o-', color=color, markersize=4, label=name)
        axis.axvline(result.taus[t], color='#d9480f', linewidth=1.5)
        axis.set_title(f'{title} (%)', loc='left')
        axis.grid(color='0.92')
        axis.set_xlabel('tau')
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside upper right', ncols=2, frameon=False)
    scores = area_scores(result.report)
    for axis, key, title in zip(axes[1], *zip(*SCORES.items(), strict=True), strict=True):
        values = scores[key][:, order].T
        picture = axis.imshow(values, cmap='viridis', vmin=0, vmax=100, aspect='auto')
        if len(result.taus) <= 12:
            for (row, column), value in np.ndenumerate(values):
                color = 'black' if value > 60 else 'white'
                axis.text(column, row, _number(value), ha='center', va='center', fontsize=7, color=color)
        axis.add_patch(plt.Rectangle((t - 0.5, -0.5), 1, len(order), fill=False, color='#d9480f', linewidth=2))
        axis.set_xticks(range(len(result.taus)), [f'{tau:g}' for tau in result.taus], fontsize=8)
        names = [f'{plain(result.classes[c])}  {100 * share[c]:.2g} %' for c in order]
        axis.set_yticks(range(len(order)), names if key == 'IoU' else [], fontsize=8)
        axis.set_title(f'{title} of each class (%), {result.reported_on}', loc='left', fontsize=10)
        axis.set_xlabel('tau')
    figure.colorbar(picture, ax=axes[1], shrink=0.8, pad=0.01)
    save(figure, path, dpi=100)
