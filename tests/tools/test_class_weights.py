import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from mmseg_wce.class_weights import (
    LabelEncoding,
    LabelStatistics,
    class_weights,
    load_class_weight,
    load_statistics,
    save_statistics,
)
from mmseg_wce.class_weights.file_record import load_file_record
from three_classes import config_text, dataset_config, make_masks, write_data


@pytest.fixture
def drawing_tool(import_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / 'data', make_masks(20))
    (tmp_path / 'config.py').write_text(config_text(tmp_path / 'data'))
    return import_tool('class_weights')


@pytest.fixture
def tool(drawing_tool, monkeypatch):
    """The tool without its pictures, which take most of the time."""
    monkeypatch.setattr(drawing_tool, 'draw_weights', lambda *_: None)
    return drawing_tool


FOLDER = ['--labels', 'data/annotations', '--num-classes', '3', '--reduce-zero-label', '--workers', '0']
KEPT = ['--statistics', 'kept.json']


def share_of_the_masks() -> np.ndarray:
    raw = np.bincount(np.concatenate([mask.ravel() for mask in make_masks(20)]), minlength=4)
    return raw[1:] / raw[1:].sum()


@pytest.mark.parametrize('source', [['config.py', '--workers', '2'], FOLDER])
def test_config_and_folder(drawing_tool, tmp_path, capsys, source):
    assert drawing_tool.main([*source, '--out', 'new/weights.json']) == 0

    weights = json.loads((tmp_path / 'new/weights.json').read_text())
    expected = share_of_the_masks() ** -0.5
    np.testing.assert_allclose(np.array(weights) / weights[0], expected / expected[0])
    output = capsys.readouterr().out
    assert "loss_decode=dict(type='WeightedCrossEntropyLoss', class_weight='new/weights.json')" in output
    kept, record = sorted((tmp_path / 'work_dirs/class_weights').glob('*.json'), key=lambda path: len(path.name))
    assert record.name == f'{kept.stem}.files.json'
    table = load_file_record(kept).table(sorted(map(str, (tmp_path / 'data/annotations').rglob('*.png'))))
    expected = [[(mask == c + 1).sum() for c in range(3)] for mask in make_masks(20)]
    assert table.tolist() == expected
    assert kept.stem == 'config' if source[0] == 'config.py' else kept.stem.endswith('-data-annotations')
    np.testing.assert_allclose(load_statistics(kept).share, share_of_the_masks())
    assert kept.with_suffix('.png').stat().st_size > 5000
    assert not list(kept.parent.glob('*.unfinished'))


def test_the_line_for_the_config_gives_the_same_weights(tool, capsys):
    options = ['--scheme', 'effective_number', '--beta', '0.9', '--max-ratio', '1.1', '--normalize', 'none']
    tool.main([*FOLDER, *options, '--out', 'weights.npy'])
    tool.main([*FOLDER, *options])

    line = capsys.readouterr().out.strip().splitlines()[-1]
    loss = eval(line.removeprefix('loss_decode='))

    assert loss['class_weight']['normalize'] is None
    assert load_class_weight(loss['class_weight']).tolist() == load_class_weight('weights.npy').tolist()


@pytest.mark.parametrize('suffix', ['npy', 'json', 'yaml', 'pkl'])
def test_files_are_read_by_mmseg_and_by_us(tool, tmp_path, suffix):
    from mmseg.models.losses.utils import get_class_weight

    tool.main([*FOLDER, *KEPT, '--scheme', 'enet', '--out', f'weights.{suffix}'])

    path = str(tmp_path / f'weights.{suffix}')
    expected = class_weights(load_statistics('kept.json'), 'enet')
    assert list(get_class_weight(path)) == expected.tolist()
    np.testing.assert_allclose(load_class_weight(path).numpy(), expected, rtol=1e-6)
    if suffix in ('yaml', 'pkl'):
        content = (tmp_path / path).read_bytes()
        assert (yaml.safe_load(content) if suffix == 'yaml' else pickle.loads(content)) == expected.tolist()


def test_statistics_are_used_again_without_the_labels(drawing_tool, tmp_path, capsys):
    drawing_tool.main([*FOLDER, '--statistics', 'kept.json'])
    for file in (tmp_path / 'data/annotations/training').iterdir():
        file.unlink()

    assert drawing_tool.main(['kept.json', '--scheme', 'median_frequency', '--picture', 'new/all.png']) == 0

    assert "class_weight=dict(statistics='kept.json', scheme='median_frequency')" in capsys.readouterr().out
    assert (tmp_path / 'new/all.png').exists()


def test_ade20k_needs_no_data(drawing_tool, capsys):
    assert drawing_tool.main(['ade20k', '--scheme', 'enet']) == 0

    output = capsys.readouterr().out
    assert 'Approximate' in output
    assert "dict(statistics='ade20k', scheme='enet')" in output


def test_files_that_cannot_be_read_are_named_at_the_end(tool, tmp_path, capsys):
    broken = [tmp_path / f'data/annotations/training/{i:02d}.png' for i in (3, 4)]
    for file in broken:
        file.write_bytes(b'')

    assert tool.main(['config.py', '--out', 'weights.json']) == 1

    output = capsys.readouterr().out
    for file in broken:
        assert f'{file}: it is empty or not an image' in output
    assert (tmp_path / 'weights.json').exists()
    assert load_statistics('work_dirs/class_weights/config.json').num_images == 18


def test_values_that_are_no_class_are_said(tool, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'data/annotations/training/07.png'), np.full((4, 4), 200, np.uint8))

    tool.main(['config.py'])

    assert 'Labels that are no class: 199' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('share', 'value', 'status'), [(0.8, 200, 1), (0.2, 200, 0), (0.95, 0, 0)], ids=['mostly', 'some', 'scribbles']
)
def test_labels_that_are_mostly_no_class(tool, tmp_path, capsys, share, value, status):
    for file in sorted((tmp_path / 'data/annotations/training').iterdir()):
        mask = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        mask.ravel()[: int(share * mask.size)] = value
        cv2.imwrite(str(file), mask)

    assert tool.main([*FOLDER, *KEPT]) == status
    assert ('neither a class nor ignored: run tools/check_labels.py' in capsys.readouterr().out) == bool(status)
    assert tool.main(['kept.json']) == status


def joined_config(tmp_path, *classes, **changes) -> str:
    parts = [
        dataset_config(tmp_path / 'data', type='BaseSegDataset', metainfo=dict(classes=names)) for names in classes
    ]
    dataset = dict(type='ConcatDataset', datasets=parts, ignore_keys=['classes', 'palette', 'label_map'])
    return f'{config_text(tmp_path / "data")}train_dataloader = dict(dataset={dataset!r})\n'


def test_joined_data_sets_add_up_by_index(tool, tmp_path, capsys):
    (tmp_path / 'config.py').write_text(joined_config(tmp_path, ('a', 'b', 'c'), ('A', 'B', 'C'), ('x', 'y', 'z')))

    assert tool.main(['config.py', '--workers', '0', *KEPT]) == 0

    np.testing.assert_allclose(load_statistics('kept.json').share, share_of_the_masks())
    assert load_statistics('kept.json').num_images == 60
    assert "class 0 is 'a' in the first, and 'x' in data set 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ('other', 'words'),
    [
        (('b', 'a', 'c'), "in another order: class 0 is 'a' in the first, and 'b' in data set 2"),
        (('a', 'b'), 'statistics of different numbers of classes do not add up'),
    ],
)
def test_joined_data_sets_that_do_not_add_up(tool, tmp_path, capsys, other, words):
    (tmp_path / 'config.py').write_text(joined_config(tmp_path, ('a', 'b', 'c'), other))

    assert tool.main(['config.py', '--workers', '0', *KEPT]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize('absent', [0, 1])
def test_classes_that_never_occur_are_said(drawing_tool, capsys, absent):
    assert drawing_tool.main([*FOLDER[:3], '5', *FOLDER[4:], '--absent', str(absent), '--out', 'weights.json']) == 0

    output = ' '.join(capsys.readouterr().out.split())
    assert (
        f"2 of the 5 classes never occur in the 20 images of 'data/annotations', and get the weight {absent}" in output
    )
    assert json.loads(Path('weights.json').read_text())[3:] == [absent, absent]


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['nowhere.py'], "config file 'nowhere.py' does not exist"),
        (['nowhere.json'], "statistics 'nowhere.json' cannot be read"),
        (['--labels', 'empty', '--num-classes', '3'], 'it is empty'),
        (['--labels', 'data/images', '--num-classes', '3'], 'no label *.png'),
        (['ade20k', '--max-ratio', '0.5'], 'at least 1'),
        (['config.py', '--scheme', 'enet', '--beta', '0.5'], "no option 'beta'"),
        (['config.py', '--exponent', 'nan'], 'a finite number'),
        (['config.py', '--out', 'data/w.json/weights.json'], "'data/w.json/weights.json' cannot be written"),
        (['config.py', '--out', 'folder.json'], "'folder.json' cannot be written"),
        (['config.py', '--statistics', 'folder.json'], "'folder.json' cannot be written"),
        (['config.py', '--statistics', 'kept.png'], 'must end in .json'),
        (['config.py', '--picture', 'picture.txt'], 'must end in .png'),
        (['config.py', '--statistics', 'x.json', '--out', 'x.json'], 'give the weights another name'),
        (
            ['config.py', '--statistics', 'of_others.json'],
            "'of_others.json' holds statistics of other labels",
        ),
        (['config.py', '--cfg-options', 'train_dataloader.dataset.data_root=no'], "data_root 'no' does not exist"),
    ],
)
def test_errors_are_one_line_and_nothing_is_read_before(tool, tmp_path, capsys, monkeypatch, arguments, words):
    for folder in ('empty', 'folder.json'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'data/w.json').touch()
    save_statistics(LabelStatistics.empty('others', 'ab', LabelEncoding()), 'of_others.json')
    monkeypatch.setattr(tool, 'scan_and_save', None)  # nothing is read before all this is known

    assert tool.main(arguments) == 2

    error = capsys.readouterr().err.strip()
    assert error.startswith('error: ')
    assert words in error
    assert '\n' not in error


def test_names_are_printed_and_drawn_as_they_are(drawing_tool, tmp_path, capsys):
    (tmp_path / 'data').rename(tmp_path / 'x[red] $a$ b')
    classes = dict(metainfo=dict(classes=('[bold]a', 'b$', '$c$')), type='BaseSegDataset')
    (tmp_path / 'config [blue].py').write_text(config_text(tmp_path / 'x[red] $a$ b', **classes))
    cv2.imwrite(str(tmp_path / 'x[red] $a$ b/annotations/training/03.png'), np.full((4, 4), 9, np.uint8))

    assert drawing_tool.main(['config [blue].py', '--workers', '0']) == 0

    output = capsys.readouterr().out
    for words in ('[bold]a', 'b$', 'config [blue].json', 'x[red] $a$ b/annotations/training/03.png'):
        assert words in output


def test_statistics_of_other_labels_are_not_overwritten(tool, tmp_path, capsys):
    write_data(tmp_path / 'others', make_masks(3))
    others = ['config.py', '--cfg-options', 'train_dataloader.dataset.data_root=others']
    assert tool.main(['config.py']) == 0

    assert tool.main(others) == 2
    assert tool.main(['config.py']) == 0
    assert tool.main([*others, '--statistics', 'others.json']) == 0

    assert 'holds statistics of other labels' in capsys.readouterr().err
    assert load_statistics('work_dirs/class_weights/config.json').num_images == 20


def test_the_same_folder_under_another_name(tool, tmp_path):
    elsewhere = ['--labels', str(tmp_path / 'data/annotations'), *FOLDER[2:]]

    assert tool.main([*FOLDER, *KEPT]) == tool.main([*elsewhere, *KEPT]) == 0


def test_schemes_that_overflow_do_not_cost_the_picture(drawing_tool, tmp_path):
    masks = [np.ones((200, 200), np.uint8)]
    masks[0][0, :2] = 2, 3
    write_data(tmp_path / 'rare', masks)
    rare = ['--labels', 'rare/annotations', *FOLDER[2:], *KEPT]

    assert drawing_tool.main([*rare, '--scheme', 'enet', '--exponent', '80']) == 0

    assert (tmp_path / 'kept.png').exists()


def test_a_folder_in_which_nothing_can_be_read(tool, tmp_path, capsys):
    for file in (tmp_path / 'data/annotations/training').iterdir():
        file.write_bytes(b'')

    assert tool.main(FOLDER) == 2

    captured = capsys.readouterr()
    assert 'no pixel has a class' in captured.err
    assert '20 files could not be read' in captured.out


@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['config.py', *FOLDER],
        ['--labels', 'data/annotations'],
        ['--labels', 'data', '--num-classes', '1'],
        ['config.py', '--out', 'weights.txt'],
        ['config.py', '--scheme', 'focal'],
        ['config.py', '--workers', '-1'],
        ['config.py', '--reduce-zero-label'],
        ['config.py', '--num-classes', '3'],
        [*FOLDER, '--ignore-index', '256'],
        ['config.py', '--cfg-options', 'model'],
        ['ade20k', '--statistics', 'kept.json'],
    ],
)
def test_usage_errors(tool, arguments):
    with pytest.raises(SystemExit, match='2'):
        tool.main(arguments)


def test_interrupted_by_the_keyboard(root, tool, tmp_path):
    """A real process, as Ctrl-C reaches it; what it had is used by the next."""
    write_data(tmp_path / 'more', make_masks(300))
    arguments = ['--labels', 'more/annotations', '--num-classes', '3', '--reduce-zero-label', '--workers', '2', *KEPT]
    command = [sys.executable, str(root / 'tools/class_weights.py'), *arguments]
    slow = {**os.environ, 'PYTHONPATH': str(tmp_path)}
    # reading is slowed down from outside, so that there is time to interrupt it
    (tmp_path / 'sitecustomize.py').write_text(
        'import time, PIL.Image\nopened = PIL.Image.open\n'
        'def slowly(*args, **options):\n    time.sleep(0.1)\n    return opened(*args, **options)\n'
        'PIL.Image.open = slowly\n'
    )
    # tests that run in the background ignore the signal, and so would the process
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, env=slow, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    signal.signal(signal.SIGINT, handler)
    kept = tmp_path / 'kept.json.unfinished'
    while not kept.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output = process.communicate()[0]

    assert process.returncode == 130
    assert 'files are kept: the same command goes on from there' in output
    assert json.loads(kept.read_text())['files'] > 0

    assert tool.main(arguments) == 0
    assert load_statistics('kept.json').num_images == 300
    assert not kept.exists()
