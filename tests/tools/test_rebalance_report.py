"""Choice of a tau, by counts that are made up."""

import json

import numpy as np
import pytest
from mmseg_wce.training.preflight import PreflightError


@pytest.fixture
def report(import_tool):
    return import_tool('rebalance_report')


def made_up(report, aAcc, mIoU_of_rare):
    """A sweep over three taus of two classes, the second rare: pixels right, predicted and labelled."""
    areas = [[[a, a + 5, 100], [r, 10, 10]] for a, r in zip(aAcc, mIoU_of_rare, strict=True)]
    counts = np.array(areas).swapaxes(1, 2)
    return report.Sweep([-0.5, 0.0, 0.5], ['common', 'rare'], 'these', 'those', counts, counts)


@pytest.mark.parametrize(
    ('score', 'accuracy_loss', 'expected'),
    [('Acc/rare', None, 2), ('Acc/rare', 5.0, 1), ('aAcc', None, 0), ('Acc/rare', 100.0, 2), ('IoU/common', None, 0)],
)
def test_choice_of_tau(report, score, accuracy_loss, expected):
    sweep = made_up(report, aAcc=[95, 90, 60], mIoU_of_rare=[0, 4, 8])

    assert sweep.choose(score, accuracy_loss) == expected


def test_at_a_tie_the_smaller_change_is_chosen(report):
    sweep = made_up(report, aAcc=[90, 90, 90], mIoU_of_rare=[5, 5, 5])

    assert sweep.choose('mIoU') == 1


def test_a_sweep_is_read_as_it_was_written(report):
    sweep = made_up(report, aAcc=[95, 90, 60], mIoU_of_rare=[0, 4, 8])

    read = report.Sweep.from_json(json.loads(json.dumps(sweep.to_json())))

    assert read.to_json() == sweep.to_json()


def test_a_score_that_has_no_value_or_none_within_the_limit(report):
    sweep = made_up(report, aAcc=[95, 90, 60], mIoU_of_rare=[0, 4, 8])
    sweep.choice[:2, 1, 1] = 0  # the rare class is not predicted below tau 0.5

    sweep.choice[:2, 0, 1] = 0
    assert sweep.choose('Precision/rare') == 2
    with pytest.raises(PreflightError, match='no value where pixel accuracy falls by at most'):
        sweep.choose('Precision/rare', 5.0)
    sweep.choice[:, 2, 1] = 0
    with pytest.raises(PreflightError, match='--best Acc/rare: it has no value on these'):
        sweep.choose('Acc/rare', 5.0)
