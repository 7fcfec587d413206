"""Pictures of a comparison: means, scores of every class and training curves for each loss."""

import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from drawing import MAX_NAMES, plain, save

from compare.results import ConfigResults
from compare.runs import BUILT_IN, FOCAL, HARD_PIXELS, NON_IGNORE, RARE, RARE_SQRT, UNWEIGHTED

COLORS = {
    BUILT_IN: '#6b7785',
    NON_IGNORE: '#aeb8c2',
    UNWEIGHTED: '#1c7ed6',
    'inverse_frequency': '#862e9c',
    'sqrt_inverse_frequency': '#d9480f',
    'median_frequency': '#c2255c',
    'enet': '#5c940d',
    'effective_number': '#0b7285',
    HARD_PIXELS: '#e8a317',
    FOCAL: '#7950f2',
    RARE: '#2b8a3e',
    RARE_SQRT: '#94d82d',
}
MARKERS = dict(zip(COLORS, 'oovs^DPX*pdh', strict=True))
TITLES = dict(mIoU='mean IoU (%)', mAcc='mean class accuracy (%)', aAcc='pixel accuracy (%)')
STYLE = {
    'font.size': 11,
    'font.family': 'DejaVu Sans',
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.titlelocation': 'left',
    'axes.titlesize': 12,
    'axes.axisbelow': True,
    'legend.frameon': False,
}


def draw_means(path: Path, results: ConfigResults) -> None:
    """Draw mIoU, mAcc and aAcc: a dot for each seed, a bar for their mean; the dashed line is the mean of the base."""
    figure, axes = _figure(1, 3, height=0.9 + 0.42 * len(results.outcomes), sharey=True)
    rows = np.arange(len(results.outcomes))
    for axis, (key, title) in zip(axes, TITLES.items(), strict=True):
        axis.axvline(results.base.means[key].mean(), color=COLORS[results.base.loss], linestyle='--', linewidth=1)
        for row, outcome in zip(rows, results.outcomes.values(), strict=True):
            values, color = outcome.means[key], COLORS[outcome.loss]
            axis.plot(values, np.full(len(values), row), 'o', color=color, alpha=0.55, markersize=6)
            axis.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=color, linewidth=3)
            axis.annotate(f'{values.mean():.1f}', (values.max(), row), (7, 0), textcoords='offset points', va='center')
        axis.set_title(title)
        axis.grid(axis='x', color='0.9')
        axis.margins(x=0.2)
        axis.tick_params(axis='y', length=0)
        axis.spines.left.set_visible(False)
    axes[0].set_yticks(rows, list(results.outcomes))
    axes[0].invert_yaxis()
    save(figure, path, dpi=100)


def draw_classes(path: Path, results: ConfigResults) -> None:
    """Draw IoU, accuracy and precision of every class: mean and standard deviation over the seeds."""
    figure, axes = _figure(3, 1, height=11, sharex=True)
    positions = np.arange(len(results.shown))
    shift = 0.8 / len(results.outcomes)
    for axis, key, title in zip(
        axes, ('iou', 'accuracy', 'precision'), ('IoU (%)', 'accuracy = recall (%)', 'precision (%)'), strict=True
    ):
        for k, outcome in enumerate(results.outcomes.values()):
            values = getattr(outcome, key)[:, results.shown]
            axis.errorbar(
                positions + (k - (len(results.outcomes) - 1) / 2) * shift,
                *_mean_and_std(values),
                fmt=MARKERS[outcome.loss],
                color=COLORS[outcome.loss],
                markersize=5,
                capsize=2,
                label=outcome.loss,
            )
        for position in positions[:-1]:
            axis.axvline(position + 0.5, color='0.92', linewidth=1)
        axis.set_title(title)
        axis.grid(axis='y', color='0.9')
        axis.set_ylim(-2, 102)
    _name_classes(axes[-1], results)
    axes[-1].set_xlim(-0.5, len(positions) - 0.5)
    axes[-1].set_xlabel('classes and their share of the training pixels')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside upper center', ncols=4)
    save(figure, path, dpi=100)


def draw_changes(path: Path, results: ConfigResults) -> bool:
    """Draw the differences to the base in points; return False if there is nothing to compare.

    They are bold where all trainings are beyond those without weights.
    """
    others = [loss for loss in results.outcomes if loss != results.base.loss]
    losses = [loss for loss in others if len(results.difference(loss, 'iou'))]
    if not losses:
        return False
    figure, axes = _figure(2, 1, height=1.6 + 0.8 * len(losses), sharex=True)
    for axis, key, title in zip(axes, ('iou', 'accuracy'), ('IoU', 'accuracy'), strict=True):
        changes = [results.difference(loss, key)[:, results.shown] for loss in losses]
        mean = np.array([_mean_and_std(change)[0] for change in changes])
        picture = axis.imshow(mean, cmap='RdBu', vmin=-20, vmax=20, aspect='auto')
        for row, loss in enumerate(losses):
            apart = results.apart(loss, key)[results.shown]
            for column, (points, is_apart) in enumerate(zip(mean[row], apart, strict=True)):
                if np.isnan(points):  # no seed has a value
                    continue
                color = 'white' if abs(points) > 11 else '0.1' if is_apart or abs(points) > 5 else '0.4'
                weight = 'bold' if is_apart else 'normal'
                axis.text(
                    column, row, f'{points:+.1f}', ha='center', va='center', fontsize=10, weight=weight, color=color
                )
        axis.set_yticks(range(len(losses)), losses)
        axis.set_title(f'{title}, points above {results.base.loss}; bold: beyond every training without weights')
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
    _name_classes(axes[-1], results)
    figure.colorbar(picture, ax=axes, shrink=0.6, pad=0.01, extend='both')
    save(figure, path, dpi=100)
    return True


def draw_confusions(path: Path, results: ConfigResults) -> None:
    """Draw the confusion matrices of all seeds together, as shares of each class's pixels."""
    columns = min(4, len(results.outcomes))
    rows = -(-len(results.outcomes) // columns)
    figure, axes = _figure(rows, columns, height=0.6 + 3.3 * rows, squeeze=False)
    has_names = len(results.order) <= MAX_NAMES
    names = [plain(results.classes[c]) for c in results.order] if has_names else []
    for axis in axes.flat[len(results.outcomes) :]:
        axis.set_visible(False)
    for axis, outcome in zip(axes.flat, results.outcomes.values(), strict=False):
        counts = outcome.confusion.sum(0)[np.ix_(results.order, results.order)]
        shares = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        picture = axis.imshow(shares, cmap='magma_r', vmin=0, vmax=100)
        axis.set_title(outcome.loss)
        axis.spines[:].set_visible(False)
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.tick_params(length=0)
    axes[0, 0].set_ylabel('label')
    axes[-1, 0].set_xlabel(
        'predicted as' if has_names else 'predicted as; classes from the most frequent to the rarest'
    )
    figure.colorbar(picture, ax=axes, shrink=0.5, pad=0.01, label="% of the class's pixels")
    save(figure, path, dpi=100)


def draw_curves(path: Path, results: ConfigResults) -> None:
    """Draw training loss and validation scores: mean and range over the seeds."""
    figure, axes = _figure(1, 3, height=4.6)
    curves = [('training', 'loss'), ('validation', 'mIoU'), ('validation', 'mAcc')]
    for axis, (part, key) in zip(axes, curves, strict=True):
        for outcome in results.outcomes.values():
            steps, values = outcome.curve(part, key)
            axis.plot(steps, values.mean(0), color=COLORS[outcome.loss], label=outcome.loss, linewidth=1.4)
            axis.fill_between(steps, values.min(0), values.max(0), color=COLORS[outcome.loss], alpha=0.12, linewidth=0)
        axis.set_title('training loss, each on its own scale' if key == 'loss' else f'validation, {TITLES[key]}')
        axis.set_xlabel('step of the log')
        axis.grid(color='0.92')
    _logarithmic(axes[0])
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower center', ncols=4)
    save(figure, path, dpi=100)


def draw_agreement(path: Path, results: ConfigResults) -> bool:
    """Draw the training losses of mmseg and of ours without weights, the same function; False without a common seed."""
    if results.same_function is None:
        return False
    built_in, ours, seeds = results.same_function
    figure, axes = _figure(1, len(seeds), height=3.4, sharey=True, squeeze=False)
    for axis, seed in zip(axes[0], seeds, strict=True):
        for outcome, width, color in ((built_in, 4, '#c9d1d9'), (ours, 1.2, COLORS[UNWEIGHTED])):
            steps, values = outcome.curve('training', 'loss')
            axis.plot(steps, values[outcome.seeds.index(seed)], color=color, linewidth=width, label=outcome.loss)
        axis.set_title(f'training loss, seed {seed}')
        axis.set_xlabel('step of the log')
        _logarithmic(axis)
        axis.grid(color='0.92')
    axes[0, 0].legend()
    save(figure, path, dpi=100)
    return True


def _logarithmic(axis) -> None:
    values = np.concatenate([[], *(line.get_ydata() for line in axis.lines)])
    if not (values > 0).any():  # a logarithmic axis needs a positive value
        return
    axis.set_yscale('log')
    axis.yaxis.set_major_formatter('{x:g}')
    axis.yaxis.set_minor_formatter('{x:g}')


def _name_classes(axis, results: ConfigResults) -> None:
    names = [f'{plain(results.classes[c])}  {100 * results.share[c]:.2g} %' for c in results.shown]
    axis.set_xticks(range(len(names)), names, rotation=30 if len(names) <= 15 else 90, ha='right')


def _mean_and_std(values: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return mean and standard deviation over the seeds, without NaN (a class that is never predicted)."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # all seeds are NaN
        return np.nanmean(values, 0), np.nanstd(values, 0, ddof=1) if len(values) > 1 else None


def _figure(rows: int, columns: int, height: float, **options):
    plt.rcParams.update(STYLE)
    return plt.subplots(rows, columns, figsize=(14, height), layout='constrained', **options)
