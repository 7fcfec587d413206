import cv2
import numpy as np
import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from mmseg_wce.datasets.demo_scenes import DemoScenesDataset, draw_scene, generate_demo_scenes

CLASSES = DemoScenesDataset.METAINFO['classes']


@pytest.fixture(scope='module')
def scenes():
    return [draw_scene(np.random.default_rng([0, i])) for i in range(120)]


def test_shapes_and_values(scenes):
    for image, labels in scenes:
        assert image.shape == (192, 256, 3)
        assert labels.shape == (192, 256)
        assert image.dtype == labels.dtype == np.uint8
        assert labels.max() <= len(CLASSES)


def test_long_tail_and_a_void_region(scenes):
    shares = np.bincount(np.concatenate([labels.ravel() for _, labels in scenes]), minlength=len(CLASSES) + 1)
    shares = dict(zip(('other', *CLASSES), shares / shares.sum(), strict=True))

    assert 0.01 < shares['other'] < 0.1
    assert shares['sky'] > 0.2
    assert all(0 < shares[rare] < 0.01 for rare in ('pole', 'person', 'bird', 'flag'))


def test_written_in_ade20k_layout(tmp_path):
    generate_demo_scenes(tmp_path, num_training=3, num_validation=2, seed=1)

    for split, number in (('training', 3), ('validation', 2)):
        images = sorted((tmp_path / 'images' / split).glob('*.jpg'))
        annotations = sorted((tmp_path / 'annotations' / split).glob('*.png'))
        assert [p.stem for p in images] == [p.stem for p in annotations]
        assert len(images) == number
        labels = cv2.imread(str(annotations[0]), cv2.IMREAD_UNCHANGED)
        assert labels.shape == (192, 256)
        assert labels.max() <= len(CLASSES)


def test_same_seed_same_files(tmp_path):
    for folder in ('a', 'b'):
        generate_demo_scenes(tmp_path / folder, num_training=2, num_validation=1)
    generate_demo_scenes(tmp_path / 'c', num_training=2, num_validation=1, seed=7)

    def content(folder):
        return [p.read_bytes() for p in sorted((tmp_path / folder).rglob('*.png'))]

    assert content('a') == content('b')
    assert content('a') != content('c')


def test_through_the_reduce_zero_label_path(tmp_path):
    generate_demo_scenes(tmp_path, num_training=4, num_validation=1)
    init_default_scope('mmseg')
    dataset = DATASETS.build(
        dict(
            type='DemoScenesDataset',
            data_root=str(tmp_path),
            data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
            pipeline=[dict(type='LoadAnnotations', reduce_zero_label=True)],
        )
    )
    raw = [cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in sorted((tmp_path / 'annotations/training').glob('*.png'))]
    reduced = [dataset[i]['gt_seg_map'] for i in range(len(dataset))]

    assert all(np.array_equal(a == 0, b == 255) for a, b in zip(raw, reduced, strict=True))
    expected = np.bincount(np.concatenate([a.ravel() for a in raw]), minlength=len(CLASSES) + 1)[1:]
    found = np.bincount(np.concatenate([b.ravel() for b in reduced]), minlength=256)
    assert found[: len(CLASSES)].tolist() == expected.tolist()
