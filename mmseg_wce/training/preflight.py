"""Find errors before a model is built: wrong paths, missing data, invalid options. Each is one line."""

from __future__ import annotations

import logging
import os.path as osp
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from mmseg_wce.class_weights import load_class_weight
from mmseg_wce.class_weights.file_record import load_file_record
from mmseg_wce.config_walk import (
    class_of,
    classes_string_advice,
    classifies_masks,
    has_one_channel,
    heads_of,
    leaf_datasets,
    nodes,
    type_name,
)
from mmseg_wce.dataset_checks import Severity, check_heads
from mmseg_wce.dataset_checks.building import build_dataset
from mmseg_wce.dataset_checks.discovery import why_no_samples
from mmseg_wce.dataset_checks.isolation import isolated_random_state
from mmseg_wce.dataset_checks.known_transforms import Effect, effect_of, reads_as_load_annotations
from mmseg_wce.dataset_checks.wrappers import inherits_items, prepares_as_mmseg
from mmseg_wce.safe_io.errors import in_one_line
from mmseg_wce.samplers import check_sampler
from mmseg_wce.training.checkpoints import damage

__all__ = [
    'PreflightError',
    'check_amp',
    'check_checkpoint',
    'check_data',
    'check_losses',
    'check_model',
    'check_record',
    'check_work_dir',
    'load_config',
]


_CLASS_METRICS = ('ClassIoUMetric', 'IoUMetric')


class PreflightError(Exception):
    """An error that is found before a run starts; the message is one line for the user."""


def load_config(path: str, options: dict[str, Any] | None = None, import_custom_modules: bool = True) -> Config:
    """Read a config and merge the command line's options into it.

    Args:
        path: path of the config file.
        options: values to merge, by dotted key.
        import_custom_modules: import the modules in ``custom_imports`` of the config.

    Returns:
        The config.

    Raises:
        PreflightError: the file or one of its bases is missing or not a config; an option does not fit it.

    Example:
        >>> import tempfile
        >>> from mmseg_wce.training.preflight import load_config
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = open(f'{folder}/mine.py', 'w').write('train_cfg = dict(max_iters=100)')
        ...     load_config(f'{folder}/mine.py', {'train_cfg.max_iters': 3}).train_cfg
        {'max_iters': 3}
    """
    _check_file(path, 'config file')
    try:
        config = Config.fromfile(path, import_custom_modules=import_custom_modules)
    except Exception as error:  # a config is code and can raise anything
        raise PreflightError(f'config file {path!r} cannot be read: {in_one_line(error)}') from error
    for key, value in (options or {}).items():
        try:
            config.merge_from_dict({key: value})
        except Exception as error:
            raise PreflightError(
                f'--cfg-options {key}={value} does not fit the config: {in_one_line(error)}'
            ) from error
    return config


def _check_file(path: str, description: str) -> None:
    if osp.isdir(path):
        raise PreflightError(f'{description} {path!r} is a folder')
    if not osp.isfile(path):
        raise PreflightError(f'{description} {path!r} does not exist (looked in {osp.abspath(".")})')


def check_work_dir(path: str, option: str = '--work-dir') -> None:
    """Raise PreflightError if the path of a folder for logs or results is a file.

    Args:
        path: path of the folder, which need not exist.
        option: command-line option that sets it, for the message.
    """
    if osp.exists(path) and not osp.isdir(path):
        raise PreflightError(f'{option} {path!r} is a file, not a folder')


def check_amp() -> None:
    """Raise PreflightError if there is no accelerator, which mmengine's ``AmpOptimWrapper`` needs."""
    if get_device() == 'cpu':
        raise PreflightError('--amp needs an accelerator and none is available: remove it to train on CPU')


def check_checkpoint(path: str | None) -> None:
    """Raise PreflightError unless a local checkpoint can be read; URLs are not checked."""
    if path is None or '://' in path:
        return
    if not osp.isdir(path):  # damage() checks folders
        _check_file(path, 'checkpoint')
    reason = damage(path)
    if reason is not None:
        raise PreflightError(f'checkpoint {path!r} cannot be read: {reason}')


def check_losses(config: Config) -> None:
    """Raise PreflightError if a loss of the config has unusable class weights, or the wrong number of them."""
    for head in nodes(config.get('model', {})):
        for loss in nodes(head.get('loss_decode') or {}) if not classifies_masks(head) else ():
            num_weights = _count_weights(loss)
            if num_weights is not None:
                _check_num_weights(loss, head, num_weights)
            _check_normalizer(loss, head, num_weights or 0)


def check_record(config: Config) -> None:
    """Raise PreflightError if RareClassSampler is to draw the training images and its record cannot be read."""
    sampler = (config.get('train_dataloader') or {}).get('sampler') or {}
    if type_name(sampler) == 'RareClassSampler' and 'statistics' in sampler:
        try:
            load_file_record(sampler['statistics'])
        except ValueError as error:
            raise PreflightError(f'train_dataloader.sampler: {error}') from error


def _count_weights(loss: dict) -> int | None:
    """Return the number of class weights of a loss; None if there are none, or if it is unknown."""
    weights = loss.get('class_weight')
    if weights is None:
        return None
    if type_name(loss) == 'WeightedCrossEntropyLoss':
        try:
            return load_class_weight(weights, single=bool(loss.get('use_sigmoid'))).numel()
        except (TypeError, ValueError) as error:
            raise PreflightError(' '.join(str(error).split())) from error
    module = getattr(class_of(loss, MODELS), '__module__', '')  # in third-party losses it may have another meaning
    return len(weights) if isinstance(weights, list | tuple) and module.startswith('mmseg.') else None


def _check_num_weights(loss: dict, head: dict, num_weights: int) -> None:
    name, head_name, weights = type_name(loss), type_name(head), reprlib.repr(loss['class_weight'])
    if loss.get('use_sigmoid') and num_weights == 1:  # for label 1, or for all channels
        return
    if loss.get('use_sigmoid') and name == 'CrossEntropyLoss':
        raise PreflightError(
            "mmseg's CrossEntropyLoss(use_sigmoid=True) applies class_weight along the width of the image, and raises "
            f"RuntimeError: set type='WeightedCrossEntropyLoss' in {head_name}, which takes the same arguments"
        )
    classes = head.get('num_classes')
    if has_one_channel(head):
        if num_weights > 2:
            raise PreflightError(
                f'class_weight of {name} holds {num_weights} weights, but {head_name} has one channel, which takes '
                f'one (foreground) or two (background and foreground): {weights}'
            )
    elif classes is not None and num_weights != classes:
        raise PreflightError(
            f'class_weight of {name} holds {num_weights} weights, but {head_name} has num_classes={classes}: {weights}'
        )


def _check_normalizer(loss: dict, head: dict, num_weights: int) -> None:
    divides_by_weight = loss.get('use_sigmoid') and loss.get('normalize_by') == 'class_weight'
    if type_name(loss) != 'WeightedCrossEntropyLoss' or not divides_by_weight:
        return
    if has_one_channel(head) and num_weights == 2:
        return
    raise PreflightError(
        f"normalize_by='class_weight' of WeightedCrossEntropyLoss with use_sigmoid=True in {type_name(head)} needs one "
        f"channel (out_channels=1) and two class weights, for labels 0 and 1: use 'valid' or 'all'"
    )


def check_model(config: Config) -> None:
    """Check channels, losses, samplers and ignored labels of the heads, and the metrics; log warnings.

    Raises:
        PreflightError: a head cannot learn, its pixel sampler fails with its losses, or a metric needs a hook.
    """
    for _, head in heads_of(config):
        if problem := check_sampler(head):
            raise PreflightError(problem)
    hooks = [*(config.get('custom_hooks') or []), *(config.get('default_hooks') or {}).values()]
    names = {type_name(hook) for hook in hooks if isinstance(hook, dict)}
    for split in ('val', 'test'):
        metrics = (type_name(node) for node in nodes(config.get(f'{split}_evaluator') or {}))
        if 'ValidationLoss' in metrics and 'FusedPredictHook' not in names:
            raise PreflightError(
                f"{split}_evaluator has ValidationLoss, which needs a hook: add dict(type='FusedPredictHook') to "
                'custom_hooks'
            )
    for finding in check_heads(config):
        if finding.severity == Severity.ERROR:
            raise PreflightError(str(finding))
        print_log(str(finding), 'current', logging.WARNING)


def check_data(config: Config, *splits: str, first_files: bool = True) -> None:
    """Check that the local folders and file lists of the data loaders exist and hold files.

    Args:
        config: config with ``<split>_dataloader`` for each split that it uses.
        splits: splits to check: 'train', 'val', 'test'.
        first_files: also check that the files of the first sample exist.

    Raises:
        PreflightError: a folder or list is missing or empty.
    """
    names = [f'{split}_dataloader' for split in ('train', 'val', 'test')]
    loaders = {name: config[name] for name in names if config.get(name) is not None}
    roots = {name: (loader.get('dataset') or {}).get('data_root') for name, loader in loaders.items()}
    init_default_scope(config.get('default_scope', 'mmseg'))
    for name, loader in loaders.items():
        if name.removesuffix('_dataloader') not in splits:
            continue
        if not isinstance(loader.get('dataset'), dict):
            raise PreflightError(f'{name} has no dataset')
        evaluator = config.get(name.replace('dataloader', 'evaluator')) or {}
        metrics = [metric for node in nodes(evaluator) if (metric := type_name(node)) in _CLASS_METRICS]
        same_root = [n for n, root in roots.items() if root == roots[name]]
        for i, dataset in enumerate(leaf_datasets(loader['dataset'])):
            cls = class_of(dataset, DATASETS)
            if isinstance(cls, type) and issubclass(cls, BaseSegDataset):  # mmengine raises errors for others
                # concatenated data sets have the class names of the first
                _check_dataset(dataset, cls, name, same_root, first_files, metrics if i == 0 else [])


def _check_dataset(
    dataset: dict, cls: type[BaseSegDataset], loader: str, same_root: list[str], first_files: bool, metrics: list[str]
) -> None:
    classes = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(classes, str) and not osp.isfile(classes):  # mmengine reads the names from a file
        raise PreflightError(f'{loader}: {classes_string_advice(classes, cls.__name__)}')
    is_local = _is_local(dataset)
    if is_local and cls.load_data_list is BaseSegDataset.load_data_list:
        _check_folders(dataset, loader, same_root)
    built = _build_dataset(dataset, cls, loader) if is_local else None  # other storages are not checked
    if metrics:
        _check_class_names(classes, cls, built, loader, metrics)
    if first_files and built is not None:
        _check_first_files(built, dataset, loader)


def _is_local(dataset: dict) -> bool:
    backend_args, paths = dataset.get('backend_args'), [dataset.get('data_root')]
    if isinstance(dataset.get('data_prefix'), dict):
        paths += dataset['data_prefix'].values()
    is_local = backend_args is None or backend_args.get('backend') in ('disk', 'local')
    return is_local and not any('://' in str(path) for path in paths)


def _check_class_names(classes: Any, cls: type, built: Any, loader: str, metrics: list[str]) -> None:
    """Raise PreflightError if the metric of a split would not find class names in the data set."""
    names = classes or getattr(cls, 'METAINFO', {}).get('classes')
    if built is not None:
        names = built.metainfo.get('classes')
    elif '__init__' in vars(cls):  # may set the names itself
        return
    if not names:
        raise PreflightError(
            f'{loader}: {cls.__name__} names no classes, so that the first validation would end with KeyError: '
            f"'classes' in {metrics[0]}: add metainfo=dict(classes=('background', ...)) to the data sets"
        )


def _check_folders(dataset: dict, loader: str, same_root: list[str]) -> None:
    """Check that the folders and the file list of a data set exist, if it lists its files as mmseg does."""
    root = dataset.get('data_root') or ''
    if root and not osp.isdir(root):
        options = ' '.join(f'{name}.dataset.data_root=PATH' for name in same_root)
        raise PreflightError(
            f'{loader}: data_root {root!r} does not exist (looked in {osp.abspath(".")}); '
            f'point to the data with --cfg-options {options}'
        )
    ann_file = dataset.get('ann_file')
    if ann_file and not osp.exists(osp.join(root, ann_file)):
        raise PreflightError(f'{loader}: ann_file {osp.join(root, ann_file)!r} does not exist')
    for key in ('img_path', 'seg_map_path'):
        prefix = (dataset.get('data_prefix') or {}).get(key)
        if isinstance(prefix, str) and not osp.isdir(osp.join(root, prefix)):
            raise PreflightError(f'{loader}: {key} {osp.join(root, prefix)!r} does not exist, or is not a folder')


def _build_dataset(dataset: dict, cls: type[BaseSegDataset], loader: str) -> BaseSegDataset:
    """Build a data set without its transforms or, if that fails, with them, as in training."""
    with isolated_random_state():
        try:
            return DATASETS.build({**dataset, 'pipeline': []})
        except Exception as error:
            _check_file_list(dataset, cls, loader)
            cause = error
        try:
            return build_dataset(dataset)
        except Exception:  # training would raise the first error
            raise PreflightError(f'{loader}: the data set cannot be read: {in_one_line(cause)}') from cause


def _check_file_list(dataset: dict, cls: type[BaseSegDataset], loader: str) -> None:
    """Raise PreflightError if a data set lists no files; mmengine's error would be about arrays."""
    try:
        built = DATASETS.build({**dataset, 'pipeline': [], 'lazy_init': True})
        if built.load_data_list():
            return
    except Exception:  # something else is wrong
        return
    if cls.load_data_list is not BaseSegDataset.load_data_list:
        raise PreflightError(f'{loader}: {cls.__name__} lists no samples')
    raise PreflightError(f'{loader}: {why_no_samples(built)}')


def _check_first_files(built: BaseSegDataset, dataset: dict, loader: str) -> None:
    """Check that the files of the first sample exist, if the data set reads samples as mmseg does."""
    if not prepares_as_mmseg(built) or not inherits_items(built, BaseDataset):
        return
    try:
        with isolated_random_state():
            sample = built.get_data_info(0)
    except Exception:  # code of the data set, which may need a full training setup
        return
    for key in _loaded_path_keys(dataset.get('pipeline') or ()):
        path = sample.get(key)
        if isinstance(path, str) and '://' not in path and not osp.isfile(path):
            raise PreflightError(f'{loader}: {key} {path!r} of the first sample does not exist')


def _loaded_path_keys(pipeline: Sequence[dict]) -> Iterator[str]:
    """Yield the keys of the paths that mmseg's loaders at the start of a pipeline open."""
    for step in pipeline:
        cls = class_of(step, TRANSFORMS)
        if step.get('backend_args') is not None or step.get('ignore_empty'):
            return
        if cls is LoadImageFromFile:
            yield 'img_path'
        elif reads_as_load_annotations(cls):
            yield 'seg_map_path'
        elif effect_of(cls) is Effect.LABELS:
            return
