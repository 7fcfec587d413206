"""Transforms of a pipeline that determine the meaning of its labels; the others can be left out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from mmseg_wce.dataset_checks.known_transforms import Effect, effect_of, is_loader

__all__ = [
    'Step',
    'UnbuiltTransform',
    'find_first_move',
    'find_moves_before_labels',
    'flatten',
    'label_step',
    'notes_on',
]


class UnbuiltTransform:
    """Placeholder for a transform that cannot be built.

    Args:
        name: type of the transform in the config.
        kind: its class; None if none is registered.
        reason: reason why it cannot be built.
    """

    def __init__(self, name: str, kind: type | None, reason: str) -> None:
        self.name, self.kind, self.reason = name, kind, reason

    def __call__(self, results: dict) -> dict:
        raise ValueError(f'transform {self.name} cannot be built: {self.reason}')


class Step(NamedTuple):
    """A transform that is run, or a copy of it, and its effect on labels."""

    transform: Callable
    effect: Effect


def find_first_move(transforms: Sequence[Callable]) -> Callable | None:
    """Return the first transform that moves pixels after image and labels are loaded; None if there is none.

    Custom transforms count as loaders of labels only if mmcv and mmseg's loaders are absent.
    """
    effects = [effect_of(transform) for transform in transforms]
    changing = [i for i, effect in enumerate(effects) if effect is Effect.LABELS]
    known = [i for i in changing if is_loader(transforms[i])]
    loads = sorted([*(known or changing), *(i for i, effect in enumerate(effects) if effect is Effect.LOADS_IMAGE)])
    after = range(loads[-1] + 1 if loads else 0, len(transforms))
    first = next((transforms[i] for i in after if effects[i] is Effect.MOVES), None)
    before = any(effects[i] is Effect.MOVES for i in range(after.start))
    return None if before else first


def find_moves_before_labels(transforms: Sequence[Callable]) -> list[Callable]:
    """Return the transforms up to the loader of labels, if one of them moves pixels; else an empty list."""
    effects = [effect_of(transform) for transform in transforms]
    first = next((i for i, transform in enumerate(transforms) if effects[i] is Effect.LABELS), 0)
    return list(transforms[: first + 1]) if Effect.MOVES in effects[:first] else []


def flatten(transforms: Any) -> Iterator[Callable]:
    """Yield transforms one by one, including those in containers that always run all of them."""
    for transform in transforms:
        known, name = effect_of(transform) is Effect.CONTAINER, type(transform).__name__
        if known and name in ('Compose', 'MultiScaleFlipAug'):
            inner = transform.transforms
            yield from flatten(getattr(inner, 'transforms', inner))
        elif known and name == 'TestTimeAug':
            yield from flatten(transform.subroutines[0].transforms)
        elif known and name == 'KeyMapper' and not transform.mapping and not transform.remapping:
            yield from flatten(transform.transforms.transforms)
        else:
            yield transform


def label_step(transform: Callable) -> Step | None:
    """Return the part of a transform that labels need: itself, a container with fewer transforms, or None."""
    if isinstance(transform, UnbuiltTransform):
        is_needed = transform.kind is not None and effect_of(transform.kind) is Effect.LABELS
        return Step(transform, Effect.LABELS) if is_needed else None
    effect = effect_of(transform)
    if effect in (Effect.MOVES, Effect.NONE):
        return None
    return _reduce_container(transform) if effect is Effect.CONTAINER else Step(transform, effect)


def _reduce_container(container: Any) -> Step | None:
    """Return a copy of a container without the transforms that can be left out."""
    branches = container.transforms if isinstance(container.transforms, list) else [container.transforms]
    kept_steps = [[step for inner in flatten(branch.transforms) if (step := label_step(inner))] for branch in branches]
    effects = {step.effect for steps in kept_steps for step in steps}
    if not effects:
        return None
    kept = [type(b)([step.transform for step in steps]) for b, steps in zip(branches, kept_steps, strict=True)]
    reduced = copy.copy(container)
    reduced.transforms = kept if isinstance(container.transforms, list) else kept[0]
    return Step(reduced, Effect.LABELS if Effect.LABELS in effects else Effect.LOADS_IMAGE)


def notes_on(transform: Any) -> Iterator[str]:
    """Yield notes on transforms that are not checked or that change labels at random."""
    name = type(transform).__name__
    if isinstance(transform, UnbuiltTransform):
        if transform.kind is None or effect_of(transform.kind) is Effect.CONTAINER:
            yield f'transform {transform.name} is left out, since it cannot be built: {transform.reason}'
    elif name == 'Albu' and _has_function(transform.transforms):
        yield 'Albu holds functions or classes, which are not looked into: they may change labels'
    elif name in ('RandomApply', 'RandomChoice') and (step := label_step(transform)) and step.effect is Effect.LABELS:
        yield f'{name} changes labels at random: they are counted as one draw leaves them'


def _has_function(node: Any) -> bool:
    """Search the config of albumentations transforms for ``Lambda`` and for custom classes."""
    if isinstance(node, dict):
        kind = node.get('type')
        return kind == 'Lambda' or isinstance(kind, type) or any(map(_has_function, node.values()))
    return any(map(_has_function, node)) if isinstance(node, list | tuple) else False
