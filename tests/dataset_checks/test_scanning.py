import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mmseg.registry import DATASETS
from mmseg_wce.class_weights import load_statistics, save_statistics
from mmseg_wce.dataset_checks import from_dataset, scan, scan_parts
from mmseg_wce.dataset_checks.label_readers import AnnotationReader
from three_classes import dataset_config, make_masks, write_data


@pytest.fixture
def parts(tmp_path):
    write_data(tmp_path / 'data', make_masks(40))
    joined = dict(
        type='ConcatDataset',
        datasets=[
            dict(type='RepeatDataset', times=3, dataset=dataset_config(tmp_path / 'data', indices=list(range(25)))),
            dataset_config(tmp_path / 'data', indices=list(range(25, 40))),
        ],
    )
    return from_dataset(DATASETS.build(joined))


def whole(parts, **options):
    *_, (done, statistics) = scan(parts, **options)
    assert done == sum(len(part.files) for part in parts)
    return statistics


def test_whole_is_the_sum_of_its_parts(parts):
    first, second = (part.statistics() for part in parts)

    assert whole(parts) == first * 3 + second


def test_two_processes_give_what_one_gives(parts):
    assert whole(parts, num_workers=2) == whole(parts)


def class_pixels_of(parts):
    return {
        file: {c: int((part.labels(i) == c).sum()) for c in range(3) if (part.labels(i) == c).any()}
        for part in parts
        for i, file in enumerate(part.files)
    }


@pytest.mark.parametrize('num_workers', [0, 2])
def test_class_pixels_of_every_file(parts, num_workers):
    found = {}

    for _ in scan_parts(parts, num_workers, class_pixels=found):
        pass

    assert found == class_pixels_of(parts)


def test_class_pixels_after_an_interruption(parts, tmp_path):
    interrupted = scan_parts(parts, unfinished=tmp_path / 'unfinished')
    next(interrupted)
    interrupted.close()
    found = {}

    for _ in scan_parts(parts, unfinished=tmp_path / 'unfinished', class_pixels=found):
        pass

    assert found == class_pixels_of(parts)


@pytest.mark.parametrize('stopped_after', [1, 2])
def test_goes_on_after_an_interruption(parts, tmp_path, monkeypatch, stopped_after):
    expected, unfinished = whole(parts), tmp_path / 'new' / 'unfinished'
    interrupted = scan(parts, unfinished=unfinished)
    for _ in range(stopped_after):
        next(interrupted)
    with pytest.raises(KeyboardInterrupt):
        interrupted.throw(KeyboardInterrupt)
    assert unfinished.is_file()
    read = []
    count = AnnotationReader.count
    monkeypatch.setattr(AnnotationReader, 'count', lambda *a: read.append(a[1].label) or count(*a))

    assert whole(parts, unfinished=unfinished) == expected

    assert read == [file for part in parts for file in part.files][{1: 16, 2: 25}[stopped_after] :]
    assert not unfinished.exists()


@pytest.mark.parametrize('change', ['file', 'unreadable', 'other'])
def test_what_was_kept_of_other_files_is_not_used(parts, tmp_path, change):
    unfinished = tmp_path / 'unfinished'
    interrupted = scan(parts, unfinished=unfinished)
    next(interrupted)
    interrupted.close()
    assert unfinished.is_file()
    if change == 'file':
        os.utime(parts[0].files[0], (1, 1))
    elif change == 'unreadable':
        unfinished.write_text(unfinished.read_text()[:100])
    else:
        parts = parts[:1]

    assert whole(parts, unfinished=unfinished) == whole(parts)


SLOW = """
import sys, time
import mmseg_wce
from three_classes import *
from mmengine.registry import init_default_scope
from mmseg.registry import DATASETS
from mmseg_wce.dataset_checks import from_dataset, scan, scanning
init_default_scope('mmseg')
scanning._SECONDS_BETWEEN_SAVES = 0
parts = from_dataset(DATASETS.build(dataset_config(sys.argv[1])))
for done, _ in scan(parts, unfinished=sys.argv[2]):
    time.sleep(0.2)
"""


def test_goes_on_after_a_kill(root, tmp_path):
    write_data(tmp_path / 'data', make_masks(80))
    unfinished = tmp_path / 'unfinished'
    path = os.pathsep.join([str(root), str(root / 'tests')])
    process = subprocess.Popen(
        [sys.executable, '-c', SLOW, str(tmp_path / 'data'), str(unfinished)], env={**os.environ, 'PYTHONPATH': path}
    )
    while not unfinished.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (part,) = from_dataset(DATASETS.build(dataset_config(tmp_path / 'data')))
    kept = json.loads(unfinished.read_text())
    assert 0 < kept['files'] < 80

    updates = list(scan([part], unfinished=unfinished))

    assert updates[0][0] == kept['files']
    assert updates[-1][1] == part.statistics()


def test_bad_files_do_not_cost_the_scan(parts, tmp_path):
    file = parts[1].files[3]
    Path(file).write_bytes(b'')

    statistics = whole(parts, num_workers=2)

    assert list(statistics.failed) == [file]
    assert statistics.num_images == 3 * 25 + 14
    save_statistics(statistics, tmp_path / 'statistics.json')
    assert load_statistics(tmp_path / 'statistics.json') == statistics
