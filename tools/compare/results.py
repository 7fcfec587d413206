"""Results of a comparison's trainings: scores of every loss over its seeds."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path

import numpy as np
from drawing import MAX_NAMES
from mmseg_wce.metrics import class_scores
from mmseg_wce.safe_io.json_files import read_json

from compare.runs import BUILT_IN, NAMES, NON_IGNORE, UNWEIGHTED, Run

WITHOUT_WEIGHTS = (BUILT_IN, NON_IGNORE, UNWEIGHTED)
MAX_CHANCE = 1 / 20


@dataclass(frozen=True)
class Outcome:
    """Results of the trainings with one loss, from S seeds; scores in percent, NaN for a class that has none."""

    loss: str
    seeds: list[int]  # sorted
    runs: list[dict]  # content of each result file
    confusion: np.ndarray  # (S, C, C): pixels of each class (row) that were predicted as each class (column)
    iou: np.ndarray  # (S, C)
    accuracy: np.ndarray  # (S, C): recall
    precision: np.ndarray  # (S, C)
    means: dict[str, np.ndarray]  # mIoU, mAcc and aAcc, (S,) each
    last_validation: np.ndarray  # (S,): mean IoU of the last validation; NaN where there was none

    @classmethod
    def from_results(cls, loss: str, results: dict[int, dict]) -> 'Outcome':
        """Compute the scores from the results of each seed."""
        seeds = sorted(results)
        runs = [results[seed] for seed in seeds]
        confusion = np.array([run['confusion'] for run in runs])
        scores = class_scores(confusion)
        iou, accuracy = scores['IoU'], scores['Acc']
        means = dict(mIoU=np.nanmean(iou, 1), mAcc=np.nanmean(accuracy, 1), aAcc=scores['aAcc'])
        validation = np.array([(run['validation']['mIoU'] or [np.nan])[-1] for run in runs])
        return cls(loss, seeds, runs, confusion, iou, accuracy, scores['Precision'], means, validation)

    def select_seeds(self, seeds: Sequence[int], values: np.ndarray) -> np.ndarray:
        """Return the rows of ``values``, (S, ...), for some of the seeds."""
        return values[[self.seeds.index(seed) for seed in seeds]]

    def mean_iou_of(self, classes: np.ndarray) -> np.ndarray:
        """(S,), in percent."""
        return np.nanmean(self.iou[:, classes], 1)

    def curve(self, part: str, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the steps that every seed has, (T,), and the values there, (S, T), in 'training' or 'validation'."""
        curves = [dict(zip(run[part]['step'], run[part][key], strict=True)) for run in self.runs]
        steps = [step for step in curves[0] if all(step in values for values in curves)]
        return np.array(steps), np.array([[values[step] for step in steps] for values in curves])


@dataclass(frozen=True)
class ConfigResults:
    """Results of one config with all losses that it was trained with."""

    name: str
    classes: list[str]
    share: np.ndarray  # (C,), share of each class in the pixels of the training labels
    outcomes: dict[str, Outcome]  # by loss, in the order of :data:`NAMES`

    @property
    def order(self) -> np.ndarray:
        """Class indices, most frequent first."""
        return np.argsort(-self.share, kind='stable')

    @property
    def shown(self) -> np.ndarray:
        """Class indices in pictures with class names: the rarest :data:`MAX_NAMES`, most frequent first."""
        return self.order[-MAX_NAMES:]

    @property
    def rarest_third(self) -> np.ndarray:
        """Indices of the classes with the fewest training pixels."""
        return self.order[-max(1, len(self.classes) // 3) :]

    @property
    def base(self) -> Outcome:
        """Outcome that the others are compared with: the built-in loss, or else the first one."""
        return self.outcomes.get(BUILT_IN) or next(iter(self.outcomes.values()))

    @property
    def same_function(self) -> tuple[Outcome, Outcome, list[int]] | None:
        """Outcomes of mmseg's loss and of ours without weights, and their common seeds; None without one."""
        if not {NON_IGNORE, UNWEIGHTED} <= self.outcomes.keys():
            return None
        built_in, ours = self.outcomes[NON_IGNORE], self.outcomes[UNWEIGHTED]
        seeds = _shared_seeds(built_in, ours)
        return (built_in, ours, seeds) if seeds else None

    def difference(self, loss: str, score: str) -> np.ndarray:
        """Return a score of a loss minus that of the base, (S', ...), for the seeds that both were trained from."""
        outcome, base = self.outcomes[loss], self.base
        seeds = _shared_seeds(outcome, base)
        return outcome.select_seeds(seeds, _score(outcome, score)) - base.select_seeds(seeds, _score(base, score))

    def apart(self, loss: str, score: str) -> np.ndarray:
        """Return 1 where every training is above all trainings without weights, -1 where every one is below, else 0.

        Trainings without weights are those of up to three losses with different denominators. The result is 0, too,
        where a training has no value, and everywhere if the number of trainings is so small that chance would separate
        more than one of 20 scores: 2 of the C(n + m, n) ways to choose n of n + m trainings separate them, which is one
        in 110 for 3 and 9, and one in 10 for 3 and 3.
        """
        unweighted = [_score(self.outcomes[name], score) for name in WITHOUT_WEIGHTS if name in self.outcomes]
        values = _score(self.outcomes[loss], score)
        number = sum(map(len, unweighted))
        if loss in WITHOUT_WEIGHTS or 2 / comb(len(values) + number, number) > MAX_CHANCE:
            return np.zeros(values.shape[1:], int)
        band = np.concatenate(unweighted)
        return (values.min(0) > band.max(0)).astype(int) - (values.max(0) < band.min(0))

    def classes_apart(self, loss: str, score: str, sign: int) -> list[tuple[str, float]]:
        """Return the classes where :meth:`apart` is ``sign``, with their difference to the base, largest first."""
        difference, apart = self.difference(loss, score), self.apart(loss, score)
        if not len(difference):
            return []
        mean = difference.mean(0)
        return [(self.classes[c], mean[c]) for c in np.argsort(-sign * mean) if apart[c] == sign]


def _shared_seeds(a: Outcome, b: Outcome) -> list[int]:
    return [seed for seed in a.seeds if seed in b.seeds]


def _score(outcome: Outcome, name: str) -> np.ndarray:
    return getattr(outcome, name) if hasattr(outcome, name) else outcome.means[name]


def load_results(runs: Sequence[Run]) -> ConfigResults:
    """Load the results of the finished trainings of one config.

    Raises ValueError if none is finished, if a file was not written by this tool, or if the labels were different.
    """
    labels: dict[str, Path] = {}
    by_loss: dict[str, dict[int, dict]] = defaultdict(dict)
    for run in runs:
        if run.result_file.exists():
            result = by_loss[run.loss][run.seed] = read_json(run.result_file)
            labels.setdefault(str((result['classes'], result['training_pixels'])), run.result_file)
    if not by_loss:
        raise ValueError(f'no training of {runs[0].comparison.name} is finished')
    if len(labels) > 1:
        raise ValueError(f'trained on different labels: {" and ".join(map(str, labels.values()))}')
    outcomes = {loss: Outcome.from_results(loss, by_loss[loss]) for loss in NAMES if loss in by_loss}
    content = next(iter(outcomes.values())).runs[0]
    pixels = np.array(content['training_pixels'])
    return ConfigResults(runs[0].comparison.name, content['classes'], pixels / pixels.sum(), outcomes)
