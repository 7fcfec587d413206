"""Parts of an mmseg config: heads, data sets, all dicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry
from mmseg.registry import MODELS

__all__ = [
    'class_of',
    'classes_string_advice',
    'classifies_masks',
    'has_one_channel',
    'heads_of',
    'leaf_datasets',
    'main_head',
    'nodes',
    'preprocessor_of_others',
    'type_name',
]


def heads_of(config: Config) -> Iterator[tuple[str, dict]]:
    """Yield the decode heads, then the auxiliary heads, each with its place such as ``model.decode_head[0]``."""
    model = config.get('model', {})
    for name in ('decode_head', 'auxiliary_head'):
        heads = model.get(name)
        if isinstance(heads, list | tuple):
            yield from ((f'model.{name}[{i}]', head) for i, head in enumerate(heads))
        elif heads:
            yield f'model.{name}', heads


def main_head(config: Config) -> dict:
    """Return the decode head, the last one of a cascade; an empty dict if there is none."""
    heads = [head for place, head in heads_of(config) if place.startswith('model.decode_head')]
    return heads[-1] if heads else {}


def has_one_channel(head: dict) -> bool:
    """Return True for a head with one channel, which separates foreground from background."""
    return (head.get('out_channels') or head.get('num_classes')) == 1


def classifies_masks(head: dict) -> bool:
    """Return True for a head that classifies masks, with an additional class "no object", instead of pixels."""
    return type_name(head) == 'SideAdapterCLIPHead'


def class_of(node: Mapping[str, Any], registry: Registry) -> Any:
    """Return the class that a config dict names by ``type``; None if it is not registered.

    Args:
        node: config dict with ``type``.
        registry: registry of mmseg.

    Returns:
        The class, or the value of ``type`` if it is not a string.
    """
    kind = node.get('type')
    return registry.get(kind) if isinstance(kind, str) else kind


def preprocessor_of_others(config: Config) -> str:
    """Return the class name of a third-party ``data_preprocessor``; empty if it is mmseg's or mmengine's, or absent."""
    node = (config.get('model') or {}).get('data_preprocessor')
    kind = class_of(node, MODELS) if isinstance(node, Mapping) else None
    if kind is None or kind.__module__.partition('.')[0] in ('mmengine', 'mmseg'):
        return ''
    return kind.__name__


def type_name(node: Mapping[str, Any]) -> str:
    """Return the ``type`` of a config dict as a class name, without module.

    Keeps scopes of other projects: ``mmdet.CrossEntropyLoss`` is another class.
    """
    kind = node.get('type')
    if isinstance(kind, type):
        return kind.__name__
    scope, _, path = str(kind).partition('.')
    return path.split('.')[-1] if path and scope in ('mmseg', 'mmcv', 'mmengine', 'mmseg_wce') else str(kind)


def classes_string_advice(classes: str, dataset: str) -> str:
    """Return the error message for ``classes`` that is one string.

    Args:
        classes: the string.
        dataset: name of the data set.

    Returns:
        One line that says what to write instead.
    """
    excerpt = classes if len(classes) < 60 else classes[:60] + '...'
    return (
        f'{dataset}: classes is one string, {excerpt!r}, so that every letter would be a class. Put a comma '
        "between the names: classes=('background', 'water'), or after a single name: classes=('water',)"
    )


def leaf_datasets(dataset: dict) -> Iterator[dict]:
    """Yield the data sets inside wrappers such as ConcatDataset and RepeatDataset."""
    inner = dataset.get('datasets') or dataset.get('dataset')
    inner = inner if isinstance(inner, list | tuple) else [inner]
    if all(isinstance(child, dict) for child in inner):
        for child in inner:
            yield from leaf_datasets(child)
    else:
        yield dataset


def nodes(node: Any) -> Iterator[dict]:
    """Yield every dict in a config."""
    children: Any = ()
    if isinstance(node, dict):
        yield node
        children = node.values()
    elif isinstance(node, (list, tuple)):
        children = node
    for child in children:
        yield from nodes(child)
