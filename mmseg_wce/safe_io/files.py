"""Files that may come from strangers, as bytes."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ['read_file']


def read_file(path: str, largest: int) -> bytes:
    """Read a local file, or one of any storage that mmengine knows.

    Args:
        path: of the file.
        largest: how many bytes it may have.

    Returns:
        All of it.

    Raises:
        OSError, ImportError, KeyError, ValueError: there is no such file, it is none (a pipe would wait for ever), no
            backend knows its scheme, or it is too large.
    """
    if os.path.exists(path):
        if not os.path.isfile(path):
            raise ValueError('it is no file')
        _check_size(os.path.getsize(path), largest)
        return Path(path).read_bytes()
    from mmengine import fileio

    content = fileio.get(path)
    _check_size(len(content), largest)
    return content


def _check_size(size: int, largest: int) -> None:
    if size > largest:
        raise ValueError(f'it has {size:,} bytes, more than the {largest:,} that are read')
