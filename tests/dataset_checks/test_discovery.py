import pytest
from mmengine.config import Config
from mmengine.fileio import LocalBackend, register_backend
from mmseg.registry import DATASETS
from mmseg_wce.dataset_checks import from_config, from_dataset, from_folder
from three_classes import dataset_config, make_masks, write_data


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / 'data', make_masks(6))


def images_of(part) -> list[str]:
    return [sample.image for sample in part.samples]


def config_of(dataset, **head) -> Config:
    return Config(dict(train_dataloader=dict(dataset=dataset), model=dict(decode_head=head)))


def test_files_classes_and_encoding_are_those_of_the_config(data):
    (part,) = from_config(config_of(dataset_config(data), num_classes=3, ignore_index=7))

    assert [f.rsplit('/', 1)[1] for f in part.files] == [f'{i:02d}.png' for i in range(6)]
    assert [f.rsplit('/', 1)[1] for f in images_of(part)] == [f'{i:02d}.jpg' for i in range(6)]
    assert part.classes == ('a', 'b', 'c')
    assert part.palette == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert str(part.convention) == 'reduce_zero_label=True, ignore_index=7'
    assert part.times == 1


def test_config_is_left_as_it_was_and_its_other_transforms_are_not_built(data):
    config = config_of(dataset_config(data))
    config.train_dataloader.dataset.pipeline.append(dict(type='NotRegisteredAnywhere'))
    before = config.to_dict()

    from_config(config)

    assert config.to_dict() == before


def test_indices_and_suffix(data):
    for file in list((data / 'annotations/training').iterdir()):
        file.rename(file.with_name(file.stem + '_labelTrainIds.png'))

    (part,) = from_config(config_of(dataset_config(data, indices=[4, 1], seg_map_suffix='_labelTrainIds.png')))

    assert [f.rsplit('/', 1)[1] for f in part.files] == ['04_labelTrainIds.png', '01_labelTrainIds.png']


def test_wrappers_count_as_often_as_the_training_visits(data):
    repeated = dict(type='RepeatDataset', times=4, dataset=dataset_config(data, indices=2))
    twice = dict(type='RepeatDataset', times=2, dataset=dataset_config(data, indices=[5]))
    joined = dict(type='ConcatDataset', datasets=[repeated, twice])
    mixed = dict(type='MultiImageMixDataset', dataset=joined, pipeline=[dict(type='NotRegisteredAnywhere')])

    parts = from_config(config_of(mixed))

    assert [(len(part.files), part.times) for part in parts] == [(2, 2), (1, 1)]
    assert [part.times for part in from_config(config_of(repeated))] == [1]  # alone


def test_transforms_inside_others_are_found(data):
    load = dict(type='KeyMapper', transforms=[dict(type='LoadAnnotations')])
    config = dataset_config(data)
    config['pipeline'][1] = load

    (part,) = from_config(config_of(config))
    (built,) = from_dataset(DATASETS.build(config))

    assert [type(each.reader).__name__ for each in (part, built)] == ['AnnotationReader'] * 2


def test_classes_may_come_from_the_head(data):
    dataset = dict(dataset_config(data), type='BaseSegDataset')

    (part,) = from_config(config_of(dataset, num_classes=4))

    assert part.classes == ('0', '1', '2', '3')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (dict(pipeline=[dict(type='LoadImageFromFile')]), 'has no LoadAnnotations'),
        (dict(data_prefix=dict(img_path='images/training')), 'none of its 6 samples'),
        (dict(load=dict(reduce_zero_label=False)), 'says reduce_zero_label=True and its LoadAnnotations says False'),
        (dict(type='BaseSegDataset'), 'names no classes'),
        (dict(img_suffix='.bmp'), 'train_dataloader: the data set cannot be read: ValueError'),
    ],
)
def test_data_sets_without_labels(data, changes, words):
    with pytest.raises(ValueError, match=words):
        from_config(config_of(dataset_config(data, **changes)))


@register_backend('elsewhere', prefixes='elsewhere')
class Elsewhere(LocalBackend):
    """Files of this machine under other names, as a storage service has them."""

    root = ''

    def get(self, filepath):
        return super().get(filepath.replace('elsewhere://', self.root))

    def isdir(self, filepath):
        return super().isdir(filepath.replace('elsewhere://', self.root))

    def join_path(self, filepath, *filepaths):
        return '/'.join([filepath, *filepaths])

    def list_dir_or_file(self, dir_path, *args, **options):
        return super().list_dir_or_file(dir_path.replace('elsewhere://', self.root), *args, **options)


@pytest.mark.parametrize('of', ['config', 'folder'])
def test_other_storages(data, monkeypatch, of):
    monkeypatch.setattr(Elsewhere, 'root', f'{data}/')
    here = from_folder(str(data / 'annotations'), 3, reduce_zero_label=True)
    if of == 'folder':
        there = from_folder('elsewhere://annotations', 3, reduce_zero_label=True)
    else:
        prefix = dict(img_path='elsewhere://images/training', seg_map_path='elsewhere://annotations/training')
        storage = dict(backend='elsewhere')
        changes = dict(data_root='', data_prefix=prefix, backend_args=storage, load=dict(backend_args=storage))
        (there,) = from_config(config_of(dataset_config(data, **changes)))

    assert all(file.startswith('elsewhere://') for file in there.files)
    assert there.statistics().pixels.tolist() == here.statistics().pixels.tolist()


def test_config_without_the_loader(data):
    with pytest.raises(ValueError, match='no val_dataloader'):
        from_config(config_of(dataset_config(data)), 'val')


def test_files_of_a_folder_are_paired_with_its_images(data):
    (data / 'annotations/training/deeper').mkdir()
    (data / 'annotations/training/03.png').rename(data / 'annotations/training/deeper/03.png')

    part = from_folder(str(data / 'annotations'), 3, reduce_zero_label=True, images=str(data / 'images'))

    assert [f.split('annotations/')[1] for f in part.files] == [
        *(f'training/{i:02d}.png' for i in range(6)),  # 03 is missing beside its image
        'training/deeper/03.png',
    ]
    assert images_of(part)[0] == str(data / 'images/training/00.jpg')
    assert images_of(part)[6] == str(data / 'images/training/deeper/03.jpg')
    assert part.reader.table[:5].tolist() == [255, 0, 1, 2, 3]


def test_folder_with_images_of_other_stems(data):
    for file in list((data / 'images/training').iterdir()):
        file.rename(file.with_name(f'{file.stem}_leftImg8bit.jpg'))
    (data / 'annotations/training/02.png').unlink()
    (data / 'images/training/04_leftImg8bit.jpg').unlink()

    part = from_folder(str(data / 'annotations'), 3, images=str(data / 'images'), image_suffix='_leftImg8bit.jpg')

    assert [f.rsplit('/', 1)[1] for f in part.files] == [f'{i:02d}.png' for i in range(6)]
    assert [f.rsplit('/', 1)[1] for f in images_of(part)] == [f'{i:02d}_leftImg8bit.jpg' for i in range(6)]
    assert list(part.statistics().failed) == [str(data / 'annotations/training/02.png')]


@pytest.mark.parametrize('beside', [False, True])
def test_only_images_ask_for_labels(data, beside):
    folder = data / 'images'
    if beside:
        for file in list((data / 'annotations/training').iterdir()):
            file.rename(data / f'images/training/{file.stem}_L.png')
    (data / 'images/training/Thumbs.db').touch()
    (data / 'images/training/00.json').touch()

    suffix = dict(suffix='_L.png') if beside else {}
    part = from_folder(str(folder if beside else data / 'annotations'), 3, images=str(folder), **suffix)

    assert [f.rsplit('/', 1)[1] for f in images_of(part)] == [f'{i:02d}.jpg' for i in range(6)]
    assert len(part.files) == 6


def test_links_that_lead_nowhere_are_missing_files(data):
    (data / 'annotations/training/link.png').symlink_to('/nowhere.png')

    part = from_folder(str(data / 'annotations'), 3)

    assert list(part.statistics().failed) == [str(data / 'annotations/training/link.png')]


@pytest.mark.parametrize(
    ('folder', 'suffix', 'words'),
    [
        ('nowhere', '.png', "nowhere' does not exist"),
        ('images', '.png', r'no label \*\.png: it has \*\.jpg'),
        ('empty', '.png', 'it is empty'),
    ],
)
def test_folders_without_labels(data, tmp_path, folder, suffix, words):
    (data / 'empty').mkdir()

    with pytest.raises(ValueError, match=words):
        from_folder(str(data / folder), 3, suffix=suffix)
    with pytest.raises(ValueError, match="images' does not exist"):
        from_folder(str(data / 'annotations'), 3, images=str(tmp_path / 'no/images'))
