"""Scenes of loaders and transforms of a project's own: what is counted, and which sizes are compared."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmseg.registry import DATASETS, TRANSFORMS
from mmseg_wce.dataset_checks import Severity, check_statistics, from_dataset
from PIL import Image
from three_classes import IMAGE, LOAD, PACK, ThreeClasses, dataset_config, make_masks, part_of

PALETTE = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 0, 128]], np.uint8)


@TRANSFORMS.register_module()
class FromPalette(BaseTransform):
    """Colours of ``LoadAnnotations`` as raw labels."""

    def transform(self, results):
        colours = results['gt_seg_map']
        is_colour = (colours[:, :, None] == PALETTE[:, ::-1]).all(-1)  # it decodes to BGR
        results['gt_seg_map'] = np.where(is_colour.any(-1), is_colour.argmax(-1), 255).astype(np.uint8)
        return results


def test_colours_that_a_transform_makes_labels_of(data):
    for i, mask in enumerate(make_masks(6)):
        Image.fromarray(PALETTE[mask]).save(data / f'annotations/training/{i:02d}.png')

    part = part_of(data, IMAGE, LOAD, dict(type='FromPalette'), PACK, reduce_zero_label=False)

    assert all(np.array_equal(part.labels(i), mask) for i, mask in enumerate(make_masks(6)))
    statistics = part.statistics(with_images=True)
    assert (statistics.failed, statistics.altered, statistics.image_mismatches) == ({}, {}, {})


@TRANSFORMS.register_module()
class ResizesLabelsAlone(BaseTransform):
    """Labels at another size; images too where that is asked."""

    def __init__(self, images=False):
        self.images = images

    def transform(self, results):
        size = (8, 8)
        results['gt_seg_map'] = cv2.resize(results['gt_seg_map'], size, interpolation=cv2.INTER_NEAREST)
        if self.images:
            results['img'] = cv2.resize(results['img'], size)
        return results


@pytest.mark.parametrize(
    ('store_half', 'images', 'kind'),
    [(True, True, None), (True, False, 'resized by others'), (False, False, None), (False, True, None)],
)
def test_sizes_after_transforms_of_others(data, store_half, images, kind):
    """Stored at half the size, image and label are compared as these transforms leave them."""
    if store_half:
        for file in (data / 'annotations/training').iterdir():
            Image.open(file).resize((8, 6), Image.NEAREST).save(file)

    part = part_of(data, IMAGE, LOAD, dict(type='ResizesLabelsAlone', images=images), PACK)
    statistics = part.statistics(with_images=True)

    assert list(statistics.image_mismatches) == ([] if kind is None else [kind])
    findings = [f for f in check_statistics(statistics) if 'differ' in f.what]
    assert [f.severity for f in findings] == [Severity.WARNING] * (kind is not None)


@TRANSFORMS.register_module()
class LoadsSomeByImage(BaseTransform):
    """Labels of an array; where it has another size, the image says which."""

    def transform(self, results):
        labels = np.array(Image.open(results['seg_map_path']))
        if labels.shape != (12, 16):
            labels = np.full(results['img'].shape[:2], 2, np.uint8)
        results['gt_seg_map'] = labels
        return results


def test_the_image_is_loaded_where_a_sample_needs_it(data):
    odd = data / 'annotations/training/04.png'
    Image.open(odd).resize((8, 6), Image.NEAREST).save(odd)

    part = part_of(data, IMAGE, dict(type='LoadsSomeByImage'), PACK)

    assert not part.reader.pipeline.needs_image
    assert np.array_equal(part.labels(4), np.full((12, 16), 2))
    assert part.statistics().failed == {}


@TRANSFORMS.register_module()
class NeedsASize(BaseTransform):
    """Asks for what a resize that is left out makes, for one sample."""

    def transform(self, results):
        if results['seg_map_path'].endswith('04.png'):
            results['gt_seg_map'] = results['gt_seg_map'] * int(results['scale_factor'][0] > 0)
        return results


def test_sizes_that_transforms_do_not_tell_are_not_compared(data):
    """A label of another size, and transforms that need what was left out."""
    for file in (data / 'annotations/training').iterdir():
        Image.open(file).resize((8, 6), Image.NEAREST).save(file)

    resize = dict(type='Resize', scale=(16, 12))
    statistics = part_of(data, IMAGE, LOAD, resize, dict(type='NeedsASize'), PACK).statistics(with_images=True)

    assert (statistics.failed, [*statistics.image_mismatches]) == ({}, ['resized'])


def test_samples_that_go_through_the_whole_pipeline_are_named(data):
    resize = dict(type='Resize', scale=(16, 12))
    part = part_of(data, IMAGE, LOAD, resize, dict(type='NeedsASize'), PACK, reduce_zero_label=False)

    statistics = part.statistics()

    assert statistics.failed == {}
    (tally,) = statistics.altered.values()
    assert (tally.files, tally.pixels, Path(tally.example).name) == (1, 192, '04.png')
    (finding,) = [f for f in check_statistics(statistics) if 'crops and flips' in f.what]
    assert finding.severity == Severity.NOTE
    assert "KeyError: 'scale_factor'" in finding.what


@TRANSFORMS.register_module()
class IgnoresBlack(BaseTransform):
    """Labels where the image is black are ignored, if there is an image."""

    def transform(self, results):
        if results.get('img') is not None:
            results['gt_seg_map'][(results['img'] == 0).all(-1)] = 255
        return results


def test_a_bad_value_is_looked_at_with_the_image_before_it_is_said(data):
    """Only one sample, which was not probed, has black pixels; its labels hold 7 there."""
    for i in range(6):
        image = np.full((12, 16, 3), 200, np.uint8)
        if i == 1:
            image[:4] = 0
            mask = np.asarray(Image.open(data / 'annotations/training/01.png')).copy()
            mask[:4] = 7
            Image.fromarray(mask).save(data / 'annotations/training/01.png')
        cv2.imwrite(str(data / f'images/training/{i:02d}.png'), image)
    part = part_of(data, IMAGE, LOAD, dict(type='IgnoresBlack'), PACK, img_suffix='.png')

    statistics = part.statistics()

    assert not part.reader.pipeline.needs_image
    assert statistics.unexpected == {}
    assert statistics.ignored_pixels >= 64


@TRANSFORMS.register_module()
class LoadsFirst(BaseTransform):
    """Corrects the path of the image after the labels were loaded."""

    def transform(self, results):
        results['img_path'] = results['img_path'].replace('elsewhere', 'training')
        results['gt_seg_map'] = results['gt_seg_map'].copy()
        return results


def test_a_path_that_is_corrected_between_the_loaders(data):
    prefix = dict(img_path='images/elsewhere', seg_map_path='annotations/training')
    (data / 'images/elsewhere').mkdir()
    for file in (data / 'images/training').iterdir():
        (data / 'images/elsewhere' / file.name).write_bytes(b'')

    part = part_of(data, LOAD, dict(type='LoadsFirst'), IMAGE, PACK, data_prefix=prefix)

    assert part.statistics(with_images=True).image_mismatches == {}
    assert part.reader.image(part.samples[0]).shape == (12, 16, 3)


def test_missing_images_that_the_loader_leaves_out(data):
    (data / 'images/training/02.jpg').unlink()
    config = dataset_config(data, pipeline=[dict(IMAGE, ignore_empty=True), LOAD, PACK])
    config['ann_file'] = str(data / 'list.txt')
    (data / 'list.txt').write_text('\n'.join(f'{i:02d}' for i in range(6)))

    (part,) = from_dataset(DATASETS.build(config))

    assert part.statistics(with_images=True).image_mismatches == {}


def test_images_that_are_resized_before_the_labels_are_loaded(data):
    for i in range(6):
        cv2.imwrite(str(data / f'images/training/{i:02d}.jpg'), np.zeros((24, 32, 3), np.uint8))

    part = part_of(data, IMAGE, dict(type='Resize', scale=(16, 12)), LOAD, PACK)
    (finding,) = [f for f in check_statistics(part.statistics(with_images=True)) if 'differ' in f.what]

    assert finding.severity == Severity.WARNING
    assert 'until transforms before the loader of labels change the image' in finding.what


@TRANSFORMS.register_module()
class LoadsAChannelAxis(BaseTransform):
    def transform(self, results):
        results['gt_seg_map'] = np.array(Image.open(results['seg_map_path']))[None]
        return results


def test_sizes_of_labels_with_an_axis_of_one(data):
    part = part_of(data, IMAGE, dict(type='LoadsAChannelAxis'), PACK)

    assert part.statistics(with_images=True).image_mismatches == {}
    assert part.labels(0).shape == (12, 16)


@DATASETS.register_module()
class ChangesPacked(ThreeClasses):
    """Changes labels after the pipeline has packed them."""

    def prepare_data(self, index):
        item = super().prepare_data(index)
        if 'data_samples' in item:
            labels = item['data_samples'].gt_sem_seg.data
            labels.apply_(lambda value: {1: 0, 2: 1, 3: 2}.get(value, value))
        return item


def test_labels_that_prepare_data_changes_after_packing(data):
    crop = dict(type='RandomCrop', crop_size=(4, 4))
    part = part_of(data, IMAGE, LOAD, crop, PACK, type='ChangesPacked', reduce_zero_label=False)

    statistics = part.statistics()

    assert statistics.unexpected == {}
    assert statistics.num_pixels == 6 * 12 * 16  # without crops
    assert all(np.array_equal(part.labels(i), np.maximum(mask, 1) - 1) for i, mask in enumerate(make_masks(6)))


@TRANSFORMS.register_module()
class HasSlots:
    """A transform without a dictionary of attributes."""

    __slots__ = ('value',)

    def __init__(self, value):
        self.value = value

    def __call__(self, results):
        return results


def test_settings_of_transforms_in_slots_are_known(data):
    part = part_of(data, IMAGE, LOAD, dict(type='HasSlots', value=3), PACK)

    assert ('HasSlots', dict(value=3)) in part.transforms
