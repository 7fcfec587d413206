import numpy as np
import pytest
from mmseg_wce.class_weights import LabelStatistics
from mmseg_wce.dataset_checks import Severity, check_statistics, from_folder
from PIL import Image
from three_classes import make_masks

ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE


def statistics_of(folder, masks, num_classes=3, reduce_zero_label=True) -> LabelStatistics:
    folder.mkdir(exist_ok=True)
    for i, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f'{i:03d}.png')
    part = from_folder(str(folder), num_classes, reduce_zero_label)
    return part.statistics()


def shifted(masks):
    return [mask - 1 for mask in masks]  # uint8: 0 becomes 255


def painted(masks):
    masks[4][:2, :2] = 200
    return masks


def binary(masks):
    return [np.where(mask > 1, 255, 0).astype(np.uint8) for mask in masks]


def one_binary(masks):
    masks = [np.minimum(mask, 1) for mask in masks]
    masks[5] = np.where(masks[5] > 0, 255, 0).astype(np.uint8)
    return masks


def one_empty(masks):
    masks[7][:] = 0
    return masks


def background(masks):
    return [np.where(mask == 3, 0, mask) * (np.arange(16) > 9).astype(np.uint8) for mask in masks]


def without_last(masks):
    return [np.minimum(mask, 2) for mask in masks]


@pytest.mark.parametrize(
    ('change', 'options', 'severity', 'words', 'files', 'advice'),
    [
        (
            shifted,
            {},
            WARNING,
            'shifted already: they hold 255 and values from 0 to 2',
            None,
            'reduce_zero_label=False',
        ),
        (lambda masks: masks, dict(reduce_zero_label=False), ERROR, '3 (', None, 'set reduce_zero_label=True'),
        (lambda masks: masks, dict(num_classes=2), ERROR, '2 (raw 3,', None, 'num_classes=2 is too small'),
        (painted, {}, ERROR, '199 (raw 200, 4 px)', 1, 'painted with values that are not a class'),
        (binary, dict(num_classes=2), WARNING, '0 and 255 only', None, "dict(type='MapLabels', mapping={255: 1})"),
        (binary, dict(num_classes=2, reduce_zero_label=False), WARNING, '0 and 255 only', None, 'mapping={255: 1}'),
        (one_binary, dict(num_classes=2, reduce_zero_label=False), WARNING, 'others hold 1', 1, 'store 1'),
        (one_empty, {}, WARNING, 'no valid pixel', 1, 'ignore_index'),
        (background, {}, WARNING, 'looks like a class (background)', None, 'reduce_zero_label=False'),
        (without_last, {}, NOTE, '1 of the 3 classes never occur in 30 images: 2', None, 'too large, or raw 0 a class'),
    ],
)
def test_each_mistake_is_found(tmp_path, change, options, severity, words, files, advice):
    found = check_statistics(statistics_of(tmp_path, change(make_masks(30)), **options))

    (finding,) = [f for f in found if words in f.what]
    assert finding.severity == severity
    assert advice in str(finding)
    assert '\n' not in str(finding)
    if files is not None:
        assert finding.files == files
        assert f'({files} file, such as {finding.example})' in str(finding)


def bordered(masks):
    for mask in masks:
        mask[:1] = 255
    return masks


def filled(rows, shape=(16, 16)):
    masks = [np.zeros(shape, np.uint8) for _ in range(5)]
    for mask in masks:
        mask[:rows] = 255
    return masks


def half_negative():
    masks = [np.minimum(mask, 1) for mask in make_masks(30, shape=(32, 32))]
    for mask in masks[::2]:
        mask[:] = 0
    return masks


@pytest.mark.parametrize(
    ('masks', 'num_classes', 'reduce_zero_label', 'expected'),
    [
        pytest.param(make_masks(30), 3, True, [], id='nothing is wrong'),
        pytest.param(shifted(make_masks(30)), 3, False, [], id='shifted on disk and read so'),
        pytest.param(without_last(make_masks(100)), 3, True, [(WARNING, '')], id='many images without the last class'),
        pytest.param(filled(1), 21, False, [(NOTE, 'never occur')], id='a border of 255 around a background'),
        pytest.param(filled(8), 3, False, [(WARNING, 'masks hold 0 and 255 only'), (NOTE, '')], id='0 and 255 alone'),
        pytest.param(
            bordered(make_masks(30)),
            20,
            True,
            [(NOTE, 'both raw 0 and raw 255'), (NOTE, '')],
            id='a border, few classes',
        ),
        pytest.param(bordered(half_negative()), 2, False, [(NOTE, '(15 files')], id='negatives with a border'),
    ],
)
def test_only_what_is_wrong_is_found(tmp_path, masks, num_classes, reduce_zero_label, expected):
    found = check_statistics(statistics_of(tmp_path, masks, num_classes, reduce_zero_label))

    assert [finding.severity for finding in found] == [severity for severity, _ in expected]
    assert all(words in str(finding) for finding, (_, words) in zip(found, expected, strict=True))


def test_a_wrong_convention_is_not_called_a_mistake_of_painting(tmp_path):
    (finding,) = check_statistics(statistics_of(tmp_path, make_masks(30), reduce_zero_label=False))

    assert 'painted' not in str(finding)
    assert 'reduce_zero_label=True, raw' not in str(finding)


def test_labels_that_a_later_step_may_change_are_only_doubtful(tmp_path):
    masks = [np.full((16, 16), 7, np.uint8)]

    (found, *_) = check_statistics(statistics_of(tmp_path, masks, 3, reduce_zero_label=False), 'MyPreprocessor')

    assert found.severity == WARNING
    assert 'unless MyPreprocessor changes them' in found.what


def test_one_stray_value_does_not_hide_binary_masks(tmp_path):
    masks = binary(make_masks(30))
    masks[3][0, 0] = 128

    found = check_statistics(statistics_of(tmp_path, masks, num_classes=2, reduce_zero_label=False))

    assert [f.severity for f in found if '0 and 255 only' in f.what] == [WARNING]
    assert 'num_classes' not in found[0].change


def test_jpeg_labels(tmp_path):
    statistics_of(tmp_path, make_masks(2))
    Image.fromarray(make_masks(1)[0]).save(tmp_path / '000.png', format='JPEG', quality=100)
    part = from_folder(str(tmp_path), 3, True)

    assert ['JPEG files' in f.what for f in check_statistics(part.statistics())].count(True) == 1


def test_files_that_cannot_be_read_are_grouped_by_their_reason(tmp_path):
    statistics_of(tmp_path, make_masks(10, shape=(64, 64)))
    for i in (2, 5):
        content = (tmp_path / f'{i:03d}.png').read_bytes()
        (tmp_path / f'{i:03d}.png').write_bytes(content[: len(content) // 2])
    Image.new('RGB', (4, 4)).save(tmp_path / '007.png')
    part = from_folder(str(tmp_path), 3, True)

    found = check_statistics(part.statistics())

    assert [(f.severity, f.files, f.example[-7:]) for f in found] == [(ERROR, 2, '002.png'), (ERROR, 1, '007.png')]
    assert 'truncated' in found[0].what
    assert 'RGB' in found[1].what


def test_palette_files_are_worth_a_note(tmp_path):
    statistics_of(tmp_path, make_masks(3))
    image = Image.fromarray(make_masks(1)[0])
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.save(tmp_path / '001.png')
    part = from_folder(str(tmp_path), 3, True)

    (finding,) = [f for f in check_statistics(part.statistics()) if 'palette' in f.what]

    assert (finding.severity, finding.files) == (NOTE, 1)


def test_no_file_at_all_could_be_read(tmp_path):
    statistics_of(tmp_path, make_masks(2))
    for file in tmp_path.iterdir():
        file.write_bytes(b'')
    part = from_folder(str(tmp_path), 3, True)

    (finding,) = check_statistics(part.statistics())

    assert finding.files == 2
