import itertools

import numpy as np
import pytest
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import init_default_scope
from mmseg.registry import DATA_SAMPLERS, DATASETS
from mmseg_wce.class_weights.file_record import FileRecord, save_file_record
from mmseg_wce.dataset_checks import from_dataset, scan_parts
from mmseg_wce.datasets import RareClassSampler
from three_classes import dataset_config, write_data

NUMBER = 12


def build_dataset(folder, masks):
    return DATASETS.build(dataset_config(write_data(folder, [mask + 1 for mask in masks])))  # raw 0 is no class


@pytest.fixture
def masks():
    """Labels of three classes: the last one in two images only."""
    masks = [np.full((4, 5), i % 2, np.uint8) for i in range(NUMBER)]
    for i in (3, 7):
        masks[i][0, :3] = 2
    return masks


@pytest.fixture
def dataset(tmp_path, masks):
    init_default_scope('mmseg')
    return build_dataset(tmp_path / 'data', masks)


@pytest.fixture
def statistics(tmp_path, dataset):
    """Path of statistics of the data set, beside which is the record of its files."""
    parts, files = from_dataset(dataset), {}
    for _ in scan_parts(parts, class_pixels=files):
        pass
    save_file_record(FileRecord(parts[0].classes, files), tmp_path / 'labels.json')
    return str(tmp_path / 'labels.json')


def draws(sampler, number=NUMBER):
    return list(itertools.islice(iter(sampler), number))


def test_images_with_rare_classes_come_more_often(dataset, statistics):
    sampler = RareClassSampler(dataset, statistics, temperature=0.2, seed=0)

    counts = np.bincount(draws(sampler, 50 * NUMBER), minlength=NUMBER) / 50

    assert sorted(np.argsort(-counts)[:2].tolist()) == [3, 7]
    np.testing.assert_allclose(counts, sampler.draws, atol=0.15)
    assert sampler.draws[3] > 2


def test_in_n_draws_an_image_comes_as_often_as_it_should(dataset, statistics):
    sampler = RareClassSampler(dataset, statistics, temperature=0.2, seed=1)

    for epoch in np.array(draws(sampler, 30 * NUMBER)).reshape(30, NUMBER):
        assert (np.abs(np.bincount(epoch, minlength=NUMBER) - sampler.draws) < 1).all()


def test_max_repeats(dataset, statistics):
    sampler = RareClassSampler(dataset, statistics, temperature=0.01, max_repeats=2, seed=0)

    for epoch in np.array(draws(sampler, 20 * NUMBER)).reshape(20, NUMBER):
        assert np.bincount(epoch).max() <= 2


def test_the_seed_decides(dataset, statistics):
    first, same, other = (RareClassSampler(dataset, statistics, seed=seed) for seed in (3, 3, 4))

    assert draws(first, 40) == draws(same, 40)
    assert draws(first, 40) != draws(other, 40)
    assert len(first) == NUMBER


def test_ranks_draw_together_what_one_would(dataset, statistics, monkeypatch):
    whole = draws(RareClassSampler(dataset, statistics, seed=3), 3 * NUMBER)
    parts = []
    for rank in range(3):
        monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda rank=rank: (rank, 3))
        parts.append(draws(RareClassSampler(dataset, statistics, seed=3)))

    assert [index for group in zip(*parts, strict=True) for index in group] == whole


def test_goes_on_where_a_training_stopped(dataset, statistics):
    whole = draws(RareClassSampler(dataset, statistics, seed=3), 60)
    resumed = RareClassSampler(dataset, statistics, seed=3)

    if hasattr(resumed, 'skip'):  # of the fork of mmengine
        resumed.skip(25)
        assert draws(resumed, 35) == whole[25:]
    else:  # mmengine draws and discards what has been trained
        assert draws(resumed, 60)[25:] == whole[25:]


def test_joined_and_repeated_data_sets(dataset, statistics):
    plain = RareClassSampler(dataset, statistics, seed=0)

    repeated = RareClassSampler(RepeatDataset(dataset, times=2), statistics, seed=0)
    joined = RareClassSampler(ConcatDataset([dataset, dataset]), statistics, seed=0)

    for sampler in (repeated, joined):
        np.testing.assert_allclose(sampler.draws, np.tile(plain.draws, 2))
        np.testing.assert_allclose(sampler.drawn_pixels, 2 * plain.drawn_pixels)


def test_what_changes_is_logged(dataset, statistics, masks, monkeypatch):
    lines = []
    monkeypatch.setattr('mmseg_wce.datasets.rare_class_sampler.print_log', lambda line, logger: lines.append(line))

    config = dict(type='RareClassSampler', statistics=statistics, temperature=0.2)
    sampler = DATA_SAMPLERS.build(config, default_args=dict(dataset=dataset, seed=0))

    pixels = np.array([[(mask == c).sum() for c in range(3)] for mask in masks])
    before, after = (100 * counts / counts.sum() for counts in (pixels.sum(0), sampler.draws @ pixels))
    name = dataset.metainfo['classes'][2]
    assert len(lines) == 1
    assert f'share of the pixels: {name} {before[2]:.2g} -> {after[2]:.2g} %, ' in lines[0]
    assert after[2] > 2 * before[2]


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(temperature=0), ValueError, 'temperature must be finite and above 0, got 0'),
        (dict(temperature=float('nan')), ValueError, 'temperature must be finite'),
        (dict(temperature='0.1'), TypeError, "temperature must be a number, got '0.1'"),
        (dict(max_repeats=0.5), ValueError, 'max_repeats must be finite and at least 1, got 0.5'),
        (dict(max_repeats=True), TypeError, 'max_repeats must be a number, got True'),
        (dict(statistics='ade20k'), ValueError, 'come without a record'),
    ],
)
def test_arguments_that_cannot_be(dataset, statistics, options, error, message):
    with pytest.raises(error, match=message):
        RareClassSampler(dataset, **dict(statistics=statistics) | options)


def test_statistics_of_other_labels(dataset, statistics, tmp_path, masks):
    more = build_dataset(tmp_path / 'more', [*masks, masks[0]])

    with pytest.raises(ValueError, match='the record of label files does not have'):
        RareClassSampler(more, statistics)


def test_a_data_set_without_label_files(statistics):
    class Images(list):
        def get_data_info(self, index):
            return dict(img_path=self[index])

    with pytest.raises(ValueError, match='no seg_map_path for its image 0'):
        RareClassSampler(Images(['a.jpg']), statistics)
