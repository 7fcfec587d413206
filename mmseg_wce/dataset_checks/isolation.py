"""Copies of data sets and restored random states, so that a check does not change the training after it."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ['copy_of_dataset', 'isolated_random_state']


def copy_of_dataset(dataset: Any) -> Any:
    """Return a copy of an mmengine ``BaseDataset`` that shares its list of samples and its pipeline."""
    shared = [getattr(dataset, name, None) for name in ('data_list', 'data_bytes', 'data_address', 'pipeline')]
    try:
        return copy.deepcopy(dataset, {id(value): value for value in shared if value is not None})
    except Exception:  # it holds an open file, for example
        return copy.copy(dataset)


@contextmanager
def isolated_random_state(seed: int = 0) -> Iterator[None]:
    """Seed Python, NumPy and PyTorch on CPU inside the context, and restore their states after it.

    One seed per sample gives reproducible labels from random transforms.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
