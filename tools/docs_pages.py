"""Conversion of the checkout's Markdown, notebooks and docstrings for the site. Needs only the standard library."""

import json
import posixpath
import re
from pathlib import Path

# Files outside docs/ that become pages, and the names of these pages.
PAGES = {
    'README.md': 'index.md',
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
    'configs/README.md': 'configs.md',
}
_CODE = r'^ *```.*?^ *```|`(?:[^`\n]|\n(?!\n))*`'
_LINK = r'(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)'
_CODE_OR_LINK = re.compile(f'{_CODE}|{_LINK}', re.MULTILINE | re.DOTALL)
_ROLE = re.compile(r':(?:attr|class|func|meth|mod):`~?([\w.]+)`')
_ESCAPES = re.compile(r'\x1b\[[0-9;]*[A-Za-z]')  # terminal colours
_DOCTEST = re.compile(r'^( *)(>>> .*(?:\n *\S.*)*)', re.MULTILINE)


def source_from_page(page: str) -> str:
    """Return the file that a page of the site is made from, relative to the root of the checkout."""
    sources = {name: source for source, name in PAGES.items()}
    return sources.get(page, f'docs/{page}')


def page_from_source(source: str) -> str:
    """Return the name on the site of a file of the checkout; it starts with `../` for files that are no pages."""
    name = PAGES.get(source) or posixpath.relpath(source, 'docs')
    return name.removesuffix('.ipynb') + '.md' if name.endswith('.ipynb') else name


def with_site_links(text: str, page: str, root: Path) -> str:
    """Replace the relative links of a page by those of the site.

    Links to pages and to files under docs/ are changed; links to other files of the checkout become plain text. A link
    that is broken in the checkout is broken on the site too, and `mkdocs build --strict` reports it.
    """
    folder = posixpath.dirname(source_from_page(page))

    def site_link(match: re.Match) -> str:
        target = match['target']
        if target is None or re.match(r'[a-z]+:|#', target):
            return match[0]
        file, _, anchor = target.partition('#')
        file = posixpath.normpath(posixpath.join(folder, file))
        if file not in PAGES and not file.startswith('docs/') and not match['image'] and (root / file).exists():
            return match['text']
        address = posixpath.relpath(page_from_source(file), posixpath.dirname(page) or '.')
        return f'{match["image"]}[{match["text"]}]({address}{"#" * bool(anchor)}{anchor})'

    return _CODE_OR_LINK.sub(site_link, text)


def docstring_as_markdown(docstring: str) -> str:
    """Convert a docstring to Markdown.

    Sphinx roles become code, with links for names of this package; `::` at the end of a line becomes a colon; doctests
    become fenced blocks.
    """

    def role_as_code(match: re.Match) -> str:
        name = match[1]
        code = f'<code>{name.rsplit(".", 1)[-1]}</code>'
        if name.startswith('mmseg_wce.'):
            return f'<autoref optional identifier="{name}">{code}</autoref>'
        return f'<code>{name}</code>' if '.' in name else code

    text = re.sub(r'::$', ':', _ROLE.sub(role_as_code, docstring), flags=re.MULTILINE)
    return _DOCTEST.sub(r'\1```pycon\n\1\2\n\1```', text)


def notebook_as_markdown(notebook: str) -> str:
    """Convert the text, code, printed text and pictures of a saved notebook; nothing is executed."""
    parts = []
    for cell in json.loads(notebook)['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown':
            parts.append(source)
        elif cell['cell_type'] == 'code' and source.strip():
            parts.append(_fenced(source, 'python'))
            parts += [_output(output) for output in cell['outputs']]
    return '\n\n'.join(filter(None, parts)) + '\n'


def _output(output: dict) -> str:
    data = output.get('data', {})
    if 'image/png' in data:
        return f'![Output of the cell above](data:image/png;base64,{"".join(data["image/png"].split())})'
    lines = output.get('traceback') or output.get('text') or data.get('text/plain') or ''
    text = _ESCAPES.sub('', ('\n' if 'traceback' in output else '').join(lines))
    return _fenced(text, '') if text.strip() else ''


def _fenced(text: str, language: str) -> str:
    fence = '`' * max([3, *(len(run) + 1 for run in re.findall('`{3,}', text))])
    return f'{fence}{language}\n{text.rstrip()}\n{fence}'
