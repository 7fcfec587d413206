"""Check that a training can go on from a checkpoint, before it does."""

from __future__ import annotations

import logging
import os.path as osp
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmseg_wce.safe_io.errors import in_one_line
from mmseg_wce.training.preflight import PreflightError, check_checkpoint
from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ['check_can_go_on', 'check_parameters']

_NEEDED = ('meta', 'state_dict', 'message_hub')  # without these mmengine cannot resume
_USEFUL = ('optimizer', 'param_schedulers')  # without these it resumes and says nothing


def check_can_go_on(path: str, config: Config) -> None:
    """Check that a training can go on from a checkpoint; log what would begin anew.

    Args:
        path: of a local checkpoint; addresses with a scheme and sharded checkpoints are left to mmengine.
        config: of the training.

    Raises:
        PreflightError: it cannot be read, or holds weights alone.
    """
    check_checkpoint(path)
    if '://' in path or osp.isdir(path):
        return
    state = _content(path)
    if not isinstance(state, Mapping):
        raise PreflightError(f'checkpoint {path!r} is none: it holds a {type(state).__name__}')
    needed, useful = ([name for name in entries if name not in state] for entries in (_NEEDED, _USEFUL))
    if not config.get('param_scheduler'):
        useful = [name for name in useful if name != 'param_schedulers']
    if needed:
        raise PreflightError(
            f'checkpoint {path!r} holds no {" and no ".join(needed)}, so no training can go on from it. To start a new '
            f'one with its weights, leave out --resume and --resume-from, and add --cfg-options load_from={path}'
        )
    if useful:
        print_log(
            f'checkpoint {path!r} holds no {" and no ".join(useful)}: that part of the training begins anew, with '
            'whatever warm-up the config has',
            'current',
            logging.WARNING,
        )
    for unit, last in (('iter', 'max_iters'), ('epoch', 'max_epochs')):
        done, end = state['meta'].get(unit), (config.get('train_cfg') or {}).get(last)
        if end is not None and done is not None and done >= end:
            print_log(
                f'checkpoint {path!r} is of {unit} {done}, and train_cfg.{last}={end}: nothing is left to train',
                'current',
                logging.WARNING,
            )


def check_parameters(model: nn.Module, path: str) -> None:
    """Check that a local checkpoint has the parameters of the model which is to go on from it; loads them.

    Args:
        model: built, with or without a wrapper for several processes.
        path: of a checkpoint that passed :func:`check_can_go_on`.

    Raises:
        PreflightError: parameters are missing, or have another shape.
    """
    if '://' in path or osp.isdir(path):
        return
    module = model.module if isinstance(model, DistributedDataParallel) else model
    if is_model_wrapper(module):  # one that shards parameters has its own way to load them
        return
    state = {name.removeprefix('module.'): value for name, value in _content(path)['state_dict'].items()}
    parameters = {name for name, _ in module.named_parameters()}
    try:
        missing = sorted(parameters.intersection(module.load_state_dict(state, strict=False).missing_keys))
        problem = f'lacks {len(missing)} of {len(parameters)} parameters, such as {missing[0]}' if missing else ''
    except RuntimeError as error:  # shapes that differ
        problem = ' '.join(str(error).partition('\n')[2].split())
    if problem:
        raise PreflightError(
            f'checkpoint {path!r} is of another model than the config: {problem}. A training goes on with the config '
            'that it began with'
        )


def _content(path: str) -> Any:
    try:
        return torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # every format has errors of its own
        raise PreflightError(f'checkpoint {path!r} cannot be read: {in_one_line(error)}') from error
