import pytest
from mmengine.registry import init_default_scope
from three_classes import make_masks, write_data


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmseg')


@pytest.fixture
def data(tmp_path):
    """A data set of six images."""
    return write_data(tmp_path, make_masks(6))
