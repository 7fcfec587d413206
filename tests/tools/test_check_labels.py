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


def test_nothing_looks_wrong(tool, tmp_path, capsys):
    assert tool.main(['config.py', '--workers', '2']) == 0

    output = capsys.readouterr().out
    assert output.count('nothing looks wrong') == 2  # of the config, of the labels
    sheet = np.array(Image.open(tmp_path / 'work_dirs/check_labels/config/train.png'))
    for color in ([255, 0, 0], [0, 255, 0], [0, 0, 255]):  # the legend
        assert (sheet[..., :3] == color).all(-1).any()


@pytest.mark.parametrize('images', [[], ['--images', 'data/images']])
def test_folder(tool, tmp_path, capsys, images):
    arguments = ['--labels', 'data/annotations', '--num-classes', '3', '--reduce-zero-label', '--workers', '0']

    assert tool.main([*arguments, *images, '--out', 'sheets']) == 0

    assert (tmp_path / 'sheets/labels.png').stat().st_size > 5000
    assert 'nothing looks wrong' in capsys.readouterr().out


def test_folder_whose_images_have_other_sizes(tool, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'data/images/training/07.jpg'), np.zeros((32, 64, 3), np.uint8))
    arguments = ['--labels', 'data/annotations', '--num-classes', '3', '--reduce-zero-label', '--workers', '0']

    assert tool.main([*arguments, '--images', 'data/images']) == 1
    assert tool.main(arguments) == 0

    assert 'image and label differ in size' in capsys.readouterr().out


def test_mistakes_made_on_purpose(tool, tmp_path, capsys):
    files = sorted((tmp_path / 'data/annotations/training').iterdir())
    cv2.imwrite(str(files[1]), np.full((64, 64), 200, np.uint8))
    Image.open(files[2]).convert('RGB').save(files[2])
    files[3].write_bytes(files[3].read_bytes()[:60])
    Image.fromarray(np.full((64, 64), 300, np.uint16)).save(files[4])
    files[5].unlink()
    cv2.imwrite(str(files[6]), np.zeros((64, 64), np.uint8))
    cv2.imwrite(str(tmp_path / 'data/images/training/07.jpg'), np.zeros((32, 64, 3), np.uint8))

    assert tool.main(['config.py', '--workers', '0']) == 1

    lines = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith(('wrong', 'doubt'))]
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


def test_joined_data_sets_with_conventions_of_their_own(tool, tmp_path, capsys):
    """One is shifted and one is not, as both have to be."""
    write_data(tmp_path / 'more', [np.where(mask == 0, 255, mask - 1) for mask in make_masks(20, shape=(64, 64))])
    parts = [
        dataset_config(tmp_path / 'data'),
        dict(type='RepeatDataset', times=2, dataset=dataset_config(tmp_path / 'more', reduce_zero_label=False)),
    ]
    joined = dict(type='ConcatDataset', datasets=parts, ignore_keys=['reduce_zero_label'])
    text = config_text(tmp_path / 'data')
    (tmp_path / 'config.py').write_text(f'{text}train_dataloader = dict(dataset={joined!r})\n')

    assert tool.main(['config.py', '--workers', '0']) == 0
    assert 'train: 60 labels' in capsys.readouterr().out

    parts[1]['dataset']['reduce_zero_label'] = True
    (tmp_path / 'config.py').write_text(f'{text}train_dataloader = dict(dataset={joined!r})\n')
    assert tool.main(['config.py', '--workers', '0']) == 1
    assert 'masks look shifted already' in capsys.readouterr().out


def test_contact_sheet_of_wide_labels(tool, tmp_path, capsys):
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

    assert tool.main(['config.py', '--workers', '0']) == 1

    assert '70000 (20480 px)' in capsys.readouterr().out
    assert (tmp_path / 'work_dirs/check_labels/config/train.png').stat().st_size > 5000


def test_splits_without_labels_are_said(tool, tmp_path, capsys):
    unlabelled = dataset_config(tmp_path / 'data')
    unlabelled['pipeline'] = [dict(type='LoadImageFromFile')]
    text = config_text(tmp_path / 'data')
    (tmp_path / 'config.py').write_text(f'{text}test_dataloader = dict(dataset={unlabelled!r})\n')

    assert tool.main(['config.py', '--workers', '0']) == 0

    output = capsys.readouterr().out
    assert 'test: no labels to check: ThreeClasses: its pipeline has no LoadAnnotations' in output
    assert 'train: 20 labels' in output
    assert tool.main(['config.py', '--splits', 'test']) == 2


def test_every_split_is_compared_with_the_heads(tool, tmp_path, capsys):
    write_data(tmp_path / 'other', make_masks(3))
    other = dataset_config(tmp_path / 'other', type='BaseSegDataset', metainfo=dict(classes=tuple('abcdef')))
    (tmp_path / 'config.py').write_text(f'{config_text(tmp_path / "data")}val_dataloader = dict(dataset={other!r})\n')

    assert tool.main(['config.py', '--workers', '0']) == 1

    assert 'num_classes=3, but BaseSegDataset has 6 classes (val_dataloader)' in capsys.readouterr().out


@pytest.mark.parametrize(
    'arguments',
    [
        ['config.py', '--images', 'data/images'],
        ['--labels', 'data', '--num-classes', '3', '--image-suffix', '.jpg'],
        ['--labels', 'data', '--num-classes', '3', '--splits', 'train'],
    ],
)
def test_options_that_would_do_nothing(tool, arguments):
    with pytest.raises(SystemExit, match='2'):
        tool.main(arguments)


def test_contradictions_of_the_config(tool, tmp_path, capsys):
    (tmp_path / 'config.py').write_text(config_text(tmp_path / 'data', num_classes=4))

    assert tool.main(['config.py', '--workers', '0']) == 1

    assert 'model.decode_head has num_classes=4, but ThreeClasses has 3 classes' in capsys.readouterr().out


def test_labels_that_mmseg_would_refuse_to_load(tool, tmp_path, capsys):
    (tmp_path / 'config.py').write_text(config_text(tmp_path / 'data', load=dict(reduce_zero_label=False)))

    assert tool.main(['config.py']) == 1

    assert 'its LoadAnnotations False' in capsys.readouterr().out


def test_a_validation_that_resizes_images_alone(tool, tmp_path, capsys):
    """Labels of half the size: the training resizes both, the validation compares at the size of the images."""
    for file in (tmp_path / 'data/images/training').iterdir():
        cv2.imwrite(str(file), np.zeros((128, 128, 3), np.uint8))
    load, resize = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')], dict(type='Resize', scale=(64, 64))
    validation = dataset_config(tmp_path / 'data', pipeline=[load[0], resize, load[1]])
    text = config_text(tmp_path / 'data', pipeline=[*load, resize])
    (tmp_path / 'config.py').write_text(f'{text}val_dataloader = dict(dataset={validation!r})\n')

    assert tool.main(['config.py', '--splits', 'train', '--workers', '0']) == 0
    assert tool.main(['config.py', '--workers', '0']) == 1
    assert 'doubt  image and label differ in size' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(data_root='no/such/folder'), "val_dataloader: data_root 'no/such/folder' does not exist"),
        (dict(type='FailsToBuild'), 'val_dataloader: the data set cannot be read: RuntimeError: out of order'),
    ],
)
def test_a_split_that_cannot_be_read_does_not_cost_the_others(tool, tmp_path, capsys, changes, words):
    validation = f'val_dataloader = dict(dataset={dataset_config(tmp_path / "data", **changes)!r})\n'
    (tmp_path / 'config.py').write_text(config_text(tmp_path / 'data') + validation)

    assert tool.main(['config.py', '--workers', '0']) == 1

    output = capsys.readouterr().out
    assert f'wrong  {words}' in output
    assert 'train: 20 labels' in output


@DATASETS.register_module()
class FailsToBuild:
    def __init__(self, **options):
        raise RuntimeError('out of order')


def test_files_of_other_splits_in_one_folder_are_used(tool, tmp_path, capsys):
    """The images are split, the labels are in one folder."""
    (tmp_path / 'data/images/validation').mkdir()
    for file in sorted((tmp_path / 'data/images/training').iterdir())[10:]:
        file.rename(tmp_path / 'data/images/validation' / file.name)
    prefix = dict(img_path='images/validation', seg_map_path='annotations/training')
    validation = f'val_dataloader = dict(dataset={dataset_config(tmp_path / "data", data_prefix=prefix)!r})\n'
    (tmp_path / 'config.py').write_text(config_text(tmp_path / 'data') + validation)

    assert tool.main(['config.py', '--workers', '0']) == 0
    assert tool.main(['config.py', '--workers', '0', '--splits', 'train']) == 1
    assert 'labels have no image (10 files' in capsys.readouterr().out


def test_a_data_set_that_lists_files_itself_may_leave_some_out(tool, tmp_path):
    text = config_text(tmp_path / 'data', type='ChosenFiles', numbers=range(10))
    (tmp_path / 'config.py').write_text(text)

    assert tool.main(['config.py', '--workers', '0']) == 0


@DATASETS.register_module()
class ChosenFiles(ThreeClasses):
    """Takes some files of a folder in its code."""

    METAINFO = ThreeClasses.METAINFO

    def __init__(self, numbers, **options):
        self.numbers = numbers
        super().__init__(**options)

    def load_data_list(self):
        samples = super().load_data_list()
        return [samples[i] for i in self.numbers]


def test_labels_that_a_preprocessor_may_change_are_only_doubtful(tool, tmp_path, capsys):
    text = config_text(tmp_path / 'data', load=dict(reduce_zero_label=False), reduce_zero_label=False)
    (tmp_path / 'config.py').write_text(text + "model['data_preprocessor'] = dict(type='ShiftsLabels')\n")

    assert tool.main(['config.py', '--workers', '0']) == 1

    output = capsys.readouterr().out
    assert 'unless ShiftsLabels changes them' in output
    assert 'wrong  ' not in output


@MODELS.register_module()
class ShiftsLabels(SegDataPreProcessor):
    """Labels become 1 less on the device."""


def test_the_same_files_are_read_once(tool, tmp_path, capsys):
    same = f'val_dataloader = dict(dataset={dataset_config(tmp_path / "data")!r})\n'
    (tmp_path / 'config.py').write_text(config_text(tmp_path / 'data') + same)

    assert tool.main(['config.py', '--workers', '0']) == 0

    output = capsys.readouterr().out
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

    assert tool.main([camvid, '--splits', 'val', '--workers', '0', '--out', str(tmp_path)]) == 0
    assert tool.main([segformer, '--splits', 'val', '--cfg-options', sample, '--workers', '0']) == 0
    changed = [sample, 'model.decode_head.num_classes=149']
    assert tool.main([segformer, '--splits', 'val', '--cfg-options', *changed, '--workers', '0']) == 1

    assert 'num_classes=149, but ADE20KDataset has 150 classes' in capsys.readouterr().out
