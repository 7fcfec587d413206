from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((ROOT / 'mmseg_wce' / 'version.py').read_text(), VERSION)

# Ranges that work. What `make` installs is pinned in requirements/.
MMSEG = ['mmsegmentation>=1.2.2,<2', 'mmengine>=0.10.5,<1', 'ftfy', 'regex', 'packaging']
MMSEG += ['setuptools<81']  # mmengine imports pkg_resources for `mmseg::` configs
EXTRAS = {
    'lite': [*MMSEG, 'mmcv-lite>=2.1.0,<2.2'],
    'full': [*MMSEG, 'mmcv>=2.1.0,<2.2'],
    'onedl': ['onedl-mmsegmentation[mminstall]>=1.4.2', 'ftfy', 'regex', 'packaging', 'setuptools<81'],
    'triton': ['triton>=3.3'],
    'tests': ['pytest>=8', 'hypothesis>=6.100', 'ruff>=0.8'],
}

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
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['mmseg_wce', 'mmseg_wce.*']),
    python_requires='>=3.10',
    install_requires=['torch>=2.4'],
    extras_require=EXTRAS,
)
