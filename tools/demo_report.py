"""Table and picture of the demo's results."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from drawing import IGNORED, STYLE, colors_from_palette, patches, save, show_row
from mmseg_wce.dataset_checks import LabelFiles
from rich.console import Console
from rich.table import Table

COLORS = ('#9aa5b1', '#d9480f')  # built-in, ours
TITLES = ('CrossEntropyLoss', 'WeightedCrossEntropyLoss')


@dataclass(frozen=True)
class Result:
    """Predictions for the validation images, (H, W) each; IoU and accuracy of each class in percent, (C,)."""

    name: str
    predictions: list[np.ndarray]
    iou: np.ndarray
    accuracy: np.ndarray


def print_table(
    console: Console, classes: list[str], shares: list[float], weights: list[float], results: list[Result]
) -> None:
    """Print share of pixels, weight, IoU and accuracy of every class, and the means."""
    table = Table(title='Validation, in percent; rarest class last')
    for column in ('class', 'pixels', 'weight', *(f'{m} {r.name}' for m in ('IoU', 'Acc') for r in results)):
        table.add_column(column, justify='left' if column == 'class' else 'right')
    for c in np.argsort(shares)[::-1]:
        figures = [*(r.iou[c] for r in results), *(r.accuracy[c] for r in results)]
        table.add_row(classes[c], f'{100 * shares[c]:.2f}', f'{weights[c]:.2f}', *(f'{x:.1f}' for x in figures))
    table.add_section()
    means = [*(np.nanmean(r.iou) for r in results), *(np.nanmean(r.accuracy) for r in results)]
    table.add_row('mean', '', '', *(f'{x:.1f}' for x in means), style='bold')
    console.print(table)


def draw_report(
    path: Path,
    validation: LabelFiles,
    classes: Sequence[str],
    palette: list[list[int]],
    shares: list[float],
    results: list[Result],
) -> None:
    """Draw validation images with labels and predictions, and the IoU of every class."""
    plt.rcParams.update({**STYLE, 'font.size': 13})
    figure = plt.figure(figsize=(15, 8.6), layout='constrained')
    scenes, bars = figure.subfigures(1, 2, width_ratios=[1.9, 1], wspace=0.03)
    colors = colors_from_palette(palette)
    _draw_scenes(scenes, validation, colors, results, _select_images(validation, shares, number=4))
    handles = patches(classes, colors, np.argsort(shares)[::-1])
    columns = 6  # matplotlib fills column by column; the slices below order the entries line by line
    scenes.legend(
        handles=[handle for column in range(columns) for handle in handles[column::columns]],
        loc='outside lower center',
        ncols=columns,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.2,
    )
    _draw_bars(bars, classes, shares, results)
    save(figure, path)


def _select_images(validation: LabelFiles, shares: list[float], number: int) -> list[int]:
    """Return the images that show most of the four rarest classes; predictions have no influence."""
    rare = np.argsort(shares)[:4]

    def score(i: int) -> float:
        label = validation.labels(i)
        return sum((label == c).any() for c in rare) + 0.5 * (label == IGNORED).any()

    return sorted(range(len(validation)), key=score, reverse=True)[:number]


def _draw_scenes(figure, validation: LabelFiles, colors: np.ndarray, results: list[Result], images: list[int]) -> None:
    axes = figure.subplots(len(images), 2 + len(results))
    for row, i in zip(axes, images, strict=True):
        image = plt.imread(validation.samples[i].image)
        show_row(row, image, validation.labels(i), [r.predictions[i] for r in results], colors)
    for axis, title in zip(axes[0], ('Image', 'Label', *TITLES), strict=True):
        axis.set_title(title, fontsize=12)


def _draw_bars(figure, classes: list[str], shares: list[float], results: list[Result]) -> None:
    axis = figure.subplots()
    order = np.argsort(shares)[::-1]
    names = ['Mean', *(f'{classes[c]}  {100 * shares[c]:.1f} %' for c in order)]
    rows = np.array([0, *(1.4 + np.arange(len(order)))])
    height = 0.38
    for k, (result, color, title) in enumerate(zip(results, COLORS, TITLES, strict=True)):
        values = [np.nanmean(result.iou), *result.iou[order]]
        axis.barh(rows + (k - 0.5) * height, values, height, color=color, label=title)
        for row, value in zip(rows, values, strict=True):
            weight = 'bold' if row == 0 else 'normal'
            axis.text(value + 1, row + (k - 0.5) * height, f'{value:.0f}', va='center', fontsize=11.5, weight=weight)
    axis.set_yticks(rows, names)
    axis.get_yticklabels()[0].set_weight('bold')
    axis.set_xlim(0, 108)
    axis.set_ylim(rows[-1] + 0.6, -0.6)  # the rarest at the bottom
    axis.set_xlabel('IoU (%)')
    axis.set_title('IoU by share of training pixels', fontsize=14, loc='left')
    axis.spines[['top', 'right']].set_visible(False)
    axis.tick_params(axis='y', length=0)
    figure.legend(loc='outside lower left', frameon=False, ncols=1)
