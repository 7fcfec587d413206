"""The loss of the full-size logits that mmseg keeps, in float64 and over all pixels at once, is the oracle."""

import copy
import math
import os
import re
from multiprocessing import set_forkserver_preload

import mmseg_wce  # noqa: F401  (first: spawned processes import this file alone)
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.hub import get_config
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.decode_heads import PointHead
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_wce.fused_heads.predict_hook import add_validation_loss, fuse_predict
from mmseg_wce.validation_loss import ValidationLoss, loss_terms
from photos import model_config, runner_of
from tiny_segmentor import tiny_segmentor

WEIGHTS = [0.1, 3.0, 1.0, 0.3]
OURS = dict(type='WeightedCrossEntropyLoss', class_weight=WEIGHTS)
BUILT_IN = dict(type='CrossEntropyLoss', use_sigmoid=False)
DICE = dict(type='DiceLoss', loss_name='loss_dice')
EVALUATOR = [dict(type='IoUMetric', iou_metrics=['mIoU']), dict(type='ValidationLoss')]
WHOLE, SLIDE = dict(mode='whole'), dict(mode='slide', crop_size=(32, 40), stride=(20, 27))


def segmentor(loss, test_cfg=WHOLE, one_channel=False):
    model = tiny_segmentor(loss, one_channel=one_channel).float().eval()
    model.test_cfg = ConfigDict(test_cfg)
    return model


def validation_set(labels=4, ignored=255):
    """Images, and samples with labels of the photos' sizes, which all differ."""
    generator = torch.Generator().manual_seed(0)
    data = []
    for i, size in enumerate([(50, 70), (48, 64), (31, 20), (133, 97)]):
        label = torch.randint(0, labels, (1, *size), generator=generator)
        label[torch.rand(label.shape, generator=generator) < 0.2 * i] = ignored
        meta = dict(img_shape=(48, 64), pad_shape=(48, 64), ori_shape=size, padding_size=[0, i, 2 * i, 0])
        meta |= dict(flip=i % 2 == 1, flip_direction='horizontal', seg_map_path=f'labels/{i}.png')
        sample = SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=label))
        data.append((torch.randn(1, 3, 48, 64, generator=generator), sample))
    return data


@torch.no_grad()
def full_size_logits(model, data):
    """Logits and labels of each image as mmseg keeps them; of one channel before the sigmoid."""
    found = []
    for image, sample in data:
        (predicted,) = model.predict(image, [copy.deepcopy(sample)])
        logits = predicted.seg_logits.data.double()
        found.append((logits.logit() if len(logits) == 1 else logits, sample.gt_sem_seg.data[0]))
    return found


@torch.no_grad()
def validation_loss(model, data):
    model = copy.deepcopy(model)
    fuse_predict(model)
    add_validation_loss(model)
    metric = ValidationLoss()
    for image, sample in data:
        metric.process({}, [one.to_dict() for one in model.predict(image, [copy.deepcopy(sample)])])
    return metric.evaluate(len(data))


def softmax_loss(logits_and_labels, weight=None, smoothing=0.0, by='class_weight'):
    """Compute the loss of all pixels at once, from ``F.cross_entropy`` of sums."""
    weight = None if weight is None else torch.tensor(weight, dtype=torch.float64)
    options = dict(weight=weight, ignore_index=255, label_smoothing=smoothing, reduction='sum')
    total = sum(F.cross_entropy(z.unsqueeze(0), y.unsqueeze(0), **options) for z, y in logits_and_labels)
    labels = torch.cat([y.flatten() for _, y in logits_and_labels])
    valid = labels[labels != 255]
    if by == 'class_weight' and weight is not None:
        return (total / weight[valid].sum()).item()
    return (total / dict(class_weight=len(valid), valid=len(valid), all=len(labels), sum=1)[by]).item()


@pytest.mark.parametrize('test_cfg', [WHOLE, SLIDE])
@pytest.mark.parametrize(
    ('loss', 'expected'),
    [
        (dict(type='WeightedCrossEntropyLoss'), dict()),
        (OURS, dict(weight=WEIGHTS)),
        (dict(OURS, normalize_by='valid'), dict(weight=WEIGHTS, by='valid')),
        (dict(OURS, normalize_by='all'), dict(weight=WEIGHTS, by='all')),
        (dict(OURS, reduction='sum'), dict(weight=WEIGHTS, by='sum')),
        (dict(OURS, label_smoothing=0.1), dict(weight=WEIGHTS, smoothing=0.1)),
        (dict(OURS, class_weight=None, label_smoothing=0.3), dict(smoothing=0.3)),
        (BUILT_IN, dict(by='all')),
        (dict(BUILT_IN, avg_non_ignore=True), dict()),
        (dict(BUILT_IN, avg_non_ignore=True, class_weight=WEIGHTS), dict(weight=WEIGHTS)),
        (dict(type='OhemCrossEntropy', class_weight=WEIGHTS), dict(weight=WEIGHTS, by='valid')),
    ],
)
def test_softmax_losses_of_all_pixels(test_cfg, loss, expected):
    model, data = segmentor(loss, test_cfg), validation_set()

    (found,) = validation_loss(model, data).items()

    name = 'val/loss_ohem' if loss['type'].startswith('Ohem') else 'val/loss_ce'
    assert found == (name, pytest.approx(softmax_loss(full_size_logits(model, data), **expected), rel=1e-6))


@pytest.mark.parametrize('test_cfg', [WHOLE, SLIDE])
@pytest.mark.parametrize(
    ('loss', 'one_channel', 'pos_weight', 'by'),
    [
        (dict(type='WeightedCrossEntropyLoss', use_sigmoid=True), False, None, 'valid'),
        (dict(OURS, use_sigmoid=True), False, WEIGHTS, 'valid'),
        (dict(OURS, use_sigmoid=True, normalize_by='all'), False, WEIGHTS, 'all'),
        (dict(type='WeightedCrossEntropyLoss', use_sigmoid=True, class_weight=3.0), True, [3.0], 'valid'),
        (dict(type='CrossEntropyLoss', use_sigmoid=True), False, None, 'all'),
        (dict(type='CrossEntropyLoss', use_sigmoid=True, avg_non_ignore=True), True, None, 'valid'),
    ],
)
def test_sigmoid_losses_of_all_pixels(test_cfg, loss, one_channel, pos_weight, by):
    model, data = segmentor(loss, test_cfg, one_channel), validation_set(labels=2 if one_channel else 4)

    found = validation_loss(model, data)

    pos_weight = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float64)
    total = number = 0
    for logits, label in full_size_logits(model, data):
        z, y = logits.flatten(1).T, label.flatten()
        target = (y.unsqueeze(1) == (torch.tensor([1]) if one_channel else torch.arange(4))).double()
        losses = F.binary_cross_entropy_with_logits(z, target, pos_weight=pos_weight, reduction='none')[y != 255]
        total += losses.sum().item()
        number += losses.numel() if by == 'valid' else z.numel()
    assert found == {'val/loss_ce': pytest.approx(total / number, rel=1e-5 if one_channel else 1e-6)}


def test_terms_of_one_name_are_added_and_others_are_left_out():
    losses = [OURS, dict(BUILT_IN, avg_non_ignore=True), dict(BUILT_IN, loss_name='loss_second'), DICE]
    model, data = segmentor(losses), validation_set()

    terms, left_out = loss_terms(model.decode_head)

    assert [term.name for term in terms] == ['loss_ce', 'loss_ce', 'loss_second']
    assert left_out == ['loss_dice (a DiceLoss)']
    logits = full_size_logits(model, data)
    assert validation_loss(model, data) == {
        'val/loss_ce': pytest.approx(softmax_loss(logits, WEIGHTS) + softmax_loss(logits), rel=1e-6),
        'val/loss_second': pytest.approx(softmax_loss(logits, by='all'), rel=1e-6),
    }


def test_loss_weight_counts():
    model, data = segmentor(OURS), validation_set()
    model.decode_head.loss_decode[0].loss_weight = 0.4

    assert validation_loss(model, data)['val/loss_ce'] == pytest.approx(
        0.4 * softmax_loss(full_size_logits(model, data), WEIGHTS), rel=1e-6
    )


def head_of(kind, losses, **options):
    init_default_scope('mmseg')
    options = dict(in_channels=8, channels=8, num_classes=4, norm_cfg=dict(type='BN'), loss_decode=losses) | options
    return MODELS.build(dict(type=kind, **options))


ONLY_TRAINING = 'needs a branch or labels that exist only in training'
OTHER_NUMBER = 'loss_ce (class_weight must hold one weight for each of the 4 channels'
THREE_INPUTS = dict(in_channels=[8, 8, 8], in_index=[0, 1, 2])
OHEM, BOUNDARY = dict(type='OhemCrossEntropy'), dict(type='BoundaryLoss')


@pytest.mark.parametrize(
    ('kind', 'losses', 'options', 'names', 'left_out'),
    [
        (
            'PIDHead',
            [BUILT_IN, OHEM, BOUNDARY, OHEM],
            dict(),
            ['loss_ohem'],
            [
                f'loss_{name} (loss_decode[{i}] {ONLY_TRAINING})'
                for i, name in ((0, 'ce'), (2, 'boundary'), (3, 'ohem'))
            ],
        ),
        ('DDRHead', [OURS, OHEM], dict(), ['loss_ce'], [f'loss_ohem (loss_decode[1] {ONLY_TRAINING})']),
        ('FCNHead', DICE, dict(), [], ['loss_dice (a DiceLoss)']),
        ('EncHead', BUILT_IN, THREE_INPUTS, ['loss_ce'], ['the loss of semantic encoding']),
        ('FCNHead', dict(BUILT_IN, class_weight=[1.0, -1.0, 1.0, 1.0]), dict(), [], ['loss_ce (class_weight']),
        ('FCNHead', dict(BUILT_IN, use_mask=True), dict(), [], ['loss_ce (a CrossEntropyLoss with use_mask)']),
        ('FCNHead', dict(BUILT_IN, class_weight=[1.0, 2.0, 3.0]), dict(), [], [OTHER_NUMBER]),
        ('FCNHead', dict(OURS, class_weight=[1.0, 2.0, 3.0]), dict(), [], [OTHER_NUMBER]),
        (
            'FCNHead',
            dict(OURS, use_sigmoid=True, normalize_by='class_weight', class_weight=[1.0, 2.0]),
            dict(),
            [],
            ['loss_ce (class_weight must hold one number for all channels'],
        ),
    ],
)
def test_terms_of_the_loss_and_what_is_left_out(kind, losses, options, names, left_out):
    terms, found = loss_terms(head_of(kind, losses, **options))

    assert [term.name for term in terms] == names
    assert [line[: len(start)] for line, start in zip(found, left_out, strict=True)] == left_out


def test_heads_that_compute_their_loss_in_their_own_way_have_none():
    head = head_of('FCNHead', BUILT_IN)
    head.__class__ = PointHead  # the fork cannot build one without compiled mmcv

    assert loss_terms(head) == ([], ['PointHead overrides loss_by_feat'])


def test_knets_validation_loss_is_that_of_its_stages():
    init_default_scope('mmseg')
    config = get_config('mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py').model.decode_head
    config.kernel_generate_head.loss_decode = dict(OURS, class_weight=[1.0] * 150)

    (term,), left_out = loss_terms(MODELS.build(config))

    assert (term.name, term.normalize_by, len(term.class_weight), left_out) == ('loss_ce', 'class_weight', 150, [])


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr('mmseg_wce.validation_loss.print_log', lambda message, **options: found.append(message))
    return found


def with_17(labels):
    labels = labels.clone()
    labels[0, 3, 5] = 17
    return labels


@pytest.mark.parametrize(
    ('image', 'change', 'words'),
    [
        (1, with_17, ['1 of 3072 pixels ', 'labels need num_classes=18']),
        (
            0,
            lambda _: torch.zeros(1, 48, 64).long(),
            [
                'its labels are (1, 48, 64), the prediction (50, 70). In a test pipeline LoadAnnotations must come '
                'after Resize'
            ],
        ),
        (1, torch.Tensor.float, ['its labels are torch.float32, not integers']),
        (1, torch.Tensor.bool, ['its labels are torch.bool, not integers']),
    ],
)
def test_labels_that_cannot_be_used_leave_the_image_out(warnings, image, change, words):
    model, data = segmentor(OURS), validation_set()
    sample = data[image][1]
    sample.gt_sem_seg = PixelData(data=change(sample.gt_sem_seg.data))

    found = validation_loss(model, data)

    assert found == pytest.approx(validation_loss(model, [*data[:image], *data[image + 1 :]]))
    (message,) = warnings
    assert message.startswith(f'ValidationLoss: labels/{image}.png is left out: {words[0]}')
    assert words[-1] in message


def test_nothing_is_logged_without_labels_and_nan_without_a_pixel_that_counts():
    model, data = segmentor(OURS), validation_set()
    unlabelled = [(image, SegDataSample(metainfo=sample.metainfo)) for image, sample in data]
    assert validation_loss(model, unlabelled) == {}

    for _, sample in data:
        sample.gt_sem_seg.data.fill_(255)
    assert validation_loss(model, data) == {'val/loss_ce': pytest.approx(math.nan, nan_ok=True)}


def test_ignored_pixels_count_nothing_where_logits_are_nan():
    model, data = segmentor(OURS), validation_set()[:1]
    expected = validation_loss(model, data)
    image, sample = data[0]
    image[..., -1] = torch.nan
    sample.gt_sem_seg.data[..., -40:] = 255
    labelled = copy.deepcopy(sample)

    found = validation_loss(model, [(image, labelled)])

    assert found['val/loss_ce'] == pytest.approx(expected['val/loss_ce'], rel=0.5)


def test_in_tensorboard_and_for_the_best_checkpoint(tmp_path):
    loader = pytest.importorskip('tensorboard.backend.event_processing.event_file_loader')
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2, save_best='val/loss_ce', rule='less')
    backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
    runner = runner_of(
        tmp_path,
        val_evaluator=EVALUATOR,
        default_hooks=dict(checkpoint=checkpoint, logger=dict(type='LoggerHook', log_metric_by_epoch=False)),
        visualizer=dict(type='SegLocalVisualizer', vis_backends=backends, name=str(tmp_path)),
    )

    runner.train()

    (file,) = tmp_path.glob('*/vis_data/events*')
    logged = {
        e.step: v.tensor.float_val[0]
        for e in loader.EventFileLoader(str(file)).Load()
        for v in e.summary.value
        if v.tag == 'val/loss_ce'
    }
    assert set(logged) == {2, 4}
    fuse_predict(runner.model, keep_logits=True)
    samples = [sample for batch in runner.val_dataloader for sample in runner.model.val_step(batch)]
    logits = [(sample.seg_logits.data.double(), sample.gt_sem_seg.data[0]) for sample in samples]
    assert logged[4] == pytest.approx(softmax_loss(logits, WEIGHTS), rel=1e-6)
    assert logged[4] != logged[2]
    assert list(tmp_path.glob('best_val_loss_ce_iter_*.pth'))
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert 'FusedPredictHook: full-size logits are not built' in text
    assert text.count('ValidationLoss: logs val/loss_ce, the loss on the validation set') == 1


def logged(folder) -> list[float]:
    return [float(x) for x in re.findall(r'val/loss_ce: (\d+\.\d+)', next(folder.glob('*/*.log')).read_text())]


def test_every_validation_computes_and_logs_its_own_value(tmp_path):
    runner = runner_of(tmp_path, val_evaluator=EVALUATOR)
    found = [runner.val()['val/loss_ce']]
    with torch.no_grad():
        for parameter in runner.model.parameters():
            parameter.mul_(5)
    found += [runner.val()['val/loss_ce'], runner.val()['val/loss_ce']]

    assert found[1] > 1.1 * found[0]
    assert found[2] == found[1]
    assert logged(tmp_path) == pytest.approx(found, abs=1e-4)
    runner.train()
    assert len(logged(tmp_path)) == 5
    assert logged(tmp_path)[3] != logged(tmp_path)[4]


def test_labels_that_are_all_wrong_do_not_stop_a_training_that_saves_the_best(tmp_path):
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2, save_best='val/loss_ce', rule='less')
    runner = runner_of(tmp_path, val_evaluator=EVALUATOR, default_hooks=dict(checkpoint=checkpoint))
    for i in range(5):
        runner.val_dataloader.dataset.bad.add(i)

    runner.train()

    assert math.isnan(runner.message_hub.get_scalar('val/val/loss_ce').current())
    text = next(tmp_path.glob('*/*.log')).read_text()
    assert text.count('0.jpg is left out') == 1  # in two validations
    assert text.count('5 images are left out of this validation') == 1
    assert not list(tmp_path.glob('best_*'))


LOGGER = dict(type='LoggerHook', interval=2)


def test_progress_of_a_later_validation_shows_no_earlier_value(tmp_path):
    runner = runner_of(tmp_path, val_evaluator=EVALUATOR, default_hooks=dict(logger=LOGGER))
    runner.val()
    runner.val()

    lines = next(tmp_path.glob('*/*.log')).read_text().splitlines()
    assert [line for line in lines if re.search(r'\[[24]/5\]', line)]
    assert not [line for line in lines if re.search(r'\[[24]/5\]', line) and 'val/loss_ce' in line]


@pytest.mark.parametrize(('loss', 'logs'), [(DICE, 'nothing'), (dict(type='OhemCrossEntropy'), 'val/loss_ohem')])
def test_a_best_checkpoint_by_a_loss_that_is_not_logged_is_refused_before_the_training(tmp_path, loss, logs):
    model = model_config()
    model.decode_head.loss_decode = loss
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2, save_best='val/loss_ce', rule='less')
    runner = runner_of(tmp_path, model=model, val_evaluator=EVALUATOR, default_hooks=dict(checkpoint=checkpoint))

    with pytest.raises(ValueError, match=f"save_best='val/loss_ce' of CheckpointHook .* logs {logs} for this model"):
        runner.train()

    assert runner.iter == 0


def test_the_log_names_what_is_left_out(tmp_path):
    model = model_config()
    model.decode_head.loss_decode = [OURS, DICE]
    model.auxiliary_head = model.decode_head.copy()

    runner_of(tmp_path, model=model, val_evaluator=EVALUATOR).val()

    assert (
        'ValidationLoss: logs val/loss_ce, the loss on the validation set; left out: loss_dice (a DiceLoss); '
        'left out: auxiliary heads'
    ) in next(tmp_path.glob('*/*.log')).read_text()


def test_without_the_hook_it_says_what_is_missing(tmp_path):
    runner = runner_of(tmp_path, val_evaluator=EVALUATOR, custom_hooks=[])

    assert 'val/loss_ce' not in runner.val()

    text = next(tmp_path.glob('*/*.log')).read_text()
    assert "ValidationLoss: there is nothing to log: add dict(type='FusedPredictHook') to custom_hooks" in text


def run_rank(rank, world, folder):
    torch.set_num_threads(1)
    if world > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
        dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=world)
    options = {}
    if world > 1:
        wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
        options = dict(launcher='pytorch', cfg=dict(model_wrapper_cfg=wrapper))
    runner = runner_of(f'{folder}/{world}', val_evaluator=EVALUATOR, **options)
    runner.val_dataloader.dataset.bad.add(1)  # of the second of two ranks
    metrics = runner.val()
    if rank == 0:
        torch.save(metrics, f'{folder}/{world}.pt')
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def test_one_and_two_ranks_agree_on_an_odd_number_of_images(tmp_path):
    set_forkserver_preload([__name__])  # imported once for both
    mp.start_processes(run_rank, (2, str(tmp_path)), nprocs=2, start_method='forkserver')
    run_rank(0, 1, str(tmp_path))

    one, two = (torch.load(tmp_path / f'{world}.pt') for world in (1, 2))

    assert two == one
    assert one['val/loss_ce'] > 0
    for world in '12':
        log = next((tmp_path / world).glob('*/*.log')).read_text()
        assert log.count('is left out') == 1
        assert '1.jpg is left out' in log
