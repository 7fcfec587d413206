import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmseg.datasets import ADE20KDataset
from mmseg_wce.class_weights import Convention, LabelStatistics, Tally, load_statistics

CLASSES = ('a', 'b', 'c')
REDUCED = np.arange(-1, 255) % 256  # what reduce_zero_label=True makes of raw values


def statistics_of(masks, first: int = 0) -> LabelStatistics:
    histograms = np.array([np.bincount(mask.ravel(), minlength=256) for mask in masks])
    files = [f'{first + i}.png' for i in range(len(masks))]
    sizes = [mask.shape for mask in masks]
    return LabelStatistics.of('three', CLASSES, Convention(True), REDUCED, files, histograms, sizes, ['L'] * len(masks))


def some_masks(seed: int = 0, number: int = 7) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.choice([0, 1, 2, 3, 4, 200], rng.integers(1, 9, 2)).astype(np.uint8) for _ in range(number)]


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
    assert s.images_without_label == Tally(0, 1, '1.png')
    assert s.unexpected == {3: Tally(2, 1, '2.png'), 200: Tally(1, 1, '2.png')}
    assert s.raw_values[0] == Tally(5, 2, '0.png')
    assert s.raw_values[201] == Tally(1, 1, '2.png')
    assert (s.height, s.width) == ((2, 2), (2, 3))
    assert s.storage == {'L': Tally(0, 3, '0.png')}
    assert s.share.tolist() == [0.5, 0, 0.5]
    assert s.frequency_where_present.tolist() == [3 / 6, 0, 3 / 10]
    assert s.absent == ['b']


@settings(deadline=None, max_examples=50)
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


def test_saved_and_read_again(tmp_path):
    mapped = replace(
        statistics_of(some_masks()), conventions=(Convention(False, 7, {0: 1, 1: 255}),), failed={'x.png': 'cut'}
    )

    mapped.save(tmp_path / 'new' / 'statistics.json')

    assert load_statistics(tmp_path / 'new' / 'statistics.json') == mapped
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['statistics.json']


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda text: text.replace('"num_images": 7', '"num_images": 8'), 'changed by hand'),
        (lambda text: text[: len(text) // 2], 'cannot be read'),
        (lambda text: '[1.0, 2.0]', 'not a file that tools/class_weights.py wrote'),
        (lambda text: text.replace('statistics 1', 'statistics 9'), 'not a file that tools/class_weights.py wrote'),
    ],
)
def test_bad_files(tmp_path, change, words):
    path = tmp_path / 'statistics.json'
    statistics_of(some_masks()).save(path)
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))

    with pytest.raises(ValueError, match=words) as caught:
        load_statistics(path)

    assert str(path) in str(caught.value)


def test_counts_that_do_not_fit_the_classes(tmp_path):
    replace(statistics_of(some_masks()), classes=('a', 'b')).save(tmp_path / 'statistics.json')

    with pytest.raises(ValueError, match='do not fit its 2 classes'):
        load_statistics(tmp_path / 'statistics.json')


def test_shipped_ade20k_is_its_table(shared_data):
    with (shared_data / 'ade20k_object_info_150.csv').open() as file:
        rows = list(csv.DictReader(file))

    s = load_statistics('ade20k')

    assert s.classes == tuple(ADE20KDataset.METAINFO['classes'])
    assert s.share.tolist() == pytest.approx([float(row['Ratio']) / 0.9275 for row in rows])
    assert s.images.tolist() == [int(row['Train']) + int(row['Val']) for row in rows]
    assert (s.num_images, s.num_pixels, s.ignored_pixels) == (20210 + 2000, 10000, 725)
    expected = [float(row['Ratio']) * 22210 / (int(row['Train']) + int(row['Val'])) for row in rows]
    assert s.frequency_where_present.tolist() == pytest.approx(expected)


def test_json_is_plain():
    content = statistics_of(some_masks()).to_json()

    assert json.loads(json.dumps(content)) == content
