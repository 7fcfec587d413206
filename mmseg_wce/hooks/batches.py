"""What hooks look at of a batch."""

from __future__ import annotations

from typing import Any

__all__ = ['paths']


def paths(data_batch: Any, kind: str) -> list[str | None]:
    """Path of every sample of a batch, as ``PackSegInputs`` keeps it; None where it does not.

    Args:
        data_batch: what the data loader gave.
        kind: ``img_path`` or ``seg_map_path``.

    Returns:
        N paths; none where the batch is no dict of data samples.
    """
    samples = data_batch.get('data_samples', ()) if isinstance(data_batch, dict) else ()
    return [getattr(sample, kind, None) for sample in samples]
