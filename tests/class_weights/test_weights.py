import json
import math
import pickle

import numpy as np
import pytest
import torch
import yaml
from label_masks import REDUCED, file_of
from mmseg_wce.class_weights import (
    LabelEncoding,
    LabelStatistics,
    class_weights,
    load_class_weight,
    load_statistics,
    save_statistics,
)

WEIGHTS = [0.5, 1.25, 2.0]


@pytest.mark.parametrize(
    'form',
    [WEIGHTS, tuple(WEIGHTS), np.array(WEIGHTS), np.array(WEIGHTS, np.float16), torch.tensor(WEIGHTS), [1, 2, 3]],
)
def test_lists_arrays_and_tensors(form):
    weights = load_class_weight(form)

    assert weights.dtype == torch.float32
    assert weights.tolist() == [float(w) for w in form]


@pytest.mark.parametrize('suffix', ['npy', 'json', 'yaml', 'yml', 'pkl', 'array.pkl'])
def test_weights_are_read_from_files_of_each_format(tmp_path, suffix):
    path = tmp_path / f'weights.{suffix}'
    if suffix == 'npy':
        np.save(path, WEIGHTS)
    elif suffix == 'json':
        path.write_text(json.dumps(WEIGHTS))
    elif suffix in ('yaml', 'yml'):
        path.write_text(yaml.dump(WEIGHTS))
    else:
        path.write_bytes(pickle.dumps(np.array(WEIGHTS) if 'array' in suffix else WEIGHTS))

    assert load_class_weight(str(path)).tolist() == WEIGHTS
    assert load_class_weight(path).tolist() == WEIGHTS


@pytest.mark.parametrize('protocol', range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('content', [np.array(WEIGHTS), [np.float64(w) for w in WEIGHTS]])
def test_pickles_of_every_protocol(tmp_path, protocol, content):
    path = tmp_path / 'weights.pkl'
    path.write_bytes(pickle.dumps(content, protocol))

    assert load_class_weight(path).tolist() == WEIGHTS


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('code from a weights file ran')",)


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        pytest.param('weights.pkl', pickle.dumps(Malicious()), ['builtins.exec'], id='code'),
        pytest.param('weights.pkl', pickle.dumps(torch.ones(3)), ['torch'], id='tensor'),  # another pickle every time
        ('weights.yaml', b'!!python/object/apply:os.system ["true"]', ['not a valid .yaml']),
        ('weights.json', b'{"wall": 1.0}', ['dict']),
        ('weights.json', b'[1.0, ', ['not a valid .json']),
        ('weights.json', b'[1.0, NaN, 2.0]', ['class 1: nan']),
        ('weights.json', b'[[1.0, 2.0]]', ['the list [1.0, 2.0] at index 0']),
        ('weights.json', b'[1.0, "two"]', ['two']),
        ('weights.npy', b'not an array', ['not a valid .npy']),
        ('weights.pth', b'', ['.pth', '.npy']),
        ('weights', b'', ["suffix ''", '.npy']),
        ('weights.yaml', b'', ['NoneType']),
        ('weights.json', b'[1e400, 1.0]', ['class 0: inf']),
        ('weights.json', b'[1' + 400 * b'0' + b', 1]', ['real numbers']),
        ('weights.json', b'[true, false]', ['real numbers']),
    ],
)
def test_bad_files(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(ValueError, match=r'\S') as caught:
        load_class_weight(str(path))

    for word in (name, *words):
        assert word in str(caught.value)


def test_tensors_are_copied():
    tensor = torch.tensor(WEIGHTS)

    load_class_weight(tensor).fill_(7)

    assert tensor.tolist() == WEIGHTS


def test_object_array_in_npy_is_refused(tmp_path):
    np.save(tmp_path / 'weights.npy', np.array([Malicious()], dtype=object), allow_pickle=True)

    with pytest.raises(ValueError, match='pickle'):
        load_class_weight(tmp_path / 'weights.npy')


def test_missing_file_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ValueError, match=r'missing\.json') as caught:
        load_class_weight('missing.json')

    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ('weights', 'words'),
    [
        ([1.0, -0.5, 2.0], ['class 1: -0.5']),
        ([1.0, 2.0, math.inf], ['class 2: inf']),
        ([math.nan, 2.0, -1.0], ['class 0: nan', 'class 2: -1.0']),
        ([1.0, 1e39], ['class 1: inf']),
        ([0.0, 0.0], ['zero for all 2 classes']),
        ([], ['(0,)']),
        ([1.0], ['(1,)']),
        (np.ones((2, 2)), ['(2, 2)']),
        ([[1.0], [2.0, 3.0]], ['flat list']),
        (['1.0', '2.0'], ['real numbers']),
        (np.array([1.0, 2.0j]), ['complex128']),
        ('nowhere://weights.json', ['nowhere://weights.json']),
    ],
)
def test_bad_values(weights, words):
    with pytest.raises(ValueError, match='class_weight') as caught:
        load_class_weight(weights)

    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize('weights', [3.0, {'wall': 1.0}, object()])
def test_bad_types(weights):
    with pytest.raises(TypeError, match='class_weight must be a list of numbers'):
        load_class_weight(weights)


@pytest.fixture
def statistics_file(tmp_path):
    masks = [np.repeat([0, 1, 2], [10, 60, 30]).reshape(10, 10), np.repeat([1, 3], [70, 30]).reshape(10, 10)]
    files = [file_of(f'{i}.png', mask, REDUCED) for i, mask in enumerate(masks)]  # raw 0 is ignored
    statistics = LabelStatistics.from_files('three', ['a', 'b', 'c'], LabelEncoding(True), files)
    save_statistics(statistics, tmp_path / 'statistics.json')
    return tmp_path / 'statistics.json'


def test_weights_by_a_scheme_from_a_statistics_file(statistics_file):
    weights = load_class_weight(
        dict(statistics=str(statistics_file), scheme='median_frequency', normalize=None, max_ratio=1.5)
    )

    # frequencies where present: 130 / 200, 30 / 100, 30 / 100
    expected = np.minimum(0.3 / np.array([0.65, 0.3, 0.3]), 1.5 * 0.3 / 0.65)
    assert weights.tolist() == pytest.approx(expected.tolist())


def test_by_a_scheme_from_what_the_package_ships():
    weights = load_class_weight(dict(statistics='ade20k', scheme='enet', normalize=None))

    assert weights.shape == (150,)
    assert weights[0].item() == pytest.approx(1 / math.log(1.02 + 0.1576 / 0.9275))
    assert torch.equal(weights, load_class_weight(class_weights(load_statistics('ade20k'), 'enet', normalize=None)))


@pytest.mark.parametrize(
    ('options', 'error', 'words'),
    [
        (dict(scheme='enet'), TypeError, 'statistics='),
        (dict(statistics=['a']), TypeError, 'statistics='),
        (dict(statistics='nowhere.json'), ValueError, "'nowhere.json' cannot be read"),
        (dict(statistics='ade20k', scheme='focal'), ValueError, "got 'focal'"),
        (dict(statistics='ade20k', beta=0.9), TypeError, "'sqrt_inverse_frequency' has no option 'beta'"),
        (dict(statistics='ade20k', max_ratio=0.5), ValueError, 'at least 1, got 0.5'),
    ],
)
def test_bad_schemes_and_statistics_raise(options, error, words):
    with pytest.raises(error) as caught:
        load_class_weight(options)

    assert 'class_weight' in str(caught.value) or 'statistics' in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize('one', [3, 3.0, np.float32(3.0), np.array(3.0), torch.tensor(3.0), [3.0], np.array([3.0])])
def test_one_number_where_it_is_allowed(one):
    assert load_class_weight(one, single=True).tolist() == [3.0]
    with pytest.raises((TypeError, ValueError), match='class_weight must be'):
        load_class_weight(one)


@pytest.mark.parametrize('bad', [True, -1.0, float('nan'), float('inf'), 0.0, [0.0], [[3.0]], 'three', b'3', [True]])
def test_one_number_is_checked_too(bad):
    with pytest.raises((TypeError, ValueError), match='class_weight'):
        load_class_weight(bad, single=True)


def test_one_number_of_a_file(tmp_path):
    (tmp_path / 'weights.json').write_text('[3.0]')

    assert load_class_weight(str(tmp_path / 'weights.json'), single=True).tolist() == [3.0]
    with pytest.raises(ValueError, match='one weight per class'):
        load_class_weight(str(tmp_path / 'weights.json'))
