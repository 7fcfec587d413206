import csv
from dataclasses import replace

import pytest
from label_masks import some_masks, statistics_of
from mmseg.datasets import ADE20KDataset
from mmseg_wce.class_weights import LabelEncoding, load_statistics, save_statistics, statistics_file


def test_saved_and_read_again(tmp_path):
    mapped = replace(
        statistics_of(some_masks()), conventions=(LabelEncoding(False, 7, {0: 1, 1: 255}),), failed={'x.png': 'cut'}
    )

    save_statistics(mapped, tmp_path / 'new' / 'statistics.json')

    assert load_statistics(tmp_path / 'new' / 'statistics.json') == mapped
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['statistics.json']


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda text: text.replace('"num_images": 7', '"num_images": 8'), 'changed by hand'),
        (lambda text: text[: len(text) // 2], 'cannot be read'),
        (lambda text: '[1.0, 2.0]', 'not a statistics file of tools/class_weights.py'),
        (lambda text: text.replace('statistics 1', 'statistics 9'), 'not a statistics file of tools/class_weights.py'),
    ],
)
def test_bad_files(tmp_path, change, words):
    path = tmp_path / 'statistics.json'
    save_statistics(statistics_of(some_masks()), path)
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))

    with pytest.raises(ValueError, match=words) as caught:
        load_statistics(path)

    assert str(path) in str(caught.value)


def test_counts_that_do_not_fit_the_classes(tmp_path):
    save_statistics(replace(statistics_of(some_masks()), classes=('a', 'b')), tmp_path / 'statistics.json')

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


def test_files_of_other_versions(tmp_path, monkeypatch):
    path = tmp_path / 'statistics.json'
    monkeypatch.setattr(statistics_file, 'to_json', lambda statistics: dict(format=statistics_file._FORMAT))
    save_statistics(statistics_of(some_masks()), path)

    with pytest.raises(ValueError, match="lacks 'dataset': run"):
        load_statistics(path)
