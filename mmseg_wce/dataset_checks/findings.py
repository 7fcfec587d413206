"""What a check says: a line for each thing that looks wrong."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ['Finding', 'Severity']


class Severity(IntEnum):
    """How bad a finding is."""

    NOTE = 0  # worth knowing
    WARNING = 1  # probably wrong
    ERROR = 2  # training fails, or learns from wrong labels


@dataclass(frozen=True)
class Finding:
    """Something that looks wrong, in one line.

    Attributes:
        severity: how bad it is.
        what: what is wrong.
        change: what to do about it.
        files: how many files show it; None where it is not about files.
        example: one of them.
    """

    severity: Severity
    what: str
    change: str
    files: int | None = None
    example: str = ''

    def __str__(self) -> str:
        number = '' if self.files is None else f' ({self.files} file{"s" * (self.files != 1)}, such as {self.example})'
        end = '' if self.change.endswith('?') else '.'
        return f'{self.what}{number}. {self.change[:1].upper()}{self.change[1:]}{end}'
