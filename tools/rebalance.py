"""Move a trained segmentor between rare and common classes, without training: a number for each class, tau times.

python tools/rebalance.py CONFIG CHECKPOINT
python tools/rebalance.py CONFIG CHECKPOINT --report-on test --best mIoU --out adjusted.pth
python tools/rebalance.py CONFIG CHECKPOINT --tau 0.25 --out adjusted.pth

One pass over the validation images computes the scores for every tau. --out writes a checkpoint with the bias of the
last layer changed, which any deployment reads. docs/rebalancing.md explains it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mmseg_wce  # noqa: F401  (first: mmseg cannot be imported on mmcv-lite without it)
import numpy as np
import torch
from label_arguments import check_output, print_failures, scan_and_save
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.runner import Runner
from mmseg.registry import DATA_SAMPLERS, DATASETS
from mmseg_wce.class_weights import LabelStatistics, load_statistics
from mmseg_wce.class_weights.offsets import class_offsets
from mmseg_wce.config_walk import nodes, type_name
from mmseg_wce.dataset_checks import from_config
from mmseg_wce.fused_heads import FusedPredictHook
from mmseg_wce.fused_heads.predict_hook import add_rebalancing, fuse_predict
from mmseg_wce.model_walk import main_head, unwrap_model
from mmseg_wce.rebalancing.checkpoints import check_not_rebalanced, write_rebalanced
from mmseg_wce.rebalancing.output_layer import find_output_layer
from mmseg_wce.safe_io.json_files import write_json
from mmseg_wce.training.launch import add_run_arguments, build_runner, config_from
from mmseg_wce.training.preflight import PreflightError, check_checkpoint, check_data
from mmseg_wce.validation_loss import loss_terms
from rebalance_report import Sweep, draw_sweep, print_sweep
from torch import Tensor

TAUS = (-0.5, -0.25, 0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 1.0)
WITH_WEIGHTS, FREQUENCY = 'trained', 'frequency'
FLAT = 0.25  # a prior with less than this part of the frequencies' range hardly moves anything
SPLITS = ('val', 'test')


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
        help='prior that is changed: the one that the loss has taught, frequency times class weight, or the frequency '
        'alone [%(default)s]',
    )
    parser.add_argument('--out', type=Path, help='checkpoint to write')
    parser.add_argument('--again', action='store_true', help='accept a checkpoint that this tool has written')
    parser.add_argument('--picture', type=Path, help='picture of the scores [CHECKPOINT.rebalance.png]')
    parser.add_argument('--json', type=Path, help='file of the counts [CHECKPOINT.rebalance.json]')
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
    if not all(np.isfinite([*args.taus, args.tau or 0])):
        parser.error('every tau must be finite')
    args.taus = sorted({*args.taus, 0.0, *([] if args.tau is None else [args.tau])})
    stem = Path(args.checkpoint).with_suffix('')
    args.picture = args.picture or stem.with_name(stem.name + '.rebalance.png')
    args.json = args.json or stem.with_name(stem.name + '.rebalance.json')
    return args


def build_config(args: argparse.Namespace) -> Config:
    """Return the config of the pass over the images; raise PreflightError if it cannot be started."""
    config = config_from(args)
    check_checkpoint(args.checkpoint)
    if not args.again:
        try:
            check_not_rebalanced(args.checkpoint)
        except PreflightError as error:
            raise PreflightError(f'{error}: give its source, or --again to change it once more') from error
    for option, path in (('--out', args.out), ('--picture', args.picture), ('--json', args.json)):
        if path is not None:
            check_output(path, option)
    check_data(config, *dict.fromkeys(filter(None, [args.split, args.report_on])))
    config.load_from = args.checkpoint
    return config


def select_split(config: Config, split: str, taus: Sequence[float]) -> dict[str, Any]:
    """Return data loader, evaluator and loop of a split, as the test settings of a Runner."""
    evaluators = config.get(f'{split}_evaluator')
    ignored = [node['ignore_index'] for node in nodes(evaluators) if 'ignore_index' in node]
    evaluator = dict(type='RebalancedScores', taus=list(taus), ignore_index=ignored[0] if ignored else 255)
    loop = config.get('test_cfg') or dict(type='TestLoop')
    return dict(test_dataloader=config[f'{split}_dataloader'], test_evaluator=evaluator, test_cfg=loop)


def training_statistics(config: Config, args: argparse.Namespace) -> tuple[str, LabelStatistics]:
    """Return name and statistics of the training labels; the main process counts them if nobody has."""
    if args.statistics is not None:
        return args.statistics, load_statistics(args.statistics)
    file = Path('work_dirs/class_weights', f'{Path(args.config).stem}.json')
    if is_main_process() and not file.exists():
        check_data(config, 'train', first_files=False)
        print_failures(scan_and_save(from_config(config), 0, 'Counting the pixels of the training labels', file))
    barrier()
    return str(file), load_statistics(file)


def learnt_weights(model: Any) -> Tensor | None:
    """Return the class weights of the loss that the main head was trained with; None without."""
    terms, _ = loss_terms(main_head(model))
    weights = next((term.class_weight for term in terms if term.class_weight is not None), None)
    if weights is None or weights.numel() > 1:
        return weights
    return torch.tensor([1.0, weights.item()]) if main_head(model).out_channels == 1 else None


def drawn_pixels(config: Config, statistics: LabelStatistics) -> np.ndarray:
    """Return the pixels of each class as the training drew them: not all images alike with RareClassSampler."""
    sampler = (config.get('train_dataloader') or {}).get('sampler') or {}
    if type_name(sampler) != 'RareClassSampler':
        return statistics.pixels
    dataset = DATASETS.build(config.train_dataloader.dataset)
    return DATA_SAMPLERS.build(sampler, default_args=dict(dataset=dataset, seed=0)).drawn_pixels


def offset_direction(
    config: Config, model: Any, statistics: LabelStatistics, args: argparse.Namespace
) -> tuple[Tensor, dict[str, Any]]:
    """Return the offsets of the head's channels for tau = 1, (channels,), and the prior as a dict for the record."""
    channels = main_head(model).out_channels
    if len(statistics.classes) != max(channels, 2):
        raise PreflightError(
            f'statistics of {len(statistics.classes)} classes do not fit a head with {channels} channels: '
            'give those of its training labels with --statistics'
        )
    counts, weights = statistics.pixels, None
    if args.prior == WITH_WEIGHTS:
        counts, weights = drawn_pixels(config, statistics), learnt_weights(model)
    direction = class_offsets(counts, 1, weights)
    frequency = class_offsets(statistics.pixels, 1)
    if np.ptp(direction.numpy()) < FLAT * np.ptp(frequency.numpy()) and is_main_process():
        print(
            'Note: the class weights of the training have already evened out the classes, so tau moves little here: '
            f'--prior {FREQUENCY} moves along the frequencies of the classes instead.'
        )
    class_weight = None if weights is None else weights.tolist()
    if channels == 1:
        direction = direction[1:] - direction[:1]
    return direction, dict(kind=args.prior, counts=counts.tolist(), class_weight=class_weight)


def sweep(runner: Runner, settings: dict[str, Any]) -> np.ndarray | None:
    """Predict the images of one split; return the counts of each image and tau on the main process."""
    for name in ('dataloader', 'evaluator'):
        setattr(runner, f'_test_{name}', settings[f'test_{name}'])
    runner._test_loop = runner.build_test_loop(settings['test_cfg'])
    runner.test()
    (metric,) = runner.test_loop.evaluator.metrics
    return metric.areas if is_main_process() else None


def run(args: argparse.Namespace) -> None:
    """Compute the scores, print and draw them, and write what was asked for."""
    config = build_config(args)
    splits = {split: select_split(config, split, args.taus) for split in filter(None, [args.split, args.report_on])}
    config.merge_from_dict(splits[args.split])
    runner = build_runner(config)
    runner._hooks = [hook for hook in runner.hooks if not isinstance(hook, FusedPredictHook)]  # would fuse it anew
    model: Any = unwrap_model(runner)
    line = fuse_predict(model)
    if line.startswith('left alone'):
        raise PreflightError(f'the logits of this model cannot be read: {line.removeprefix("left alone: ")}')
    try:
        layer = find_output_layer(model.eval())
    except ValueError as error:
        raise PreflightError(str(error)) from error
    name, statistics = training_statistics(config, args)
    direction, prior = offset_direction(config, model, statistics, args)
    add_rebalancing(model, direction, args.taus)
    counted = {split: sweep(runner, settings) for split, settings in splits.items()}
    if not is_main_process():
        return
    result = Sweep.from_counts(args.taus, statistics.classes, counted, args.choose_on)
    t = result.choose(args.best, args.accuracy_loss) if args.tau is None else args.taus.index(args.tau)
    print_sweep(result, t, None if args.tau is not None else args.best)
    draw_sweep(args.picture, result, t, statistics.share)
    content = dict(config=args.config, checkpoint=args.checkpoint, statistics=name, prior=prior, chosen=args.taus[t])
    write_json(args.json, dict(content, **result.to_json()), indent=None)
    print(f'Picture: {args.picture}\nCounts:  {args.json}')
    if args.out is not None:
        note = dict(tau=args.taus[t], statistics=name, prior=prior)
        if args.tau is None:
            note['chosen'] = f'by {args.best} on {result.chosen_on}'
        had_bias = write_rebalanced(args.checkpoint, args.out, layer, args.taus[t] * direction, **note)
        print(f'Checkpoint: {args.out}')
        if not had_bias:
            print(
                f'{layer} had no bias and has got one, so the model needs one, too. In the config:\n'
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
    return 0


if __name__ == '__main__':
    sys.exit(main())
