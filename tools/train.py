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
from mmseg_wce.training.preflight import PreflightError, check_amp, check_checkpoint, check_data, check_model
from mmseg_wce.training.resuming import check_can_go_on, check_parameters


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    resume = parser.add_mutually_exclusive_group()
    resume.add_argument('--resume', action='store_true', help='go on from the latest checkpoint in the work dir')
    resume.add_argument('--resume-from', metavar='FILE', help='go on from this checkpoint')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    add_run_arguments(parser)
    return parser.parse_args()


def build_config(args: argparse.Namespace) -> Config:
    config = config_from(args)
    check_model(config)
    named = (args.cfg_options or {}).get('load_from')
    config.resume = args.resume or args.resume_from is not None
    if args.resume_from is not None:
        if named is not None and osp.abspath(named) != osp.abspath(args.resume_from):
            raise PreflightError(
                f'--resume-from {args.resume_from!r} contradicts load_from={named!r}: give one of the two'
            )
        resume_from(config, args.resume_from, '--resume-from')
    elif args.resume and named is not None:
        resume_from(config, named, '--resume with load_from on the command line')
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
    check_data(config, 'train', 'val')
    return config


def resume_from(config: Config, checkpoint: str, option: str) -> None:
    """Go on from a checkpoint of the user's choice, whatever the work dir holds.

    Args:
        config: changed.
        checkpoint: path or address.
        option: of the command line that names it.

    Raises:
        PreflightError: it cannot be read, or holds weights alone.
    """
    check_can_go_on(checkpoint, config)
    config.load_from = checkpoint
    print_log(f'{option}: training goes on from {checkpoint!r}', 'current')


def resume_latest(config: Config) -> None:
    """Go on from the work dir, whatever weights the config starts from: mmengine itself would resume from those.

    Args:
        config: changed.

    Raises:
        PreflightError: all there is is damaged, and starting anew would overwrite it; the work dir is empty, and
            ``load_from`` cannot be read.
    """
    found, weights = checkpoints_in(config.work_dir, checkpoint_hook(config)), config.get('load_from')
    listed = '; '.join(f'{path!r}: {why}' for path, why in found.damaged.items())
    if found.usable is None and found.damaged:
        raise PreflightError(f'--resume: no checkpoint can be read: {listed}. To start anew, leave out --resume')
    if found.usable is None:
        check_checkpoint(weights)
        config.resume = False
        start = 'starts from the beginning' + (f', with the weights in {weights!r}' if weights else '')
        print_log(f'--resume: no checkpoint in {config.work_dir!r}: training {start}', 'current')
        return
    if found.damaged:
        message = f'--resume: damaged, and left alone: {listed}. Training goes on from {found.usable!r}'
        print_log(message, 'current', logging.WARNING)
    elif weights:
        message = f'--resume: training goes on from {found.usable!r}; load_from={weights!r} was for its beginning'
        print_log(message, 'current')
    check_can_go_on(found.usable, config)
    config.load_from = found.usable


def checkpoint_hook(config: Config) -> dict | None:
    return (config.get('default_hooks') or {}).get('checkpoint')


def how_to_go_on(config: Config, started: float) -> str:
    """What to say last when a training has failed."""
    found = checkpoints_in(config.work_dir, checkpoint_hook(config), since=started)
    cut = ''.join(f' {path!r} was not written completely.' for path in found.damaged)
    if found.usable is not None:
        return f'The training stopped.{cut} The last whole checkpoint is {found.usable!r}: --resume goes on from there.'
    if config.get('resume'):
        return f'The training stopped.{cut} It had written no checkpoint since it went on from {config.load_from!r}.'
    return f'The training stopped.{cut} No checkpoint had been written: it has to start anew.'


def main() -> None:
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
        words = str(error).strip().splitlines()[-1:]  # of a loader's process, its traceback stands before
        kind, reason = type(error).__name__, ''.join(words)
        reason = reason if reason.startswith(f'{kind}: ') else f'{kind}: {reason}'
        print_log(f'{reason}\n{how_to_go_on(config, started)}', 'current', logging.ERROR)
        raise


if __name__ == '__main__':
    main()
