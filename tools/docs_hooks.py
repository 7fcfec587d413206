"""MkDocs hooks of `make docs`: pages from notebooks and from files outside docs/, links, docstrings."""

from pathlib import Path

import griffe
from docs_pages import PAGES, docstring_as_markdown, notebook_as_markdown, page_from_source, with_site_links
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages for notebooks and for files outside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for notebook in ROOT.glob('docs/*.ipynb'):
        page = page_from_source(f'docs/{notebook.name}')
        files.append(File.generated(config, page, content=notebook_as_markdown(notebook.read_text())))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change the links of a page for the site."""
    return with_site_links(markdown, page.file.src_uri, ROOT)


class DocstringsAsMarkdown(griffe.Extension):
    """Griffe extension that converts docstrings to Markdown."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = docstring_as_markdown(obj.docstring.value)
