"""Command line shared by ``tools/train.py`` and ``tools/test.py``, from arguments to a Runner."""

from __future__ import annotations

import argparse
import os
import os.path as osp
from typing import Any

import torch.distributed
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmseg_wce.config_walk import nodes
from mmseg_wce.training.preflight import PreflightError, check_losses, check_work_dir, load_config

__all__ = ['ConfigOptions', 'add_run_arguments', 'build_runner', 'config_from']


class ConfigOptions(DictAction):
    """DictAction of mmengine, with a usage error for a word that is not ``key=value``."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        for word in values:
            if '=' not in word:
                parser.error(f'{option_string}: {word!r} is not key=value')
        super().__call__(parser, namespace, values, option_string)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that mmseg's tools share."""
    parser.add_argument('--work-dir', help='folder for logs and results [work_dirs/<config name>]')
    parser.add_argument(
        '--cfg-options', nargs='+', action=ConfigOptions, help='settings that override the config: key=value ...'
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')


def config_from(args: argparse.Namespace) -> Config:
    """Load the config file ``args.config``, merge the shared options into it, and check its work dir and losses.

    Raises:
        PreflightError: a file is missing or cannot be used.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    config = load_config(args.config, args.cfg_options)
    config.launcher = args.launcher
    # precedence as in mmseg: command line, config, file name
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get('work_dir') is None:
        config.work_dir = osp.join('work_dirs', osp.splitext(osp.basename(args.config))[0])
    check_work_dir(config.work_dir)
    check_losses(config)
    return config


def build_runner(config: Config) -> Runner:
    """Build the Runner; with ``--launcher pytorch`` on CPU, initialise the process group first.

    Raises:
        PreflightError: the launcher cannot work here.
    """
    if config.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise PreflightError('--launcher pytorch needs torchrun: torchrun --nproc_per_node N tools/train.py ...')
    if config.launcher != 'none' and get_device() == 'cpu':
        _init_cpu_process_group(config)
    return RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)


def _init_cpu_process_group(config: Config) -> None:
    """Initialise gloo, because mmengine would call ``torch.cuda.set_device``; replace SyncBN, which needs CUDA."""
    if config.launcher != 'pytorch':
        raise PreflightError(f'--launcher {config.launcher} needs accelerators; on CPU use --launcher pytorch')
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    if config.get('model_wrapper_cfg') is None:
        config.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel',
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=config.get('find_unused_parameters', False),
        )
    sync_bn = [node for node in nodes(config.model) if node.get('type') in ('SyncBN', 'MMSyncBN')]
    for node in sync_bn:
        node['type'] = 'BN'
    if sync_bn:
        print_log('SyncBN does not exist on CPU: every process computes its own BatchNorm statistics', logger='current')
