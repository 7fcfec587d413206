"""docs/comparison.md: its tables and the figures of its text, from the published result files."""

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config


@pytest.fixture
def losses(import_tool):
    """The losses that were published."""
    return *import_tool('compare_losses').DEFAULT, 'focal', 'rare_class_sampling', 'rare_class_sampling_sqrt'


def test_what_is_published_is_of_todays_configs_and_says_what_was_found(losses, root, import_tool):
    from compare.rebalanced import load_rebalanced
    from compare.report import _moved_table, _rows, _table
    from compare.results import load_results
    from compare.runs import Comparison, Run

    published, every = root / 'docs/comparison', []
    read_table = import_tool('marked_tables').read_table
    for name in ('fast_scnn_1xb8-2k_camvid-176x240', 'fpn_r18_1xb8-2k_camvid-176x240'):
        config = root / f'configs/camvid/{name}.py'
        moved = ('unweighted', 'sqrt_inverse_frequency')
        comparison = Comparison('', config, Config.fromfile(config), Path('nowhere'), published, rebalanced=moved)
        runs = [Run(comparison, loss, seed) for loss in losses for seed in (0, 1, 2)]

        assert all(run.is_done() for run in runs)  # raises where the config has changed

        every += [run.result_file for run in runs] + [run.rebalanced_file for run in runs if run.loss in moved]
        assert read_table(root / 'docs/comparison.md', f'moved-{name}') == _moved_table(load_rebalanced(runs))
        table = _table(_rows(load_results(runs)))
        assert '\n'.join([f'## {name}', '', *table, '']) in (published / 'summary.md').read_text()
        assert read_table(root / 'docs/comparison.md', name) == table
    assert sorted(published.glob('*/*.json')) == sorted(every)


def test_what_the_page_says_beside_its_tables(losses, root):
    """Figures against the six trainings with the same function without weights, and of the curves."""
    from compare.results import load_results
    from compare.runs import Comparison, Run

    leads, to_six, falls = [], [], []
    for name in ('fast_scnn_1xb8-2k_camvid-176x240', 'fpn_r18_1xb8-2k_camvid-176x240'):
        comparison = Comparison('', Path(name), Config(), Path('nowhere'), root / 'docs/comparison')
        runs = [Run(comparison, loss, seed) for loss in losses for seed in (0, 1, 2)]
        outcomes = load_results(runs).outcomes
        weighted = outcomes['sqrt_inverse_frequency'], outcomes['median_frequency']
        six = outcomes['built_in_avg_non_ignore'], outcomes['unweighted']

        for key in ('mIoU', 'mAcc'):
            base = np.mean([outcome.means[key] for outcome in six])
            to_six.append([f'{outcome.means[key].mean() - base:+.1f}' for outcome in weighted])
        steps, validated = weighted[0].curve('validation', 'mIoU')
        lead = validated.mean(0) - np.mean([outcome.curve('validation', 'mIoU')[1].mean(0) for outcome in six], 0)
        leads.append([f'{lead[steps == step].item():.1f}' for step in (1000, 2000)])
        for outcome in outcomes.values():
            steps, values = outcome.curve('training', 'loss')
            before, last = (values[:, (steps > at) & (steps <= at + 500)].mean(1) for at in (1000, 1500))
            falls.append(100 * (1 - last / before))

    iou, accuracy, fpn_iou, fpn_accuracy = to_six  # square root, median
    text = ' '.join((root / 'docs/comparison.md').read_text().split())
    assert (
        f'`sqrt_inverse_frequency` has {iou[0]}, {fpn_iou[0]} points of mean IoU and {accuracy[0]}, {fpn_accuracy[0]} '
        f'of class accuracy, `median_frequency` {iou[1]}, {fpn_iou[1]} and {accuracy[1]}, {fpn_accuracy[1]}.'
    ) in text
    ours, fpns = leads
    assert f'is {ours[0]}, {fpns[0]} points above those six after 1,000 iterations and {ours[1]}, {fpns[1]}' in text
    ranges = [f'{np.min(part):.0f} to {np.max(part):.0f} %' for part in (falls[: len(losses)], falls[len(losses) :])]
    assert f'{ranges[0]} below that of the 500 before with FastSCNN and {ranges[1]} with FPN' in text


@pytest.fixture
def published(root):
    """Read published files: of a model, with this pattern of names."""

    def read(model: str, pattern: str) -> list[dict]:
        files = sorted((root / 'docs/comparison').glob(f'{model}*/{pattern}.json'))
        assert len(files) == 3
        return [json.loads(file.read_text()) for file in files]

    return read


def moved_areas(sweeps: list[dict], tau: float | None) -> np.ndarray:
    """Pixels right, predicted and labelled on the test images, (3 seeds, 3, C); at the chosen tau if none is given."""
    return np.array([s['report'][s['taus'].index(s['chosen'] if tau is None else tau)] for s in sweeps])


def mean_iou_and_accuracy(areas: np.ndarray) -> np.ndarray:
    right, predicted, labelled = areas.swapaxes(0, 1)
    return 100 * np.array([(right / (predicted + labelled - right)).mean(), (right.sum(1) / labelled.sum(1)).mean()])


def listed(values, form: str = '.1f') -> str:
    return ', '.join(f'{value:{form}}' for value in values)


def test_what_the_page_says_of_moved_trainings(root, published):
    """Figures that are not in its tables, from the counts by other means; FastSCNN, FPN."""
    text = ' '.join((root / 'docs/comparison.md').read_text().split())
    built_in, sweeps = [], []
    for model in ('fast_scnn', 'fpn'):
        built_in.append(mean_iou_and_accuracy(pixels_of(published(model, 'built_in-seed?'))))
        losses = 'unweighted', 'sqrt_inverse_frequency'
        sweeps.append({loss: published(model, f'{loss}-seed?.rebalanced') for loss in losses})

    def scores(loss: str, tau: float | None) -> np.ndarray:
        """Mean IoU, then pixel accuracy, of both models, (2, 2)."""
        return np.array([mean_iou_and_accuracy(moved_areas(of_model[loss], tau)) for of_model in sweeps]).T

    back, forward = scores('sqrt_inverse_frequency', None), scores('unweighted', None)
    gains, prices = back - np.array(built_in).T
    assert (
        f'they then have {listed(gains)} points more of mean IoU for {listed(prices, "+.1f")} of pixel accuracy' in text
    )
    trained, losses = scores('sqrt_inverse_frequency', 0.0) - np.array(built_in).T
    assert f'as trained they had {listed(trained)} for {listed(losses, "+.1f")}.' in text
    parts = [f'{-price:.1f} of {-loss:.1f}' for price, loss in zip(prices, losses, strict=True)]
    assert (prices > losses / 2).tolist() == [True, False]
    assert f'holds for FastSCNN ({parts[0]}) and not for FPN ({parts[1]}).' in text
    assert f'stays {listed(back[0] - forward[0])} points below the trainings with weights' in text
    assert {sweep['chosen'] for of_model in sweeps for sweep in of_model['unweighted']} == {0.5}
    quarter, unchanged = scores('unweighted', 0.25), scores('unweighted', 0.0)
    assert f'in mean IoU ({listed(quarter[0])}) and costs {listed((unchanged - quarter)[1])} points' in text


def test_what_the_page_says_of_sampling_with_weights(root, published):
    text = ' '.join((root / 'docs/comparison.md').read_text().split())
    gains = []
    for model in ('fast_scnn', 'fpn'):
        sampled = mean_iou_and_accuracy(pixels_of(published(model, 'rare_class_sampling_sqrt-seed?')))
        first = mean_iou_and_accuracy(pixels_of(published(model, 'sqrt_inverse_frequency-seed?')))
        again = mean_iou_and_accuracy(moved_areas(published(model, 'sqrt_inverse_frequency-seed?.rebalanced'), 0))
        gains.append(sampled - (first + again) / 2)

    iou, accuracy = (listed(values) for values in zip(*gains, strict=True))
    assert f'it has {iou} points more of mean IoU and {accuracy} more of pixel accuracy' in text


def test_what_the_page_says_of_recall_and_precision(root, published):
    text = ' '.join((root / 'docs/comparison.md').read_text().split())
    sweeps = published('fast_scnn', 'unweighted-seed?.rebalanced')
    person, house = (sweeps[0]['classes'].index(name) for name in ('pedestrian', 'building'))
    people, houses = [], []
    for tau in (0, 0.5, 1):
        right, predicted, labelled = moved_areas(sweeps, tau).swapaxes(0, 1)
        people.append([f'{100 * (right / number)[:, person].mean():.0f}' for number in (labelled, predicted)])
        houses.append(f'{100 * (right / (predicted + labelled - right))[:, house].mean():.0f}')

    first, second, third = people
    assert f'finds {first[0]} % of the pedestrians, and {first[1]} % of what it calls so is right' in text
    assert f'with tau = 0.5 it is {" and ".join(second)} %, with tau = 1 it is {" and ".join(third)} %' in text
    assert f'The IoU of building falls from {houses[0]} to {houses[1]} and {houses[2]}.' in text


def pixels_of(results: list[dict]) -> np.ndarray:
    """Pixels right, predicted and labelled on the test images, (3 seeds, 3, C), of trainings."""
    confusion = np.array([result['confusion'] for result in results])
    return np.stack([np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(1), confusion.sum(2)], 1)


def recall(areas: np.ndarray) -> np.ndarray:
    return 100 * areas[:, 0] / areas[:, 2]


def changes(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[str, str, str]:
    """Points of class accuracy, mean IoU and pixel accuracy from the first to the second, of both models."""
    found = [
        (recall(after).mean() - recall(before).mean(), *mean_iou_and_accuracy(after) - mean_iou_and_accuracy(before))
        for before, after in pairs
    ]
    return tuple(listed(values, '+.1f') for values in zip(*found, strict=True))


def test_the_decision_table(root, published):
    """Figures of docs/class_weights.md, from the counts by other means; FastSCNN, FPN."""
    text = (root / 'docs/class_weights.md').read_text().split('## Decision table')[1]
    models = 'fast_scnn', 'fpn'
    built_in, median, sampled = (
        [pixels_of(published(model, f'{loss}-seed?')) for model in models]
        for loss in ('built_in', 'median_frequency', 'rare_class_sampling_sqrt')
    )
    unweighted, weighted = (
        [published(model, f'{loss}-seed?.rebalanced') for model in models]
        for loss in ('unweighted', 'sqrt_inverse_frequency')
    )
    unmoved, forward = ([moved_areas(sweeps, tau) for sweeps in unweighted] for tau in (0, None))
    as_trained, back = ([moved_areas(sweeps, tau) for sweeps in weighted] for tau in (0, None))

    rows = [(built_in, back), (built_in, as_trained), (built_in, median), (built_in, sampled)]
    rows.append((unmoved, forward))
    for before, after in rows:
        classes, iou, accuracy = changes(list(zip(before, after, strict=True)))
        assert f'| {iou} | {classes} | {accuracy} |' in text

    person = unweighted[0][0]['classes'].index('pedestrian')
    for name, of_models in {'no weights': unweighted, '`sqrt_inverse_frequency`': weighted}.items():
        before = [moved_areas(sweeps, 0) for sweeps in of_models]
        after = [np.array([most_found(sweep, person) for sweep in sweeps]) for sweeps in of_models]
        cells = [
            '; '.join(
                listed([100 * (areas[:, 0] / areas[:, row])[:, person].mean() for areas in part], '.0f') + ' %'
                for row in (2, 1)
            )
            for part in (before, after)
        ]
        *_, accuracy = changes(list(zip(before, after, strict=True)))
        assert f'| {name} | {cells[0]} | {cells[1]} | {accuracy} |' in text


def most_found(sweep: dict, c: int) -> list:
    """Counts on the test images where a class is found most on the validation images for one point of accuracy."""
    right, _, labelled = np.array(sweep['choice']).swapaxes(0, 1)
    accuracy = 100 * right.sum(1) / labelled.sum(1)
    allowed = accuracy >= accuracy[sweep['taus'].index(0)] - 1
    return sweep['report'][np.where(allowed, right[:, c] / labelled[:, c], -1).argmax()]
