import copy
import io
import pickle

import numpy as np
import pytest
import torch
from mmseg_wce.class_weights import load_class_weight
from mmseg_wce.safe_io.pickled_arrays import SAFE_GLOBALS


@pytest.fixture(autouse=True)
def allowed():
    """The classes that compat allows, also if mmengine restricts checkpoints itself."""
    with torch.serialization.safe_globals([x for x in SAFE_GLOBALS if x not in torch.serialization.get_safe_globals()]):
        yield


class Call:
    """Pickles as a call of ``function``, optionally with a state that is set afterwards."""

    def __init__(self, function, *args, state=None):
        self.reduced = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.reduced


POINTERS = b'A' * 8
AN_ARRAY = np.arange(2.0).__reduce__()
ATTACKS = {
    'objects over bytes': Call(np.ndarray, (1,), Call(np.dtype, 'O'), POINTERS),
    'objects by their code': Call(np.ndarray, (1,), 'O', POINTERS),
    'objects in the state': Call(AN_ARRAY[0], *AN_ARRAY[1], state=(1, (1,), np.dtype('O'), False, [1])),
    'records': Call(np.dtype, 'V8', state=(3, '|', None, ('a',), {'a': (np.dtype('O'), 0)}, 8, 1, 0)),
    'code of another kind': Call(np.dtype, 'f8,O'),
    'numbers over memory': Call(np.ndarray, (10**6,), Call(np.dtype, 'f8'), POINTERS),
    'too few bytes': Call(AN_ARRAY[0], *AN_ARRAY[1], state=(1, (10**6,), np.dtype('f8'), False, POINTERS)),
    'a scalar beyond its bytes': Call(np.float64(1.0).__reduce__()[0], np.dtype('f8'), b'A'),
}


@pytest.mark.parametrize('attack', ATTACKS)
def test_attacks_are_refused(tmp_path, attack):
    (tmp_path / 'weights.pkl').write_bytes(pickle.dumps(ATTACKS[attack], 2))
    with pytest.raises(ValueError, match=r'weights\.pkl'):
        load_class_weight(tmp_path / 'weights.pkl')

    checkpoint = io.BytesIO()
    torch.save(dict(state=ATTACKS[attack]), checkpoint)
    checkpoint.seek(0)
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        torch.load(checkpoint, weights_only=True)


@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8', '>f4', 'i1', 'u2', '>i8', '?'])
@pytest.mark.parametrize('order', ['C', 'F'])
def test_arrays_of_numbers_arrive_as_they_were(dtype, order):
    array = np.arange(6).reshape(2, 3).astype(dtype, order=order)
    checkpoint = io.BytesIO()
    torch.save(dict(array=array, scalar=array[1, 2], copy=copy.deepcopy(array)), checkpoint)

    for _ in range(2):  # what was loaded can be saved again
        checkpoint.seek(0)
        loaded = torch.load(checkpoint, weights_only=True)
        assert np.array_equal(loaded['array'], array)
        assert loaded['array'].dtype == array.dtype.newbyteorder('=')
        assert loaded['scalar'] == array[1, 2]
        checkpoint = io.BytesIO()
        torch.save(loaded, checkpoint)


def test_saved_again_they_are_numpys():
    array = np.arange(3.0)
    checkpoint = io.BytesIO()
    torch.save(dict(array=array), checkpoint)
    checkpoint.seek(0)
    loaded = torch.load(checkpoint, weights_only=True)['array']

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert type(pickle.loads(pickle.dumps(loaded, protocol))) is np.ndarray
