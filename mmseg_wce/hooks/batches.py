"""Paths of the samples of a batch."""

from __future__ import annotations

from typing import Any

__all__ = ['sample_paths']


def sample_paths(data_batch: Any, kind: str) -> list[str | None]:
    """Return the path of every sample of a batch, None where ``PackSegInputs`` does not keep it.

    Args:
        data_batch: a batch of the data loader.
        kind: ``img_path`` or ``seg_map_path``.

    Returns:
        N paths; an empty list if the batch is not a dict with data samples.
    """
    samples = data_batch.get('data_samples', ()) if isinstance(data_batch, dict) else ()
    return [getattr(sample, kind, None) for sample in samples]
