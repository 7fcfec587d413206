import copy
import pickle

import pytest
import torch
from cases import examples
from decode_heads import Model, fused_copy, head, samples, sweep, sweep_autocast, sweep_branches, two_branches
from hypothesis import assume, given
from hypothesis import strategies as st
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import PixelData
from mmseg.models.losses import CrossEntropyLoss, accuracy
from mmseg.registry import HOOKS, MODELS
from mmseg.structures import SegDataSample
from mmseg.structures.sampler import OHEMPixelSampler
from mmseg_wce import built_in_losses
from mmseg_wce.fused_heads import FusedLossHook, fuse_decode_heads, head_losses
from mmseg_wce.kernels import op
from mmseg_wce.losses import WeightedCrossEntropyLoss
from stacks import FORK
from torch import nn

WEIGHTS = [0.1, 3.0, 1.0, 0.3, 2.0]
OURS = dict(type='WeightedCrossEntropyLoss', class_weight=WEIGHTS, loss_weight=0.4)
BUILT_IN = dict(type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=True)
DICE = dict(type='DiceLoss', loss_name='loss_dice')


@pytest.mark.parametrize(
    ('loss', 'sampler', 'align_corners', 'line'),
    [
        (OURS, None, False, 'fused'),
        (OURS, None, True, 'fused'),
        (BUILT_IN, None, False, 'fused'),
        (dict(BUILT_IN, avg_non_ignore=False, loss_weight=0.7), None, False, 'fused'),
        (dict(BUILT_IN, reduction='sum', loss_name='loss_seg'), None, False, 'fused'),
        (dict(OURS, label_smoothing=0.1, normalize_by='valid'), None, False, 'fused'),
        ([OURS, BUILT_IN], None, False, 'fused'),
        ([OURS, dict(OURS, class_weight=None, loss_name='loss_second')], None, False, 'fused'),
        (
            [dict(OURS, label_smoothing=0.1), dict(OURS, class_weight=None, label_smoothing=0.3, loss_name='loss_b')],
            None,
            False,
            'fused',
        ),
        ([OURS, DICE], None, False, 'fused; full-size logits are still built for loss_dice (a DiceLoss)'),
        (OURS, dict(type='OHEMPixelSampler', min_kept=100), False, 'fused'),
        (OURS, dict(type='OHEMPixelSampler', thresh=0.3, min_kept=100), False, 'fused'),
        (OURS, dict(type='OHEMPixelSampler', thresh=0.01, min_kept=300), True, 'fused'),
        ([OURS, BUILT_IN], dict(type='OHEMPixelSampler', min_kept=50), False, 'fused'),
    ],
)
@pytest.mark.parametrize('size', [(32, 40), (29, 37)])
def test_same_terms_and_gradients(loss, sampler, align_corners, line, size):
    plain = head(loss, sampler=sampler)
    plain.align_corners = align_corners
    fused, said = fused_copy(plain)
    assert said == f'decode_head (FCNHead): {line}'

    expected, found = sweep(plain, samples(*size)), sweep(fused, samples(*size))
    assert list(found[0]) == list(expected[0])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


options_of_ours = st.fixed_dictionaries(
    dict(class_weight=st.sampled_from((None, WEIGHTS, [0.0, 1.0, 1.0, 50.0, 0.01]))),
    optional=dict(
        loss_weight=st.sampled_from((0.4, 1.0, 3.0)),
        label_smoothing=st.sampled_from((0.1, 1.0)),
        normalize_by=st.sampled_from(('class_weight', 'valid', 'all')),
        reduction=st.sampled_from(('mean', 'sum')),
    ),
).map(lambda options: dict(type='WeightedCrossEntropyLoss', **options))
options_of_mmsegs = st.fixed_dictionaries(
    dict(loss_weight=st.sampled_from((0.4, 1.0))),
    optional=dict(avg_non_ignore=st.booleans(), reduction=st.sampled_from(('mean', 'sum'))),
).map(lambda options: dict(type='CrossEntropyLoss', use_sigmoid=False, **options))
samplers = st.none() | st.builds(
    dict,
    type=st.just('OHEMPixelSampler'),
    min_kept=st.integers(2, 400),
    thresh=st.none() | st.sampled_from((0.05, 0.3, 0.9)),
)


@given(
    losses=st.lists(options_of_ours | options_of_mmsegs | st.just(DICE), min_size=1, max_size=3),
    sampler=samplers,
    align_corners=st.booleans(),
    size=st.tuples(st.integers(5, 45), st.integers(5, 45)),
)
@examples(25)
def test_random_configurations_give_the_same_terms_and_gradients(losses, sampler, align_corners, size):
    assume(sampler is None or DICE not in losses)  # its forward takes no weights: mmseg raises
    losses = [dict(loss, loss_name=f'loss_{i}') for i, loss in enumerate(losses)]
    plain = head(losses, sampler=sampler)
    plain.align_corners = align_corners
    fused, _ = fused_copy(plain)

    expected, found = sweep(plain, samples(*size)), sweep(fused, samples(*size))

    assert list(found[0]) == list(expected[0])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize('loss', [OURS, BUILT_IN])
def test_autocast_gives_a_float32_loss_near_that_of_mmseg(loss):
    """Logits in bfloat16, losses and accuracy of them in float32: nearer to the exact ones than mmseg's."""
    plain = head(loss).float()
    fused, _ = fused_copy(plain)

    expected, found = sweep_autocast(plain, labels=5), sweep_autocast(fused, labels=5)

    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.003, check_dtype=False)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_accuracy_in_half_precision(dtype):
    """The logits are compared in float32. mmseg compares logits that were rounded again after the upsampling."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 150, 64, 64, generator=generator)
    best = torch.nn.functional.interpolate(logits, size=(256, 256), mode='bilinear').argmax(1)
    other = torch.randint(0, 150, best.shape, generator=generator)
    label = torch.where(torch.rand(best.shape, generator=generator) < 0.5, best, other)
    logits = logits.to(dtype)
    data = [SegDataSample(gt_sem_seg=PixelData(data=y[None])) for y in label]
    built = head(dict(OURS, class_weight=None)).to(dtype)

    theirs = built.loss_by_feat(logits, data)['acc_seg'].item()
    fuse_decode_heads(Model(built))
    ours = built.loss_by_feat(logits, data)['acc_seg'].item()

    z = torch.nn.functional.interpolate(logits.double(), size=label.shape[1:], mode='bilinear')
    exact = 100 * (z.argmax(1) == label).double().mean().item()
    print(f'{dtype}: exact {exact:.3f}, fused {ours:.3f}, mmseg {theirs:.3f}')
    assert ours == pytest.approx(exact, abs=2e-3)
    assert abs(theirs - exact) > 5 * abs(ours - exact)


def test_full_size_logits_are_never_built(monkeypatch):
    monkeypatch.setenv('MMSEG_WCE_BACKEND', 'slabs')  # small float64 inputs go to the reference
    fused, _ = fused_copy(head(OURS), built_in=False)
    monkeypatch.setattr('mmseg_wce.fused_heads.head_losses.resize', lambda *a, **k: pytest.fail('resized'))
    monkeypatch.setattr('mmseg.models.decode_heads.decode_head.resize', lambda *a, **k: pytest.fail('resized'))
    sweeps = []
    forward = op._forward
    monkeypatch.setattr(op, '_forward', lambda *a: sweeps.append(a[0].shape) or forward(*a))

    sweep(fused, samples())

    assert sweeps == [(2, 5, 8, 10)]  # once, at the head's own size


def test_heads_in_lists_and_what_is_left_alone():
    init_default_scope('mmseg')
    sigmoid = dict(type='CrossEntropyLoss', use_sigmoid=True)
    own_way = head(OURS, kind='STDCHead')
    model = Model(
        nn.ModuleList([head(OURS), head(BUILT_IN)]),
        nn.ModuleList([own_way, head(sigmoid, sampler=None), head(DICE)]),
    )

    lines = fuse_decode_heads(model)

    assert lines[0] == 'decode_head[0] (FCNHead): fused'
    assert (
        'decode_head[1] (FCNHead): left alone: loss_ce is a softmax CrossEntropyLoss, which built_in=True' in lines[1]
    )
    assert 'auxiliary_head[0] (STDCHead): left alone: it overrides loss_by_feat (STDCHead.loss_by_feat)' in lines[2]
    assert 'loss_ce is a CrossEntropyLoss with use_sigmoid' in lines[3]
    assert 'loss_dice is a DiceLoss' in lines[4]
    assert fuse_decode_heads(model, built_in=True)[1].endswith(': fused')
    assert fuse_decode_heads(model, built_in=True)[3].endswith(': fused')


OHEM = dict(type='OhemCrossEntropy', thres=0.3, min_kept=200, class_weight=WEIGHTS, loss_weight=0.7)


@pytest.mark.parametrize(
    ('kind', 'losses', 'built_in', 'line'),
    [
        ('PIDHead', [BUILT_IN, OHEM, dict(type='BoundaryLoss'), OHEM], True, 'fused'),
        ('PIDHead', [OURS, OURS, dict(type='BoundaryLoss'), dict(OURS, label_smoothing=0.1)], False, 'fused'),
        ('PIDHead', [OURS, dict(OURS, ignore_index=255), dict(type='BoundaryLoss'), OHEM], True, 'fused'),
        (
            'PIDHead',
            [OURS, dict(OURS, focal_gamma=2), dict(type='BoundaryLoss'), dict(OURS, focal_gamma=1)],
            False,
            'fused',
        ),
        (
            'PIDHead',
            [OURS, OHEM, dict(type='BoundaryLoss'), OHEM],
            False,
            'fused; full-size logits are still built for loss_ohem (a softmax OhemCrossEntropy, which built_in=True '
            'would fuse), loss_ohem (a softmax OhemCrossEntropy, which built_in=True would fuse)',
        ),
        ('DDRHead', [OHEM, OHEM], True, 'fused'),
        ('DDRHead', [OURS, dict(OHEM, thres=0.9, min_kept=1)], True, 'fused'),
        ('DDRHead', [dict(OURS, label_smoothing=0.2), OURS], False, 'fused'),
        ('DDRHead', [dict(OURS, focal_gamma=0.5), OURS], False, 'fused'),
    ],
)
def test_heads_of_two_branches(kind, losses, built_in, line):
    plain, features = two_branches(losses, kind)
    fused, said = fused_copy(plain, built_in)
    assert said == f'decode_head ({kind}): {line}'

    expected, found = sweep_branches(plain, features), sweep_branches(fused, features)
    assert list(found[0]) == list(expected[0])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('last', [BUILT_IN, dict(OHEM, ignore_label=255), dict(OURS, ignore_index=255)])
def test_pid_head_whose_last_loss_ignores_another_label(last):
    """mmseg fills what is far from a boundary with the head's label, whatever the loss ignores."""
    losses = [BUILT_IN, BUILT_IN, dict(type='BoundaryLoss'), last]
    plain, features = two_branches(losses, 'PIDHead')
    plain.ignore_index = 0
    fused, _ = fused_copy(plain)
    data = [sample.gt_sem_seg.data for sample in samples()]

    def sweep_without_255(built):
        with pytest.MonkeyPatch.context() as patch:
            labels = [SegDataSample(gt_sem_seg=PixelData(data=y.where(y != 255, 1))) for y in data]
            patch.setattr('decode_heads.samples', lambda **_: labels)
            return sweep_branches(built, features)

    torch.testing.assert_close(sweep_without_255(fused), sweep_without_255(plain), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('avg_non_ignore', [False, True])
@pytest.mark.parametrize('weights', [None, WEIGHTS])
def test_built_in_loss_that_ignores_a_class(weights, avg_non_ignore):
    """Class 4 is ignored, so that mmseg's weighted mean is defined: upstream counts ignored pixels by default."""
    plain = head(dict(BUILT_IN, class_weight=weights, avg_non_ignore=avg_non_ignore), ignore_index=4)
    fused, _ = fused_copy(plain)
    data = samples()
    for sample in data:
        sample.gt_sem_seg.data[sample.gt_sem_seg.data == 255] = 4
    if FORK and weights and avg_non_ignore:
        with pytest.raises(IndexError):
            sweep(plain, data)
        plain.loss_decode.avg_non_ignore = False  # what it means to compute, and does without the option

    torch.testing.assert_close(sweep(fused, data), sweep(plain, data), rtol=1e-6, atol=1e-9)


def test_a_loss_derived_from_ours_gets_what_it_expects():
    class Mine(WeightedCrossEntropyLoss):
        def forward(self, cls_score, label, **options):
            assert cls_score.shape[2:] == label.shape[1:]
            return 2 * super().forward(cls_score, label, **options)

    fused, plain = head([OURS, OURS]), head([OURS, OURS])
    for each in (fused, plain):
        each.loss_decode[1] = Mine(class_weight=WEIGHTS, loss_name='loss_mine')

    (line,) = fuse_decode_heads(Model(fused))

    assert 'still built for loss_mine (a Mine, which overrides forward)' in line
    torch.testing.assert_close(sweep(fused, samples()), sweep(plain, samples()), rtol=1e-6, atol=1e-9)


def test_a_sampler_put_in_later_is_asked():
    class Nothing(OHEMPixelSampler):
        def sample(self, seg_logit, seg_label):
            assert seg_logit.shape[2:] == seg_label.shape[2:]
            return torch.zeros_like(seg_label.squeeze(1), dtype=seg_logit.dtype)

    fused, _ = fused_copy(head(OURS, sampler=dict(type='OHEMPixelSampler', min_kept=100)), built_in=False)
    fused.sampler = Nothing(fused)

    losses, _ = sweep(fused, samples())
    assert losses['loss_ce'] == 0


def test_weights_of_a_replaced_sampler_that_do_not_fit_raise():
    class OnePixelTooFew:
        def sample(self, logits, label):
            return torch.ones(label.shape[0], *label.shape[2:])[..., 1:]

    fused, _ = fused_copy(head(OURS, sampler=dict(type='OHEMPixelSampler', min_kept=100)), built_in=False)
    fused.sampler = OnePixelTooFew()

    with pytest.raises(ValueError, match='pixel_weight must have the shape of the target'):
        sweep(fused, samples())


def test_no_hard_pixel_is_zero_where_mmsegs_is_nan():
    never = dict(OHEM, thres=-1.0, min_kept=1000000)
    plain, features = two_branches([never, OURS], 'DDRHead')
    fused, _ = fused_copy(plain)
    for built in (plain, fused):
        torch.nn.init.zeros_(built.conv_seg.weight)  # every probability is the same: none is below the highest
        torch.nn.init.zeros_(built.conv_seg.bias)

    assert plain.loss(features, samples(), {})['loss_context'].isnan()
    losses, gradients = sweep_branches(fused, features)
    assert losses['loss_context'] == 0
    assert all(g.isfinite().all() for g in gradients.values())


def test_whole_models_of_mmseg():
    """Build real-time models and a cascade from mmseg's own configs."""
    init_default_scope('mmseg')
    lines = {}
    for name in (
        'pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes',
        'ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024',
        'ocrnet/ocrnet_hr18_4xb2-40k_cityscapes-512x1024',
        'stdc/stdc1_4xb12-80k_cityscapes-512x1024',
    ):
        config = get_config(f'mmseg::{name}.py').model
        heads = {
            key: nn.ModuleList(MODELS.build(h) for h in value) if isinstance(value, list) else MODELS.build(value)
            for key, value in config.items()
            if key in ('decode_head', 'auxiliary_head')
        }
        lines[name.split('/')[0]] = fuse_decode_heads(Model(**heads), built_in=True)

    assert lines['pidnet'] == ['decode_head (PIDHead): fused']
    assert lines['ddrnet'] == ['decode_head (DDRHead): fused']
    assert lines['ocrnet'] == ['decode_head[0] (FCNHead): fused', 'decode_head[1] (OCRHead): fused']
    assert all(line.endswith('(FCNHead): fused') for line in lines['stdc'][:3])
    assert lines['stdc'][3].startswith('auxiliary_head[2] (STDCHead): left alone')


def test_softmax_losses_of_one_channel_are_left_alone():
    for loss in (BUILT_IN, dict(OURS, class_weight=None)):
        (line,) = fuse_decode_heads(Model(head(loss, num_classes=2, out_channels=1)), built_in=True)
        assert 'left alone: loss_ce is a ' in line
        assert 'without use_sigmoid=True, and a softmax needs two channels' in line


def test_a_replaced_loss_by_feat_is_left_alone():
    changed = head(OURS)
    changed.loss_by_feat = theirs = lambda *_: {}

    assert 'left alone' in fuse_decode_heads(Model(changed))[0]
    assert changed.loss_by_feat is theirs


def test_fusing_again_with_other_options_takes_the_first_back():
    fused = head(BUILT_IN)
    assert fuse_decode_heads(Model(fused), built_in=True)[0].endswith('fused')

    assert 'left alone' in fuse_decode_heads(Model(fused))[0]
    assert 'loss_by_feat' not in vars(fused)


def test_attributes_of_the_built_in_loss_are_read_when_it_is_computed():
    fused, plain = head(BUILT_IN), head(BUILT_IN)
    fuse_decode_heads(Model(fused), built_in=True)
    for each in (fused, plain):
        each.loss_decode.loss_weight = 10.0

    torch.testing.assert_close(sweep(fused, samples()), sweep(plain, samples()), rtol=1e-6, atol=1e-9)


def test_fused_heads_can_be_pickled():
    fused, _ = fused_copy(head([OURS, BUILT_IN]))

    again = pickle.loads(pickle.dumps(Model(fused))).decode_head

    torch.testing.assert_close(sweep(again, samples()), sweep(fused, samples()))
    assert again.loss_by_feat.args[0] is again


@pytest.mark.parametrize(
    ('old', 'new'),
    [('standard', 'base_loss_by_feat'), ('of_pid_head', 'pid_loss_by_feat'), ('of_ddr_head', 'ddr_loss_by_feat')],
)
def test_functions_in_old_pickles_of_fused_heads_are_found(old, new):
    with pytest.warns(DeprecationWarning, match=f'{old} is now .*{new}'):
        assert getattr(head_losses, old) is getattr(head_losses, new)


def edit_data(class_weight):
    class_weight.data[1] = 9


def edit_numpy(class_weight):
    class_weight.numpy()[1] = 9


@pytest.mark.parametrize('edit', [edit_data, edit_numpy])
def test_class_weights_of_the_built_in_loss_that_change_are_read_again(edit):
    plain = head(BUILT_IN)
    plain.loss_decode.class_weight = torch.tensor(WEIGHTS)
    fused, _ = fused_copy(plain)
    before, _ = sweep(fused, samples())

    edit(fused.loss_decode.class_weight)

    assert sweep(fused, samples())[0]['loss_ce'] != before['loss_ce']


@pytest.mark.parametrize('sampler', [None, dict(type='OHEMPixelSampler', min_kept=10)])
def test_ohem_in_a_head_that_passes_it_pixel_weights_raises_as_in_mmseg(sampler):
    plain = head(OHEM, sampler=sampler)
    fused, _ = fused_copy(plain)

    for each in (plain, fused):
        with pytest.raises(TypeError, match='unexpected keyword argument'):
            sweep(each, samples())


def test_heads_with_unknown_samplers_are_left_alone():
    special = head(OURS)
    special.sampler = nn.Identity()

    assert 'its sampler Identity needs full-size logits' in fuse_decode_heads(Model(special))[0]


def test_fusing_twice_changes_nothing_and_copies_use_their_own_weights():
    fused, _ = fused_copy(head(OURS), built_in=False)
    fuse_decode_heads(Model(fused))
    twin = copy.deepcopy(fused)
    twin.loss_decode.class_weight = torch.ones(5)
    plain = head(dict(OURS, class_weight=[1.0] * 5))

    torch.testing.assert_close(sweep(twin, samples()), sweep(plain, samples()), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(sweep(fused, samples()), sweep(head(OURS), samples()), rtol=1e-6, atol=1e-9)


def test_bad_labels_are_refused_with_the_same_message():
    fused, _ = fused_copy(head(OURS), built_in=False)
    data = samples()
    data[1].gt_sem_seg.data[0, 3, 4] = 77

    with pytest.raises(ValueError, match=r'77 \(1 px\).*at index \(1, 3, 4\)'):
        sweep(fused, data)


def test_loss_and_gradients_are_zero_if_all_pixels_are_ignored():
    fused, _ = fused_copy(head(OURS, sampler=dict(type='OHEMPixelSampler', thresh=0.7, min_kept=10)), built_in=False)
    data = samples()
    for sample in data:
        sample.gt_sem_seg.data.fill_(255)

    losses, gradients = sweep(fused, data)

    assert losses['loss_ce'] == 0
    assert losses['acc_seg'] == accuracy(torch.randn(2, 5, 12, 14), torch.full((2, 12, 14), 255), ignore_index=255)
    assert all((g == 0).all() for g in gradients)


def test_hook_fuses_before_a_run_and_logs(monkeypatch):
    lines = []
    model = Model(head(OURS), head(BUILT_IN))

    class Wrapper(nn.parallel.DistributedDataParallel):
        def __init__(self, module):
            nn.Module.__init__(self)
            self.module = module

    class Runner:
        logger = type('Logger', (), dict(info=staticmethod(lines.append)))

    for runner_model in (model, Wrapper(Model(head(OURS), head(BUILT_IN)))):
        Runner.model = runner_model
        hook = HOOKS.build(dict(type='FusedLossHook'))
        assert isinstance(hook, FusedLossHook)
        hook.before_run(Runner())

    assert len(lines) == 4
    assert lines[0] == lines[2] == 'FusedLossHook: decode_head (FCNHead): fused'


def test_stand_ins_are_mmsegs_loss():
    """The value of the built-in, with ignored pixels counted as it counts them."""
    fused, _ = fused_copy(head(dict(BUILT_IN, avg_non_ignore=False, class_weight=None)))

    assert type(fused.loss_decode) is CrossEntropyLoss  # checkpoints and configs see the model as it was
    assert not [m for m in fused.modules() if isinstance(m, WeightedCrossEntropyLoss)]


@pytest.mark.heavy
@pytest.mark.parametrize('autocast', [False, True])
def test_training_with_the_hook_gives_the_same_curve(root, shared_data, tmp_path, monkeypatch, autocast):
    """FastSCNN on small crops of CamVid from one seed, with and without the hook, and resumed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMSEG_WCE_DATA', str(shared_data))

    def train(name: str, hooks: list, resume: bool = False) -> tuple[dict[int, float], list[torch.Tensor]]:
        """Loss of every iteration, and the weights of the last layer before the first and after each."""
        config = Config.fromfile(root / 'configs/camvid/fast_scnn_1xb8-wce-4k_camvid-352x480.py')
        heads = ['decode_head', 'auxiliary_head.0', 'auxiliary_head.1']
        config.merge_from_dict(
            {
                'work_dir': name,
                'experiment_name': f'{tmp_path.name}_{name}_{resume}',
                **{f'default_hooks.{i}': hook for i, hook in enumerate(hooks)},  # as children inherit them
                'resume': resume,
                'log_level': 'WARNING',
                'randomness.seed': 0,
                'model.data_preprocessor.size': (64, 96),
                'train_dataloader.dataset.pipeline.3.crop_size': (64, 96),
                'train_cfg.max_iters': 5,
                **dict.fromkeys(('val_cfg', 'val_dataloader', 'val_evaluator')),
                'train_dataloader.batch_size': 4,
                'train_dataloader.num_workers': 0,
                'train_dataloader.persistent_workers': False,
                'default_hooks.checkpoint.interval': 3,
                'optim_wrapper.optimizer': dict(_delete_=True, type='SGD', lr=1e-4),  # larger steps amplify rounding
                'param_scheduler': None,
                **{f'model.{head}.dropout_ratio': 0 for head in heads},
            }
        )
        runner, losses, weights = Runner.from_cfg(config), {}, []
        step = runner.model.train_step

        def in_half_precision(*args, **options):
            with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
                return step(*args, **options)

        runner.model.train_step = in_half_precision

        class Recorder(Hook):
            def before_train(self, runner):
                weights.append(runner.model.decode_head.conv_seg.weight.detach().clone())

            def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
                losses[runner.iter + 1] = outputs['loss'].item()
                self.before_train(runner)

        runner.register_hook(Recorder())
        runner.train()
        assert ('loss_by_feat' in vars(runner.model.decode_head)) == bool(hooks)
        return losses, weights

    hook = dict(type='FusedLossHook')
    (plain, expected), (fused, found) = train('plain', []), train('fused', [hook])

    assert list(fused) == list(range(1, 6))
    assert fused == pytest.approx(plain, rel=0.02 if autocast else 0.01)  # rounding grows with every step
    assert fused[1] == pytest.approx(plain[1], rel=2e-3 if autocast else 1e-6)
    assert torch.equal(found[0], expected[0])
    # of the first step, since the batch norm of one pixel an image amplifies rounding in the next
    assert (found[1] - expected[1]).norm() < (1e-2 if autocast else 1e-4) * (expected[1] - expected[0]).norm()
    if not autocast:
        (tmp_path / 'fused/last_checkpoint').write_text(str(tmp_path / 'fused/iter_3.pth'))
        resumed, (start, *_) = train('fused', [hook], resume=True)
        assert list(resumed) == [4, 5]
        saved = torch.load(tmp_path / 'fused/iter_3.pth', weights_only=False)
        assert torch.equal(start, saved['state_dict']['decode_head.conv_seg.weight'])


@pytest.mark.parametrize('kept', [0, 10, 1000])
def test_hard_pixels_with_deterministic_algorithms(kept):
    generator = torch.Generator().manual_seed(0)
    nll, valid = torch.rand(2, 8, 8, generator=generator), torch.rand(2, 8, 8, generator=generator) < 0.5
    expected = built_in_losses.is_hard(nll, valid, kept, 0.6)

    torch.use_deterministic_algorithms(True)
    try:
        hard = built_in_losses.is_hard(nll, valid, kept, 0.6)
    finally:
        torch.use_deterministic_algorithms(False)

    assert torch.equal(hard, expected)
    assert 0 < hard.count_nonzero() <= valid.count_nonzero()
