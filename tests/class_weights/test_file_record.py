import json
from pathlib import Path

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
    assert record_path(statistics) == str(statistics.with_name('labels.files.json'))
    assert Path(record_path(statistics)).is_file()
    assert record_path('s3://bucket/labels.json') == 's3://bucket/labels.files.json'
    assert load_file_record(statistics) == RECORD


FILES = ['b/2.png', 'a/1.png', 'a/1.png', 'b/1.png']
TABLE = [[0, 0], [5, 2], [5, 2], [0, 9]]


def test_files_are_found(statistics, recwarn):
    table = load_file_record(statistics).table([f'/data/{file}' for file in FILES])

    assert table.tolist() == TABLE
    assert table.dtype == np.int64
    assert load_file_record(statistics).table(['/data/b/1.png']).tolist() == TABLE[3:]
    assert not recwarn.list


@pytest.mark.parametrize('folder', ['/moved/elsewhere', 'relative'])
def test_a_data_set_that_was_moved_as_a_whole_is_found(statistics, folder):
    with pytest.warns(
        UserWarning, match=r"the record of label files is of '/data', and is used for .* in '.*" + folder
    ):
        table = load_file_record(statistics).table([f'{folder}/{file}' for file in FILES])

    assert table.tolist() == TABLE


@pytest.mark.parametrize('files', [['/data/a/1.png', '/data/b/3.png'], ['/elsewhere/b/1.png', '/elsewhere/b/2.png']])
def test_a_file_that_was_not_scanned_is_named(statistics, files):
    with pytest.raises(ValueError, match=f"does not have '{files[-1] if 'data' in files[0] else files[0]}': it is of"):
        load_file_record(statistics).table(files)


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
    path = Path(record_path(statistics))
    path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))

    with pytest.raises(ValueError, match='cannot be read'):
        load_file_record(statistics)
