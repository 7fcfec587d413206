"""Parts of an mmseg config: its heads, its data sets, every dict in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry
from mmseg.registry import MODELS

__all__ = [
    'class_of',
    'classifies_masks',
    'has_one_channel',
    'heads_of',
    'leaf_datasets',
    'main_head',
    'nodes',
    'one_string',
    'preprocessor_of_others',
    'type_name',
]


def heads_of(config: Config) -> Iterator[tuple[str, dict]]:
    """Decode and auxiliary heads, with the place where each stands."""
    model = config.get('model', {})
    for name in ('decode_head', 'auxiliary_head'):
        heads = model.get(name)
        if isinstance(heads, list | tuple):
            yield from ((f'model.{name}[{i}]', head) for i, head in enumerate(heads))
        elif heads:
            yield f'model.{name}', heads


def main_head(config: Config) -> dict:
    """Return the decode head, of a cascade the last; an empty dict where there is none."""
    heads = [head for place, head in heads_of(config) if place.startswith('model.decode_head')]
    return heads[-1] if heads else {}


def has_one_channel(head: dict) -> bool:
    """Return True for a head whose only channel tells foreground from background."""
    return (head.get('out_channels') or head.get('num_classes')) == 1


def classifies_masks(head: dict) -> bool:
    """Return True for a head whose cross-entropy is on masks, with a class more for "no object", not on pixels."""
    return type_name(head) == 'SideAdapterCLIPHead'


def class_of(node: Mapping[str, Any], registry: Registry) -> Any:
    """Return the class that a config's dict names, by its name in a registry or as a class; None where there is none.

    Args:
        node: with ``type``.
        registry: of mmseg.

    Returns:
        The class, or whatever a config has in its place.
    """
    kind = node.get('type')
    return registry.get(kind) if isinstance(kind, str) else kind


def preprocessor_of_others(config: Config) -> str:
    """Return the name of a ``data_preprocessor`` that is not of mmseg or mmengine; empty where there is none."""
    node = (config.get('model') or {}).get('data_preprocessor')
    kind = class_of(node, MODELS) if isinstance(node, Mapping) else None
    if kind is None or kind.__module__.partition('.')[0] in ('mmengine', 'mmseg'):
        return ''
    return kind.__name__


def type_name(node: Mapping[str, Any]) -> str:
    """Return the ``type`` of a config's dict as a name, also where it is given as a class or by its module.

    Scopes of other projects stay: ``mmdet.CrossEntropyLoss`` is another class.
    """
    kind = node.get('type')
    if isinstance(kind, type):
        return kind.__name__
    scope, _, rest = str(kind).partition('.')
    return rest.split('.')[-1] if rest and scope in ('mmseg', 'mmcv', 'mmengine', 'mmseg_wce') else str(kind)


def one_string(classes: str, dataset: str) -> str:
    """Return the message for class names that are one string.

    Args:
        classes: the string.
        dataset: name of the data set.

    Returns:
        One line that says what to write.
    """
    shown = classes if len(classes) < 60 else classes[:60] + '...'
    return (
        f'{dataset}: classes is one string, {shown!r}, which would be a class for each of its letters. Put a comma '
        "between the names: classes=('background', 'water'), or behind a single one: classes=('water',)"
    )


def leaf_datasets(dataset: dict) -> Iterator[dict]:
    """The data sets inside wrappers such as ConcatDataset and RepeatDataset."""
    inner = dataset.get('datasets') or dataset.get('dataset')
    inner = inner if isinstance(inner, list | tuple) else [inner]
    if all(isinstance(each, dict) for each in inner):
        for each in inner:
            yield from leaf_datasets(each)
    else:
        yield dataset


def nodes(node: Any) -> Iterator[dict]:
    """Every dict in a config."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
        yield from nodes(child)
