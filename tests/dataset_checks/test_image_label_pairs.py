import pytest
from mmseg.registry import DATASETS
from mmseg_wce.dataset_checks import Severity, check_statistics, check_unused_labels, from_dataset, from_folder
from PIL import Image
from three_classes import dataset_config


def findings(data, **changes):
    (part,) = from_dataset(DATASETS.build(dataset_config(data, **changes)))
    return findings_of(part)


def findings_of(part):
    found = check_statistics(part.statistics(with_images=True))
    return [f for f in found if 'never occur' not in f.what] + check_unused_labels([part])


def test_pairs_that_fit(data):
    assert findings(data) == []


LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
RESIZE, CROP = dict(type='Resize', scale=(8, 8)), dict(type='RandomCrop', crop_size=(4, 4))


@pytest.mark.parametrize(
    ('size', 'pipeline', 'severity', 'words'),
    [
        ((12, 16), LOAD, Severity.ERROR, 'differ in size (width x height)'),
        ((12, 16), LOAD[::-1], Severity.ERROR, 'differ in size (width x height)'),
        ((12, 16), [*LOAD, CROP], Severity.ERROR, 'differ in size (width x height)'),
        ((12, 16), [*LOAD, CROP, RESIZE], Severity.ERROR, 'differ in size (width x height)'),
        ((12, 16), [LOAD[0], RESIZE, LOAD[1]], Severity.ERROR, 'differ in size (width x height)'),
        ((12, 16), [*LOAD, RESIZE, CROP], Severity.WARNING, 'differ in size and shape'),
        ((32, 24), [*LOAD, RESIZE, CROP], Severity.NOTE, 'until the pipeline resizes both'),
        ((32, 24), [*LOAD, dict(RESIZE, keep_ratio=True)], Severity.NOTE, 'until the pipeline resizes both'),
        ((12, 16), [*LOAD, dict(RESIZE, keep_ratio=True)], Severity.ERROR, 'differ in size (width x height)'),
    ],
)
def test_sizes_that_differ(data, size, pipeline, severity, words):
    Image.new('RGB', size).save(data / 'images/training/04.jpg')

    (finding,) = findings(data, pipeline=pipeline)

    assert (finding.severity, finding.files) == (severity, 1)
    assert words in finding.what
    assert '04.png 16 x 12' in finding.example
    assert f'04.jpg {size[0]} x {size[1]}' in finding.example


@pytest.mark.parametrize(('stored', 'words'), [((12, 16), None), ((16, 12), 'EXIF turns')])
def test_orientation_of_cameras(data, stored, words):
    """The label is 16 x 12: EXIF shows an image stored as 12 x 16 at this size, and one stored as 16 x 12 turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', stored).save(data / 'images/training/02.jpg', exif=exif)

    assert [words in f.what for f in findings(data)] == [True] * (words is not None)


@pytest.mark.parametrize(
    ('file', 'content', 'severity', 'words'),
    [
        ('images/training/03.jpg', None, Severity.WARNING, '/annotations/training/03.png)'),
        ('images/training/01.jpg', b'of a satellite', Severity.ERROR, '01.jpg: AssertionError: failed to load image'),
        ('annotations/training/01.png', b'', Severity.ERROR, 'cannot be read'),  # and is not compared
    ],
)
def test_a_missing_or_unreadable_file_is_one_finding(data, file, content, severity, words):
    (data / file).unlink() if content is None else (data / file).write_bytes(content)

    (finding,) = findings(data)

    assert (finding.severity, finding.files) == (severity, 1)
    assert words in str(finding)


def test_files_of_another_suffix_are_no_labels(data):
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
    part = from_folder(str(data / 'annotations'), 4, images=str(data / 'images'))

    (finding,) = findings_of(part)

    assert (finding.severity, finding.files) == (Severity.ERROR, 1)
    assert finding.example.endswith('images/training/03.jpg')


def test_images_of_unknown_format_in_a_folder_are_a_note(data):
    (data / 'images/training/01.jpg').write_bytes(b'of a satellite')

    (finding,) = findings_of(from_folder(str(data / 'annotations'), 4, images=str(data / 'images')))

    assert (finding.severity, finding.files) == (Severity.NOTE, 1)
