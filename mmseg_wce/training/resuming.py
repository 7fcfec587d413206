"""Check that a training can resume from a checkpoint."""

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

__all__ = ['check_can_go_on', 'check_parameters', 'read_checkpoint']

_REQUIRED_KEYS = ('meta', 'state_dict', 'message_hub')  # without these mmengine cannot resume


def check_can_go_on(path: str, config: Config) -> None:
    """Check that a training can resume from a checkpoint; log which parts of its state are missing.

    Args:
        path: path of a local checkpoint; URLs and sharded checkpoints are not checked.
        config: config of the training.

    Raises:
        PreflightError: the checkpoint cannot be read, or holds only weights.
    """
    check_checkpoint(path)
    if '://' in path or osp.isdir(path):
        return
    state = read_checkpoint(path)
    if not isinstance(state, Mapping):
        raise PreflightError(f'{path!r} is not a checkpoint: it holds a {type(state).__name__}')
    missing = [key for key in _REQUIRED_KEYS if key not in state]
    if missing:
        raise PreflightError(
            f'checkpoint {path!r} holds no {" and no ".join(missing)}, so no training can go on from it. To start a '
            f'new one with its weights, leave out --resume and --resume-from, and add --cfg-options load_from={path}'
        )
    optional = ['optimizer', 'param_schedulers'] if config.get('param_scheduler') else ['optimizer']
    warnings = []
    if missing := [key for key in optional if key not in state]:  # mmengine would resume silently
        warnings.append(
            f'holds no {" and no ".join(missing)}: that part of the training starts from the beginning, including the '
            'warm-up of the config'
        )
    for unit, option in (('iter', 'max_iters'), ('epoch', 'max_epochs')):
        done, maximum = state['meta'].get(unit), (config.get('train_cfg') or {}).get(option)
        if maximum is not None and done is not None and done >= maximum:
            warnings.append(f'is from {unit} {done}, and train_cfg.{option}={maximum}: nothing is left to train')
    for warning in warnings:
        print_log(f'checkpoint {path!r} {warning}', 'current', logging.WARNING)


def check_parameters(model: nn.Module, path: str) -> None:
    """Check that a local checkpoint has the parameters of a model, and load them into it.

    Args:
        model: built model, with or without a wrapper for distributed training.
        path: path of a checkpoint that passed :func:`check_can_go_on`.

    Raises:
        PreflightError: parameters are missing, or have another shape.
    """
    if '://' in path or osp.isdir(path):
        return
    module = model.module if isinstance(model, DistributedDataParallel) else model
    if is_model_wrapper(module):  # wrappers that shard parameters load them differently
        return
    state = {name.removeprefix('module.'): value for name, value in read_checkpoint(path)['state_dict'].items()}
    parameters = {name for name, _ in module.named_parameters()}
    try:
        missing = sorted(parameters.intersection(module.load_state_dict(state, strict=False).missing_keys))
        problem = f'lacks {len(missing)} of {len(parameters)} parameters, such as {missing[0]}' if missing else ''
    except RuntimeError as error:  # shapes differ
        problem = ' '.join(str(error).partition('\n')[2].split())
    if problem:
        raise PreflightError(
            f'checkpoint {path!r} does not fit the model of the config: {problem}. Resume with the config that the '
            'training was started with'
        )


def read_checkpoint(path: str) -> Any:
    """Return the content of a local checkpoint, on the CPU; raise PreflightError if it cannot be read."""
    try:
        return torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # each format raises different errors
        raise PreflightError(f'checkpoint {path!r} cannot be read: {in_one_line(error)}') from error
