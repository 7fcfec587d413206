import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((ROOT / 'mmseg_wce' / 'version.py').read_text(), VERSION)

# Ranges that work. What `make` installs is pinned in requirements/.
MMSEG = ['mmsegmentation>=1.2.2,<2', 'mmengine>=0.10.5,<1', 'ftfy', 'regex', 'packaging']
MMSEG += ['setuptools<81']  # mmengine imports pkg_resources for `mmseg::` configs
CPU = ['numba>=0.61']  # without it the loss takes a slower way on CPU
EXTRAS = {
    'cpu': CPU,
    'lite': [*MMSEG, *CPU, 'mmcv-lite>=2.1.0,<2.2'],
    'full': [*MMSEG, *CPU, 'mmcv>=2.1.0,<2.2'],
    'onedl': ['onedl-mmsegmentation[mminstall]>=1.4.2', *CPU, 'ftfy', 'regex', 'packaging', 'setuptools<81'],
    'triton': ['triton>=3.3'],
    'tests': [*CPU, 'pytest>=8', 'pytest-xdist>=3', 'hypothesis>=6.100', 'ruff>=0.8', 'mypy>=2', 'tensorboard>=2.14'],
}


# they write the project's own pages, run its tests, or make its environment
OF_A_CHECKOUT = ('semantics_table.py', 'try_stack.py', 'faults.py', 'install_torch.sh')
OF_A_CHECKOUT += ('docs_hooks.py', 'docs_pages.py')


class BuildWithMim(build_py):
    """OpenMMLab's layout: configs, their index and tools travel in the package's folder ``.mim``, where mim looks."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for folder in ('configs', 'tools'):
                into = Path(self.build_lib, 'mmseg_wce', '.mim', folder)
                shutil.rmtree(into, ignore_errors=True)
                shutil.copytree(ROOT / folder, into, ignore=shutil.ignore_patterns('.*', '__pycache__', *OF_A_CHECKOUT))
            shutil.copy(ROOT / 'model-index.yml', into.parent)


setup(
    name='mmseg_wce',
    version=VERSION['__version__'],
    description='Exact weighted cross-entropy with ignored labels for mmsegmentation and plain PyTorch',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    keywords='semantic segmentation, mmsegmentation, cross entropy, class weights, ADE20K',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Programming Language :: Python :: 3.14',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    cmdclass=dict(build_py=BuildWithMim),
    package_data={'mmseg_wce': ['py.typed'], 'mmseg_wce.class_weights': ['*.json']},
    entry_points=dict(console_scripts=['mmseg_wce = mmseg_wce.__main__:main']),
    packages=find_packages(include=['mmseg_wce', 'mmseg_wce.*']),
    python_requires='>=3.10',
    install_requires=['torch>=2.4'],
    extras_require=EXTRAS,
)
