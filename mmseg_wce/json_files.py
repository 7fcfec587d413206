"""Writing JSON files that are never seen half."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ['write_json']


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
