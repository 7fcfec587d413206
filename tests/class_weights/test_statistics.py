from dataclasses import replace

import numpy as np
import pytest
from cases import examples
from hypothesis import given
from hypothesis import strategies as st
from label_masks import CLASSES, REDUCED, file_of, some_masks, statistics_of
from mmseg_wce.class_weights import LabelEncoding, LabelStatistics, Tally, statistics
from mmseg_wce.class_weights.statistics import FileLabels


def test_counts_by_hand():
    masks = [
        np.array([[0, 1, 1], [1, 3, 3]], np.uint8),
        np.array([[0, 0], [0, 0]], np.uint8),
        np.array([[3, 201], [4, 4]], np.uint8),
    ]

    s = statistics_of(masks)

    assert s.pixels.tolist() == [3, 0, 3]
    assert s.images.tolist() == [1, 0, 2]
    assert s.pixels_in_images.tolist() == [6, 0, 10]
    assert (s.num_images, s.num_pixels, s.ignored_pixels) == (3, 14, 5)
    assert s.images_without_label == Tally(4, 1, '1.png')
    assert s.zero_and_255 is None
    assert s.unexpected == {3: Tally(2, 1, '2.png'), 200: Tally(1, 1, '2.png')}
    assert s.raw_values[0] == Tally(5, 2, '0.png')
    assert s.raw_values[201] == Tally(1, 1, '2.png')
    assert s.sizes == {'3 x 2': 1, '2 x 2': 2}
    assert s.storage == {'L': Tally(0, 3, '0.png')}
    assert s.share.tolist() == [0.5, 0, 0.5]
    assert s.frequency_where_present.tolist() == [3 / 6, 0, 3 / 10]
    assert s.absent == ['b']


@examples(50)
@given(st.integers(0, 2**32 - 1))
def test_against_numpy(seed):
    masks = some_masks(seed)

    s = statistics_of(masks)

    labels = [REDUCED[mask] for mask in masks]
    for c in range(3):
        holding = [label for label in labels if (label == c).any()]
        assert s.pixels[c] == sum((label == c).sum() for label in labels)
        assert s.images[c] == len(holding)
        assert s.pixels_in_images[c] == sum(label.size for label in holding)
    assert s.ignored_pixels == sum((label == 255).sum() for label in labels)
    assert sum(t.pixels for t in s.unexpected.values()) == sum(np.isin(label, [3, 199]).sum() for label in labels)


@pytest.mark.parametrize('cut', range(8))
def test_parts_add_up_to_the_whole(cut):
    masks = some_masks()

    parts = statistics_of(masks[:cut]) if cut else LabelStatistics.empty('three', CLASSES, LabelEncoding(True))
    if cut < len(masks):
        parts = parts + statistics_of(masks[cut:], cut)

    assert parts == statistics_of(masks)


def test_multiplied_statistics_are_repeated_sums():
    once = statistics_of(some_masks())

    assert (once * 3).pixels.tolist() == (3 * once.pixels).tolist()
    assert once * 3 == once + once + once


def test_joining_other_numbers_of_classes_raises():
    masks = some_masks()
    other = LabelStatistics.empty('other', 'abcd', LabelEncoding(True))

    with pytest.raises(ValueError, match=r"different numbers of classes.*'three' has 3.*'other' has 4"):
        _ = statistics_of(masks) + other


def test_classes_of_other_names_add_up_by_index():
    one = statistics_of(some_masks())
    other = replace(one, classes=('A', 'b', 'd'))

    assert (one + other).classes == one.classes
    assert (one + other).pixels.tolist() == (2 * one.pixels).tolist()


def test_joining_other_conventions_and_names():
    one = statistics_of(some_masks())
    other = replace(one, dataset='other', conventions=(LabelEncoding(False, label_map={0: 1}),), pixels_in_images=None)

    both = one + other + one

    assert both.dataset == 'three + other'
    assert both.conventions == (LabelEncoding(True), LabelEncoding(False, label_map={0: 1}))
    assert both.pixels_in_images is None


def test_fingerprint_tells_contents_names_and_number_apart():
    masks = some_masks()
    whole = statistics_of(masks)
    changed = [masks[0] + 1, *masks[1:]]

    assert (statistics_of(masks[3:], 3) + statistics_of(masks[:3])).fingerprint == whole.fingerprint
    for other in (statistics_of(changed), statistics_of(masks, 1), whole + whole, statistics_of(masks[1:], 1)):
        assert other.fingerprint != whole.fingerprint


def test_an_ignored_class_counts_nowhere():
    mask = np.repeat([0, 1, 2], [70, 20, 10]).reshape(10, 10)

    s = LabelStatistics.from_files('four', 'abcd', LabelEncoding(ignore_index=0), [file_of('1', mask, np.arange(256))])

    assert s.pixels.tolist() == [0, 20, 10, 0]
    assert s.share.tolist() == pytest.approx([0, 2 / 3, 1 / 3, 0])
    assert (s.ignored_pixels, s.num_pixels) == (70, 100)


def test_files_of_0_and_255():
    masks = [np.array([[0, 255, 255]]), np.array([[0, 1, 255]]), np.array([[0, 0]]), np.array([[255]])]

    assert statistics_of([mask.astype(np.uint8) for mask in masks]).zero_and_255 == Tally(2, 1, '0.png')


@pytest.mark.parametrize('ignore_index', [-1, 300, 65535])
@pytest.mark.parametrize('cut', [0, 3])
def test_labels_beyond_a_byte(ignore_index, cut):
    rng = np.random.default_rng(0)
    masks = [rng.choice([0, 5, 299, ignore_index, -7, 70000], (8, 9)) for _ in range(6)]
    files = [FileLabels(f'{i}.npy', mask.shape, *np.unique(mask, return_counts=True)) for i, mask in enumerate(masks)]
    classes, convention = [str(c) for c in range(300)], LabelEncoding(ignore_index=ignore_index)

    s = LabelStatistics.from_files('wide', classes, convention, files[:cut])
    s = s + LabelStatistics.from_files('wide', classes, convention, files[cut:])

    every = np.concatenate([mask.ravel() for mask in masks])
    assert [s.pixels[c] for c in (0, 5, 299)] == [(every == c).sum() for c in (0, 5, 299)]
    assert s.pixels.sum() == np.isin(every, [0, 5, 299]).sum()
    assert s.ignored_pixels == (every == ignore_index).sum()
    assert {value: tally.pixels for value, tally in s.unexpected.items()} == {
        value: (every == value).sum() for value in (-7, 70000)
    }
    assert s.raw_values == {}


@pytest.mark.parametrize('cut', [1, 4, 7])
def test_of_many_unexpected_values_the_smallest_are_kept(monkeypatch, cut):
    monkeypatch.setattr(statistics, '_MAX_UNEXPECTED', 5)
    rng = np.random.default_rng(1)
    masks = [rng.integers(3, 60, (4, 5)) for _ in range(8)]
    files = [FileLabels(f'{i}', mask.shape, *np.unique(mask, return_counts=True)) for i, mask in enumerate(masks)]

    whole = LabelStatistics.from_files('many', CLASSES, LabelEncoding(), files)
    parts = [LabelStatistics.from_files('many', CLASSES, LabelEncoding(), part) for part in (files[:cut], files[cut:])]

    every = np.concatenate([mask.ravel() for mask in masks])
    assert sorted(whole.unexpected) == np.unique(every)[:5].tolist()
    assert whole.more_unexpected + sum(tally.pixels for tally in whole.unexpected.values()) == every.size
    assert parts[0] + parts[1] == whole


def test_what_reading_changed_and_left_out_adds_up():
    file = FileLabels(
        'a.tif', (1, 2), np.array([0]), np.array([2]), altered={'fraction': (2, '0.5')}, image_mismatch=('size', 'a b')
    )
    once = replace(
        LabelStatistics.from_files('three', CLASSES, LabelEncoding(), [file]), dropped=Tally(0, 1, 'b.tif', 'Filter')
    )

    twice = once + once

    assert twice.altered == {'fraction': Tally(4, 2, 'a.tif', '0.5')}
    assert twice.image_mismatches == {'size': Tally(0, 2, 'a.tif', 'a b')}
    assert twice.dropped == Tally(0, 2, 'b.tif', 'Filter')
    assert once * 2 == twice
