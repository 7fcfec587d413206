"""Data sets built from a config, even if some of its transforms cannot be built."""

from __future__ import annotations

import copy
from typing import Any

from mmseg.registry import DATASETS, TRANSFORMS
from mmseg_wce.config_walk import class_of, nodes, type_name
from mmseg_wce.dataset_checks.pipeline_steps import UnbuiltTransform
from mmseg_wce.safe_io.errors import in_one_line

__all__ = ['build_dataset']


def build_dataset(config: dict) -> Any:
    """Build a data set or a wrapper, with an :class:`UnbuiltTransform` for each transform that cannot be built.

    Raises:
        Exception: the data set cannot be built for another reason; its own error.
    """
    try:
        return DATASETS.build(copy.deepcopy(config))
    except Exception as error:
        config = copy.deepcopy(config)
        for node in nodes(config):
            if isinstance(node.get('pipeline'), list | tuple):
                node['pipeline'] = [_replace_unbuildable(step) for step in node['pipeline']]
        try:
            return DATASETS.build(config)
        except Exception:  # the transforms are not the cause
            raise error from None


def _replace_unbuildable(step: dict) -> dict:
    try:
        TRANSFORMS.build(copy.deepcopy(step))
    except Exception as error:  # any error of custom code, or a missing package such as albumentations
        kind = class_of(step, TRANSFORMS)
        return dict(type=UnbuiltTransform, name=type_name(step), kind=kind, reason=in_one_line(error))
    return step
