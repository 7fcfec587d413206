"""How the errors of others are told."""

from __future__ import annotations

__all__ = ['in_one_line']


def in_one_line(error: Exception) -> str:
    """Kind and message of an error, shortened."""
    words = ' '.join(str(error).split())
    return f'{type(error).__name__}: {words[:200]}{"..." if len(words) > 200 else ""}'
