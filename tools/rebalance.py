"""Move a trained segmentor between rare and common classes, without training: a number for each class, tau times.

python tools/rebalance.py CONFIG CHECKPOINT
python tools/rebalance.py CONFIG CHECKPOINT --report-on test --best mIoU --out adjusted.pth
python tools/rebalance.py CONFIG CHECKPOINT --tau 0.25 --out adjusted.pth

One pass over the validation images computes the scores for every tau. --out writes a checkpoint with the bias of the
last layer changed, which any deployment reads. docs/rebalancing.md explains it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmseg_wce  # noqa: F401  (first: mmseg cannot be imported on mmcv-lite without it)
import numpy as np
import torch
from label_arguments import check_output, print_failures, say, scan_and_save
from mmengine.config import Config
from mmengine.dist import get_world_size, is_main_process
from mmengine.runner import Runner
from mmseg.registry import DATA_SAMPLERS, DATASETS
from mmseg_wce.class_weights import LabelStatistics, class_offsets, load_statistics
from mmseg_wce.config_walk import nodes, type_name
from mmseg_wce.dataset_checks import cores, from_config
from mmseg_wce.fused_heads import FusedPredictHook
from mmseg_wce.fused_heads.predict_hook import add_rebalancing, fuse_predict
from mmseg_wce.model_walk import main_head, unwrap_model
from mmseg_wce.rebalancing.checkpoints import check_layer, rebalancing_of, training_config_of, write_rebalanced
from mmseg_wce.rebalancing.output_layer import find_output_layer
from mmseg_wce.safe_io.json_files import write_json
from mmseg_wce.training.launch import add_run_arguments, build_runner, config_from
from mmseg_wce.training.preflight import PreflightError, check_checkpoint, check_data
from mmseg_wce.validation_loss import loss_terms
from rebalance_checks import check_classes, check_images, check_same_files, check_training
from rebalance_report import Sweep, check_score, draw_sweep, print_sweep, write_tables
from torch import Tensor

TAUS = (-0.5, -0.25, 0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0)
WITH_WEIGHTS, FREQUENCY = 'trained', 'frequency'
FLAT = 0.25  # a prior with less than this part of the frequencies' range hardly moves anything
SPLITS = ('val', 'test')
REPORTS = dict(picture=('picture', '.png'), tables=('tables in Markdown', '.md'), json=('counts', '.json'))


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments; exit with a usage error if some contradict each other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--taus', nargs='+', type=float, default=list(TAUS), help='strengths; above 0 rare classes gain [%(default)s]'
    )
    parser.add_argument('--split', choices=SPLITS, default='val', help='images to choose tau on [%(default)s]')
    parser.add_argument('--report-on', choices=SPLITS, help='images to report on, other than those tau is chosen on')
    parser.add_argument(
        '--choose-on',
        type=float,
        metavar='SHARE',
        help='choose tau on this share of the images of --split, the first ones, and report on the rest',
    )
    parser.add_argument(
        '--best', default='mIoU', help='score that tau is chosen by: mIoU, mAcc, aAcc, IoU/CLASS, Acc/CLASS [mIoU]'
    )
    parser.add_argument(
        '--accuracy-loss', type=float, metavar='POINTS', help='with --best: lose at most so much pixel accuracy (aAcc)'
    )
    parser.add_argument('--tau', type=float, help='take this tau instead of choosing one')
    parser.add_argument(
        '--statistics', help="statistics of the training labels: 'ade20k', or a file; counted and kept if not given"
    )
    parser.add_argument(
        '--prior',
        choices=(WITH_WEIGHTS, FREQUENCY),
        default=WITH_WEIGHTS,
        help='how frequent the model takes the classes to be: as it was trained, with class weights and sampler, or by '
        'the pixels of the labels alone [%(default)s]',
    )
    parser.add_argument('--out', type=Path, help='checkpoint to write')
    parser.add_argument('--again', action='store_true', help='accept a checkpoint that this tool has written')
    for name, (content, suffix) in REPORTS.items():
        parser.add_argument(f'--{name}', type=Path, help=f'{content} [CHECKPOINT.rebalance{suffix}]')
    add_run_arguments(parser)
    args = parser.parse_args(arguments)
    if args.report_on is not None and args.choose_on is not None:
        parser.error('--report-on and --choose-on: give one of the two')
    if args.report_on == args.split:
        parser.error(f'--report-on {args.report_on} is the split that tau is chosen on')
    if args.choose_on is not None and not 0 < args.choose_on < 1:
        parser.error(f'--choose-on must be above 0 and below 1, got {args.choose_on}')
    if args.accuracy_loss is not None and not args.accuracy_loss >= 0:
        parser.error(f'--accuracy-loss must not be negative, got {args.accuracy_loss}')
    if args.accuracy_loss is not None and args.tau is not None:
        parser.error('--accuracy-loss bounds the choice of tau, but --tau is given')
    if not all(np.isfinite([*args.taus, args.tau or 0])):
        parser.error('every tau must be finite')
    args.taus = sorted({*args.taus, 0.0, *([] if args.tau is None else [args.tau])})
    stem = args.checkpoint.removesuffix('.pth')
    for name, (_, suffix) in REPORTS.items():
        if getattr(args, name) is None:
            setattr(args, name, Path(f'{stem}.rebalance{suffix}'))
    if args.picture.suffix.lower() != '.png':
        parser.error(f'--picture {args.picture} must end in .png')
    return args


def check_outputs(args: argparse.Namespace) -> None:
    """Raise PreflightError or ValueError if a file cannot be written, or would replace another one."""
    taken = {os.path.realpath(args.checkpoint): 'the checkpoint itself'}
    for name in ('out', *REPORTS):
        path = getattr(args, name)
        if path is None:
            continue
        if (other := taken.setdefault(os.path.realpath(path), f'the file of --{name}')) != f'the file of --{name}':
            raise PreflightError(f'--{name} {str(path)!r} is {other}: give another name')
        check_output(path, f'--{name}')


def build_config(args: argparse.Namespace) -> Config:
    """Return the config of the pass over the images; raise PreflightError if it cannot be started."""
    if '://' in args.checkpoint:
        raise PreflightError(f'checkpoint {args.checkpoint!r}: download it first, so that it can be read and adjusted')
    config = config_from(args)
    check_checkpoint(args.checkpoint)
    if not args.again and (done := rebalancing_of(args.checkpoint)):
        raise PreflightError(
            f'checkpoint {args.checkpoint!r} has been rebalanced already ({done}): give its source, or --again to '
            'change it once more'
        )
    if os.environ.get('RANK', '0') == '0':
        check_outputs(args)
    for split in filter(None, [args.split, args.report_on]):
        if not config.get(f'{split}_dataloader'):
            raise PreflightError(f'the config has no {split}_dataloader')
        check_data(config, split)
    config.load_from, config.resume = args.checkpoint, False
    return config


def test_settings(config: Config, split: str, taus: Sequence[float]) -> dict[str, Any]:
    """Return data loader, evaluator and loop of a split, as the test settings of a Runner."""
    evaluators = config.get(f'{split}_evaluator')
    ignored = [node['ignore_index'] for node in nodes(evaluators) if 'ignore_index' in node]
    evaluator = dict(type='RebalancedScores', taus=list(taus), ignore_index=ignored[0] if ignored else 255)
    loop = dict(config.get('test_cfg') or {}, type='TestLoop')
    return dict(test_dataloader=config[f'{split}_dataloader'], test_evaluator=evaluator, test_cfg=loop)


def training_statistics(config: Config, args: argparse.Namespace) -> tuple[str, LabelStatistics]:
    """Return name and statistics of the training labels, which are counted and kept if there is no such file."""
    if args.statistics is not None:
        return args.statistics, load_statistics(args.statistics)
    file = Path('work_dirs/class_weights', f'{Path(args.config).stem}.json')
    if not config.get('train_dataloader'):
        raise PreflightError('the config has no train_dataloader whose labels could be counted: give --statistics')
    check_data(config, 'train', first_files=False)
    if file.exists():
        statistics = load_statistics(file)
        check_same_files(file, statistics, from_config(config))
        return str(file), statistics
    if get_world_size() > 1:
        raise PreflightError(
            f'the training labels have not been counted: run python tools/class_weights.py {args.config} first, or '
            'give --statistics'
        )
    print_failures(scan_and_save(from_config(config), cores(), 'Counting the pixels of the training labels', file))
    return str(file), load_statistics(file)


def learnt_weights(model: Any) -> Tensor | None:
    """Return the class weights of the loss that the main head was trained with, None without; say what is not known."""
    terms, left_out = loss_terms(main_head(model))
    weights = next((term.class_weight for term in terms if term.class_weight is not None), None)
    if weights is None and left_out:
        note(f'no class weights are in the prior; those of these losses are not looked at: {"; ".join(left_out)}')
    if weights is None or weights.numel() > 1:
        return weights
    return torch.tensor([1.0, weights.item()]) if main_head(model).out_channels == 1 else None


def drawn_pixels(config: Config, statistics: LabelStatistics) -> np.ndarray:
    """Return the pixels of each class as the training drew them: not all images alike with RareClassSampler."""
    sampler = (config.get('train_dataloader') or {}).get('sampler') or {}
    if type_name(sampler) != 'RareClassSampler':
        return statistics.pixels
    try:
        check_data(config, 'train', first_files=False)
        dataset = DATASETS.build(config.train_dataloader.dataset)
        return DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=0)).drawn_pixels
    except (PreflightError, ValueError) as error:
        raise PreflightError(
            f'the prior needs the training images, which RareClassSampler draws from: {error}. With '
            f'--prior {FREQUENCY} it does not'
        ) from error


def offsets_of_channels(
    config: Config, model: Any, statistics: LabelStatistics, args: argparse.Namespace
) -> tuple[Tensor, dict[str, Any]]:
    """Return the offsets of the head's channels for each tau, (T, channels), and the prior as a dict for the record."""
    channels = main_head(model).out_channels
    if len(statistics.classes) != max(channels, 2):
        raise PreflightError(
            f'statistics of {len(statistics.classes)} classes do not fit a head with {channels} channels: '
            'give those of its training labels with --statistics'
        )
    counts, weights = statistics.pixels, None
    if args.prior == WITH_WEIGHTS:
        counts, weights = drawn_pixels(config, statistics), learnt_weights(model)
    offsets = torch.stack([class_offsets(counts, tau, weights) for tau in args.taus])
    learnt, frequency = class_offsets(counts, 1, weights), class_offsets(statistics.pixels, 1)
    if np.ptp(learnt.numpy()) < FLAT * np.ptp(frequency.numpy()):
        note(
            'class weights or the sampler of the training have evened out the classes already, so tau moves little '
            f'here: --prior {FREQUENCY} moves along the frequencies of the classes instead'
        )
    class_weight = None if weights is None else weights.tolist()
    prior = dict(kind=args.prior, counts=counts.tolist(), class_weight=class_weight)
    return offsets[:, 1:] - offsets[:, :1] if channels == 1 else offsets, prior


def note(text: str) -> None:
    """Print a note on the main process."""
    if is_main_process():
        say(f'Note: {text}.')


def build_loops(runner: Runner, settings: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the loop over each split that is needed."""
    loops = {}
    for split, values in settings.items():
        runner._test_dataloader, runner._test_evaluator = values['test_dataloader'], values['test_evaluator']
        loops[split] = runner.build_test_loop(values['test_cfg'])
    return loops


def count(runner: Runner, loop: Any) -> np.ndarray | None:
    """Predict the images of one split; return the counts of each image and tau on the main process."""
    runner._test_loop = loop
    runner.test()
    (metric,) = loop.evaluator.metrics
    return metric.areas if is_main_process() else None


def run(args: argparse.Namespace) -> None:
    """Compute the scores, print and draw them, and write what was asked for."""
    config = build_config(args)
    splits = list(filter(None, [args.split, args.report_on]))
    settings = {split: test_settings(config, split, args.taus) for split in splits}
    for key, value in settings[args.split].items():
        config[key] = value
    runner = build_runner(config)
    runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, FusedPredictHook)]  # would fuse it anew
    model: Any = unwrap_model(runner)
    line = fuse_predict(model)
    if line.startswith('left alone'):
        raise PreflightError(f'the logits of this model cannot be read: {line.removeprefix("left alone: ")}')
    layer = find_output_layer(model.eval())
    check_layer(args.checkpoint, layer, main_head(model).out_channels)
    if args.prior == WITH_WEIGHTS:
        check_training(config, training_config_of(args.checkpoint), note)
    name, statistics = training_statistics(config, args)
    offsets, prior = offsets_of_channels(config, model, statistics, args)
    loops = build_loops(runner, settings)
    datasets = [loop.dataloader.dataset for loop in loops.values()]
    classes = check_classes(statistics, datasets, note)
    if args.tau is None:
        check_images(list(loops), datasets)
        check_score(args.best, classes)
    Sweep.check_share(args.choose_on, len(datasets[0]))
    add_rebalancing(model, offsets, args.taus.index(0.0))
    counted = {split: count(runner, loop) for split, loop in loops.items()}
    if not is_main_process():
        return
    result = Sweep.from_counts(args.taus, classes, counted, args.choose_on)
    content = dict(config=args.config, checkpoint=args.checkpoint, statistics=name, prior=prior, **result.to_json())
    write_json(args.json, content, indent=None)
    problem = None
    try:
        t = result.choose(args.best, args.accuracy_loss) if args.tau is None else args.taus.index(args.tau)
        how = f'chosen by {args.best} on {result.chosen_on}' if args.tau is None else 'as given'
        write_json(args.json, dict(content, chosen=args.taus[t]), indent=None)
    except PreflightError as error:  # what was counted is shown all the same
        t, how, problem = args.taus.index(0.0), 'as trained: none could be chosen', error
    print_sweep(result, t, how)
    write_tables(args.tables, result, t, how)
    draw_sweep(args.picture, result, t, statistics.share)
    say(f'Statistics: {name}\nPicture:    {args.picture}\nTables:     {args.tables}\nCounts:     {args.json}')
    if problem is not None:
        raise problem
    if args.out is not None:
        written = dict(tau=args.taus[t], how=how, statistics=name, prior=prior)
        had_bias = write_rebalanced(args.checkpoint, args.out, layer, offsets[t], **written)
        say(f'Checkpoint: {args.out}')
        if not had_bias:
            say(
                f'{layer} had no bias and has got one, so the model needs one, too. Add to the config:\n'
                f"custom_hooks = [dict(type='OutputBiasHook', layer={layer!r})]"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    args = parse_args(arguments)
    try:
        run(args)
    except (PreflightError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    finally:
        if torch.distributed.is_initialized():  # else gloo's threads may end a rank that is done before the others
            torch.distributed.destroy_process_group()
    return 0


if __name__ == '__main__':
    sys.exit(main())
