"""``WeightedCrossEntropyLoss(use_sigmoid=True)`` beside the installed built-in loss and PyTorch."""

import copy
import itertools
import pickle
from collections import Counter

import mmseg
import pytest
import torch
import torch.nn.functional as F
from cases import value_and_gradient
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_wce.losses import WeightedCrossEntropyLoss
from torch import nn

CHANNELS = (1, 2, 3, 5)


def ours(**arguments) -> WeightedCrossEntropyLoss:
    return WeightedCrossEntropyLoss(use_sigmoid=True, **arguments)


def batch(channels: int, shape=(5, 6), ignored: str = 'none', ignore_index: int = 255):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, channels, *shape, generator=generator, dtype=torch.float64)
    label = torch.randint(0, max(channels, 2), (4, *shape), generator=generator)
    label[label == ignore_index] = 1 - min(ignore_index, 1)
    if ignored != 'none':
        label[:: 1 if ignored == 'all' else 3] = ignore_index
    return logits, label


def formula(logits, label, ignore_index, class_weight, normalize_by, reduction, pixel_weight, avg_factor):
    """The loss as PyTorch's functions compute it; 0 where nothing counts."""
    channels, z = logits.shape[1], logits
    counted = label != ignore_index
    labels = torch.arange(max(channels, 2)).view(-1, *[1] * (label.dim() - 1))
    one_hot = (label.unsqueeze(1) == labels)[:, -channels:]
    weight = torch.ones(max(channels, 2)) if class_weight is None else torch.as_tensor(class_weight).reshape(-1)
    if weight.numel() == 1:
        weight = torch.tensor([1.0, weight]) if channels == 1 else weight.expand(channels)
    background, pos_weight = (weight[0], weight[1:]) if channels == 1 else (1.0, weight)
    pos_weight = pos_weight.to(z.dtype).view(-1, *[1] * (z.dim() - 2))
    loss = F.binary_cross_entropy_with_logits(z, one_hot.to(z.dtype), pos_weight=pos_weight, reduction='none')
    loss = torch.where(one_hot, loss, background * loss)
    if pixel_weight is not None:
        loss = loss * pixel_weight.unsqueeze(1)
    loss = torch.where(counted.unsqueeze(1), loss, 0)
    if reduction == 'none':
        return loss.squeeze(1) if channels == 1 else loss
    if reduction == 'sum':
        return loss.sum()
    divisor = avg_factor or channels * int(counted.sum() if normalize_by == 'valid' else counted.numel())
    return loss.sum() / max(divisor, 1)


def every_combination():
    """Shapes, labels and arguments, as (logits and label, ignore_index, arguments, call)."""
    shapes = [(c, shape) for c in CHANNELS for shape in ((), (7,), (5, 6)) if c == 1 or len(shape) != 1]
    weights = (None, 2.5, [2.5], 'each')
    reductions = [('mean', None), ('sum', None), ('none', None), ('mean', 'none'), ('none', 'mean'), ('mean', 'sum')]
    for (channels, shape), ignored, ignore_index, class_weight, avg_non_ignore, (
        reduction,
        override,
    ) in itertools.product(shapes, ('none', 'some', 'all'), (255, 0), weights, (False, True), reductions):
        logits, label = batch(channels, shape, ignored, ignore_index)
        if class_weight == 'each':
            class_weight = [0.3, 2.0, 1.0, 0.7, 3.0][: max(channels, 2)]
        arguments = dict(reduction=reduction, class_weight=class_weight, avg_non_ignore=avg_non_ignore, loss_weight=0.4)
        pixel_weight = torch.rand(label.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for weight, avg_factor in itertools.product((None, pixel_weight), (None, 17.0)):
            call = dict(weight=weight, avg_factor=avg_factor, reduction_override=override, ignore_index=ignore_index)
            yield logits, label, arguments, call


def has_a_meant_value(logits, arguments, label, ignore_index) -> bool:
    """Return True if the built-in is well defined: its class weights are ``pos_weight`` along the last dimension."""
    number = len(arguments['class_weight']) if isinstance(arguments['class_weight'], list) else 1
    weighted_along_channels = number == 1 or (logits.dim() == 2 and logits.shape[1] == number)
    all_ignored = bool((label == ignore_index).all())
    return weighted_along_channels and not (logits.shape[1] == 1 and all_ignored)


# a step that divides no number of values of an argument, so that all of them occur
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize(
    ('step', 'expected_numbers'), [pytest.param(1, [1728, 2160, 6480], marks=pytest.mark.slow), (13, [132, 166, 500])]
)
def test_every_combination_of_arguments(step, expected_numbers):
    """Value and gradient of the built-in where it has a meant value, of PyTorch's formula elsewhere."""
    seen = Counter()
    for logits, label, arguments, call in itertools.islice(every_combination(), 0, None, step):
        reduction, ignore_index = call['reduction_override'] or arguments['reduction'], call['ignore_index']
        meant = has_a_meant_value(logits, arguments, label, ignore_index)
        built_in, loss = CrossEntropyLoss(use_sigmoid=True, **arguments), ours(**arguments)
        if reduction == 'sum' and call['avg_factor'] is not None:
            for each in (built_in, loss) if meant else (loss,):
                with pytest.raises(ValueError, match='avg_factor can not be used'):
                    each(logits, label, **call)
            seen['a sum with avg_factor raises'] += 1
            continue

        found = value_and_gradient(loss, logits, label, **call)

        if meant:
            # the built-in computes in float32 some of the way, and adds 1.2e-7 to its denominators
            expected = value_and_gradient(built_in, logits, label, **call)
            torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-7, check_dtype=False)
            seen['equal to the built-in'] += 1
            continue
        normalize_by = 'valid' if arguments['avg_non_ignore'] else 'all'
        options = arguments['class_weight'], normalize_by, reduction, call['weight'], call['avg_factor']
        expected = value_and_gradient(lambda z, *args: 0.4 * formula(z, *args), logits, label, ignore_index, *options)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
        seen["equal to PyTorch's formula: the built-in has no meant value"] += 1
    print(f'mmseg {mmseg.__version__}: {sum(seen.values())} combinations, {dict(seen)}')
    assert sorted(seen.values()) == expected_numbers


def test_built_in_still_weights_columns():
    """If this fails, mmseg has fixed its loss: rewrite docs/binary.md."""
    logits, label = batch(5, shape=(6, 5))
    weight = [0.3, 2.0, 1.0, 0.7, 3.0]
    wrong = CrossEntropyLoss(use_sigmoid=True, class_weight=weight)(logits, label, ignore_index=255)
    with pytest.raises(RuntimeError, match='must match the size'):
        CrossEntropyLoss(use_sigmoid=True, class_weight=weight)(*batch(5), ignore_index=255)

    found = ours(class_weight=weight, normalize_by='all')(logits, label)

    exact = formula(logits, label, 255, weight, 'all', 'mean', None, None)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)
    assert abs(wrong - exact) > 0.01 * exact


def test_built_in_still_ignores_negative_labels():
    """As above. Ours refuses them unless they are ``ignore_index``."""
    logits, label = batch(1)
    label[0] = -1

    CrossEntropyLoss(use_sigmoid=True)(logits, label, ignore_index=255)
    with pytest.raises(ValueError, match=r'-1 \(30 px\)'):
        ours()(logits, label)
    assert ours(ignore_index=-1)(logits, label).isfinite()


@pytest.mark.parametrize('value', ['True', 1, None])
def test_use_sigmoid_must_be_a_bool(value):
    with pytest.raises(TypeError, match='use_sigmoid may not be'):
        WeightedCrossEntropyLoss(use_sigmoid=value)


@pytest.mark.parametrize('one', [3.0, [3.0]])
def test_one_weight_needs_a_sigmoid(one):
    with pytest.raises((TypeError, ValueError), match='class_weight must be'):
        WeightedCrossEntropyLoss(class_weight=one)


@pytest.mark.parametrize(
    ('arguments', 'logits', 'words'),
    [
        (dict(class_weight=[1.0, 2.0, 3.0]), torch.zeros(1, 5, 4, 4), ['each of the 5 channels', '(3,)']),
        (dict(class_weight=[1.0, 2.0, 3.0]), torch.zeros(1, 1, 4, 4), ['labels 0 and 1', '(3,)']),
        (
            dict(class_weight=[1.0, 2.0], normalize_by='class_weight'),
            torch.zeros(1, 2, 4, 4),
            ['one channel and two', "'valid' or 'all'"],
        ),
    ],
)
def test_weights_that_do_not_fit_the_logits(arguments, logits, words):
    with pytest.raises(ValueError, match='class_weight') as caught:
        ours(**arguments)(logits, torch.zeros(1, 4, 4).long())

    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize('label', [torch.zeros(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)])
@pytest.mark.parametrize('channels', [1, 3])
def test_labels_of_another_kind(label, channels):
    with pytest.raises(TypeError, match='integer dtype'):
        ours()(torch.zeros(1, channels, 4, 4), label)


@pytest.mark.parametrize('weight', [3.0, [3.0], torch.tensor(3.0)])
def test_forms_of_one_weight(weight):
    logits, label = batch(1)
    expected = F.binary_cross_entropy_with_logits(
        logits.squeeze(1), label.double(), pos_weight=torch.tensor(3.0).double()
    )

    torch.testing.assert_close(ours(class_weight=weight)(logits, label), expected)


@pytest.mark.parametrize('suffix', ['.json', '.npy'])
def test_weights_of_a_file(tmp_path, suffix):
    import json

    import numpy as np

    path = tmp_path / f'weights{suffix}'
    if suffix == '.json':
        path.write_text(json.dumps([0.5, 4.0]))
    else:
        np.save(path, np.array([0.5, 4.0]))
    logits, label = batch(1)

    torch.testing.assert_close(
        ours(class_weight=str(path))(logits, label), ours(class_weight=[0.5, 4.0])(logits, label)
    )


def test_weights_by_a_scheme():
    loss = ours(class_weight=dict(statistics='ade20k', scheme='sqrt_inverse_frequency'))

    assert loss.class_weight.shape == (150,)
    assert loss(torch.randn(1, 150, 4, 4), torch.randint(0, 150, (1, 8, 8))).isfinite()


@pytest.mark.parametrize('cast', [nn.Module.half, nn.Module.bfloat16, nn.Module.double])
@pytest.mark.parametrize('channels', [1, 4])
def test_casts_copies_and_pickles(cast, channels):
    precise = [1.0 + 2**-20, 3.0001, 0.1, 1.0][: max(channels, 2)]
    loss = ours(class_weight=precise)
    loss.observer = print
    logits, label = batch(channels)
    expected = loss.eval()(logits, label)

    for again in (cast(copy.deepcopy(loss)), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(again.class_weight, torch.tensor(precise))
        assert again.observer is None
        assert torch.equal(again(logits, label), expected)


def test_repr_tells_what_matters():
    shown = repr(ours(class_weight=3.0, avg_non_ignore=False))

    for word in ('use_sigmoid=True', "normalize_by='all'", '1 in [3, 3]'):
        assert word in shown


@pytest.mark.parametrize('class_weight', [None, 3.0, [0.5, 4.0]])
def test_an_observer_is_shown_two_classes_of_one_channel(class_weight):
    logits, label = batch(1, ignored='some')
    pixel_weight = torch.rand(label.shape)
    seen, loss = [], ours(class_weight=class_weight)
    loss.observer, loss.threshold = seen.append, 0.3

    loss(logits.requires_grad_(), label, weight=pixel_weight)

    (shown,) = seen
    z, valid = logits.detach().squeeze(1), label != 255
    nll = F.binary_cross_entropy_with_logits(z, (label == 1).double(), reduction='none')
    torch.testing.assert_close(shown.nll, torch.where(valid, nll, 0))
    assert not shown.nll.requires_grad
    assert torch.equal(shown.correct, ((z.sigmoid() > 0.3).long() == label) & valid)
    assert shown.num_classes == 2
    assert torch.equal(shown.pixel_weight, pixel_weight)
    expected = {None: None, 3.0: [1.0, 3.0]}.get(
        class_weight if not isinstance(class_weight, list) else 0, class_weight
    )
    assert (None if shown.class_weight is None else shown.class_weight.tolist()) == expected


@pytest.mark.parametrize('class_weight', [None, 3.0, [0.5, 4.0, 1.0]])
def test_an_observer_is_shown_the_weighted_sum_of_many_channels(class_weight):
    logits, label = batch(3, ignored='some')
    seen, loss = [], ours(class_weight=class_weight)
    loss.observer = seen.append

    loss(logits.requires_grad_(), label)

    (shown,) = seen
    expected = formula(logits.detach(), label, 255, class_weight, 'valid', 'none', None, None).sum(1)
    torch.testing.assert_close(shown.nll, expected)
    assert torch.equal(shown.correct, logits.argmax(1) == label)
    assert shown.num_classes == 3
    assert shown.class_weight is None


@pytest.mark.parametrize('options', [dict(), dict(out_channels=1, threshold=0.4)])
def test_boundary_head_of_stdc(options):
    """mmseg hands its boundaries over as int64, (N, H, W); its head computes the loss in a way of its own."""
    init_default_scope('mmseg')
    head = MODELS.build(
        dict(
            type='STDCHead',
            in_channels=6,
            channels=4,
            num_convs=1,
            num_classes=2,
            in_index=0,
            norm_cfg=None,
            concat_input=False,
            align_corners=True,
            dropout_ratio=0,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True, avg_non_ignore=True),
            **options,
        )
    )
    other = copy.deepcopy(head)
    other.loss_decode = ours()
    label = torch.randint(0, 5, (2, 1, 4, 4)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    samples = [SegDataSample(gt_sem_seg=PixelData(data=y)) for y in label]
    logits, found = torch.randn(2, head.out_channels, 8, 8), []

    for each in (head, other):
        z = logits.clone().requires_grad_()
        value = each.loss_by_feat(z, samples)['loss_ce']
        found.append((value.detach(), *torch.autograd.grad(value, z)))

    torch.testing.assert_close(*found)
