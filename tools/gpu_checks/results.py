"""Results of checks: rows of the table, which a check writes to a file as soon as it has them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OK, FAILED, INFO, SKIPPED, NOT_RUN = 'ok', 'FAILED', 'info', 'skipped', 'not run'
_LONGEST_CELL = 110  # characters; the JSON file has the whole text

Outcome = tuple[str, bool | None, dict[str, Any]]  # found, passed, raw figures


@dataclass
class Row:
    """One row of the table.

    Attributes:
        check: name of the check.
        expected: what would pass.
        found: what was measured or happened.
        verdict: 'ok', 'FAILED', 'info' (nothing was expected), 'skipped' (a program is missing) or 'not run'.
        advice: what to try if it failed.
        raw: further figures, for the JSON file.
    """

    check: str
    expected: str
    found: str
    verdict: str
    advice: str = ''
    raw: dict[str, Any] = field(default_factory=dict)


class CheckRun:
    """A running check: its device, its time, and the rows it has found.

    Attributes:
        device: 'cuda' or 'cpu'.
        seconds: time limit of the check.
    """

    def __init__(self, path: Path, device: str, seconds: float) -> None:
        """Open the file of rows.

        Args:
            path: file that rows are appended to, one line of JSON each.
            device: 'cuda' or 'cpu'.
            seconds: time limit of the check.
        """
        self.device, self.seconds = device, seconds
        self._file = path.open('a', buffering=1)  # a line at a time: what was found outlives a crash

    def add(self, check: str, expected: str, found: str, passed: bool | None, advice: str = '', **raw: Any) -> None:
        """Write a row; ``passed`` is None where nothing was expected."""
        self._write(Row(check, expected, found, {True: OK, False: FAILED, None: INFO}[passed], advice, raw))

    def skip(self, check: str, why: str, **raw: Any) -> None:
        """Write a row for a check that cannot run here."""
        self._write(Row(check, '', why, SKIPPED, '', raw))

    def attempt(self, check: str, expected: str, function: Callable[[], Outcome], advice: str = '') -> None:
        """Run a part of the check and write its row; an exception fails this row alone.

        Args:
            check: name in the row.
            expected: what would pass.
            function: returns what was found, whether it passed, and raw figures.
            advice: what to try if it fails.

        Raises:
            Exception: the CUDA context is lost, so that every later part would fail as well.
        """
        try:
            found, passed, raw = function()
        except Exception as error:
            self.add(check, expected, one_line(error), False, advice)
            if 'CUDA error' in str(error) or 'device-side assert' in str(error):
                raise
        else:
            self.add(check, expected, found, passed, advice, **raw)

    def _write(self, row: Row) -> None:
        row.raw = {key: str(x) if isinstance(x, float) and not math.isfinite(x) else x for key, x in row.raw.items()}
        self._file.write(json.dumps(asdict(row), default=str) + '\n')


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a check, without a last line that was cut off."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [Row(**json.loads(line)) for line in lines if line.endswith('\n')]


def one_line(error: Exception) -> str:
    """Return type and first line of an exception."""
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0] if lines else ""}'


def table(rows: list[Row]) -> str:
    """Return the rows as text, with advice below those that failed."""
    cells = [('check', 'expected', 'found', 'verdict')]
    cells += [(row.check, row.expected, _shorten(row.found), row.verdict) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ['  '.join(map(str.ljust, line, widths)).rstrip() for line in cells]
    printed = [lines[0], '-' * len(lines[0])]
    for row, line in zip(rows, lines[1:], strict=True):
        printed += [line, f'    try: {row.advice}'] if row.verdict == FAILED and row.advice else [line]
    return '\n'.join(printed)


def _shorten(text: str) -> str:
    text = ' '.join(text.split())
    return text if len(text) <= _LONGEST_CELL else text[: _LONGEST_CELL - 3] + '...'


def summarize(rows: list[Row]) -> str:
    """Return how many rows have each verdict."""
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in (OK, FAILED, INFO, SKIPPED, NOT_RUN)}
    return ', '.join(f'{n} {verdict}' for verdict, n in counts.items() if n)


def exit_status(rows: list[Row]) -> int:
    """Return 1 if a row failed or a check was not run, else 0; a missing program is no failure."""
    return int(not rows or any(row.verdict in (FAILED, NOT_RUN) for row in rows))
