import io
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmengine import fileio
from mmseg.registry import DATASETS, TRANSFORMS
from mmseg_wce.dataset_checks import LabelFileError, LabelFiles, from_dataset
from PIL import Image
from three_classes import dataset_config, make_masks, write_data

EVERY_VALUE = np.arange(256, dtype=np.uint8).reshape(16, 16)


def files_of(root, masks=None, **changes) -> LabelFiles:
    write_data(root, [EVERY_VALUE] if masks is None else masks)
    (part,) = from_dataset(DATASETS.build(dataset_config(root, **changes)))
    return part


def loaded_by_mmseg(root, **changes) -> np.ndarray:
    config = dataset_config(root, **changes)
    config['pipeline'] = config['pipeline'][1:2]
    return DATASETS.build(config)[0]['gt_seg_map']


def pixels_of(counted) -> dict[int, int]:
    return dict(zip(counted.values.tolist(), counted.counts.tolist(), strict=True))


def pixels_of_array(labels) -> dict[int, int]:
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


@pytest.mark.parametrize(
    'changes',
    [
        {},
        dict(reduce_zero_label=False),
        dict(load=dict(reduce_zero_label=True)),
        dict(load=dict(imdecode_backend='cv2')),
        dict(metainfo=dict(classes=('c', 'a'))),
        dict(metainfo=dict(classes=('c', 'a')), reduce_zero_label=False),
    ],
)
def test_table_is_what_load_annotations_does(tmp_path, changes):
    part = files_of(tmp_path, **changes)

    assert np.array_equal(part.reader.table[EVERY_VALUE], loaded_by_mmseg(tmp_path, **changes))
    assert np.array_equal(part.labels(0), loaded_by_mmseg(tmp_path, **changes))


@pytest.mark.parametrize('backend', ['pillow', 'cv2'])
@pytest.mark.parametrize('mode', ['L', '1', 'I;16', 'L;4'])
def test_histogram_is_of_what_load_annotations_decodes(tmp_path, backend, mode):
    part = files_of(tmp_path, [make_masks(1)[0]], load=dict(imdecode_backend=backend), reduce_zero_label=False)
    values = make_masks(1)[0]
    if mode == 'L;4':  # decoders spread four bits over eight
        Image.fromarray(values).save(part.files[0], bits=4)
    elif mode == '1':
        Image.fromarray(values > 1).save(part.files[0])
    else:
        Image.fromarray(values.astype(np.uint16 if mode == 'I;16' else np.uint8)).save(part.files[0])

    counted = part.reader.count(part.samples[0])

    expected = loaded_by_mmseg(tmp_path, load=dict(imdecode_backend=backend), reduce_zero_label=False)
    assert pixels_of(counted) == pixels_of_array(expected)
    assert counted.size == expected.shape
    assert counted.altered == {}


@pytest.mark.parametrize('values', [np.zeros((1, 1)), np.full((3, 5), 255), np.arange(255).reshape(5, 51)])
def test_histogram_of_extremes(tmp_path, values):
    part = files_of(tmp_path, [values.astype(np.uint8)])

    counted = part.reader.count(part.samples[0])
    assert dict(zip(counted.raw_values.tolist(), counted.raw_counts.tolist(), strict=True)) == pixels_of_array(values)


def _palette(path):
    image = Image.fromarray(make_masks(1)[0])
    image.putpalette([200, 10, 10, 0, 0, 0, 9, 9, 9, 255, 255, 255])
    image.save(path)


def test_palette_files_are_read_by_index(tmp_path):
    part = files_of(tmp_path, make_masks(1))
    _palette(part.files[0])

    values, storage = part.reader.raw(part.files[0])

    assert np.array_equal(values, make_masks(1)[0])
    assert storage == 'P PNG'


def _cut(path):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ('damage', 'backend', 'words'),
    [
        (lambda path: Image.new('RGB', (4, 4)).save(path), 'pillow', '3 colour channels'),
        (lambda path: Image.new('RGBA', (4, 4)).save(path), 'pillow', '4 colour channels'),
        (lambda path: Image.new('LA', (4, 4)).save(path), 'pillow', '2 colour channels'),
        (_palette, 'cv2', "cv2 makes colours of its palette: set imdecode_backend='pillow'"),
        (_cut, 'pillow', 'truncated'),
        (_cut, 'cv2', ''),
        (lambda path: Path(path).write_bytes(b''), 'pillow', 'it is empty or not an image'),
        (lambda path: Path(path).write_bytes(b'text'), 'cv2', 'cannot decode'),
        (lambda path: Path(path).unlink(), 'pillow', 'it does not exist'),
    ],
)
def test_bad_files_are_named_and_count_for_nothing(tmp_path, damage, backend, words):
    part = files_of(tmp_path, make_masks(3, shape=(64, 64)), load=dict(imdecode_backend=backend))
    without = part.statistics([0, 2])
    damage(part.files[1])

    statistics = part.statistics()

    assert list(statistics.failed) == [part.files[1]]
    assert words in statistics.failed[part.files[1]]
    assert '\n' not in statistics.failed[part.files[1]]
    assert statistics.pixels.tolist() == without.pixels.tolist()
    assert statistics.fingerprint == without.fingerprint


def test_errors_by_colour_are_label_file_errors(tmp_path):
    part = files_of(tmp_path, make_masks(1))
    Image.new('RGB', (4, 4)).save(part.files[0])

    with pytest.raises(LabelFileError, match='one class index'):
        part.labels(0)


@TRANSFORMS.register_module()
class LoadSquaredAnnotations(BaseTransform):
    """Labels by a formula of its own."""

    def transform(self, results):
        raw = np.array(Image.open(io.BytesIO(fileio.get(results['seg_map_path'])))).astype(int)
        results['gt_seg_map'] = np.where(raw == 0, 255, raw**2 % 3).astype(np.uint8)
        return results


def test_transforms_of_other_projects_are_run_as_they_are(tmp_path):
    masks = make_masks(4)
    part = files_of(tmp_path, masks, load=dict(type='LoadSquaredAnnotations'))

    statistics = part.statistics()

    labels = [np.where(mask == 0, 255, mask.astype(int) ** 2 % 3) for mask in masks]
    assert statistics.pixels.tolist() == [sum((y == c).sum() for y in labels) for c in range(3)]
    assert statistics.ignored_pixels == sum((y == 255).sum() for y in labels)
