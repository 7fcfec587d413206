"""Tables that scripts write into Markdown, between two comments that name them, and the results that they show."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

Table = tuple[Path, str, list[str]]
"""A page, the table's name in it, and its lines."""


def record(file: Path, measured: dict, tables: Callable[[dict], list[Table]]) -> None:
    """Enter what one environment gave into a file of results, and write every table of them anew."""
    results = json.loads(file.read_text()) if file.exists() else {}
    results.update(measured)
    file.write_text(json.dumps(results, indent=1) + '\n')
    for table in tables(results):
        replace_table(*table)


def markdown(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    """The lines of a table; a bar within a cell ends none."""
    every = [header, ['---'] * len(header), *rows]
    cells = [[cell.replace('|', r'\|') for cell in row] for row in every]
    return ['|' + ''.join(f' {cell} |' if cell else ' |' for cell in row) for row in cells]


def replace_table(page: Path, name: str, lines: list[str]) -> None:
    """Write a table anew where it stands in a page.

    Raises:
        ValueError: the page has no such place.
    """
    before, after = _around(page, name)
    page.write_text('\n'.join([before, '', *lines, '', after]))


def read_table(page: Path, name: str) -> list[str]:
    """The lines of a table as the page has them."""
    before, after = _around(page, name)
    return page.read_text()[len(before) : -len(after)].strip().splitlines()


def _around(page: Path, name: str) -> tuple[str, str]:
    text = page.read_text()
    start, end = f'<!-- table: {name} -->', '<!-- end of table -->'
    at = text.find(start)
    to = text.find(end, at)
    if at < 0 or to < 0:
        raise ValueError(f'{page.name} has no place for the table {name!r}: it needs {start!r} and then {end!r}')
    return text[: at + len(start)], text[to:]
