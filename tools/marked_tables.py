"""Generated tables in Markdown pages, between two comments that name them, and the JSON files of their results."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

Table = tuple[Path, str, list[str]]
"""Page, name of the table in it, and lines of the table."""


def record(file: Path, measured: dict, tables: Callable[[dict], list[Table]]) -> None:
    """Add the results of one environment to a JSON file, and rewrite all tables of the results in it."""
    results = json.loads(file.read_text()) if file.exists() else {}
    results.update(measured)
    file.write_text(json.dumps(results, indent=1) + '\n')
    for table in tables(results):
        replace_table(*table)


def markdown(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    """Return the lines of a table; bars within cells are escaped."""
    rows = [header, ['---'] * len(header), *rows]
    cells = [[cell.replace('|', r'\|') for cell in row] for row in rows]
    return ['|' + ''.join(f' {cell} |' if cell else ' |' for cell in row) for row in cells]


def replace_table(page: Path, name: str, lines: list[str]) -> None:
    """Replace a table in a page; raise ValueError if it has no comments for this table."""
    before, after = _around(page, name)
    page.write_text('\n'.join([before, '', *lines, '', after]))


def read_table(page: Path, name: str) -> list[str]:
    """Return the lines of a table in a page."""
    before, after = _around(page, name)
    return page.read_text()[len(before) : -len(after)].strip().splitlines()


def _around(page: Path, name: str) -> tuple[str, str]:
    text = page.read_text()
    start, end = f'<!-- table: {name} -->', '<!-- end of table -->'
    begin = text.find(start)
    stop = text.find(end, begin)
    if begin < 0 or stop < 0:
        raise ValueError(f'{page.name} has no place for the table {name!r}: it needs {start!r} and then {end!r}')
    return text[: begin + len(start)], text[stop:]
