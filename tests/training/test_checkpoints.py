import os
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from mmseg_wce.training.checkpoints import checkpoint_before, checkpoints_in, damage


def write(path, step: int, seconds: int) -> str:
    torch.save(dict(step=step, weights=torch.full((1000,), float(step))), path)
    os.utime(path, (seconds, seconds))
    return str(path)


@pytest.fixture
def work_dir(tmp_path):
    """Three checkpoints, of which mmengine has written down the last."""
    paths = [write(tmp_path / f'iter_{i}.pth', i, 1000 + i) for i in (5, 10, 15)]
    (tmp_path / 'last_checkpoint').write_text(paths[-1])
    return tmp_path


def test_whole_checkpoints_have_no_damage(work_dir):
    assert [damage(str(path)) for path in work_dir.glob('*.pth')] == [None] * 3


@pytest.mark.parametrize('size', [0, 1, 100, 2000, 4000])
def test_a_cut_file_is_damaged(work_dir, size):
    os.truncate(work_dir / 'iter_15.pth', size)

    assert f'({size:,} bytes;' in damage(str(work_dir / 'iter_15.pth'))


def test_a_flipped_bit_is_damage(work_dir):
    path = work_dir / 'iter_15.pth'
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((4,), 15.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)

    assert torch.load(path, weights_only=True)['weights'][0] != 15  # PyTorch does not look
    assert "data/0' does not have the checksum" in damage(str(path))


def test_archives_that_are_no_checkpoints(work_dir, tmp_path):
    with zipfile.ZipFile(tmp_path / 'other.pth', 'w') as archive:
        archive.writestr('notes.txt', 'no weights')
    with (
        zipfile.ZipFile(tmp_path / 'bomb.pth', 'w', zipfile.ZIP_DEFLATED) as archive,
        zipfile.ZipFile(work_dir / 'iter_5.pth') as whole,
    ):
        for part in whole.infolist():
            archive.writestr(part.filename, whole.read(part))

    assert damage(str(tmp_path / 'other.pth')) == 'it is a zip archive, but not a checkpoint'
    assert damage(str(tmp_path / 'bomb.pth')) == 'it is compressed, which torch.save does not do'


def test_files_of_older_formats_and_folders(tmp_path):
    torch.save(dict(a=1), tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    (tmp_path / 'sharded').mkdir()
    (tmp_path / 'sharded/.metadata').touch()
    (tmp_path / 'empty').mkdir()

    assert damage(str(tmp_path / 'old.pth')) is None
    assert damage(str(tmp_path / 'sharded')) is None
    assert damage(str(tmp_path / 'empty')) == 'it is a folder without a checkpoint'
    assert damage(str(tmp_path / 'nowhere.pth')) == 'it does not exist'


def test_goes_on_from_what_mmengine_noted(work_dir):
    os.truncate(write(work_dir / 'iter_99.pth', 99, 500), 100)  # of an earlier training in the same folder
    os.utime(work_dir / 'iter_99.pth', (500, 500))
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_10.pth'))

    found = checkpoints_in(str(work_dir))

    assert found.usable == str(work_dir / 'iter_10.pth')
    assert found.damaged == {}


@pytest.mark.parametrize('note', ['', None])
def test_without_a_note_from_the_one_written_last(work_dir, note):
    write(work_dir / 'iter_99.pth', 99, 500)
    (work_dir / 'last_checkpoint').unlink()
    if note is not None:
        (work_dir / 'last_checkpoint').write_text(note)

    assert checkpoints_in(str(work_dir)).usable == str(work_dir / 'iter_15.pth')


@pytest.mark.parametrize('noted', [15, 10])  # 10 where 15 was being written
def test_a_damaged_one_is_named_and_the_one_before_is_used(work_dir, noted):
    (work_dir / 'last_checkpoint').write_text(str(work_dir / f'iter_{noted}.pth'))
    os.truncate(work_dir / 'iter_15.pth', 3000)

    found = checkpoints_in(str(work_dir))

    assert found.usable == str(work_dir / 'iter_10.pth')
    assert list(found.damaged) == [str(work_dir / 'iter_15.pth')]


def test_checkpoints_in_another_folder(work_dir, tmp_path):
    (tmp_path / 'runs').mkdir()
    (tmp_path / 'runs/last_checkpoint').write_text(str(work_dir / 'iter_15.pth'))
    os.truncate(work_dir / 'iter_15.pth', 0)

    assert checkpoints_in(str(tmp_path / 'runs')).usable == str(work_dir / 'iter_10.pth')


def test_a_work_dir_that_was_moved(work_dir):
    moved = work_dir.rename(work_dir.with_name('moved'))

    found = checkpoints_in(str(moved))

    assert found.usable == str(moved / 'iter_15.pth')
    assert found.damaged == {}


@pytest.mark.parametrize('damage', [lambda path: os.truncate(path, 3000), Path.unlink])
def test_a_copy_goes_on_by_itself(work_dir, tmp_path_factory, damage):
    copy = shutil.copytree(work_dir, tmp_path_factory.mktemp('copies') / 'copy')
    damage(copy / 'iter_15.pth')

    assert checkpoints_in(str(copy)).usable == str(copy / 'iter_10.pth')


def test_the_checkpoint_before_is_chosen_by_iteration_not_by_time(work_dir):
    """Copies are written in any order, and a longer training may have been here."""
    write(work_dir / 'iter_5.pth', 5, 5000)
    write(work_dir / 'iter_99.pth', 99, 500)
    write(work_dir / 'epoch_12.pth', 12, 2000)
    os.truncate(work_dir / 'iter_15.pth', 3000)

    found = checkpoints_in(str(work_dir))

    assert found.usable == str(work_dir / 'iter_10.pth')
    assert list(found.damaged) == [str(work_dir / 'iter_15.pth')]


def test_a_missing_last_checkpoint_is_named_and_the_one_before_used(work_dir):
    (work_dir / 'iter_15.pth').unlink()
    write(work_dir / 'iter_99.pth', 99, 500)

    found = checkpoints_in(str(work_dir))

    assert found.usable == str(work_dir / 'iter_10.pth')
    assert found.damaged == {str(work_dir / 'iter_15.pth'): 'it does not exist'}


@pytest.mark.parametrize('note', [b'', b'\0' * 20, b'\xff\xfe', b'iter_15.pth', b' \n', b'/', b'a' * 100_000])
def test_an_unusable_last_checkpoint_note_is_ignored(work_dir, monkeypatch, tmp_path_factory, note):
    monkeypatch.chdir(tmp_path_factory.mktemp('elsewhere'))
    torch.save({}, 'iter_20.pth')
    (work_dir / 'last_checkpoint').write_bytes(note)

    assert checkpoints_in(str(work_dir)).usable == str(work_dir / 'iter_15.pth')


def test_a_note_that_is_a_pipe(work_dir):
    (work_dir / 'last_checkpoint').unlink()
    os.mkfifo(work_dir / 'last_checkpoint')

    assert checkpoints_in(str(work_dir)).usable == str(work_dir / 'iter_15.pth')


def test_one_file_name_for_all_checkpoints(tmp_path):
    latest = write(tmp_path / 'latest.pth', 5, 1000)

    assert checkpoints_in(str(tmp_path), dict(filename_tmpl='latest.pth')).usable == latest
    (tmp_path / 'last_checkpoint').write_text(latest)
    assert checkpoints_in(str(tmp_path), dict(filename_tmpl='latest.pth')).usable == latest


def test_links_to_nowhere(work_dir):
    (work_dir / 'iter_20.pth').symlink_to(work_dir / 'gone.pth')
    (work_dir / 'last_checkpoint').write_text('')

    assert checkpoints_in(str(work_dir)).usable == str(work_dir / 'iter_15.pth')


@pytest.mark.parametrize('noted', [True, False])
def test_out_dir_and_filename_template_of_the_hook_are_used(tmp_path, noted):
    work_dir, folder = tmp_path / 'runs' / 'mine', tmp_path / 'disk' / 'mine'
    for path in (work_dir, folder):
        path.mkdir(parents=True)
    last = write(folder / 'step-000010.pt', 10, 1010)
    before = write(folder / 'step-000005.pt', 5, 1005)
    write(work_dir / 'iter_99.pth', 99, 9999)
    if noted:
        (work_dir / 'last_checkpoint').write_text(last)
    hook = dict(out_dir=str(tmp_path / 'disk'), filename_tmpl='step-{:06d}.pt')

    assert checkpoints_in(str(work_dir), hook).usable == last
    os.truncate(last, 100)
    assert checkpoints_in(str(work_dir) + '/', hook).usable == before


def test_checkpoints_of_an_earlier_training_do_not_count(work_dir):
    assert checkpoints_in(str(work_dir), since=1020).usable is None
    assert checkpoints_in(str(work_dir), since=1012).usable == str(work_dir / 'iter_15.pth')
    os.truncate(work_dir / 'iter_15.pth', 3000)
    os.utime(work_dir / 'iter_15.pth', (1015, 1015))
    assert checkpoints_in(str(work_dir), since=1012).usable is None
    assert checkpoints_in(str(work_dir), since=1008).usable == str(work_dir / 'iter_10.pth')


def test_no_usable_checkpoint_if_all_are_damaged_or_none_exists(work_dir):
    for path in work_dir.glob('*.pth'):
        os.truncate(path, 10)

    found = checkpoints_in(str(work_dir))

    assert found.usable is None
    assert len(found.damaged) == 3
    assert checkpoints_in(str(work_dir / 'nowhere')).usable is None


def test_another_storage_is_left_to_mmengine(tmp_path):
    (tmp_path / 'last_checkpoint').write_text('s3://bucket/iter_5.pth')

    assert checkpoints_in(str(tmp_path)).usable == 's3://bucket/iter_5.pth'


def test_the_checkpoint_before_another(work_dir):
    write(work_dir / 'epoch_12.pth', 12, 1)
    write(work_dir / 'iter_7_ema.pth', 7, 1)

    assert checkpoint_before(str(work_dir / 'iter_15.pth')) == str(work_dir / 'iter_10.pth')
    assert checkpoint_before(str(work_dir / 'iter_10.pth')) == str(work_dir / 'iter_5.pth')
    assert checkpoint_before(str(work_dir / 'iter_5.pth')) is None
    assert checkpoint_before(str(work_dir / 'epoch_12.pth')) is None
    assert checkpoint_before(str(work_dir / 'best.pth')) is None


def test_the_checkpoint_before_another_is_whole_and_finite(work_dir):
    torch.save(dict(state_dict=dict(weight=torch.tensor([1.0, torch.inf]))), work_dir / 'iter_10.pth')
    assert checkpoint_before(str(work_dir / 'iter_15.pth')) == str(work_dir / 'iter_5.pth')

    os.truncate(work_dir / 'iter_5.pth', 200)
    assert checkpoint_before(str(work_dir / 'iter_15.pth')) is None
