"""Data sets built from a config, even if some of its transforms cannot be built."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from mmseg.registry import DATASETS, TRANSFORMS
from mmseg_wce.config_walk import class_of, type_name
from mmseg_wce.dataset_checks.pipeline_steps import UnbuiltTransform
from mmseg_wce.safe_io.errors import in_one_line

__all__ = ['build_dataset']


def build_dataset(config: dict) -> Any:
    """Build a data set, with an :class:`UnbuiltTransform` for each transform that cannot be built.

    Args:
        config: config of a data set or a wrapper; it is not changed.

    Raises:
        Exception: the data set cannot be built for another reason; its own error.
    """
    try:
        return DATASETS.build(copy.deepcopy(config))
    except Exception as error:
        built_config, pipelines = _with_built_transforms(config)
        try:
            dataset = DATASETS.build(built_config)
        except Exception:  # the transforms are not the cause
            raise error from None
        for wrapper, transforms in zip(_wrappers(dataset), pipelines, strict=True):
            wrapper.pipeline = transforms
            wrapper.pipeline_types = [type(transform).__name__ for transform in transforms]
        return dataset


def _with_built_transforms(config: Any) -> tuple[Any, list[list[Any]]]:
    """Build transforms one by one; return a config with those of data sets, and the pipelines of wrappers."""
    config, pipelines = copy.copy(config), []
    if 'dataset' in config or 'datasets' in config:
        if 'pipeline' in config:  # wrappers accept transform configs only
            pipelines.append([_build_transform(step) for step in config['pipeline']])
            config['pipeline'] = []
        if 'dataset' in config:
            config['dataset'], inner = _with_built_transforms(config['dataset'])
            pipelines += inner
        else:
            built = [_with_built_transforms(dataset) for dataset in config['datasets']]
            config['datasets'] = [dataset for dataset, _ in built]
            pipelines += [pipeline for _, inner in built for pipeline in inner]
    elif config.get('pipeline'):
        config['pipeline'] = [_build_transform(step) for step in config['pipeline']]
    return config, pipelines


def _build_transform(config: dict) -> Any:
    try:
        return TRANSFORMS.build(copy.deepcopy(config))
    except Exception as error:  # any error of custom code, or a missing package such as albumentations
        return UnbuiltTransform(type_name(config), class_of(config, TRANSFORMS), in_one_line(error))


def _wrappers(dataset: Any) -> Iterator[Any]:
    """Yield wrappers that have a pipeline, in the order of :func:`_with_built_transforms`."""
    if hasattr(dataset, 'datasets'):
        for inner in dataset.datasets:
            yield from _wrappers(inner)
    elif hasattr(dataset, 'dataset'):
        if hasattr(dataset, 'pipeline'):
            yield dataset
        yield from _wrappers(dataset.dataset)
