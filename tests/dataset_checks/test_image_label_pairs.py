import pytest
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from mmseg_wce.dataset_checks import Severity, check_pairs, from_dataset, from_folder, list_pairs
from PIL import Image
from three_classes import dataset_config, make_masks, write_data


@pytest.fixture
def data(tmp_path):
    init_default_scope('mmseg')
    return write_data(tmp_path, make_masks(6))


def findings(data, **changes):
    parts = from_dataset(DATASETS.build(dataset_config(data, **changes)))
    return check_pairs(parts, list_pairs(parts))


def test_pairs_that_fit(data):
    assert findings(data) == []


def test_sizes_that_differ(data):
    Image.new('RGB', (12, 16)).save(data / 'images/training/04.jpg')

    (finding,) = findings(data)

    assert (finding.severity, finding.files) == (Severity.ERROR, 1)
    assert '04.png 16 x 12' in finding.example
    assert '04.jpg 12 x 16' in finding.example


@pytest.mark.parametrize(('stored', 'words'), [((12, 16), None), ((16, 12), 'EXIF turns')])
def test_orientation_of_cameras(data, stored, words):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', stored).save(data / 'images/training/02.jpg', exif=exif)

    assert [words in f.what for f in findings(data)] == [True] * (words is not None)


def test_label_without_image(data):
    (data / 'images/training/03.jpg').unlink()

    (finding,) = findings(data)

    assert (finding.severity, finding.files) == (Severity.WARNING, 1)
    assert finding.example.endswith('annotations/training/03.png')


def test_other_files_beside_the_labels_are_none(data):
    for file in list((data / 'annotations/training').iterdir()):
        file.with_name(f'{file.stem}_labelIds.png').write_bytes(file.read_bytes())
        file.rename(file.with_name(f'{file.stem}_labelTrainIds.png'))

    assert findings(data, seg_map_suffix='_labelTrainIds.png') == []


@pytest.mark.parametrize('by', ['indices', 'ann_file'])
def test_files_of_other_splits_are_not_missed(data, by, tmp_path):
    (tmp_path / 'split.txt').write_text('00\n01\n')

    assert findings(data, **({'indices': 2} if by == 'indices' else {'ann_file': 'split.txt'})) == []


def test_folder_without_its_images(data):
    (data / 'images/training/03.jpg').unlink()
    part = from_folder(str(data / 'annotations'), 3, images=str(data / 'images'))

    (finding,) = check_pairs([part], list_pairs([part]))

    assert (finding.severity, finding.files) == (Severity.ERROR, 1)
    assert finding.example.endswith('images/training/03.jpg')


def test_formats_that_pillow_does_not_know(data):
    (data / 'images/training/01.jpg').write_bytes(b'of a satellite')

    (finding,) = findings(data)

    assert (finding.severity, finding.files) == (Severity.NOTE, 1)


def test_labels_that_cannot_be_read_are_left_to_the_scan(data):
    (data / 'annotations/training/01.png').write_bytes(b'')

    assert findings(data) == []
