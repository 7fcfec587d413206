import numpy as np
import pytest
from mmseg.registry import DATASETS
from mmseg_wce.dataset_checks import check_raw_zero, evenly, from_dataset, from_folder
from PIL import Image
from three_classes import ThreeClasses, dataset_config, make_masks, write_data


def gaps_between(masks):
    """Blocks of 1..3, with 0 where they meet."""
    masks = [np.maximum(mask, 1).repeat(5, 0).repeat(5, 1) for mask in masks]
    for mask in masks:
        mask[::20] = mask[:, ::20] = 0
    return masks


def findings(folder, num_classes, reduce_zero_label):
    part = from_folder(str(folder), num_classes, reduce_zero_label)
    return [finding.what for finding in check_raw_zero([part], part.statistics())]


@pytest.mark.parametrize('reduce_zero_label', [True, False])
def test_gaps_between_things_look_like_other(tmp_path, reduce_zero_label):
    write_data(tmp_path, gaps_between(make_masks(5)))

    found = findings(tmp_path / 'annotations', 4, reduce_zero_label)  # raw 4 never occurs

    assert ['looks like "other"' in what for what in found] == [True] * (not reduce_zero_label)


def blocks(number=8):
    return [mask.repeat(5, 0).repeat(5, 1) for mask in make_masks(number)]


def test_blocks_look_like_a_class(tmp_path):
    write_data(tmp_path, blocks())

    assert findings(tmp_path / 'annotations', 4, reduce_zero_label=False) == []
    (what,) = findings(tmp_path / 'annotations', 4, reduce_zero_label=True)
    assert 'looks like a class' in what
    assert 'raw 4 never occurs' in what


def test_zero_without_borders_looks_like_a_class(tmp_path):
    write_data(tmp_path, [np.full((20, 20), value, np.uint8) for value in (0, 1)])

    assert ['looks like a class' in what for what in findings(tmp_path / 'annotations', 2, True)] == [True]


def test_wide_gaps_between_small_things_look_like_other(tmp_path):
    masks = [mask + 3 * (i % 3) for i, mask in enumerate(gaps_between(make_masks(9)))]
    for mask in masks:
        mask[np.isin(mask, [3, 6])] = 0
        for k in range(4):  # wider, so that nothing is as frequent
            mask[k::20] = mask[:, k::20] = 0
    write_data(tmp_path, masks)

    assert findings(tmp_path / 'annotations', 20, reduce_zero_label=True) == []


def test_the_most_frequent_may_be_a_class(tmp_path):
    masks = blocks()
    for mask in masks:
        mask[:, 48:] = 0
    write_data(tmp_path, masks)

    assert ['looks like a class' in what for what in findings(tmp_path / 'annotations', 4, True)] == [True]


def test_blocks_may_be_other_where_the_last_value_occurs(tmp_path):
    write_data(tmp_path, blocks())

    assert findings(tmp_path / 'annotations', 3, reduce_zero_label=True) == []


def test_camvid_and_ade20k(shared_data):
    for folder, num_classes in ('camvid/annotations/training', 11), ('ade20k_sample/annotations', 150):
        for reduce_zero_label in (True, False):
            found = findings(shared_data / folder, num_classes, reduce_zero_label)
            assert ['looks like "other"' in what for what in found] == [True] * (not reduce_zero_label)


@pytest.mark.parametrize('reduce_zero_label', [True, False])
@pytest.mark.parametrize('offset', [0, 1])
def test_palette_says_which_raw_value_a_class_has(tmp_path, offset, reduce_zero_label):
    write_data(tmp_path, make_masks(4))
    for file in (tmp_path / 'annotations/training').iterdir():
        image = Image.fromarray(np.array(Image.open(file)))
        image.putpalette([7, 7, 7] * offset + [value for color in ThreeClasses.METAINFO['palette'] for value in color])
        image.save(file)
    parts = from_dataset(DATASETS.build(dataset_config(tmp_path, reduce_zero_label=reduce_zero_label)))

    found = check_raw_zero(parts, parts[0].statistics())

    if bool(offset) == reduce_zero_label:
        assert found == []
    else:
        assert f'gives raw {offset} the colour of class 0 (a)' in found[0].what
        assert f'reduce_zero_label={bool(offset)}' in found[0].change


def test_evenly_spreads_samples_over_all_files(tmp_path):
    write_data(tmp_path, make_masks(10))
    part = from_folder(str(tmp_path / 'annotations'), 4)

    assert [i for _, i in evenly([part], 4)] == [0, 2, 5, 7]
    assert [i for _, i in evenly([part], 99)] == list(range(10))
    assert evenly([], 4) == []
