"""What the trainings of a comparison came to: figures of every loss over its seeds."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import comb
from pathlib import Path

import numpy as np
from mmseg_wce.safe_io.json_files import read_json

from compare.runs import BUILT_IN, NAMES, NON_IGNORE, UNWEIGHTED, Run

WITHOUT_WEIGHTS = (BUILT_IN, NON_IGNORE, UNWEIGHTED)
MOST_NAMED = 40
MOST_BY_CHANCE = 1 / 20


@dataclass(frozen=True)
class Outcome:
    """Of one loss from S seeds.

    Attributes:
        loss: its name.
        seeds: of the trainings, sorted.
        runs: what was kept of each, as it was written.
    """

    loss: str
    seeds: list[int]
    runs: list[dict]

    def of(self, seeds: Sequence[int], values: np.ndarray) -> np.ndarray:
        """Those rows of values (S, ...) that are of the given seeds."""
        return values[[self.seeds.index(seed) for seed in seeds]]

    @cached_property
    def confusion(self) -> np.ndarray:
        """(S, C, C): pixels of each class (row) that were predicted as each class (column)."""
        return np.array([run['confusion'] for run in self.runs])

    @property
    def iou(self) -> np.ndarray:
        """(S, C), in percent; NaN for a class that neither occurs nor is predicted."""
        hit = np.diagonal(self.confusion, axis1=1, axis2=2)
        return _percent(hit, self.confusion.sum(1) + self.confusion.sum(2) - hit)

    @property
    def accuracy(self) -> np.ndarray:
        """(S, C): recall, in percent; NaN for a class that does not occur."""
        return _percent(np.diagonal(self.confusion, axis1=1, axis2=2), self.confusion.sum(2))

    @property
    def precision(self) -> np.ndarray:
        """(S, C), in percent; NaN for a class that is never predicted."""
        return _percent(np.diagonal(self.confusion, axis1=1, axis2=2), self.confusion.sum(1))

    @property
    def means(self) -> dict[str, np.ndarray]:
        """(S,) each, in percent, as mmseg names them."""
        hit = np.trace(self.confusion, axis1=1, axis2=2)
        return dict(
            mIoU=np.nanmean(self.iou, 1),
            mAcc=np.nanmean(self.accuracy, 1),
            aAcc=_percent(hit, self.confusion.sum((1, 2))),
        )

    def mean_iou_of(self, classes: np.ndarray) -> np.ndarray:
        """(S,), in percent."""
        return np.nanmean(self.iou[:, classes], 1)

    @property
    def last_validation(self) -> np.ndarray:
        """(S,): mean IoU of the last validation, in percent; NaN where there was none."""
        return np.array([(run['validation']['mIoU'] or [np.nan])[-1] for run in self.runs])

    def curve(self, part: str, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps (T,) that every seed has, and values (S, T), of 'training' or 'validation'."""
        of_runs = [dict(zip(run[part]['step'], run[part][key], strict=True)) for run in self.runs]
        steps = [step for step in of_runs[0] if all(step in values for values in of_runs)]
        return np.array(steps), np.array([[values[step] for step in steps] for values in of_runs])


@dataclass(frozen=True)
class ConfigResults:
    """Of one config: every loss that it was trained with.

    Attributes:
        name: of the config.
        classes: names.
        share: (C,), of the pixels of the training labels.
        outcomes: by loss, in the order of :data:`NAMES`.
    """

    name: str
    classes: list[str]
    share: np.ndarray
    outcomes: dict[str, Outcome]

    @property
    def order(self) -> np.ndarray:
        """Classes, most frequent first."""
        return np.argsort(-self.share, kind='stable')

    @property
    def shown(self) -> np.ndarray:
        """Classes of pictures that name each: all, or so many of the rarest as can be read; most frequent first."""
        return self.order[-MOST_NAMED:]

    @property
    def rarest_third(self) -> np.ndarray:
        """Classes."""
        return self.order[-max(1, len(self.classes) // 3) :]

    @property
    def base(self) -> Outcome:
        """What the others are compared with: the built-in loss, or the first one."""
        return self.outcomes.get(BUILT_IN) or next(iter(self.outcomes.values()))

    def difference(self, loss: str, figure: str) -> np.ndarray:
        """(S', ...): of a figure of an outcome to that of the base, of each seed that both were trained from."""
        outcome, base = self.outcomes[loss], self.base
        seeds = shared_seeds(outcome, base)
        return outcome.of(seeds, _figure(outcome, figure)) - base.of(seeds, _figure(base, figure))

    def apart(self, loss: str, figure: str) -> np.ndarray:
        """1 where every training is above all those without weights, -1 where every one is below, else 0.

        Those without weights are of up to three losses that differ in what they divide by. 0 also where a training has
        no value, and everywhere if so few trainings would be apart by chance in more than one of 20 figures: of the
        C(n + m, n) ways to choose n of n + m trainings two are apart, which is one in 110 for 3 and 9, one in 10 for 3
        and 3.
        """
        without = [_figure(self.outcomes[name], figure) for name in WITHOUT_WEIGHTS if name in self.outcomes]
        values = _figure(self.outcomes[loss], figure)
        number = sum(map(len, without))
        if loss in WITHOUT_WEIGHTS or 2 / comb(len(values) + number, number) > MOST_BY_CHANCE:
            return np.zeros(values.shape[1:], int)
        band = np.concatenate(without)
        return (values.min(0) > band.max(0)).astype(int) - (values.max(0) < band.min(0))

    def classes_apart(self, loss: str, figure: str, sign: int) -> list[tuple[str, float]]:
        """Those above all trainings without weights (or below), and their difference to the base, most first."""
        difference, apart = self.difference(loss, figure), self.apart(loss, figure)
        if not len(difference):
            return []
        mean = difference.mean(0)
        return [(self.classes[c], mean[c]) for c in np.argsort(-sign * mean) if apart[c] == sign]


def shared_seeds(a: Outcome, b: Outcome) -> list[int]:
    """From which both were trained."""
    return [seed for seed in a.seeds if seed in b.seeds]


def _figure(outcome: Outcome, figure: str) -> np.ndarray:
    return getattr(outcome, figure) if hasattr(outcome, figure) else outcome.means[figure]


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid='ignore', divide='ignore'):
        return 100 * part / whole


def load_results(runs: Sequence[Run]) -> ConfigResults:
    """Of those trainings of one config that are done.

    Raises:
        ValueError: none is; a file is cut, or none of this tool; they were trained on different labels.
    """
    labels: dict[str, Path] = {}
    by_loss: dict[str, dict[int, dict]] = defaultdict(dict)
    for run in runs:
        if run.result_file.exists():
            found = by_loss[run.loss][run.seed] = read_json(run.result_file)
            labels.setdefault(str((found['classes'], found['training_pixels'])), run.result_file)
    if not by_loss:
        raise ValueError(f'no training of {runs[0].comparison.name} is done')
    if len(labels) > 1:
        raise ValueError(f'trained on different labels: {" and ".join(map(str, labels.values()))}')
    outcomes = {
        loss: Outcome(loss, sorted(by_loss[loss]), [by_loss[loss][seed] for seed in sorted(by_loss[loss])])
        for loss in NAMES
        if loss in by_loss
    }
    content = next(iter(outcomes.values())).runs[0]
    pixels = np.array(content['training_pixels'])
    return ConfigResults(runs[0].comparison.name, content['classes'], pixels / pixels.sum(), outcomes)
