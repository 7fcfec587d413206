"""Tables that scripts write into Markdown, between two comments that name them."""

from pathlib import Path


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
