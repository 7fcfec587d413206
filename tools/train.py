"""Train a segmentor: mmseg's tools/train.py with its arguments, on GPUs and on CPU."""

import argparse
import logging
import sys

import mmseg_wce  # noqa: F401  (registers the loss, and makes the stack work on today's PyTorch)
from mmengine.config import Config
from mmengine.logging import print_log
from mmseg_wce.labels import raise_pending
from mmseg_wce.launch import add_run_arguments, build_runner, config_from
from mmseg_wce.preflight import PreflightError, check_amp, check_data
from mmseg_wce.recovery import checkpoints_in


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
    if args.resume and config.get('load_from') is None:  # else mmengine resumes from that
        config.load_from = checkpoint_to_resume(config.work_dir)
    if args.amp:
        check_amp()
        if config.optim_wrapper.type not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise PreflightError(f'--amp works with OptimWrapper only, the config has {config.optim_wrapper.type}')
        config.optim_wrapper.type = 'AmpOptimWrapper'
        config.optim_wrapper.setdefault('loss_scale', 'dynamic')
    check_data(config, 'train', 'val')
    return config


def checkpoint_to_resume(work_dir: str) -> str | None:
    """Raises PreflightError where all there is is damaged: starting anew would overwrite it."""
    found = checkpoints_in(work_dir)
    listed = '; '.join(f'{path!r}: {why}' for path, why in found.damaged.items())
    if found.usable is None and found.damaged:
        raise PreflightError(f'--resume: no checkpoint can be read: {listed}. To start anew, leave out --resume')
    if found.usable is None:
        print_log(f'--resume: no checkpoint in {work_dir!r}: training starts from the beginning', 'current')
    elif found.damaged:
        message = f'--resume: damaged, and left alone: {listed}. Training goes on from {found.usable!r}'
        print_log(message, 'current', logging.WARNING)
    return found.usable


def how_to_go_on(work_dir: str) -> str:
    """What to say last when a training has failed."""
    found = checkpoints_in(work_dir)
    cut = ''.join(f' {path!r} was not written completely.' for path in found.damaged)
    if found.usable is None:
        return f'The training stopped.{cut} No checkpoint had been written: it has to start anew.'
    return f'The training stopped.{cut} The last whole checkpoint is {found.usable!r}: --resume goes on from there.'


def main() -> None:
    args = parse_args()
    try:
        runner = build_runner(build_config(args))
    except PreflightError as error:
        sys.exit(f'error: {error}')
    try:
        runner.train()
        raise_pending()  # bad labels of the last iterations on a CUDA device
    except (Exception, KeyboardInterrupt) as error:
        words = str(error).strip().splitlines()[-1:]  # of a loader's process, its traceback stands before
        kind, reason = type(error).__name__, ''.join(words)
        reason = reason if reason.startswith(f'{kind}: ') else f'{kind}: {reason}'
        print_log(f'{reason}\n{how_to_go_on(runner.work_dir)}', 'current', logging.ERROR)
        raise


if __name__ == '__main__':
    main()
