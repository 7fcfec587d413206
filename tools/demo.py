"""Generate a long-tailed data set, train FastSCNN on it with the built-in loss and with ours, and compare them."""

import argparse
import json
import sys
from pathlib import Path

import mmseg_wce  # noqa: F401  (registers the data set and the loss)
from demo_report import Result, draw_report, print_table
from label_arguments import console, scan_with_progress
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.apis import inference_model, init_model
from mmseg_wce.class_weights import class_weights
from mmseg_wce.dataset_checks import LabelFiles, from_config, sum_statistics
from mmseg_wce.datasets.demo_scenes import generate_demo_scenes
from mmseg_wce.metrics import class_scores, confusion_matrix
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, track
from subprocess_runner import Failed, watch

ROOT = Path(__file__).resolve().parent.parent
DATA_ROOT = Path('data/demo_scenes')  # data_root of the configs
WORK_DIR = Path('work_dirs/demo')
CONFIGS = {
    'built-in': ROOT / 'configs' / 'demo' / 'fast_scnn_1xb4-400_demo-192x256.py',
    'weighted': ROOT / 'configs' / 'demo' / 'fast_scnn_1xb4-wce-400_demo-192x256.py',
}


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
    classes, palette = validation.classes, validation.palette
    shares, weights = write_class_weights(config)

    console.print('[bold]2/3[/] Training the same model twice: only the loss differs')
    checkpoints = {name: train(name, args.iterations) for name in CONFIGS}

    console.print('[bold]3/3[/] Comparing on the validation images')
    results = [evaluate(name, checkpoint, validation) for name, checkpoint in checkpoints.items()]
    print_table(console, classes, shares, weights, results)
    report = WORK_DIR / 'report.png'
    draw_report(report, validation, classes, palette, shares, results)
    console.print(f'Picture: [bold]{report}[/]')


if __name__ == '__main__':
    main()
