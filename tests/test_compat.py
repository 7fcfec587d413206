import importlib.util
import io
import pickle
import warnings

import mmcv
import numpy as np
import pytest
import torch
from mmcv.utils import ext_loader
from mmengine.logging.history_buffer import HistoryBuffer
from mmseg_wce import compat

lite_only = pytest.mark.skipif(
    importlib.util.find_spec('mmcv._ext') is not None, reason='compiled mmcv is installed: nothing to stand in for'
)


@lite_only
def test_every_mmseg_model_imports_on_mmcv_lite():
    import mmcv.ops
    import mmseg.models

    assert mmseg.models.EncoderDecoder
    assert mmcv.ops.nms


@lite_only
def test_a_missing_op_says_how_to_get_it():
    from mmcv.ops import nms

    with pytest.raises(RuntimeError, match=r'nms.*mmseg_wce\[full\]'):
        nms(torch.rand(4, 4), torch.rand(4), 0.5)


@lite_only
def test_mmengine_still_knows_that_mmcv_is_lite():
    assert importlib.util.find_spec('mmcv._ext') is None


@pytest.mark.parametrize(('has_ext', 'version'), [(True, '2.1.0'), (False, '2.3.6')])
def test_load_ext_is_left_alone_where_it_works(monkeypatch, has_ext, version):
    monkeypatch.setattr(ext_loader, 'load_ext', original := object())
    monkeypatch.setattr(compat.importlib.util, 'find_spec', lambda name: object() if has_ext else None)
    monkeypatch.setattr(mmcv, '__version__', version)

    compat.apply()

    assert ext_loader.load_ext is original


def saved(content) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(content, file)
    file.seek(0)
    return file


def test_training_state_loads_with_weights_only():
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    content = dict(log=history, scalar=np.float64(2.5), count=np.int64(3), array=np.arange(4, dtype=np.float32))

    loaded = torch.load(saved(content), weights_only=True)

    assert loaded['log'].mean() == 2.0
    assert loaded['log'].statistics('max') == 3.0
    assert (loaded['scalar'], loaded['count']) == (2.5, 3)
    assert loaded['array'].tolist() == [0, 1, 2, 3]


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    'content',
    [
        Call(exec, 'raise SystemExit'),
        Call(getattr, HistoryBuffer, '__init__'),
        Call(getattr, np.ndarray, 'tofile'),
        Call(getattr, np.ndarray, 'max'),
        Call(getattr, 'text', 'upper'),
    ],
)
def test_everything_else_is_still_refused(content):
    with pytest.raises(pickle.UnpicklingError):
        torch.load(saved({'state': content}), weights_only=True)


def test_applies_twice():
    compat.apply()
    compat.apply()


def test_nothing_is_allowed_where_torch_or_mmengine_do_not_need_it(monkeypatch):
    monkeypatch.setattr(torch.serialization, 'add_safe_globals', lambda _: pytest.fail('not needed here'))

    with monkeypatch.context() as patch:
        patch.setattr(torch, '__version__', torch.torch_version.TorchVersion('2.5.1'))
        compat._let_checkpoints_load_safely()
    with monkeypatch.context() as patch:
        patch.setattr(compat, '_mmengine_version', lambda: compat.Version('0.11'))
        compat._let_checkpoints_load_safely()


def test_pkg_resources_does_not_warn(recwarn):
    warnings.warn('pkg_resources is deprecated as an API.', UserWarning, stacklevel=1)
    compat._silence_pkg_resources()
    warnings.warn('pkg_resources is deprecated as an API. Again', UserWarning, stacklevel=1)
    warnings.warn('something else', UserWarning, stacklevel=1)

    assert [str(w.message) for w in recwarn] == ['pkg_resources is deprecated as an API.', 'something else']
