"""What an mmseg config is made of: its heads, its data sets, every dict in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

__all__ = ['heads_of', 'leaf_datasets', 'nodes']


def heads_of(config: Config) -> Iterator[tuple[str, dict]]:
    """Decode and auxiliary heads, with the place where each stands."""
    model = config.get('model', {})
    for name in ('decode_head', 'auxiliary_head'):
        heads = model.get(name)
        if isinstance(heads, list | tuple):
            yield from ((f'model.{name}[{i}]', head) for i, head in enumerate(heads))
        elif heads:
            yield f'model.{name}', heads


def leaf_datasets(dataset: dict) -> Iterator[dict]:
    """The data sets inside wrappers such as ConcatDataset and RepeatDataset."""
    if 'datasets' in dataset:
        for inner in dataset['datasets']:
            yield from leaf_datasets(inner)
    elif 'dataset' in dataset:
        yield from leaf_datasets(dataset['dataset'])
    else:
        yield dataset


def nodes(node: Any) -> Iterator[dict]:
    """Every dict in a config."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        yield from nodes(child)
