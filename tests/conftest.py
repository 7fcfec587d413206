import functools
import gc
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

# Read where Triton's kernels are made: without a GPU they run in its interpreter.
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'

import mmseg_wce  # noqa: F401  (first: mmseg cannot be imported on mmcv-lite without it)
import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    """Exempt what stays from garbage collection: torch, mmseg and all tests are millions of objects to walk over.

    Three costs of mmengine are left out: it collects garbage for every data set, formats every config it writes, and
    reads every index of models for every config of mmseg.
    """
    gc.freeze()
    if base_dataset := sys.modules.get('mmengine.dataset.base_dataset'):
        base_dataset.gc = SimpleNamespace(collect=lambda: 0)
    if config := sys.modules.get('mmengine.config.config'):
        config.FormatCode = lambda text, **_: (text, True)
        config_utils = sys.modules['mmengine.config.utils']
        config_utils.load = functools.cache(config_utils.load)


@pytest.fixture(scope='session')
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """CamVid and the ADE20K samples, which the project does not hold."""
    path = Path(os.environ.get('MMSEG_WCE_DATA', ROOT / '../shared/data')).resolve()
    if not path.is_dir():
        pytest.skip(f'data for tests not found in {path}: set MMSEG_WCE_DATA to its folder')
    return path
