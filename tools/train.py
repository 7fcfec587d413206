"""Train a segmentor: mmseg's tools/train.py with its arguments, on GPUs and on CPU."""

import argparse
import logging
import os.path as osp
import sys
import time

import mmseg_wce  # noqa: F401  (registers the loss, and makes the stack work on today's PyTorch)
from mmengine.config import Config
from mmengine.logging import print_log
from mmseg_wce.targets import raise_pending
from mmseg_wce.training.checkpoints import checkpoints_in
from mmseg_wce.training.launch import add_run_arguments, build_runner, config_from
from mmseg_wce.training.preflight import (
    PreflightError,
    check_amp,
    check_checkpoint,
    check_data,
    check_model,
    check_record,
)
from mmseg_wce.training.resuming import check_can_go_on, check_parameters


def parse_args() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    resume = parser.add_mutually_exclusive_group()
    resume.add_argument(
        '--resume', action='store_true', help='resume from the latest intact checkpoint in the work dir'
    )
    resume.add_argument('--resume-from', metavar='FILE', help='resume from this checkpoint')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    add_run_arguments(parser)
    return parser.parse_args()


def build_config(args: argparse.Namespace) -> Config:
    """Return the config with the arguments merged into it; raise PreflightError if it cannot be trained."""
    config = config_from(args)
    check_model(config)
    load_from = (args.cfg_options or {}).get('load_from')
    config.resume = args.resume or args.resume_from is not None
    if args.resume_from is not None:
        if load_from is not None and osp.abspath(load_from) != osp.abspath(args.resume_from):
            raise PreflightError(
                f'--resume-from {args.resume_from!r} contradicts load_from={load_from!r}: give one of the two'
            )
        resume_from(config, args.resume_from, '--resume-from')
    elif args.resume and load_from is not None:
        resume_from(config, load_from, '--resume with load_from on the command line')
    elif args.resume:
        resume_latest(config)
    else:
        check_checkpoint(config.get('load_from'))
    if args.amp:
        check_amp()
        if config.optim_wrapper.type not in ('OptimWrapper', 'AmpOptimWrapper'):
            raise PreflightError(f'--amp works with OptimWrapper only, the config has {config.optim_wrapper.type}')
        config.optim_wrapper.type = 'AmpOptimWrapper'
        config.optim_wrapper.setdefault('loss_scale', 'dynamic')
    check_record(config)
    check_data(config, 'train', 'val')
    return config


def resume_from(config: Config, checkpoint: str, option: str) -> None:
    """Resume from a given checkpoint, whatever the work dir contains."""
    check_can_go_on(checkpoint, config)
    config.load_from = checkpoint
    print_log(f'{option}: training goes on from {checkpoint!r}', 'current')


def resume_latest(config: Config) -> None:
    """Resume from the work dir; without a checkpoint there, start with the weights in ``load_from``.

    mmengine itself would resume from ``load_from``.
    """
    checkpoints, weights = checkpoints_in(config.work_dir, checkpoint_hook(config)), config.get('load_from')
    listed = '; '.join(f'{path!r}: {reason}' for path, reason in checkpoints.damaged.items())
    if checkpoints.usable is None and checkpoints.damaged:
        raise PreflightError(f'--resume: no checkpoint can be read: {listed}. To start anew, leave out --resume')
    if checkpoints.usable is None:
        check_checkpoint(weights)
        config.resume = False
        start = 'starts from the beginning' + (f', with the weights in {weights!r}' if weights else '')
        print_log(f'--resume: no checkpoint in {config.work_dir!r}: training {start}', 'current')
        return
    if checkpoints.damaged:
        message = f'--resume: damaged, and left alone: {listed}. Training goes on from {checkpoints.usable!r}'
        print_log(message, 'current', logging.WARNING)
    elif weights:
        message = f'--resume: training goes on from {checkpoints.usable!r}; load_from={weights!r} was for its beginning'
        print_log(message, 'current')
    check_can_go_on(checkpoints.usable, config)
    config.load_from = checkpoints.usable


def checkpoint_hook(config: Config) -> dict | None:
    """Return the settings of the CheckpointHook."""
    return (config.get('default_hooks') or {}).get('checkpoint')


def how_to_go_on(config: Config, started: float) -> str:
    """Return the advice after a training has failed; checkpoints from before its start are not checked."""
    checkpoints = checkpoints_in(config.work_dir, checkpoint_hook(config), since=started)
    cut = ''.join(f' {path!r} was not written completely.' for path in checkpoints.damaged)
    if checkpoints.usable is not None:
        last = checkpoints.usable
        return f'The training stopped.{cut} The last whole checkpoint is {last!r}: --resume goes on from there.'
    if config.get('resume'):
        return f'The training stopped.{cut} It had written no checkpoint since it went on from {config.load_from!r}.'
    return f'The training stopped.{cut} No checkpoint had been written: it has to start anew.'


def main() -> None:
    """Train, or exit with an error on one line."""
    args, started = parse_args(), time.time()
    try:
        config = build_config(args)
        runner = build_runner(config)
        if config.resume:
            check_parameters(runner.model, config.load_from)
    except PreflightError as error:
        sys.exit(f'error: {error}')
    try:
        runner.train()
        raise_pending()  # bad labels of the last iterations on a CUDA device
    except (Exception, KeyboardInterrupt) as error:
        last_line = str(error).strip().splitlines()[-1:]  # before it, a loader's worker has its traceback
        kind, reason = type(error).__name__, ''.join(last_line)
        reason = reason if reason.startswith(f'{kind}: ') else f'{kind}: {reason}'
        print_log(f'{reason}\n{how_to_go_on(config, started)}', 'current', logging.ERROR)
        raise


if __name__ == '__main__':
    main()
