"""Find what is known to fail before a model is built: wrong paths, missing data, options. One line for each."""

from __future__ import annotations

import logging
import os.path as osp
import reprlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.device import get_device
from mmengine.logging import print_log
from mmengine.registry import init_default_scope
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from mmseg_wce.class_weights import ClassWeight, load_class_weight
from mmseg_wce.config_walk import (
    class_of,
    classifies_masks,
    has_one_channel,
    heads_of,
    leaf_datasets,
    nodes,
    one_string,
    type_name,
)
from mmseg_wce.dataset_checks import Severity, check_heads
from mmseg_wce.dataset_checks.building import build_dataset
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
    'check_work_dir',
    'load_config',
]


_CLASS_METRICS = ('ClassIoUMetric', 'IoUMetric')


class PreflightError(Exception):
    """The run cannot work; the message is one line for the user."""


def load_config(path: str, options: dict[str, Any] | None = None, import_custom_modules: bool = True) -> Config:
    """Read a config and merge the command line's options into it.

    Args:
        path: of the config file.
        options: what to merge, by dotted key.
        import_custom_modules: that the config names in ``custom_imports``.

    Returns:
        The config.

    Raises:
        PreflightError: the file, or one it is based on, is missing or is no config; an option does not fit it.

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
    except Exception as error:  # a config is code: anything can be wrong with it
        raise PreflightError(f'config file {path!r} cannot be read: {in_one_line(error)}') from error
    for key, value in (options or {}).items():
        try:
            config.merge_from_dict({key: value})
        except Exception as error:
            raise PreflightError(
                f'--cfg-options {key}={value} does not fit the config: {in_one_line(error)}'
            ) from error
    return config


def _check_file(path: str, what: str) -> None:
    if osp.isdir(path):
        raise PreflightError(f'{what} {path!r} is a folder')
    if not osp.isfile(path):
        raise PreflightError(f'{what} {path!r} does not exist (looked in {osp.abspath(".")})')


def check_work_dir(path: str, option: str = '--work-dir') -> None:
    """Raise PreflightError where a file stands in the place of a folder for logs or results.

    Args:
        path: of the folder, which need not be there.
        option: of the command line that names it.
    """
    if osp.exists(path) and not osp.isdir(path):
        raise PreflightError(f'{option} {path!r} is a file, not a folder')


def check_amp() -> None:
    """Raise PreflightError where mmengine would train on CPU: its ``AmpOptimWrapper`` needs an accelerator."""
    if get_device() == 'cpu':
        raise PreflightError('--amp needs an accelerator and this machine shows none: leave it out to train on CPU')


def check_checkpoint(path: str | None) -> None:
    """Raise PreflightError unless a local checkpoint can be read; addresses with a scheme are left to mmengine."""
    if path is None or '://' in path:
        return
    if not osp.isdir(path):  # sharded, or no checkpoint
        _check_file(path, 'checkpoint')
    why = damage(path)
    if why is not None:
        raise PreflightError(f'checkpoint {path!r} cannot be read: {why}')


def check_losses(config: Config) -> None:
    """Raise PreflightError where a loss of the config names class weights that cannot be used, or too many or few."""
    for head in nodes(config.get('model', {})):
        for loss in nodes(head.get('loss_decode') or {}) if not classifies_masks(head) else ():
            number = _number_of_weights(loss)
            if number is not None:
                _check_number_of_weights(loss, head, number)
            _check_normalizer(loss, head, number or 0)


def _number_of_weights(loss: dict) -> int | None:
    """Return how many class weights a loss has; None without, and where only the loss itself knows."""
    weights, ours = loss.get('class_weight'), type_name(loss) == 'WeightedCrossEntropyLoss'
    if weights is None:
        return None
    if ours:
        return _load(weights, single=bool(loss.get('use_sigmoid'))).numel()
    module = getattr(class_of(loss, MODELS), '__module__', '')  # to losses of others it may mean anything
    return len(weights) if isinstance(weights, list | tuple) and module.startswith('mmseg.') else None


def _check_number_of_weights(loss: dict, head: dict, number: int) -> None:
    name, of_head, weights = type_name(loss), type_name(head), reprlib.repr(loss['class_weight'])
    if loss.get('use_sigmoid') and number == 1:  # of label 1, or of every channel
        return
    if loss.get('use_sigmoid') and name == 'CrossEntropyLoss':
        raise PreflightError(
            "mmseg's CrossEntropyLoss(use_sigmoid=True) applies class_weight along the width of the image, and raises "
            f"RuntimeError: set type='WeightedCrossEntropyLoss' in {of_head}, which takes the same arguments"
        )
    classes = head.get('num_classes')
    if has_one_channel(head):
        if number > 2:
            raise PreflightError(
                f'class_weight of {name} holds {number} weights, but {of_head} has one channel, which takes '
                f'one (of the foreground) or two (background and foreground): {weights}'
            )
    elif classes is not None and number != classes:
        raise PreflightError(
            f'class_weight of {name} holds {number} weights, but {of_head} has num_classes={classes}: {weights}'
        )


def _check_normalizer(loss: dict, head: dict, number: int) -> None:
    by_weight = loss.get('use_sigmoid') and loss.get('normalize_by') == 'class_weight'
    if type_name(loss) != 'WeightedCrossEntropyLoss' or not by_weight or (has_one_channel(head) and number == 2):
        return
    raise PreflightError(
        f"normalize_by='class_weight' of WeightedCrossEntropyLoss with use_sigmoid=True in {type_name(head)} needs one "
        f"channel (out_channels=1) and two class weights, of labels 0 and 1: use 'valid' or 'all'"
    )


def _load(class_weight: ClassWeight, single: bool) -> torch.Tensor:
    try:
        return load_class_weight(class_weight, single)
    except (TypeError, ValueError) as error:
        raise PreflightError(' '.join(str(error).split())) from error


def check_model(config: Config) -> None:
    """Check channels, losses and ignored labels of the heads; log what is only doubtful.

    Args:
        config: of a segmentor that is to be trained.

    Raises:
        PreflightError: a head cannot learn, its pixel sampler fails with its losses, or a metric lacks its hook.
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
    """Look whether the local folders and lists that the data loaders read exist and hold files.

    Args:
        config: with ``<split>_dataloader`` for each split that it uses.
        splits: 'train', 'val', 'test'.
        first_files: look for the files of the first sample as well.

    Raises:
        PreflightError: a folder or list is missing or empty.
    """
    names = [f'{split}_dataloader' for split in ('train', 'val', 'test')]
    loaders = {name: config[name] for name in names if config.get(name) is not None}
    init_default_scope(config.get('default_scope', 'mmseg'))
    for name, loader in loaders.items():
        if name.removesuffix('_dataloader') not in splits:
            continue
        if not isinstance(loader.get('dataset'), dict):
            raise PreflightError(f'{name} has no dataset')
        evaluator = config.get(name.replace('dataloader', 'evaluator')) or {}
        metrics = [kind for node in nodes(evaluator) if (kind := type_name(node)) in _CLASS_METRICS]
        same_root = [n for n, other in loaders.items() if _root(other) == _root(loader)]
        for i, dataset in enumerate(leaf_datasets(loader['dataset'])):
            kind = class_of(dataset, DATASETS)
            if isinstance(kind, type) and issubclass(kind, BaseSegDataset):  # mmengine says what is wrong with others
                # joined data sets have the names of the first
                _check_dataset(dataset, kind, name, same_root, first_files, metrics if i == 0 else [])


def _check_dataset(
    dataset: dict, kind: type[BaseSegDataset], where: str, same_root: list[str], first_files: bool, metrics: list[str]
) -> None:
    classes = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(classes, str) and not osp.isfile(classes):  # mmengine reads the names from a file
        raise PreflightError(f'{where}: {one_string(classes, kind.__name__)}')
    is_local = _is_local(dataset)
    if is_local and kind.load_data_list is BaseSegDataset.load_data_list:
        _check_folders(dataset, where, same_root)
    built = _built(dataset, kind, where) if is_local else None  # other storages are the file backend's business
    if metrics:
        _check_class_names(classes, kind, built, where, metrics)
    if first_files and built is not None:
        _check_first_files(built, dataset, where)


def _is_local(dataset: dict) -> bool:
    backend_args, places = dataset.get('backend_args'), [dataset.get('data_root')]
    if isinstance(dataset.get('data_prefix'), dict):
        places += dataset['data_prefix'].values()
    is_local = backend_args is None or backend_args.get('backend') in ('disk', 'local')
    return is_local and not any('://' in str(place) for place in places)


def _check_class_names(classes: Any, kind: type, built: Any, where: str, metrics: list[str]) -> None:
    """Look whether the metric of a split will find the classes of its data sets."""
    known = classes or getattr(kind, 'METAINFO', {}).get('classes')
    if built is not None:
        known = built.metainfo.get('classes')
    elif '__init__' in vars(kind):  # it may name them itself
        return
    if not known:
        raise PreflightError(
            f'{where}: {kind.__name__} names no classes, so that the first validation would end with KeyError: '
            f"'classes' in {metrics[0]}: add metainfo=dict(classes=('background', ...)) to the data sets"
        )


def _root(loader: dict) -> str | None:
    return (loader.get('dataset') or {}).get('data_root')


def _check_folders(dataset: dict, where: str, loaders: list[str]) -> None:
    """Look for the folders and the list of a data set that lists its files as mmseg does."""
    root = dataset.get('data_root') or ''
    if root and not osp.isdir(root):
        options = ' '.join(f'{name}.dataset.data_root=PATH' for name in loaders)
        raise PreflightError(
            f'{where}: data_root {root!r} does not exist (looked in {osp.abspath(".")}); '
            f'point to the data with --cfg-options {options}'
        )
    ann_file = dataset.get('ann_file')
    if ann_file and not osp.exists(osp.join(root, ann_file)):
        raise PreflightError(f'{where}: ann_file {osp.join(root, ann_file)!r} does not exist')
    for kind in ('img_path', 'seg_map_path'):
        prefix = (dataset.get('data_prefix') or {}).get(kind)
        if isinstance(prefix, str) and not osp.isdir(osp.join(root, prefix)):
            raise PreflightError(f'{where}: {kind} {osp.join(root, prefix)!r} does not exist, or is no folder')


def _built(dataset: dict, kind: type[BaseSegDataset], where: str) -> BaseSegDataset:
    """Build a data set without its transforms; one that needs them as the training does."""
    with isolated_random_state():
        try:
            return DATASETS.build({**dataset, 'pipeline': []})
        except Exception as error:
            _check_that_it_lists_files(dataset, kind, where)
            cause = error
        try:
            return build_dataset(dataset)
        except Exception:  # the first error is the one that the training ends with as well
            raise PreflightError(f'{where}: the data set cannot be read: {in_one_line(cause)}') from cause


def _check_that_it_lists_files(dataset: dict, kind: type[BaseSegDataset], where: str) -> None:
    """Say so where there are none, on which mmengine ends with an error about arrays."""
    try:
        listed = DATASETS.build({**dataset, 'pipeline': [], 'lazy_init': True})
        if listed.load_data_list():
            return
    except Exception:  # the list is not the reason
        return
    if kind.load_data_list is not BaseSegDataset.load_data_list:
        raise PreflightError(f'{where}: {kind.__name__} lists no samples')
    if listed.ann_file:
        raise PreflightError(f'{where}: ann_file {listed.ann_file!r} is empty: it has to name the images, one a line')
    raise PreflightError(
        f'{where}: img_path {listed.data_prefix.get("img_path")!r} holds no files *{listed.img_suffix}'
    )


def _check_first_files(built: BaseSegDataset, dataset: dict, where: str) -> None:
    """Look whether the first sample's files are there, as far as it is read as mmseg does."""
    if not prepares_as_mmseg(built) or not inherits_items(built, BaseDataset):
        return
    try:
        with isolated_random_state():
            sample = built.get_data_info(0)
    except Exception:  # of the data set's own code: it may need what stands before it in a training
        return
    for name in _paths_of_files(dataset.get('pipeline') or ()):
        path = sample.get(name)
        if isinstance(path, str) and '://' not in path and not osp.isfile(path):
            raise PreflightError(f'{where}: {name} {path!r} of the first sample does not exist')


def _paths_of_files(pipeline: Sequence[dict]) -> Iterator[str]:
    """Yield which paths of a sample plain loaders open; what else may stand there others know."""
    for step in pipeline:
        kind = class_of(step, TRANSFORMS)
        if step.get('backend_args') is not None or step.get('ignore_empty'):
            return
        if kind is LoadImageFromFile:
            yield 'img_path'
        elif reads_as_load_annotations(kind):
            yield 'seg_map_path'
        elif effect_of(kind) is Effect.LABELS:
            return
