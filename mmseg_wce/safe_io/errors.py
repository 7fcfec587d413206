"""Format exceptions on one line."""

from __future__ import annotations

__all__ = ['in_one_line']

_LONGEST = 2000  # a state dict that does not fit is listed key by key


def in_one_line(error: Exception) -> str:
    """Return kind and message of an error; only lists of thousands of letters are shortened."""
    words = ' '.join(str(error).split())
    shortened = f'{words[:_LONGEST]}{"..." if len(words) > _LONGEST else ""}'
    return f'{type(error).__name__}: {shortened}' if words else type(error).__name__
