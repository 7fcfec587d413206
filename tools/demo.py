"""Generate a long-tailed data set, train FastSCNN on it with the built-in loss and with ours, and compare them."""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import mmseg_wce  # noqa: F401  (registers the data set and the loss)
import numpy as np
from drawing import IGNORED, STYLE, colors_from_palette, patches, save, show_row
from label_arguments import console, scan_with_progress
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.apis import inference_model, init_model
from mmseg_wce.class_weights import class_weights
from mmseg_wce.dataset_checks import LabelFiles, from_config, sum_statistics
from mmseg_wce.datasets.demo_scenes import generate_demo_scenes
from mmseg_wce.metrics import class_scores, confusion_matrix
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track
from rich.table import Table
from subprocess_runner import Failed, watch

ROOT = Path(__file__).resolve().parent.parent
DATA_ROOT = Path('data/demo_scenes')  # data_root of the configs
WORK_DIR = Path('work_dirs/demo')
CONFIGS = {
    'built-in': ROOT / 'configs' / 'demo' / 'fast_scnn_1xb4-400_demo-192x256.py',
    'weighted': ROOT / 'configs' / 'demo' / 'fast_scnn_1xb4-wce-400_demo-192x256.py',
}
COLORS = ('#9aa5b1', '#d9480f')  # built-in, ours
TITLES = ('CrossEntropyLoss', 'WeightedCrossEntropyLoss')


@dataclass(frozen=True)
class Result:
    """Predictions for the validation images, (H, W) each; IoU and accuracy of each class in percent, (C,)."""

    name: str
    predictions: list[np.ndarray]
    iou: np.ndarray
    accuracy: np.ndarray


def write_class_weights(config: Config) -> tuple[list[float], list[float]]:
    """Write the file of class weights that the config names; return the classes' shares of pixels and their weights."""
    statistics = sum_statistics(scan_with_progress(from_config(config), 0, 'Counting pixels'))
    weights = [round(float(w), 4) for w in class_weights(statistics, 'sqrt_inverse_frequency')]
    (DATA_ROOT / 'class_weight.json').write_text(json.dumps(weights))
    return statistics.share.tolist(), weights


def train(name: str, iterations: int) -> Path:
    """Run tools/train.py; return the path of the last checkpoint."""
    work_dir = WORK_DIR / name
    command = [sys.executable, str(ROOT / 'tools' / 'train.py'), str(CONFIGS[name]), '--work-dir', str(work_dir)]
    command += ['--cfg-options', f'train_cfg.max_iters={iterations}', f'train_cfg.val_interval={iterations}']
    columns = (TextColumn('Training {task.description:8}'), BarColumn(), TextColumn('{task.completed}/{task.total}'))
    with Progress(*columns, TextColumn('loss {task.fields[loss]}'), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(name, total=iterations, loss='-')
        try:
            watch(command, work_dir / 'train.log', lambda i, _, loss: progress.update(task, completed=i, loss=loss))
        except Failed as error:
            sys.exit(f'error: training {error}')
    return Path((work_dir / 'last_checkpoint').read_text().strip())


def evaluate(name: str, checkpoint: Path, validation: LabelFiles) -> Result:
    """Predict every validation image, and compute IoU and accuracy of every class."""
    model = init_model(str(CONFIGS[name]), str(checkpoint), device='cpu')
    predictions, confusion = [], 0
    for i in track(range(len(validation)), f'Evaluating {name}', console=console):
        prediction = inference_model(model, validation.samples[i].image).pred_sem_seg.data.squeeze(0)
        label = prediction.new_tensor(validation.labels(i))
        predictions.append(prediction.numpy())
        confusion += confusion_matrix(prediction, label, len(validation.classes)).numpy()
    scores = class_scores(confusion)
    return Result(name, predictions, iou=scores['IoU'], accuracy=scores['Acc'])


def print_table(classes: list[str], shares: list[float], weights: list[float], results: list[Result]) -> None:
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


def draw_report(path: Path, validation: LabelFiles, shares: list[float], results: list[Result]) -> None:
    """Draw validation images with labels and predictions, and the IoU of every class."""
    plt.rcParams.update({**STYLE, 'font.size': 13})
    figure = plt.figure(figsize=(15, 8.6), layout='constrained')
    scenes, bars = figure.subfigures(1, 2, width_ratios=[1.9, 1], wspace=0.03)
    colors = colors_from_palette(validation.palette)
    _draw_scenes(scenes, validation, colors, results, _select_images(validation, shares, number=4))
    handles = patches(validation.classes, colors, np.argsort(shares)[::-1])
    columns = 6  # matplotlib fills column by column; the slices below order the entries line by line
    scenes.legend(
        handles=[handle for column in range(columns) for handle in handles[column::columns]],
        loc='outside lower center',
        ncols=columns,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.2,
    )
    _draw_bars(bars, validation.classes, shares, results)
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


def main(arguments: list[str] | None = None) -> None:
    """Generate the data, train, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--iterations', type=int, default=400, help='iterations of each training [%(default)s]')
    parser.add_argument(
        '--images', type=int, default=160, help='number of training images; a fifth of it for validation [%(default)s]'
    )
    args = parser.parse_args(arguments)
    init_default_scope('mmseg')

    console.print(f'[bold]1/3[/] Drawing scenes into {DATA_ROOT}')
    generate_demo_scenes(DATA_ROOT, num_training=args.images, num_validation=args.images // 5)
    config = Config.fromfile(CONFIGS['weighted'])
    (validation,) = from_config(config, 'val')
    shares, weights = write_class_weights(config)

    console.print('[bold]2/3[/] Training the same model twice: only the loss differs')
    checkpoints = {name: train(name, args.iterations) for name in CONFIGS}

    console.print('[bold]3/3[/] Comparing on the validation images')
    results = [evaluate(name, checkpoint, validation) for name, checkpoint in checkpoints.items()]
    print_table(validation.classes, shares, weights, results)
    report = WORK_DIR / 'report.png'
    draw_report(report, validation, shares, results)
    console.print(f'Picture: [bold]{report}[/]')


if __name__ == '__main__':
    main()
