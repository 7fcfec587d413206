"""Trainings of a comparison that were moved between rare and common classes afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from drawing import save
from mmseg_wce.metrics import MEANS, mean_scores
from mmseg_wce.safe_io.json_files import read_json
from rebalance_report import Sweep

from compare.figures import COLORS, MARKERS, STYLE, TITLES
from compare.results import ConfigResults
from compare.runs import Run

CHOSEN_BY = 'mIoU'


@dataclass(frozen=True)
class Rebalanced:
    """Scores over tau of the trainings with one loss, from S seeds."""

    loss: str
    sweeps: list[Sweep]  # of each seed

    @property
    def chosen(self) -> list[int]:
        """Index of the tau with the best mean IoU on the validation images, for each seed."""
        return [sweep.choose(CHOSEN_BY) for sweep in self.sweeps]

    @property
    def unchanged(self) -> list[int]:
        """Index of tau 0, for each seed."""
        return [sweep.taus.index(0.0) for sweep in self.sweeps]

    def test_means(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Return mIoU, mAcc and aAcc on the test images, (S,) each, with one tau for each seed."""
        areas = np.stack([sweep.report[t] for sweep, t in zip(self.sweeps, indices, strict=True)])
        return mean_scores(areas)

    def curve(self) -> dict[str, np.ndarray]:
        """Return the mean over the seeds of mIoU, mAcc and aAcc on the test images, (T,) each."""
        means = mean_scores(np.stack([sweep.report for sweep in self.sweeps]))
        return {name: values.mean(0) for name, values in means.items()}

    def row(self) -> dict:
        """Return the row of the table: with the chosen tau, and how that differs from the training as it is."""
        chosen, unchanged = self.test_means(self.chosen), self.test_means(self.unchanged)
        taus = [sweep.taus[t] for sweep, t in zip(self.sweeps, self.chosen, strict=True)]
        row: dict = dict(loss=self.loss, seeds=len(self.sweeps), taus=', '.join(f'{tau:g}' for tau in taus))
        for name in MEANS:
            values = chosen[name]
            spread = values.std(ddof=1) if len(values) > 1 else None
            row[name] = dict(mean=values.mean(), spread=spread, difference=(values - unchanged[name]).mean())
        return row


def load_rebalanced(runs: Sequence[Run]) -> list[Rebalanced]:
    """Load what tools/rebalance.py counted for the finished trainings of one config."""
    sweeps: dict[str, list[Sweep]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        if run.rebalanced_file is not None and run.rebalanced_file.exists():
            sweeps.setdefault(run.loss, []).append(Sweep.from_json(read_json(run.rebalanced_file)))
    return [Rebalanced(loss, sweeps[loss]) for loss in dict.fromkeys(run.loss for run in runs) if loss in sweeps]


def draw_prices(path: Path, results: ConfigResults, rebalanced: Sequence[Rebalanced]) -> bool:
    """Draw mean IoU and class accuracy over pixel accuracy: a mark for each loss, a line over tau where it was moved.

    Means over the seeds, on the test images; the ring is at the mean of the chosen tau. Returns False if nothing was
    moved.
    """
    if not rebalanced:
        return False
    plt.rcParams.update(STYLE)
    figure, axes = plt.subplots(1, 2, figsize=(14, 5.6), layout='constrained')
    for axis, score in zip(axes, ('mIoU', 'mAcc'), strict=True):
        for outcome in results.outcomes.values():
            x, y = outcome.means['aAcc'].mean(), outcome.means[score].mean()
            axis.plot(x, y, MARKERS[outcome.loss], color=COLORS[outcome.loss], markersize=9, label=outcome.loss)
        for moved in rebalanced:
            curve, chosen, color = moved.curve(), moved.test_means(moved.chosen), COLORS[moved.loss]
            axis.plot(curve['aAcc'], curve[score], '.-', color=color, linewidth=1.2, label=f'{moved.loss}, every tau')
            axis.plot(chosen['aAcc'].mean(), chosen[score].mean(), 'o', color=color, markersize=15, fillstyle='none')
        axis.set_xlabel(TITLES['aAcc'])
        axis.set_title(TITLES[score])
        axis.grid(color='0.92')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=4)
    save(figure, path, dpi=100)
    return True
