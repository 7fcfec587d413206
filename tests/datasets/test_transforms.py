import numpy as np
import pytest
from mmengine.config import Config
from mmseg.registry import TRANSFORMS
from mmseg_wce.datasets import MapLabels


def mapped(labels, *args, **options) -> np.ndarray:
    return MapLabels(*args, **options)(dict(gt_seg_map=np.array(labels)))['gt_seg_map']


def test_values_are_replaced_at_once():
    assert mapped([[0, 1], [2, 255]], {0: 1, 1: 0}).tolist() == [[1, 0], [2, 255]]


def test_other_replaces_what_the_mapping_does_not_name():
    assert mapped([[0, 1], [2, 255]], {1: 1, 255: 255}, other=0).tolist() == [[0, 1], [0, 255]]


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32, np.int64, np.float32])
def test_dtype_stays_where_the_new_values_fit(dtype):
    labels = np.array([[0, 100]], dtype)

    assert mapped(labels, {100: 7}).dtype == dtype
    assert mapped(labels, {100: 7}).tolist() == [[0, 7]]


@pytest.mark.parametrize(('mapping', 'other'), [({1: 300}, None), ({1: -1}, None), ({1: 1}, 300)])
def test_values_that_do_not_fit_widen_the_dtype(mapping, other):
    found = mapped(np.array([[1, 0]], np.uint8), mapping, other=other)

    assert found.dtype == np.int64
    assert found[0, 0] == mapping[1]


def test_the_given_array_is_not_changed():
    labels = np.array([[0, 1]])
    labels.setflags(write=False)

    assert mapped(labels, {0: 5}).tolist() == [[5, 1]]
    assert labels.tolist() == [[0, 1]]


def test_builds_from_a_config(tmp_path):
    (tmp_path / 'config.py').write_text("pipeline = [dict(type='MapLabels', mapping={255: 1}, other=0)]")

    built = TRANSFORMS.build(Config.fromfile(tmp_path / 'config.py').pipeline[0])

    assert repr(built) == 'MapLabels(mapping={255: 1}, other=0)'


@pytest.mark.parametrize(
    ('mapping', 'other'),
    [({}, None), ([1, 2], None), ({'a': 1}, None), ({1: 0.5}, None), ({True: 1}, None), ({1: 1}, 'x'), ({1: 1}, 0.0)],
)
def test_invalid_mappings_raise_when_the_transform_is_built(mapping, other):
    with pytest.raises(TypeError, match='MapLabels'):
        MapLabels(mapping, other)


def test_missing_labels_are_named():
    with pytest.raises(KeyError, match='after LoadAnnotations'):
        MapLabels({0: 1})(dict(img=np.zeros((2, 2))))
