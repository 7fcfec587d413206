import importlib.util
import io
import pickle
import pkgutil
import warnings

import mmcv
import numpy as np
import pytest
import torch
from mmcv.utils import ext_loader
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging.history_buffer import HistoryBuffer
from mmengine.registry import init_default_scope
from mmengine.runner import checkpoint
from mmengine.utils.dl_utils import misc
from mmseg.registry import DATASETS
from mmseg_wce import compat
from stacks import COMPILED, FORK
from three_classes import dataset_config, make_masks, write_data

lite_only = pytest.mark.skipif(COMPILED or FORK, reason='no stand-in here: mmcv is compiled, or looks after itself')


def test_every_mmseg_model_imports():
    import mmseg.models

    assert mmseg.models.EncoderDecoder
    assert mmseg.models.PSAHead


@lite_only
def test_a_missing_op_says_how_to_get_it():
    from mmcv.ops import nms

    with pytest.raises(RuntimeError, match=r'nms.*mmseg_wce\[full\]'):
        nms(torch.rand(4, 4), torch.rand(4), 0.5)


@lite_only
def test_mmengine_still_knows_that_mmcv_is_lite():
    assert importlib.util.find_spec('mmcv._ext') is None


@pytest.mark.parametrize('asked', [misc.mmcv_full_available, ext_loader.check_ops_exist])
def test_mmcv_is_asked_for_compiled_ops_without_find_loader(monkeypatch, asked):
    monkeypatch.delattr(pkgutil, 'find_loader', raising=False)  # not in Python 3.14
    monkeypatch.setattr(misc, 'pkgutil', pkgutil, raising=False)  # the fork does not ask it
    monkeypatch.setattr(ext_loader, 'pkgutil', pkgutil, raising=False)

    compat.apply()

    assert asked() == COMPILED


def test_a_config_inherits_from_whichever_mmseg_is_installed(tmp_path, monkeypatch):
    (tmp_path / 'mine.py').write_text("_base_ = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'\n")

    assert Config.fromfile(tmp_path / 'mine.py').model.decode_head.num_classes == 150
    monkeypatch.setitem(MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    compat.apply()
    assert MODULE2PACKAGE['mmseg'] == ('onedl-mmsegmentation' if FORK else 'mmsegmentation')
    assert Config.fromfile(tmp_path / 'mine.py').model.decode_head.num_classes == 150


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


def test_training_state_loads(tmp_path):
    history = HistoryBuffer([1.0, 3.0], [1, 1])
    content = dict(log=history, scalar=np.float64(2.5), count=np.int64(3), array=np.arange(4, dtype=np.float32))

    (tmp_path / 'iter_1.pth').write_bytes(saved(content).getvalue())

    loaded = checkpoint.CheckpointLoader.load_checkpoint(str(tmp_path / 'iter_1.pth'), map_location='cpu')

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
def test_pickles_that_call_other_functions_are_refused(content):
    with pytest.raises(pickle.UnpicklingError):
        torch.load(saved({'state': content}), weights_only=True)


@pytest.mark.parametrize('kind', ['img_path', 'seg_map_path'])
def test_a_sample_that_cannot_be_read_is_named(tmp_path, kind):
    init_default_scope('mmseg')
    dataset = DATASETS.build(dataset_config(write_data(tmp_path, make_masks(3))))
    path = dataset.get_data_info(1)[kind]
    with open(path, 'r+b') as file:
        file.truncate(40)
    dataset[0]

    with pytest.raises(
        RuntimeError, match=r'sample 1 of ThreeClasses cannot be used: img_path .*seg_map_path '
    ) as caught:
        dataset[1]

    assert repr(path) in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_pair_that_cannot_be_read_is_named(tmp_path):
    init_default_scope('mmseg')
    for folder in ('A', 'B', 'label'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'pair.png').write_bytes(b'no image')
    prefix = dict(img_path='A', img_path2='B', seg_map_path='label')
    pipeline = [dict(type='LoadAnnotations')]
    dataset = DATASETS.build(
        dict(type='BaseCDDataset', data_root=str(tmp_path), data_prefix=prefix, img_suffix='.png', pipeline=pipeline)
    )

    with pytest.raises(
        RuntimeError, match=r'sample 0 of BaseCDDataset .*A/pair.png.*img_path2 .*B/pair.png.*label/pair'
    ):
        dataset[0]


def test_fixes_can_be_applied_twice():
    compat.apply()
    compat.apply()


def test_no_safe_globals_are_added_where_torch_needs_none(monkeypatch):
    monkeypatch.setattr(torch.serialization, 'add_safe_globals', lambda _: pytest.fail('not needed here'))
    monkeypatch.setattr(torch, '__version__', torch.torch_version.TorchVersion('2.5.1'))

    compat._let_checkpoints_load_safely()


def test_pkg_resources_does_not_warn(recwarn):
    warnings.warn('pkg_resources is deprecated as an API.', UserWarning, stacklevel=1)
    compat._silence_pkg_resources()
    warnings.warn('pkg_resources is deprecated as an API. Again', UserWarning, stacklevel=1)
    warnings.warn('something else', UserWarning, stacklevel=1)

    assert [str(w.message) for w in recwarn] == ['pkg_resources is deprecated as an API.', 'something else']
