"""Format exceptions on one line."""

from __future__ import annotations

__all__ = ['in_one_line']

_MAX_LENGTH = 2000  # characters; the error for a state dict that does not fit lists all keys


def in_one_line(error: Exception) -> str:
    """Return type and message of an error on one line; a message of more than 2000 characters is shortened."""
    words = ' '.join(str(error).split())
    shortened = f'{words[:_MAX_LENGTH]}{"..." if len(words) > _MAX_LENGTH else ""}'
    return f'{type(error).__name__}: {shortened}' if words else type(error).__name__
