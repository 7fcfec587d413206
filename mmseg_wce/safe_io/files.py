"""Read untrusted files as bytes."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ['read_file']


def read_file(path: str, max_bytes: int) -> bytes:
    """Read a local file, or a file of any storage that mmengine supports.

    Args:
        path: path or URL of the file.
        max_bytes: maximum size of the file.

    Returns:
        The content.

    Raises:
        FileNotFoundError, OSError, KeyError, ValueError: the file does not exist, is not a regular file (reading a pipe
            would block), has an unsupported scheme, or is too large.
    """
    if os.path.exists(path):
        if not os.path.isfile(path):
            raise ValueError('it is not a regular file')
        _check_size(os.path.getsize(path), max_bytes)
        return Path(path).read_bytes()
    try:
        from mmengine import fileio
    except ImportError:
        raise FileNotFoundError('the file does not exist') from None  # or lies where only mmengine can read
    content = fileio.get(path)
    _check_size(len(content), max_bytes)
    return content


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ValueError(f'it has {size:,} bytes, more than the limit of {max_bytes:,}')
