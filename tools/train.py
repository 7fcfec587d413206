"""Train a segmentor: mmseg's tools/train.py with its arguments, on GPUs and on CPU."""

import argparse
import sys

import mmseg_wce  # noqa: F401  (registers the loss, and makes the stack work on today's PyTorch)
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import find_latest_checkpoint
from mmseg_wce.labels import raise_pending
from mmseg_wce.launch import add_run_arguments, build_runner, config_from
from mmseg_wce.preflight import PreflightError, check_amp, check_data


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--resume', action='store_true', help='go on from the latest checkpoint in the work dir')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    add_run_arguments(parser)
    return parser.parse_args()


def build_config(args: argparse.Namespace) -> Config:
    config = config_from(args)
    config.resume = args.resume
    if args.resume and find_latest_checkpoint(config.work_dir) is None and config.get('load_from') is None:
        print_log(f'--resume: no checkpoint in {config.work_dir!r}: training starts from the beginning', 'current')
    if args.amp:
        check_amp()
        if config.optim_wrapper.type not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise PreflightError(f'--amp works with OptimWrapper only, the config has {config.optim_wrapper.type}')
        config.optim_wrapper.type = 'AmpOptimWrapper'
        config.optim_wrapper.setdefault('loss_scale', 'dynamic')
    check_data(config, 'train', 'val')
    return config


def main() -> None:
    args = parse_args()
    try:
        runner = build_runner(build_config(args))
    except PreflightError as error:
        sys.exit(f'error: {error}')
    runner.train()
    raise_pending()  # bad labels of the last iterations on a CUDA device


if __name__ == '__main__':
    main()
