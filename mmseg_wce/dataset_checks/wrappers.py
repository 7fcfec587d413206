"""Data sets inside wrappers that join, repeat or mix them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mmengine.dataset import BaseDataset, ClassBalancedDataset, ConcatDataset, RepeatDataset
from mmseg.datasets import BaseSegDataset, MultiImageMixDataset
from torch.utils.data import Subset

__all__ = ['Leaf', 'inherits_items', 'leaves', 'prepares_as_mmseg']


class Leaf(NamedTuple):
    """A data set inside wrappers.

    Attributes:
        dataset: the data set itself.
        times: number of times that wrappers repeat it.
        more_transforms: transforms in the pipelines of wrappers.
        wrapper: the outermost wrapper with a pipeline; None if there is none.
        offset: index of the data set's first sample in that wrapper.
        notes: notes on the wrappers for the user.
    """

    dataset: Any
    times: int = 1
    more_transforms: tuple = ()
    wrapper: Any = None
    offset: int = 0
    notes: tuple[str, ...] = ()

    def get_sample(self, index: int) -> Any:
        """Return a sample after the pipeline of the wrapper, which must not be None."""
        return self.wrapper[self.offset + index]


def leaves(dataset: Any, outer: Leaf | None = None) -> Iterator[Leaf]:
    """Yield the data sets inside wrappers; a wrapper with a custom ``__getitem__`` is yielded itself.

    Args:
        dataset: a data set of mmengine, or a wrapper.
        outer: settings of the wrappers around it.

    Yields:
        Each data set with the settings of its wrappers.
    """
    outer = outer or Leaf(dataset)
    if inherits_items(dataset, ConcatDataset):
        for inner in dataset.datasets:
            yield from leaves(inner, outer)
            outer = outer._replace(offset=outer.offset + len(inner))
    elif inherits_items(dataset, RepeatDataset):
        yield from leaves(dataset.dataset, outer._replace(times=outer.times * dataset.times))
    elif inherits_items(dataset, MultiImageMixDataset):
        skipped = dataset._skip_type_keys or ()
        used = [t for t, name in zip(dataset.pipeline, dataset.pipeline_types, strict=True) if name not in skipped]
        if outer.wrapper is None:
            outer = outer._replace(wrapper=dataset, offset=0)
        yield from leaves(dataset.dataset, outer._replace(more_transforms=(*used, *outer.more_transforms)))
    elif inherits_items(dataset, ClassBalancedDataset, Subset) and outer.wrapper is None:
        note = f'{type(dataset).__name__}: all samples of its data set are counted, and each once'
        yield from leaves(dataset.dataset, outer._replace(notes=(*outer.notes, note)))
    else:
        yield outer._replace(dataset=dataset)


def inherits_items(dataset: Any, *kinds: type) -> bool:
    """Return True if a data set has the ``__getitem__`` of one of these classes.

    Args:
        dataset: a data set of mmengine or PyTorch.
        kinds: classes with ``__getitem__``.
    """
    actual: Any = type(dataset)
    return any(isinstance(dataset, kind) and actual.__getitem__ is kind.__getitem__ for kind in kinds)  # type: ignore


def prepares_as_mmseg(dataset: Any) -> bool:
    """Return True if an mmengine ``BaseDataset`` has mmengine's or mmseg's ``prepare_data``."""
    return type(dataset).prepare_data in (BaseDataset.prepare_data, BaseSegDataset.prepare_data)
