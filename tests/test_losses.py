import copy
import itertools
import math
import warnings

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import value_and_gradient
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import MODELS, TRANSFORMS
from mmseg_wce.arguments import _warn_once
from mmseg_wce.losses import WeightedCrossEntropyLoss
from stacks import FORK
from torch import nn

WEIGHTS = [0.1, 3.0, 1.0, 0.3]
SIGMOID = dict(use_sigmoid=True)


def batch(ignored: bool, dtype=torch.float64):
    torch.manual_seed(0)
    logits, label = torch.randn(2, 4, 5, 6, dtype=dtype), torch.randint(0, 4, (2, 5, 6))
    if ignored:
        label[:, 1:3] = 255
    return logits, label


def test_registered_with_mmseg():
    loss = MODELS.build(dict(type='WeightedCrossEntropyLoss', class_weight=WEIGHTS, loss_weight=0.4))

    assert isinstance(loss, WeightedCrossEntropyLoss)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('ignored', [False, True])
def test_default_is_pytorchs_mean(weighted, ignored):
    logits, label = batch(ignored)
    weights = torch.tensor(WEIGHTS) if weighted else None
    loss = WeightedCrossEntropyLoss(class_weight=WEIGHTS if weighted else None)
    pytorch = nn.CrossEntropyLoss(weight=None if weights is None else weights.double(), ignore_index=255)

    torch.testing.assert_close(value_and_gradient(loss, logits, label), value_and_gradient(pytorch, logits, label))


@pytest.mark.parametrize(
    ('weighted', 'ignored', 'avg_non_ignore', 'reduction', 'pixel_weight', 'avg_factor', 'override'),
    [
        combination
        for combination in itertools.product(
            (False, True),
            (False, True),
            (False, True),
            ('mean', 'sum', 'none'),
            (False, True),
            (None, 17.0),
            (None, 'none'),
        )
        # the built-in has no value for class weights with ignored pixels, since it indexes the weights with 255;
        # the fork's has none for class weights with avg_non_ignore=True
        if not (
            combination[0]
            and (combination[2] if FORK else combination[1])
            and (combination[3] == 'mean' and combination[5] is None and not combination[6])
        )
    ],
)
def test_equals_the_built_in_wherever_it_has_a_value(
    weighted, ignored, avg_non_ignore, reduction, pixel_weight, avg_factor, override
):
    logits, label = batch(ignored)
    arguments = dict(
        use_sigmoid=False,
        use_mask=False,
        reduction=reduction,
        class_weight=WEIGHTS if weighted else None,
        loss_weight=0.4,
        loss_name='loss_seg',
        avg_non_ignore=avg_non_ignore,
    )
    built_in, ours = CrossEntropyLoss(**arguments), WeightedCrossEntropyLoss(**arguments)
    call = dict(
        weight=torch.rand(2, 5, 6) if pixel_weight else None,
        avg_factor=avg_factor,
        reduction_override=override,
        ignore_index=255,
    )
    if (override or reduction) == 'sum' and avg_factor is not None:
        for loss in (built_in, ours):
            with pytest.raises(ValueError, match='avg_factor can not be used'):
                loss(logits, label, **call)
        return

    expected = value_and_gradient(built_in, logits, label, **call)

    # the built-in adds 1.2e-7 to its denominators, and rounds class weights to the dtype of the logits
    torch.testing.assert_close(value_and_gradient(ours, logits, label, **call), expected, rtol=1e-6, atol=1e-9)
    assert ours.loss_name == built_in.loss_name == 'loss_seg'


def test_built_in_still_needs_us():
    """If this fails, mmseg has fixed its loss: rewrite the README."""
    logits, label = batch(ignored=True)

    with pytest.raises(IndexError):
        CrossEntropyLoss(class_weight=WEIGHTS, avg_non_ignore=FORK)(logits, label, ignore_index=255)


@pytest.mark.parametrize(
    ('arguments', 'normalize_by'),
    [
        (dict(), 'class_weight'),
        (dict(normalize_by='valid'), 'valid'),
        (dict(avg_non_ignore=True), 'class_weight'),
        (dict(avg_non_ignore=True, class_weight=WEIGHTS), 'class_weight'),
        (dict(avg_non_ignore=False), 'all'),
        (dict(avg_non_ignore=False, class_weight=WEIGHTS), 'class_weight'),
        (dict(avg_non_ignore=False, normalize_by='all'), 'all'),
        (dict(avg_non_ignore=False, class_weight=WEIGHTS, normalize_by='class_weight'), 'class_weight'),
        (dict(avg_non_ignore=True, normalize_by='class_weight'), 'class_weight'),
        (SIGMOID, 'valid'),
        (dict(SIGMOID, class_weight=[1.0, 2.0]), 'valid'),
        (dict(SIGMOID, avg_non_ignore=True), 'valid'),
        (dict(SIGMOID, avg_non_ignore=True, class_weight=[1.0, 2.0, 3.0]), 'valid'),
        (dict(SIGMOID, avg_non_ignore=False), 'all'),
        (dict(SIGMOID, avg_non_ignore=False, class_weight=[1.0, 2.0, 3.0]), 'all'),
        (dict(SIGMOID, avg_non_ignore=False, normalize_by='all'), 'all'),
        (dict(SIGMOID, normalize_by='class_weight', class_weight=[1.0, 2.0]), 'class_weight'),
    ],
)
def test_avg_non_ignore_in_terms_of_normalize_by(arguments, normalize_by):
    assert WeightedCrossEntropyLoss(**arguments).normalize_by == normalize_by


@pytest.mark.parametrize(
    ('avg_non_ignore', 'weights', 'normalize_by'),
    [(True, None, 'all'), (True, WEIGHTS, 'valid'), (False, None, 'class_weight'), (False, WEIGHTS, 'all')],
)
def test_contradicting_normalisers(avg_non_ignore, weights, normalize_by):
    with pytest.raises(ValueError, match=f'avg_non_ignore={avg_non_ignore}.*contradicts normalize_by={normalize_by!r}'):
        WeightedCrossEntropyLoss(avg_non_ignore=avg_non_ignore, class_weight=weights, normalize_by=normalize_by)


def test_warns_once_where_mmseg_defines_no_value():
    _warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        for _ in range(3):  # the heads of FastSCNN
            WeightedCrossEntropyLoss(avg_non_ignore=False, class_weight=WEIGHTS)
        WeightedCrossEntropyLoss(avg_non_ignore=True, class_weight=WEIGHTS)

    (warning,) = caught
    assert 'avg_non_ignore=False with class_weight' in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize('normalize_by', ['class_weight', 'valid', 'all'])
def test_each_normaliser(normalize_by):
    logits, label = batch(ignored=True)
    weights = torch.tensor(WEIGHTS).double()
    valid = label != 255
    numerator = F.cross_entropy(logits, label, weights, ignore_index=255, reduction='sum')
    denominator = {'class_weight': weights[label[valid]].sum(), 'valid': valid.sum(), 'all': valid.numel()}

    loss = WeightedCrossEntropyLoss(class_weight=WEIGHTS, normalize_by=normalize_by)(logits, label)

    torch.testing.assert_close(loss, numerator / denominator[normalize_by], rtol=1e-7, atol=0)


def test_label_smoothing_is_pytorchs():
    logits, label = batch(ignored=True)
    weights = torch.tensor(WEIGHTS).double()
    expected = F.cross_entropy(logits, label, weights, ignore_index=255, label_smoothing=0.1)

    loss = WeightedCrossEntropyLoss(class_weight=WEIGHTS, label_smoothing=0.1)(logits, label)

    torch.testing.assert_close(loss, expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(use_mask=True), ['use_mask=True', "type='CrossEntropyLoss'"]),
        (dict(loss_name='ce'), ["'ce'", "'loss_'"]),
        (dict(reduction='average'), ["'average'"]),
        (dict(normalize_by='pixels'), ["'pixels'"]),
        (dict(label_smoothing=2.0), ['2.0']),
        (dict(loss_weight=math.nan), ['loss_weight', 'nan']),
        (dict(class_weight=[1.0, -1.0]), ['class 1: -1.0']),
        (dict(class_weight='nowhere.json'), ['nowhere.json']),
        (
            dict(SIGMOID, avg_non_ignore=True, normalize_by='all'),
            ['avg_non_ignore=True', "'valid'", "contradicts normalize_by='all'"],
        ),
        (dict(SIGMOID, avg_non_ignore=False, normalize_by='valid'), ['avg_non_ignore=False', "'all'", 'contradicts']),
        (dict(SIGMOID, avg_non_ignore=True, normalize_by='class_weight', class_weight=[1.0, 2.0]), ['contradicts']),
        (dict(SIGMOID, normalize_by='class_weight'), ['one channel and two', 'got 0', "'valid' or 'all'"]),
        (dict(SIGMOID, normalize_by='class_weight', class_weight=2.0), ['got 1', "'valid' or 'all'"]),
        (dict(SIGMOID, normalize_by='class_weight', class_weight=[1.0, 2.0, 3.0]), ['got 3', "'valid' or 'all'"]),
        (dict(SIGMOID, normalize_by='pixels'), ["'pixels'"]),
        (dict(SIGMOID, label_smoothing=0.1), ['label_smoothing=0.1', 'use_sigmoid=True', 'softmax']),
        (dict(SIGMOID, use_mask=True), ['use_mask=True', "type='CrossEntropyLoss'"]),
        (dict(SIGMOID, class_weight=[1.0, -1.0]), ['class 1: -1.0']),
        (dict(SIGMOID, class_weight=-1.0), ['class 0: -1.0']),
        (dict(SIGMOID, class_weight=math.nan), ['class 0: nan']),
        (dict(SIGMOID, class_weight=[math.inf]), ['class 0: inf']),
        (dict(SIGMOID, class_weight=[0.0, 0.0]), ['zero for all 2 classes']),
        (dict(SIGMOID, class_weight=[]), ['shape (0,)']),
    ],
)
def test_bad_arguments_when_it_is_built(arguments, words):
    with pytest.raises(ValueError, match=r'\S') as caught:
        WeightedCrossEntropyLoss(**arguments)

    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    'argument',
    [
        dict(loss_weight='1'),
        dict(loss_weight=None),
        dict(label_smoothing='0.1'),
        dict(loss_name=None),
        dict(avg_non_ignore='False'),
        dict(ignore_index='255'),
        dict(ignore_index=255.0),
    ],
)
def test_arguments_of_a_wrong_type_are_refused(argument):
    ((name, value),) = argument.items()

    with pytest.raises(TypeError, match=f'{name} may not be {value!r}'):
        WeightedCrossEntropyLoss(**argument)


def test_wrong_number_of_weights_names_both():
    with pytest.raises(ValueError, match=r'4 channels.*\(3,\)'):
        WeightedCrossEntropyLoss(class_weight=[1.0, 2.0, 3.0])(*batch(ignored=False))


def test_one_channel_head():
    with pytest.raises(ValueError, match=r'out_channels=2.*use_sigmoid=True'):
        WeightedCrossEntropyLoss()(torch.randn(1, 1, 4, 4), torch.zeros(1, 4, 4).long())


@pytest.mark.parametrize(
    ('built_with', 'head_passes', 'used'), [(None, None, 255), (None, 3, 3), (3, None, 3), (3, 3, 3), (-1, None, -1)]
)
def test_ignore_index_of_head_and_constructor(built_with, head_passes, used):
    logits, label = batch(ignored=False)
    label[:, 0] = used

    loss = WeightedCrossEntropyLoss(ignore_index=built_with)(logits, label, ignore_index=head_passes)

    torch.testing.assert_close(loss, F.cross_entropy(logits, label, ignore_index=used))


def test_different_ignore_index_of_head_and_constructor():
    with pytest.raises(ValueError, match=r'ignore_index=254.*ignore_index=255'):
        WeightedCrossEntropyLoss(ignore_index=254)(*batch(ignored=False), ignore_index=255)


@pytest.mark.parametrize('cast', [nn.Module.half, nn.Module.bfloat16, nn.Module.double, nn.Module.float])
def test_class_weights_stay_float32(cast):
    precise = [0.1, 1.0 + 2**-20, 3.0001, 1.0]
    head = nn.Sequential(nn.Conv2d(3, 4, 1), WeightedCrossEntropyLoss(class_weight=precise))

    cast(head)

    assert head[0].weight.dtype != torch.float32 or cast is nn.Module.float
    assert head[1].class_weight.dtype == torch.float32
    assert torch.equal(head[1].class_weight, torch.tensor(precise))


def test_class_weights_follow_the_device():
    loss = WeightedCrossEntropyLoss(class_weight=WEIGHTS)

    assert loss.to('meta').class_weight.device.type == 'meta'
    assert torch.equal(loss.to_empty(device='cpu').class_weight, torch.tensor(WEIGHTS))
    assert torch.equal(copy.deepcopy(loss).half().class_weight, torch.tensor(WEIGHTS))


def test_class_weights_that_were_set_later_stay():
    loss = WeightedCrossEntropyLoss(class_weight=WEIGHTS)
    loss.class_weight = torch.tensor([5.0, 6.0, 7.0, 8.0])
    loss.half().class_weight[0] = 4.0

    assert loss.double().to('cpu').class_weight.tolist() == [4.0, 6.0, 7.0, 8.0]
    assert loss.class_weight.dtype == torch.float32


def test_class_weights_under_half_and_autocast_are_not_rounded():
    logits, label = batch(ignored=True, dtype=torch.float32)
    precise = [0.1, 1.0 + 2**-20, 3.0001, 1.0]
    loss = WeightedCrossEntropyLoss(class_weight=precise)
    expected = loss(logits.bfloat16().float(), label)

    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = loss.bfloat16()(logits.bfloat16(), label)

    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)


def test_class_weights_cast_behind_its_back_are_not_used():
    """Wrappers that shard a model replace the data of its buffers."""
    logits, label = batch(ignored=True, dtype=torch.float32)
    loss = WeightedCrossEntropyLoss(class_weight=WEIGHTS)
    expected = loss(logits, label)

    loss.class_weight.data = loss.class_weight.data.bfloat16()

    assert torch.equal(loss(logits, label), expected)


def test_existing_checkpoints_load_strictly():
    head = nn.Sequential(nn.Conv2d(3, 4, 1), WeightedCrossEntropyLoss(class_weight=WEIGHTS))
    old = nn.Sequential(nn.Conv2d(3, 4, 1), CrossEntropyLoss(class_weight=WEIGHTS))

    head.load_state_dict(old.state_dict(), strict=True)
    old.load_state_dict(head.state_dict(), strict=True)

    assert torch.equal(head[1].class_weight, torch.tensor(WEIGHTS))


def test_all_ignored_is_a_connected_zero():
    logits, label = batch(ignored=False)

    for arguments in (dict(), dict(class_weight=WEIGHTS), dict(avg_non_ignore=True), dict(normalize_by='valid')):
        value, gradient = value_and_gradient(WeightedCrossEntropyLoss(**arguments), logits, torch.full_like(label, 255))
        assert value == 0
        assert (gradient == 0).all()


def test_repr_tells_what_matters():
    shown = repr(WeightedCrossEntropyLoss(class_weight=WEIGHTS, normalize_by='valid', loss_weight=0.4))

    for word in ("normalize_by='valid'", '4 in [0.1, 3]', 'loss_weight=0.4'):
        assert word in shown


@pytest.mark.parametrize('arguments', [dict(class_weight=WEIGHTS), dict(SIGMOID, class_weight=2.0)])
def test_module_compiles_whole(arguments):
    logits, label = batch(ignored=True)
    loss = WeightedCrossEntropyLoss(**arguments)
    compiled = torch.compile(loss, fullgraph=True, backend='aot_eager')

    torch.testing.assert_close(compiled(logits, label), loss(logits, label))


@pytest.mark.parametrize('raw', [151, 254])
def test_raw_values_that_reduce_zero_label_does_not_ignore(tmp_path, raw):
    """From the label file to the loss, as mmseg reads it: raw 0 and 255 become 255, raw 151..254 do not."""
    labels = np.full((8, 8), 7, np.uint8)
    labels[0, :4], labels[1], labels[2, 3] = 0, 255, raw
    cv2.imwrite(str(tmp_path / 'label.png'), labels)
    load = TRANSFORMS.build(dict(type='mmseg.LoadAnnotations', reduce_zero_label=True))
    sample = load(dict(seg_map_path=str(tmp_path / 'label.png'), reduce_zero_label=True, seg_fields=[]))
    target = torch.from_numpy(sample['gt_seg_map'])[None]

    with pytest.raises(
        ValueError, match=rf'{raw - 1} \(1 px\).*\(0, 2, 3\).*raw {raw} in the label files became {raw - 1}'
    ):
        WeightedCrossEntropyLoss()(torch.randn(1, 150, 8, 8), target)
