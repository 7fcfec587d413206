"""Test a segmentor: mmseg's tools/test.py with its arguments, on GPUs and on CPU."""

import argparse
import inspect
import os
import sys

import mmseg_wce  # noqa: F401  (registers the loss, and makes the stack work on today's PyTorch)
from base_configs import evaluators
from mmengine.config import Config
from mmseg.registry import METRICS
from mmseg_wce.training.launch import add_run_arguments, build_runner, config_from
from mmseg_wce.training.preflight import PreflightError, check_checkpoint, check_data


def parse_args() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', help='folder for the predictions as PNG, encoded as the label files')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds between windows of --show')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    add_run_arguments(parser)
    return parser.parse_args()


def has_output_folder(metric: type) -> bool:
    """Return True for a metric that can write predictions, as IoUMetric; False for DumpResults."""
    return any('output_dir' in inspect.signature(kind.__init__).parameters for kind in metric.__mro__)


def build_config(args: argparse.Namespace) -> Config:
    """Return the config with the arguments merged into it; raise PreflightError if the test cannot be started."""
    config = config_from(args)
    check_checkpoint(args.checkpoint)
    config.load_from = args.checkpoint
    if args.show or args.show_dir:
        config.default_hooks.visualization.update(draw=True, show=args.show, wait_time=args.wait_time)
        if args.show_dir:
            config.visualizer.save_dir = args.show_dir
    if args.tta:
        if 'tta_pipeline' not in config or 'tta_model' not in config:
            raise PreflightError('--tta needs tta_pipeline and tta_model in the config')
        config.test_dataloader.dataset.pipeline = config.tta_pipeline
        config.tta_model.module = config.model
        config.model = config.tta_model
    if args.out:
        os.makedirs(args.out, exist_ok=True)  # in mmseg only rank 0 does, perhaps after another rank writes
        for metric in evaluators(config, 'test'):
            if has_output_folder(METRICS.get(metric.type)):
                metric.update(output_dir=args.out, keep_results=True)
    check_data(config, 'test')
    return config


def main() -> None:
    """Test, or exit with an error on one line."""
    args = parse_args()
    try:
        runner = build_runner(build_config(args))
    except PreflightError as error:
        sys.exit(f'error: {error}')
    runner.test()


if __name__ == '__main__':
    main()
