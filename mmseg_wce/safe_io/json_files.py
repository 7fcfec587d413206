"""Read JSON files with errors that name the file, and write them atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ['read_json', 'write_json']


def read_json(file: Path) -> dict[str, Any]:
    """Return the content of a file.

    Raises:
        ValueError: the file is truncated, or does not hold a JSON object; the message names it.
    """
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f'{str(file)!r} cannot be read: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{str(file)!r} does not hold a JSON object')
    return content


def write_json(path: Path, content: dict[str, Any], indent: int | None = 1) -> None:
    """Write a file atomically; an existing file is replaced only when the new one is complete.

    Args:
        path: path of the file; its folder is created if missing.
        content: object to write.
        indent: number of spaces; None for one line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + '.new')
    temporary.write_text(json.dumps(content, indent=indent))
    os.replace(temporary, path)
