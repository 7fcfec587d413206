"""JSON files that are never seen half, and errors that name them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ['read_json', 'write_json']


def read_json(file: Path) -> dict[str, Any]:
    """What a file holds.

    Raises:
        ValueError: it is cut, or holds no object; the file is named.
    """
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f'{str(file)!r} cannot be read: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{str(file)!r} holds no JSON object')
    return content


def write_json(path: Path, content: dict[str, Any], indent: int | None = 1) -> None:
    """Write a file; what was there stays until the new one is complete.

    Args:
        path: of the file; its folder is made where it is missing.
        content: what JSON can hold.
        indent: spaces; None for one line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + '.new')
    new.write_text(json.dumps(content, indent=indent))
    os.replace(new, path)
