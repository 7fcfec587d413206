import numpy as np
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS

CLASSES = 11


def build(shared_data, split: str):
    init_default_scope('mmseg')
    return DATASETS.build(
        dict(
            type='CamVidDataset',
            data_root=str(shared_data / 'camvid'),
            data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)],
        )
    )


def test_number_of_images_of_each_split(shared_data):
    assert [len(build(shared_data, split)) for split in ('training', 'validation', 'test')] == [367, 101, 233]


def test_labels_are_classes_or_ignored(shared_data):
    dataset = build(shared_data, 'validation')

    assert dataset.reduce_zero_label
    assert len(dataset.metainfo['classes']) == len(dataset.metainfo['palette']) == CLASSES
    labels = np.unique(np.concatenate([dataset[i]['gt_seg_map'].ravel() for i in range(20)]))
    assert set(labels) <= {*range(CLASSES), 255}
    assert 255 in labels
    assert 0 in labels


def test_first_class_is_the_sky(shared_data):
    """A shift by one would put it at the bottom: the convention is what `reduce_zero_label` makes of it."""
    sample = build(shared_data, 'validation')[0]
    rows = np.nonzero(sample['gt_seg_map'] == 0)[0]

    assert rows.mean() < sample['gt_seg_map'].shape[0] / 2
