import json

import numpy as np
import pytest
from mmseg_wce.class_weights.file_record import FileRecord, load_file_record, record_path, save_file_record

RECORD = FileRecord(('sky', 'bird'), {'/data/a/1.png': {0: 5, 1: 2}, '/data/b/1.png': {1: 9}, '/data/b/2.png': {}})


@pytest.fixture
def statistics(tmp_path):
    """Path of statistics, whose record has been written."""
    path = tmp_path / 'labels.json'
    save_file_record(RECORD, path)
    return path


def test_is_written_beside_the_statistics(statistics):
    assert record_path(statistics) == statistics.with_name('labels.files.json')
    assert record_path(statistics).is_file()
    assert load_file_record(statistics) == RECORD


@pytest.mark.parametrize('folder', ['/data', '/moved/elsewhere', 'relative'])
def test_files_are_found_wherever_the_data_set_is(statistics, folder):
    files = [f'{folder}/b/2.png', f'{folder}/a/1.png', f'{folder}/a/1.png', f'{folder}/b/1.png']

    table = load_file_record(statistics).table(files)

    assert table.tolist() == [[0, 0], [5, 2], [5, 2], [0, 9]]
    assert table.dtype == np.int64


def test_a_file_that_was_not_scanned_is_named(statistics):
    with pytest.raises(ValueError, match=r"does not have '/data/b/3\.png': run tools/class_weights\.py again"):
        load_file_record(statistics).table(['/data/a/1.png', '/data/b/3.png'])


def test_no_record_beside_older_statistics(tmp_path):
    with pytest.raises(ValueError, match=r'labels\.files\.json.* cannot be read: .*run tools/class_weights\.py'):
        load_file_record(tmp_path / 'labels.json')
    with pytest.raises(ValueError, match="statistics='ade20k' come without a record of your label files"):
        load_file_record('ade20k')


@pytest.mark.parametrize(
    'content',
    [
        '[]',
        '{',
        '{"format": "another"}',
        dict(classes=3),
        dict(files=[1]),
        dict(files={'a': 1}),
        dict(files={'a': {'2': 1}}),
        dict(files={'a': {'-1': 1}}),
        dict(files={'a': {'0': -1}}),
        dict(files={'a': {'x': 1}}),
    ],
)
def test_a_file_that_is_no_record(statistics, content):
    path = record_path(statistics)
    path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))

    with pytest.raises(ValueError, match='cannot be read'):
        load_file_record(statistics)
