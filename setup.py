"""Copy configs and tools into the package; everything else about it is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# they write the project's own pages, run its tests, or make its environment
CHECKOUT_ONLY = ('semantics_table.py', 'try_stack.py', 'faults.py', 'install_torch.sh')
CHECKOUT_ONLY += ('docs_hooks.py', 'docs_pages.py')


class BuildWithMim(build_py):
    """OpenMMLab's layout: configs, their index and tools travel in the package's folder ``.mim``, where mim looks."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for folder in ('configs', 'tools'):
                into = Path(self.build_lib, 'mmseg_wce', '.mim', folder)
                shutil.rmtree(into, ignore_errors=True)
                shutil.copytree(ROOT / folder, into, ignore=shutil.ignore_patterns('.*', '__pycache__', *CHECKOUT_ONLY))
            shutil.copy(ROOT / 'model-index.yml', into.parent)


setup(cmdclass=dict(build_py=BuildWithMim))
