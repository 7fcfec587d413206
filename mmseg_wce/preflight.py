"""What can be known to fail before a model is built, in one line each: wrong paths, missing data, options."""

from __future__ import annotations

import os.path as osp
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.fileio import list_dir_or_file

__all__ = ['PreflightError', 'check_amp', 'check_checkpoint', 'check_data', 'load_config']


class PreflightError(Exception):
    """The run cannot work; the message is one line for the user."""


def load_config(path: str, options: dict[str, Any] | None = None) -> Config:
    """Read a config and merge the command line's options into it.

    Raises:
        PreflightError: the file, or one it is based on, is missing.
    """
    if not osp.isfile(path):
        raise PreflightError(f'config file {path!r} does not exist (looked in {osp.abspath(".")})')
    try:
        config = Config.fromfile(path)
    except FileNotFoundError as error:
        raise PreflightError(f'config file {path!r} cannot be read: {error}') from error
    config.merge_from_dict(options or {})
    return config


def check_amp() -> None:
    """Raise PreflightError where mmengine would train on CPU: its ``AmpOptimWrapper`` needs an accelerator."""
    if get_device() == 'cpu':
        raise PreflightError('--amp needs an accelerator and this machine shows none: leave it out to train on CPU')


def check_checkpoint(path: str) -> None:
    """Raise PreflightError unless a local checkpoint exists; addresses with a scheme are left to mmengine."""
    if '://' not in path and not osp.isfile(path):
        raise PreflightError(f'checkpoint {path!r} does not exist (looked in {osp.abspath(".")})')


def check_data(config: Config, *splits: str) -> None:
    """Look whether the local folders and lists that the data loaders read exist and hold files.

    Args:
        config: with ``<split>_dataloader`` for each split that it uses.
        splits: 'train', 'val', 'test'.

    Raises:
        PreflightError: a folder or list is missing or empty.
    """
    for split in splits:
        loader = config.get(f'{split}_dataloader')
        if loader is None:
            continue
        for dataset in _datasets(loader['dataset']):
            if dataset.get('backend_args') is None:  # other storages are the file backend's business
                _check_dataset(dataset, f'{split}_dataloader')


def _datasets(dataset: dict) -> Iterator[dict]:
    """The data sets inside wrappers such as ConcatDataset and RepeatDataset."""
    if 'datasets' in dataset:
        for inner in dataset['datasets']:
            yield from _datasets(inner)
    elif 'dataset' in dataset:
        yield from _datasets(dataset['dataset'])
    else:
        yield dataset


def _check_dataset(dataset: dict, where: str) -> None:
    root = dataset.get('data_root') or ''
    if root and not osp.isdir(root):
        raise PreflightError(
            f'{where}: data_root {root!r} does not exist (looked in {osp.abspath(".")}); '
            f'point to the data with --cfg-options {where}.dataset.data_root=PATH'
        )
    ann_file = dataset.get('ann_file')
    if ann_file and not osp.exists(osp.join(root, ann_file)):
        raise PreflightError(f'{where}: ann_file {osp.join(root, ann_file)!r} does not exist')
    for kind in ('img_path', 'seg_map_path'):
        prefix = dataset.get('data_prefix', {}).get(kind)
        if prefix is None:
            continue
        folder = osp.join(root, prefix)
        if not osp.isdir(folder):
            raise PreflightError(f'{where}: {kind} {folder!r} does not exist')
        if not _holds_a_file(folder):
            raise PreflightError(f'{where}: {kind} {folder!r} holds no files')


def _holds_a_file(folder: str) -> bool:
    return next(iter(list_dir_or_file(folder, list_dir=False, recursive=True)), None) is not None
