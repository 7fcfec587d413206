"""Findings of a check: one line for each problem."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ['Finding', 'Severity']


class Severity(IntEnum):
    """Severity of a finding."""

    NOTE = 0  # worth knowing
    WARNING = 1  # probably wrong
    ERROR = 2  # training fails, or learns from wrong labels


@dataclass(frozen=True)
class Finding:
    """A problem in a config or in labels, in one line.

    Attributes:
        severity: severity of the problem.
        what: description of the problem.
        change: advice.
        files: number of affected files; None if the problem is not about files.
        example: one of these files.
    """

    severity: Severity
    what: str
    change: str
    files: int | None = None
    example: str = ''

    def __str__(self) -> str:
        count = '' if self.files is None else f' ({self.files} file{"s" * (self.files != 1)}, such as {self.example})'
        end = '' if self.change.endswith('?') else '.'
        return f'{self.what}{count}. {self.change[:1].upper()}{self.change[1:]}{end}'
