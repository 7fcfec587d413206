import cv2
import numpy as np
import pytest
from mmcv.transforms import BaseTransform
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.registry import DATASETS, MODELS, TRANSFORMS
from PIL import Image
from three_classes import ThreeClasses, config_text, dataset_config, make_masks, write_data


@TRANSFORMS.register_module()
class LoadArrays(BaseTransform):
    def transform(self, results):
        results['gt_seg_map'] = np.load(results['seg_map_path'])
        return results


@pytest.fixture
def tool(import_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / 'data', make_masks(20, shape=(64, 64)))
    (tmp_path / 'config.py').write_text(config_text(tmp_path / 'data'))
    return import_tool('check_labels')


@pytest.fixture
def write_config(tmp_path):
    """Write a config over the data set ``data``, with changes; other splits by their names."""

    def write(more: str = '', train=None, val=None, test=None, **changes) -> None:
        splits = dict(train=train, val=val, test=test)
        lines = [f'{name}_dataloader = dict(dataset={dataset!r})\n' for name, dataset in splits.items() if dataset]
        (tmp_path / 'config.py').write_text(config_text(tmp_path / 'data', **changes) + ''.join(lines) + more)

    return write


@pytest.fixture
def check(tool, capsys, monkeypatch):
    """Check the config in this process; the exit status is as expected, and the output is returned."""
    draw = tool.draw_contact_sheet

    def run(*arguments: str, status: int, with_sheet: bool = False) -> str:
        monkeypatch.setattr(
            tool, 'draw_contact_sheet', draw if with_sheet else lambda *_: True
        )  # it takes half of the time
        assert tool.main(['config.py', '--workers', '0', *arguments]) == status
        return capsys.readouterr().out

    return run


def test_a_clean_data_set_has_no_findings_and_a_sheet_with_legend(tool, tmp_path, capsys):
    assert tool.main(['config.py', '--workers', '2']) == 0

    output = capsys.readouterr().out
    assert output.count('nothing looks wrong') == 2  # of the config, of the labels
    sheet = np.array(Image.open(tmp_path / 'work_dirs/check_labels/config/train.png'))
    for color in ([255, 0, 0], [0, 255, 0], [0, 0, 255]):  # the legend
        assert (sheet[..., :3] == color).all(-1).any()


FOLDER = ['--labels', 'data/annotations', '--num-classes', '3', '--reduce-zero-label', '--workers', '0']


@pytest.mark.parametrize('images', [[], ['--images', 'data/images']])
def test_a_folder_with_and_without_images(tool, tmp_path, capsys, images):
    assert tool.main([*FOLDER, *images, '--out', 'sheets']) == 0

    assert (tmp_path / 'sheets/labels.png').stat().st_size > 5000
    assert 'nothing looks wrong' in capsys.readouterr().out


def test_images_of_another_size_than_their_labels_in_a_folder(tool, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'data/images/training/07.jpg'), np.zeros((32, 64, 3), np.uint8))

    assert tool.main([*FOLDER, '--images', 'data/images']) == 1
    assert 'image and label differ in size' in capsys.readouterr().out
    assert tool.main(FOLDER) == 0


def test_each_mistake_is_reported_with_its_file(check, tmp_path):
    files = sorted((tmp_path / 'data/annotations/training').iterdir())
    cv2.imwrite(str(files[1]), np.full((64, 64), 200, np.uint8))
    Image.open(files[2]).convert('RGB').save(files[2])
    files[3].write_bytes(files[3].read_bytes()[:60])
    Image.fromarray(np.full((64, 64), 300, np.uint16)).save(files[4])
    files[5].unlink()
    cv2.imwrite(str(files[6]), np.zeros((64, 64), np.uint8))
    cv2.imwrite(str(tmp_path / 'data/images/training/07.jpg'), np.zeros((32, 64, 3), np.uint8))

    output = check(status=1, with_sheet=True)

    lines = [line for line in output.splitlines() if line.strip().startswith(('wrong', 'doubt'))]
    for file, words in (
        (files[1], '199 (raw 200'),
        (files[2], 'RGB'),
        (files[3], 'cannot be read'),
        (files[4], '300 at row 0, column 0, which becomes 44'),
        (files[5], 'does not exist'),
        (files[6], 'no valid pixel'),
        (files[7], 'differ in size'),
    ):
        (line,) = [line for line in lines if str(file) in line]
        assert words in line
    assert len(lines) == 7
    sheet = np.array(Image.open(tmp_path / 'work_dirs/check_labels/config/train.png'))
    assert (sheet[..., :3] == [255, 0, 255]).all(-1).any()  # no class, in the legend


def test_joined_data_sets_with_conventions_of_their_own(check, write_config, tmp_path):
    """One is shifted and one is not, as both have to be."""
    write_data(tmp_path / 'more', [np.where(mask == 0, 255, mask - 1) for mask in make_masks(20, shape=(64, 64))])
    parts = [
        dataset_config(tmp_path / 'data'),
        dict(type='RepeatDataset', times=2, dataset=dataset_config(tmp_path / 'more', reduce_zero_label=False)),
    ]
    joined = dict(type='ConcatDataset', datasets=parts, ignore_keys=['reduce_zero_label'])
    write_config(train=joined)
    assert 'train: 60 labels' in check(status=0, with_sheet=True)

    parts[1]['dataset']['reduce_zero_label'] = True
    write_config(train=joined)
    assert 'masks look shifted already' in check(status=1)


def test_contact_sheet_of_wide_labels(check, tmp_path):
    folder = tmp_path / 'data/annotations/training'
    for i, file in enumerate(sorted(folder.iterdir())):
        np.save(folder / f'{file.stem}.npy', np.full((64, 64), (0, 299, -1, 70000)[i % 4], np.int64))
    load = [dict(type='LoadImageFromFile'), dict(type='LoadArrays')]
    dataset = dataset_config(
        tmp_path / 'data',
        type='BaseSegDataset',
        pipeline=load,
        seg_map_suffix='.npy',
        metainfo=dict(classes=tuple(f'c{i}' for i in range(300))),
        reduce_zero_label=False,
        ignore_index=-1,
    )
    (tmp_path / 'config.py').write_text(
        f'default_scope = "mmseg"\ntrain_dataloader = dict(dataset={dataset!r})\n'
        'model = dict(decode_head=dict(num_classes=300, ignore_index=-1))\n'
    )

    output = check(status=1, with_sheet=True)

    assert '70000 (20480 px)' in output
    assert (tmp_path / 'work_dirs/check_labels/config/train.png').stat().st_size > 5000


def test_splits_without_labels_are_said(check, write_config, tmp_path):
    write_config(test=dataset_config(tmp_path / 'data', pipeline=[dict(type='LoadImageFromFile')]))

    output = check(status=0)

    assert 'test: no labels to check: ThreeClasses: its pipeline has no LoadAnnotations' in output
    assert 'train: 20 labels' in output
    check('--splits', 'test', status=2)


def test_every_split_is_compared_with_the_heads(check, write_config, tmp_path):
    write_data(tmp_path / 'other', make_masks(3))
    write_config(val=dataset_config(tmp_path / 'other', type='BaseSegDataset', metainfo=dict(classes=tuple('abcdef'))))

    assert 'num_classes=3, but BaseSegDataset has 6 classes (val_dataloader)' in check(status=1)


@pytest.mark.parametrize(
    'arguments',
    [
        ['config.py', '--images', 'data/images'],
        ['--labels', 'data', '--num-classes', '3', '--image-suffix', '.jpg'],
        ['--labels', 'data', '--num-classes', '3', '--splits', 'train'],
    ],
)
def test_options_without_effect_are_usage_errors(tool, arguments):
    with pytest.raises(SystemExit, match='2'):
        tool.main(arguments)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(num_classes=4), 'model.decode_head has num_classes=4, but ThreeClasses has 3 classes'),
        (dict(load=dict(reduce_zero_label=False)), 'its LoadAnnotations False'),
    ],
)
def test_contradictions_of_the_config(check, write_config, changes, words):
    write_config(**changes)

    assert words in check(status=1)


def test_a_validation_that_resizes_images_alone(check, write_config, tmp_path):
    """Labels of half the size: the training resizes both, the validation compares at the size of the images."""
    for file in (tmp_path / 'data/images/training').iterdir():
        cv2.imwrite(str(file), np.zeros((128, 128, 3), np.uint8))
    load, resize = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')], dict(type='Resize', scale=(64, 64))
    validation = dataset_config(tmp_path / 'data', pipeline=[load[0], resize, load[1]])
    write_config(val=validation, pipeline=[*load, resize])

    check('--splits', 'train', status=0)
    assert 'doubt  image and label differ in size' in check(status=1)


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(data_root='no/such/folder'), "val_dataloader: data_root 'no/such/folder' does not exist"),
        (dict(type='FailsToBuild'), 'val_dataloader: the data set cannot be read: RuntimeError: out of order'),
    ],
)
def test_a_split_that_cannot_be_read_does_not_cost_the_others(check, write_config, tmp_path, changes, words):
    write_config(val=dataset_config(tmp_path / 'data', **changes))

    output = check(status=1)

    assert f'wrong  {words}' in output
    assert 'train: 20 labels' in output


@DATASETS.register_module()
class FailsToBuild:
    def __init__(self, **options):
        raise RuntimeError('out of order')


def test_files_of_other_splits_in_one_folder_are_used(check, write_config, tmp_path):
    """The images are split, the labels are in one folder."""
    (tmp_path / 'data/images/validation').mkdir()
    for file in sorted((tmp_path / 'data/images/training').iterdir())[10:]:
        file.rename(tmp_path / 'data/images/validation' / file.name)
    prefix = dict(img_path='images/validation', seg_map_path='annotations/training')
    write_config(val=dataset_config(tmp_path / 'data', data_prefix=prefix))

    check(status=0)
    assert 'labels have no image (10 files' in check('--splits', 'train', status=1)


def test_a_data_set_that_lists_files_itself_may_leave_some_out(check, write_config):
    write_config(type='ChosenFiles', numbers=range(10))

    check(status=0)


@DATASETS.register_module()
class ChosenFiles(ThreeClasses):
    """Takes some files of a folder in its code."""

    def __init__(self, numbers, **options):
        self.numbers = numbers
        super().__init__(**options)

    def load_data_list(self):
        samples = super().load_data_list()
        return [samples[i] for i in self.numbers]


def test_labels_that_a_preprocessor_may_change_are_only_doubtful(check, write_config):
    preprocessor = "model['data_preprocessor'] = dict(type='ShiftsLabels')\n"
    write_config(preprocessor, load=dict(reduce_zero_label=False), reduce_zero_label=False)

    output = check(status=1)

    assert 'unless ShiftsLabels changes them' in output
    assert 'wrong  ' not in output


@MODELS.register_module()
class ShiftsLabels(SegDataPreProcessor):
    """Labels become 1 less on the device."""


def test_the_same_files_are_read_once(check, write_config, tmp_path):
    write_config(val=dataset_config(tmp_path / 'data'))

    output = check(status=0)

    assert 'train: 20 labels' in output
    assert 'val: ' not in output


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['nowhere.py'], "config file 'nowhere.py' does not exist"),
        (['config.py', '--splits', 'val'], 'the config has none of val_dataloader'),
        (['--labels', 'nowhere', '--num-classes', '3'], "folder 'nowhere' does not exist"),
        (['--labels', 'data', '--num-classes', '3', '--images', 'no'], "folder 'no' does not exist"),
        (['config.py', '--out', 'config.py'], 'cannot be written'),
        (['config.py', '--cfg-options', 'train_dataloader.dataset.data_root=no'], "data_root 'no' does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tool, capsys, arguments, words):
    assert tool.main(arguments) == 2

    error = capsys.readouterr().err.strip()
    assert error.startswith('error: ')
    assert words in error
    assert '\n' not in error


def test_camvid_and_ade20k(root, tool, shared_data, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv('MMSEG_WCE_DATA', str(shared_data))
    camvid = str(root / 'configs/camvid/fast_scnn_1xb8-wce-4k_camvid-352x480.py')
    segformer = str(root / 'configs/ade20k/segformer_mit-b0_8xb2-wce-160k_ade20k-512x512.py')
    sample = f'val_dataloader.dataset.data_root={shared_data / "ade20k_sample"}'

    few = ['--cfg-options', 'val_dataloader.dataset.indices=12']
    assert tool.main([camvid, '--splits', 'val', '--workers', '0', '--out', str(tmp_path), *few]) == 0
    assert tool.main([segformer, '--splits', 'val', '--cfg-options', sample, '--workers', '0']) == 0
    changed = [sample, 'model.decode_head.num_classes=149']
    assert tool.main([segformer, '--splits', 'val', '--cfg-options', *changed, '--workers', '0']) == 1

    assert 'num_classes=149, but ADE20KDataset has 150 classes' in capsys.readouterr().out
