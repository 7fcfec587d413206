import gc
import os
from pathlib import Path

import torch

# Read where Triton's kernels are made: without a GPU they run in its interpreter.
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'

import mmseg_wce  # noqa: F401  (first: mmseg cannot be imported on mmcv-lite without it)
import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_finish() -> None:
    """Exempt what stays from garbage collection: torch, mmseg and all tests are millions of objects to walk over."""
    gc.freeze()


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
