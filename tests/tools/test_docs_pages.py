"""What the site shows of files that are read in a checkout; runs without MkDocs."""

import json
import re
import textwrap

import pytest
import yaml


@pytest.fixture
def docs_pages(import_tool):
    return import_tool('docs_pages')


@pytest.mark.parametrize(
    ('page', 'written', 'shown'),
    [
        ('index.md', '[a](docs/install.md)', '[a](install.md)'),
        ('index.md', '![a](docs/demo.png)', '![a](demo.png)'),
        ('index.md', '[a](configs/README.md)', '[a](configs.md)'),
        ('index.md', '[a](CHANGELOG.md), [b](CONTRIBUTING.md)', '[a](changelog.md), [b](contributing.md)'),
        ('index.md', '[a](docs/semantics.md#the-formula)', '[a](semantics.md#the-formula)'),
        ('configs.md', '[a](../docs/labels.md)', '[a](labels.md)'),
        ('labels.md', '[a](semantics.md#x) ![b](check_labels.png)', '[a](semantics.md#x) ![b](check_labels.png)'),
        ('labels.md', '[a](../README.md)', '[a](index.md)'),
        ('index.md', '[a](docs/tutorial.ipynb) [b](docs/benchmark.json)', '[a](tutorial.md) [b](benchmark.json)'),
        ('labels.md', '[a](../configs/README.md#x)', '[a](configs.md#x)'),
        # links to other files become text
        ('reliability.md', '([compat.py](../mmseg_wce/compat.py))', '(compat.py)'),
        ('index.md', '[`tools`](tools), [b](LICENSE)', '`tools`, b'),
        ('configs.md', 'camvid/[x](camvid/fpn_r18_1xb8-2k_camvid-176x240.py),', 'camvid/x,'),
    ],
)
def test_links_to_pages_and_to_other_files(docs_pages, root, page, written, shown):
    assert docs_pages.with_site_links(written, page, root) == shown


@pytest.mark.parametrize(
    ('page', 'written'),
    [('index.md', '[a](semantics.md)'), ('labels.md', '[a](../nowhere.md)'), ('configs.md', '![a](nowhere.png)')],
)
def test_what_leads_nowhere_in_the_checkout_leads_nowhere_on_the_site(docs_pages, root, page, written):
    shown = docs_pages.with_site_links(written, page, root)

    target = re.search(r'\((.*)\)', shown)[1]
    assert not (root / 'docs' / target).exists()


@pytest.mark.parametrize(
    'text',
    [
        '[a](https://arxiv.org/abs/1) [b](#here) [c](mailto:x)',
        '`[a](docs/install.md)`',
        '```\n[a](docs/install.md)\n```\n',
        'a label in [0, C) and (see below)',
        '`two lines of code\n[a](docs/install.md)`',
    ],
)
def test_external_links_code_and_brackets_stay_as_they_are(docs_pages, root, text):
    assert docs_pages.with_site_links(text, 'index.md', root) == text


def test_every_page_is_in_the_navigation(docs_pages, root):
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor('', lambda *_: None)  # tags of MkDocs
    nav = yaml.load((root / 'mkdocs.yml').read_text(), Loader)['nav']

    pages = [page for entry in nav for page in entry.values()]
    sources = [str(p.relative_to(root)) for p in (root / 'docs').iterdir() if p.suffix in ('.md', '.ipynb')]
    assert sorted(pages) == sorted(map(docs_pages.page_from_source, [*sources, *docs_pages.PAGES]))
    assert all((root / source).is_file() for source in docs_pages.PAGES)


def test_references_in_docstrings_become_links(docs_pages):
    docstring = 'As :func:`mmseg_wce.kernels.pixel_nll`, :class:`~torch.nn.Module` and :meth:`forward`::\n\n    x = 1\n'
    link = '<autoref optional identifier="mmseg_wce.kernels.pixel_nll"><code>pixel_nll</code></autoref>'

    shown = docs_pages.docstring_as_markdown(docstring)

    assert shown == f'As {link}, <code>torch.nn.Module</code> and <code>forward</code>:\n\n    x = 1\n'


@pytest.mark.parametrize('indent', ['', '    '])
def test_doctests_become_code_blocks(docs_pages, indent):
    doctest = textwrap.indent('>>> print(1)\n1\n', indent)

    shown = docs_pages.docstring_as_markdown(f'Before.\n\n{doctest}\nAfter.\n')

    assert shown == f'Before.\n\n{indent}```pycon\n{doctest}{indent}```\n\nAfter.\n'


def test_notebooks_become_markdown(docs_pages):
    picture = dict(output_type='display_data', data={'image/png': 'aGk=\n', 'text/plain': ['<Figure>']})
    table = dict(output_type='execute_result', data={'text/html': ['<b>1</b>'], 'text/plain': ['1 ', '2']})
    printed = dict(output_type='stream', text=['\x1b[31mred\x1b[0m\n', '\n'])
    failed = dict(output_type='error', traceback=['Traceback', 'ValueError: no'])
    cells = [
        dict(cell_type='markdown', source=['# Title\n', 'text']),
        dict(cell_type='code', source='x = 1\nx', outputs=[printed, picture, table, failed]),
        dict(cell_type='code', source="'```'", outputs=[dict(output_type='stream', text='')]),
        dict(cell_type='code', source='', outputs=[]),
    ]

    assert docs_pages.notebook_as_markdown(json.dumps(dict(cells=cells))) == textwrap.dedent("""\
        # Title
        text

        ```python
        x = 1
        x
        ```

        ```
        red
        ```

        ![Output of the cell above](data:image/png;base64,aGk=)

        ```
        1 2
        ```

        ```
        Traceback
        ValueError: no
        ```

        ````python
        '```'
        ````
        """)


def test_the_site_fetches_nothing(root):
    """No script, font or style from elsewhere; `make docs` itself needs no network either."""
    config = (root / 'mkdocs.yml').read_text()

    assert 'http' not in config
    assert 'font: false' in config
    for name in re.findall(r'assets/[\w.-]+', config):
        assert (root / 'docs' / name).is_file()
        assert 'http' not in (root / 'docs' / name).read_text()


def test_the_pins_are_complete(root):
    lines = (root / 'requirements/docs.txt').read_text().splitlines()

    pins = [line for line in lines if line and not line.startswith('#')]
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+', pin) for pin in pins)
    assert not {'torch', 'mmsegmentation'} & {pin.split('==')[0] for pin in pins}
