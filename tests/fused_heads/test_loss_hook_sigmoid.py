"""Fused heads whose losses are binary cross-entropies, of one channel and of many, beside mmseg's heads as they are."""

import itertools
import pickle

import pytest
import torch
from cases import examples
from decode_heads import Model, fused_copy, head, samples, sweep, sweep_autocast, sweep_branches, two_branches
from hypothesis import given
from hypothesis import strategies as st
from mmseg.models.decode_heads import FCNHead, PIDHead
from mmseg.models.losses import CrossEntropyLoss
from mmseg.registry import HOOKS, MODELS
from mmseg_wce.fused_heads import fuse_decode_heads
from mmseg_wce.kernels import binary, op
from mmseg_wce.samplers import check_built_sampler, check_sampler
from torch import nn

OURS = dict(type='WeightedCrossEntropyLoss', use_sigmoid=True, loss_weight=0.4)
WEIGHTED = dict(OURS, class_weight=[0.1, 3.0, 1.0, 0.3, 2.0])
TWO = dict(OURS, class_weight=[0.5, 4.0], normalize_by='class_weight')
BUILT_IN = dict(type='CrossEntropyLoss', use_sigmoid=True, avg_non_ignore=True)
SOFTMAX = dict(type='WeightedCrossEntropyLoss', loss_name='loss_softmax')
DICE = dict(type='DiceLoss', loss_name='loss_dice')
ONE = dict(num_classes=2, out_channels=1, threshold=0.4)
RANKED = dict(type='OHEMPixelSampler', min_kept=100)
THRESH = dict(type='OHEMPixelSampler', thresh=0.3, min_kept=100)


def accuracy_at_the_threshold(built: nn.Module, data: list) -> float:
    """Percent of the pixels that are not ignored which mmseg would predict right."""
    features = torch.randn(2, 6, 8, 10, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        label = torch.stack([sample.gt_sem_seg.data for sample in data])
        z = nn.functional.interpolate(
            built([features]), label.shape[2:], mode='bilinear', align_corners=built.align_corners
        )
    right = (z.sigmoid() > built.threshold).long() == label
    return 100 * right[label != 255].double().mean().item()


def assert_same(plain, fused, size=(32, 40), labels=5) -> None:
    data = samples(*size, labels)
    expected, found = sweep(plain, data), sweep(fused, data)
    assert list(found[0]) == list(expected[0])
    if plain.out_channels == 1:
        expected[0].pop('acc_seg')
        assert found[0].pop('acc_seg').item() == pytest.approx(accuracy_at_the_threshold(fused, data), rel=1e-5)
    losses = plain.loss_decode if isinstance(plain.loss_decode, nn.ModuleList) else [plain.loss_decode]
    mmsegs = any(isinstance(loss, CrossEntropyLoss) for loss in losses)  # which computes in float32 some of the way
    rtol, atol = (2e-6, 1e-7) if mmsegs else (1e-6, 1e-9)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=atol, check_dtype=not mmsegs)


@pytest.mark.parametrize(
    ('loss', 'options', 'line'),
    [
        (OURS, {}, 'fused'),
        (WEIGHTED, {}, 'fused'),
        (dict(WEIGHTED, normalize_by='all', reduction='sum'), {}, 'fused'),
        (BUILT_IN, {}, 'fused'),
        (dict(BUILT_IN, avg_non_ignore=False, class_weight=[3.0]), {}, 'fused'),
        ([WEIGHTED, SOFTMAX], {}, 'fused'),
        ([SOFTMAX, BUILT_IN, WEIGHTED], {}, 'fused'),
        ([WEIGHTED, DICE], {}, 'fused; full-size logits are still built for loss_dice (a DiceLoss)'),
        (WEIGHTED, dict(sampler=THRESH), 'fused'),
        ([WEIGHTED, BUILT_IN, SOFTMAX], dict(sampler=THRESH), 'fused'),
        (OURS, ONE, 'fused'),
        (TWO, ONE, 'fused'),
        (dict(OURS, class_weight=3.0, normalize_by='all'), ONE, 'fused'),
        (dict(TWO, reduction='none'), ONE, 'fused'),
        ([TWO, dict(BUILT_IN, class_weight=3.0), dict(BUILT_IN, avg_non_ignore=False)], ONE, 'fused'),
        (TWO, dict(ONE, sampler=RANKED), 'fused'),
        ([TWO, BUILT_IN], dict(ONE, sampler=RANKED), 'fused'),
    ],
)
@pytest.mark.parametrize('size', [(32, 40), (29, 37)])
@pytest.mark.parametrize('align_corners', [False, True])
def test_same_terms_and_gradients(loss, options, line, size, align_corners):
    plain = head(loss, align_corners=align_corners, **options)
    fused, said = fused_copy(plain)
    assert said == f'decode_head (FCNHead): {line}'

    if 'none' in str(loss):
        for each in (plain, fused):
            each.loss = lambda *args, of=each.loss: {k: v.mean() for k, v in of(*args).items()}
    assert_same(plain, fused, size, labels=2 if options.get('out_channels') == 1 else 5)


def losses_for(channels: int):
    weights = st.sampled_from((None, 3.0, [0.1, 3.0, 1.0, 0.3, 2.0] if channels == 5 else [0.5, 4.0]))
    common = dict(loss_weight=st.sampled_from((0.4, 1.0)), reduction=st.sampled_from(('mean', 'sum')))
    ours = st.fixed_dictionaries(
        dict(class_weight=weights), optional=dict(normalize_by=st.sampled_from(('valid', 'all')), **common)
    ).map(lambda options: dict(OURS, **options))
    theirs = st.fixed_dictionaries(
        dict(class_weight=st.sampled_from((None, [3.0]))), optional=dict(avg_non_ignore=st.booleans(), **common)
    ).map(lambda options: dict(type='CrossEntropyLoss', use_sigmoid=True, **options))
    return ours | theirs | st.just(SOFTMAX) if channels == 5 else ours | theirs


configurations = st.sampled_from((1, 5)).flatmap(
    lambda channels: st.tuples(st.just(channels), st.lists(losses_for(channels), min_size=1, max_size=3))
)


@given(
    configuration=configurations,
    sampled=st.booleans(),
    min_kept=st.integers(2, 400),
    thresh=st.sampled_from((0.05, 0.3, 0.9)),
    align_corners=st.booleans(),
    size=st.tuples(st.integers(5, 45), st.integers(5, 45)),
)
@examples(25)
def test_random_configurations_give_the_same_terms_and_gradients(
    configuration, sampled, min_kept, thresh, align_corners, size
):
    channels, losses = configuration
    losses = [dict(loss, loss_name=f'loss_{i}') for i, loss in enumerate(losses)]
    sampler = dict(RANKED, min_kept=min_kept) if channels == 1 else dict(THRESH, min_kept=min_kept, thresh=thresh)
    options = dict(ONE if channels == 1 else {}, align_corners=align_corners, sampler=sampler if sampled else None)
    plain = head(losses, **options)
    fused, _ = fused_copy(plain)

    assert_same(plain, fused, size, labels=2 if channels == 1 else 5)


@pytest.mark.parametrize('options', [{}, ONE])
def test_full_size_logits_are_never_built(monkeypatch, options):
    fused, _ = fused_copy(head([OURS, BUILT_IN], **options))
    for place in ('mmseg_wce.fused_heads.head_losses.resize', 'mmseg.models.decode_heads.decode_head.resize'):
        monkeypatch.setattr(place, lambda *a, **k: pytest.fail('resized'))
    sweeps, forward = [], binary._forward
    monkeypatch.setattr(binary, '_forward', lambda *a: sweeps.append(a[0].shape) or forward(*a))
    monkeypatch.setattr(op, '_forward', lambda *a: pytest.fail('a softmax'))

    sweep(fused, samples(labels=2))

    assert sweeps == [(2, 1 if options else 5, 8, 10)]  # once for both, at the head's own size


@pytest.mark.parametrize('options', [{}, ONE])
def test_autocast_gives_a_float32_loss_near_that_of_mmseg(options):
    plain = head(OURS, **options).float()
    fused, _ = fused_copy(plain)

    expected, found = sweep_autocast(plain, labels=2), sweep_autocast(fused, labels=2)

    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.003)


@pytest.mark.parametrize('options', [{}, ONE])
def test_built_in_losses_are_fused_only_when_asked(options):
    _, line = fused_copy(head(BUILT_IN, **options), built_in=False)

    reason = 'loss_ce is a CrossEntropyLoss with use_sigmoid, which built_in=True would fuse'
    assert line == f'decode_head (FCNHead): left alone: {reason}'


@pytest.mark.parametrize(
    ('loss', 'options', 'reason'),
    [
        (
            dict(BUILT_IN, class_weight=[1.0] * 5),
            {},
            'several class weights, which mmseg applies to columns or rejects',
        ),
        (dict(BUILT_IN, class_weight=[1.0, 2.0]), ONE, 'several class weights'),
        (dict(BUILT_IN, reduction='none'), {}, "reduction='none', whose value has full size itself"),
        (dict(OURS, reduction='none'), {}, "a WeightedCrossEntropyLoss with use_sigmoid=True and reduction='none'"),
        (SOFTMAX, ONE, 'a WeightedCrossEntropyLoss without use_sigmoid=True, and a softmax needs two channels'),
        (dict(type='CrossEntropyLoss', use_mask=True), {}, 'a CrossEntropyLoss with use_mask'),
        (dict(type='FocalLoss'), {}, 'a FocalLoss'),
    ],
)
def test_heads_that_cannot_be_fused_say_why(loss, options, reason):
    _, line = fused_copy(head(loss, **options))

    assert 'left alone: ' in line
    assert reason in line


def test_elements_of_full_size_are_those_of_the_head():
    """``align_corners`` is the head's business: such a loss gets full-size logits."""
    plain = head([dict(OURS, reduction='none'), dict(OURS, loss_name='loss_mean')], align_corners=True)
    fused, line = fused_copy(plain, built_in=False)
    features = torch.randn(2, 6, 8, 10).double()

    expected, found = (each.loss([features], samples(), {}) for each in (plain, fused))

    assert 'full-size logits are still built for loss_ce' in line
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_pickled_heads_give_the_same_losses():
    fused, _ = fused_copy(head(TWO, **ONE), built_in=False)

    again = pickle.loads(pickle.dumps(Model(fused))).decode_head

    data = samples(labels=2)
    torch.testing.assert_close(sweep(again, data), sweep(fused, data))


def test_bad_labels_are_refused_with_the_same_message():
    fused, _ = fused_copy(head(OURS, **ONE), built_in=False)
    data = samples(labels=2)
    data[1].gt_sem_seg.data[0, 3, 4] = 2

    with pytest.raises(ValueError, match=r'\[0, 2\).*2 \(1 px\).*at index \(1, 3, 4\)'):
        sweep(fused, data)


@pytest.mark.parametrize('options', [dict(sampler=THRESH), dict(ONE, sampler=RANKED), ONE])
@pytest.mark.parametrize('loss', [OURS, BUILT_IN])
def test_loss_and_gradients_are_zero_if_all_pixels_are_ignored(loss, options):
    """mmseg raises for one channel."""
    fused, _ = fused_copy(head(loss, **options))
    data = samples()
    for sample in data:
        sample.gt_sem_seg.data.fill_(255)

    losses, gradients = sweep(fused, data)

    assert losses['loss_ce'] == 0
    assert all((g == 0).all() for g in gradients)


SIGMOID_OHEM = dict(type='OhemCrossEntropy', thres=0.3, min_kept=200)
BOUNDARY = dict(type='BoundaryLoss')


@pytest.mark.parametrize(
    ('kind', 'losses', 'options'),
    [
        ('PIDHead', [OURS, WEIGHTED, BOUNDARY, OURS], {}),
        ('PIDHead', [SOFTMAX, OURS, OURS, dict(OURS, normalize_by='all')], {}),
        ('PIDHead', [OURS, SOFTMAX, BUILT_IN, OURS], {}),
        ('PIDHead', [OURS, SIGMOID_OHEM, BOUNDARY, OURS], {}),
        ('PIDHead', [OURS, dict(OURS, focal_gamma=2), BOUNDARY, dict(OURS, focal_gamma=1)], {}),
        ('PIDHead', [OURS, TWO, BOUNDARY, OURS], ONE),
        ('DDRHead', [OURS, WEIGHTED], {}),
        ('DDRHead', [SOFTMAX, OURS], {}),
        ('DDRHead', [TWO, OURS], ONE),
    ],
)
def test_heads_of_two_branches(kind, losses, options):
    plain, features = two_branches(losses, kind, **options)
    fused, line = fused_copy(plain)
    assert line == f'decode_head ({kind}): fused'

    labels = 2 if options else 5
    expected, found = (sweep_branches(each, features, labels) for each in (plain, fused))
    assert list(found[0]) == list(expected[0])
    if options:
        accuracies = expected[0].pop('acc_seg'), found[0].pop('acc_seg')
        assert 0 < accuracies[1] < 100
        assert accuracies[0] != accuracies[1]
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-7, check_dtype=False)


SIGMOIDS, SOFTMAXES = (OURS, BUILT_IN), (SOFTMAX, dict(type='CrossEntropyLoss'))


@pytest.mark.parametrize(('channels', 'thresh'), itertools.product((1, 2, 5), (None, 0.3)))
def test_every_sampler_that_mmseg_raises_on_is_found(channels, thresh):
    """Every combination of up to two losses, one of them a sigmoid, with mmseg's sampler."""
    sampler = dict(type='OHEMPixelSampler', thresh=thresh, min_kept=100)
    losses = [[loss] for loss in SIGMOIDS]
    losses += [[a, b] for a in SIGMOIDS for b in (*SIGMOIDS, *(SOFTMAXES if channels > 1 else ()))]
    for listed in losses:
        listed = [dict(loss, loss_name=f'loss_{i}') for i, loss in enumerate(listed)]
        config = dict(
            type='FCNHead',
            num_classes=max(channels, 2),
            out_channels=channels,
            sampler=sampler,
            loss_decode=listed,
        )
        built = head(listed, **{k: v for k, v in config.items() if k not in ('type', 'loss_decode')})
        message = check_sampler(config)
        assert check_built_sampler(built) == message
        if not message:
            assert_same(built, fused_copy(built)[0], labels=max(channels, 2))
            continue
        with pytest.raises((IndexError, RuntimeError)):
            sweep(built, samples(labels=max(channels, 2)))
        with pytest.raises(ValueError, match=r'decode_head: FCNHead: OHEMPixelSampler') as caught:
            fuse_decode_heads(Model(built))
        for word in (listed[0]['type'], 'use_sigmoid=True', 'thresh'):
            assert word in str(caught.value)
    assert bool(message) == ((channels == 1) == (thresh is not None))


def test_the_hook_raises_before_a_run():
    model = Model(head(OURS), nn.ModuleList([head(OURS), head(OURS, sampler=RANKED)]))
    runner = type('Runner', (), dict(model=model))

    with pytest.raises(ValueError, match=r'auxiliary_head\[1\]: FCNHead: OHEMPixelSampler without thresh'):
        HOOKS.build(dict(type='FusedLossHook')).before_run(runner)


@pytest.mark.parametrize(
    'head_config',
    [
        dict(type='FCNHead', num_classes=5, loss_decode=OURS),
        dict(type='FCNHead', num_classes=5, sampler=RANKED),  # mmseg's default loss is a softmax
        dict(type='FCNHead', num_classes=5, sampler=None, loss_decode=OURS),
        dict(type='FCNHead', num_classes=5, sampler=dict(type='MySampler'), loss_decode=OURS),
        dict(type='PIDHead', num_classes=5, sampler=RANKED, loss_decode=[OURS] * 4),
        dict(type='FCNHead', sampler=RANKED, loss_decode=OURS),  # of how many channels is not said
        dict(type='FCNHead', num_classes=5, sampler=RANKED, loss_decode=dict(type='NotRegistered')),
        dict(type='NotRegistered', num_classes=5, sampler=RANKED, loss_decode=OURS),
        dict(type='HeadWithItsOwnLoss', num_classes=5, sampler=RANKED, loss_decode=OURS),
        dict(type='SubclassOfPIDHead', num_classes=5, sampler=RANKED, loss_decode=[OURS] * 4),
        # fails without a sampler too, so the sampler is not the reason
        dict(type='FCNHead', num_classes=5, sampler=RANKED, loss_decode=dict(BUILT_IN, class_weight=[1.0] * 5)),
    ],
)
def test_configs_whose_sampler_works_have_no_message(head_config):
    assert check_sampler(head_config) == ''


@MODELS.register_module()
class HeadWithItsOwnLoss(FCNHead):
    """Takes a sampler and does not ask it."""

    def loss_by_feat(self, seg_logits, batch_data_samples):
        return dict(loss=seg_logits.sum())


@MODELS.register_module()
class SubclassOfPIDHead(PIDHead):
    pass


@MODELS.register_module()
class HeadAroundTheLoss(FCNHead):
    def loss_by_feat(self, seg_logits, batch_data_samples):
        return super().loss_by_feat(seg_logits, batch_data_samples)


@pytest.mark.parametrize('kind', ['FCNHead', 'HeadAroundTheLoss'])
@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('thresh', [None, 0.3])
@pytest.mark.parametrize(
    'loss', [dict(type='FocalLoss'), dict(type='DiceLoss', use_sigmoid=True), dict(type='LovaszLoss', per_image=True)]
)
def test_other_losses_with_samplers(kind, channels, thresh, loss):
    """The hook raises before mmseg would, and its advice works."""
    sampler = dict(type='OHEMPixelSampler', min_kept=100)
    options = dict(num_classes=max(channels, 2), out_channels=channels)
    built = head(loss, kind, sampler=dict(sampler, thresh=thresh), **options)

    message = check_sampler(dict(options, type=kind, loss_decode=loss, sampler=dict(sampler, thresh=thresh)))

    assert check_built_sampler(built) == message
    try:
        sweep(built, samples(labels=max(channels, 2)))
    except Exception:
        without = head(loss, kind, **options)
        try:
            sweep(without, samples(labels=max(channels, 2)))
        except Exception:
            return  # not for its sampler
        assert message.startswith(f'{kind}: OHEMPixelSampler {"without" if thresh is None else "with"} thresh')
        if 'thresh,' in message:
            other = dict(sampler, thresh=0.7 if thresh is None else None)
            sweep(head(loss, kind, sampler=other, **options), samples(labels=max(channels, 2)))
    else:
        assert message == ''


def test_types_may_be_scoped_or_classes():
    from mmseg.structures.sampler import OHEMPixelSampler
    from mmseg_wce.losses import WeightedCrossEntropyLoss

    for sampler, loss in (
        ('mmseg.OHEMPixelSampler', 'mmseg.WeightedCrossEntropyLoss'),
        (OHEMPixelSampler, WeightedCrossEntropyLoss),
    ):
        config = dict(
            type='mmseg.FCNHead',
            num_classes=5,
            sampler=dict(type=sampler),
            loss_decode=(dict(type=loss, use_sigmoid=True),),
        )
        assert 'FCNHead: OHEMPixelSampler without thresh' in check_sampler(config)
