from dataclasses import replace

import numpy as np
import pytest
from cases import examples
from hypothesis import given
from hypothesis import strategies as st
from label_masks import CLASSES, REDUCED, some_masks, statistics_of
from mmseg_wce.class_weights import Convention, LabelStatistics, Tally


def test_by_hand():
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

    parts = statistics_of(masks[:cut]) if cut else LabelStatistics.empty('three', CLASSES, Convention(True))
    if cut < len(masks):
        parts = parts + statistics_of(masks[cut:], cut)

    assert parts == statistics_of(masks)


def test_copies():
    once = statistics_of(some_masks())

    assert (once * 3).pixels.tolist() == (3 * once.pixels).tolist()
    assert once * 3 == once + once + once


def test_joining_what_does_not_fit():
    masks = some_masks()
    other = replace(statistics_of(masks), classes=('a', 'b', 'd'))

    with pytest.raises(ValueError, match=r"different classes.*'three' has 3"):
        _ = statistics_of(masks) + other


def test_joining_other_conventions_and_names():
    one = statistics_of(some_masks())
    other = replace(one, dataset='other', conventions=(Convention(False, label_map={0: 1}),), pixels_in_images=None)

    both = one + other + one

    assert both.dataset == 'three + other'
    assert both.conventions == (Convention(True), Convention(False, label_map={0: 1}))
    assert both.pixels_in_images is None


def test_fingerprint_tells_contents_names_and_number_apart():
    masks = some_masks()
    whole = statistics_of(masks)
    changed = [masks[0] + 1, *masks[1:]]

    assert (statistics_of(masks[3:], 3) + statistics_of(masks[:3])).fingerprint == whole.fingerprint
    for other in (statistics_of(changed), statistics_of(masks, 1), whole + whole, statistics_of(masks[1:], 1)):
        assert other.fingerprint != whole.fingerprint


def test_an_ignored_class_counts_nowhere():
    histogram = np.zeros((1, 256), np.int64)
    histogram[0, :3] = 70, 20, 10

    s = LabelStatistics.of(
        'four', 'abcd', Convention(ignore_index=0), np.arange(256), ['1'], histogram, [(10, 10)], 'L'
    )

    assert s.pixels.tolist() == [0, 20, 10, 0]
    assert s.share.tolist() == pytest.approx([0, 2 / 3, 1 / 3, 0])
    assert (s.ignored_pixels, s.num_pixels) == (70, 100)


def test_files_of_0_and_255():
    masks = [np.array([[0, 255, 255]]), np.array([[0, 1, 255]]), np.array([[0, 0]]), np.array([[255]])]

    assert statistics_of([mask.astype(np.uint8) for mask in masks]).zero_and_255 == Tally(2, 1, '0.png')
