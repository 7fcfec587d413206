import copy
import gc
import json
import logging
import os
import pickle
from types import SimpleNamespace

import mmseg_wce  # noqa: F401  (first: spawned processes import this file alone)
import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing as mp
import torch.nn.functional as F
from mmengine.dataset import RepeatDataset
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import BaseLoop, Runner
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg_wce.fused_heads import fuse_decode_heads
from mmseg_wce.hooks import class_tally
from mmseg_wce.hooks.class_tally import ClassFigures, ClassTally
from mmseg_wce.hooks.loss_monitor import LossMonitorHook
from mmseg_wce.hooks.nan_guard import LossHistory, finite_flags
from mmseg_wce.losses import ObservedPixels, WeightedCrossEntropyLoss
from photos import model_config

NAMES = ('road', 'wall', 'pole', 'kite')
WEIGHTS = [0.5, 1.0, 2.0, 4.0]
OURS = dict(type='WeightedCrossEntropyLoss', class_weight=WEIGHTS)


class Scenes(torch.utils.data.Dataset):
    """Noise with labels of the classes 0 to 2, and of 3 where that is asked; a tenth is ignored."""

    def __init__(self, size=8, num_classes=3, bad=()):
        self.metainfo = dict(classes=NAMES)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(size, 3, 16, 16, generator=generator) * 255
        self.labels = torch.randint(0, num_classes, (size, 1, 16, 16), generator=generator)
        self.labels[torch.rand(self.labels.shape, generator=generator) < 0.1] = 255
        for i in bad:
            self.images[i, 0, 3, 3] = torch.nan

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        sample = SegDataSample(gt_sem_seg=PixelData(data=self.labels[i]), metainfo=dict(img_path=f'scene_{i}.png'))
        return dict(inputs=self.images[i], data_samples=sample)


class Repeated(RepeatDataset):
    """mmengine's, of a data set that is no BaseDataset."""

    metainfo = dict(classes=NAMES)

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return 1000 * len(self.dataset)

    def __getitem__(self, i):
        return self.dataset[i % len(self.dataset)]


class Poison(Hook):
    """An update that overflowed."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            with torch.no_grad():
                next(runner.model.parameters()).view(-1)[0] = torch.inf


def runner_of(folder, dataset=None, loss=OURS, hooks=(), monitor=None, batch=2, iterations=4, **options) -> Runner:
    model = model_config()
    model.data_preprocessor.size = (16, 16)
    model.decode_head = dict(model.decode_head, loss_decode=loss) | options.pop('head', {})
    checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=100, max_keep_ckpts=1)
    checkpoint.update(options.pop('checkpoint', {}))
    backends = [dict(type=kind) for kind in options.pop('backends', ['LocalVisBackend'])]
    options.setdefault('train_cfg', dict(by_epoch=False, max_iters=iterations, val_interval=10**6))
    return Runner(
        model=model,
        work_dir=str(folder),
        default_scope='mmseg',
        randomness=dict(seed=0),
        train_dataloader=dict(
            batch_size=batch,
            num_workers=0,
            dataset=Scenes() if dataset is None else dataset,
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), **options.pop('wrapper', {})),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=2), checkpoint=checkpoint),
        custom_hooks=[dict(type='LossMonitorHook', **(monitor or {})), *hooks],
        visualizer=dict(type='SegLocalVisualizer', vis_backends=backends, name=str(folder)),
        experiment_name=str(folder).replace('/', '_'),
        **options,
    )


def scalars(folder) -> dict[int, dict[str, float]]:
    found: dict[int, dict] = {}
    for line in map(json.loads, next(folder.glob('*/vis_data/scalars.json')).read_text().splitlines()):
        if 'ignored' in line:
            found[line.pop('step')] = line
    return found


def said(folder) -> str:
    return next(folder.glob('*/*.log')).read_text()


def by_hand(logits, label, class_weight, pixel_weight=1.0, ignore_index=255, focal_gamma=0) -> ClassFigures:
    """The figures class by class, of full-size logits."""
    z = F.interpolate(logits.double(), size=label.shape[1:], mode='bilinear')
    log_p, best = z.log_softmax(1).numpy(), z.argmax(1).numpy()
    label, pixel_weight = label.numpy(), np.broadcast_to(pixel_weight, label.shape)
    num_classes = logits.shape[1]
    pixels, correct, nll = np.zeros((3, num_classes))
    for c in range(num_classes):
        of_class = (label == c) & (label != ignore_index)
        pixels[c] = of_class.sum()
        correct[c] = (best[of_class] == c).sum()
        of_label = log_p[:, c][of_class]
        nll[c] = -((1 - np.exp(of_label)) ** focal_gamma * of_label * pixel_weight[of_class]).sum()
    weighted = nll * np.array(class_weight)
    with np.errstate(invalid='ignore'):
        accuracy = correct / pixels
    ignored = (label == ignore_index).mean()
    return ClassFigures(pixels / pixels.sum(), accuracy, weighted / weighted.sum(), nll / nll.sum(), ignored)


def assert_same(found: ClassFigures, expected: ClassFigures) -> None:
    for name in vars(expected):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, err_msg=name)


def batch(num_classes=5, ignored=255):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, num_classes, 8, 8, generator=generator, dtype=torch.float64)
    label = torch.randint(0, num_classes - 1, (2, 30, 33), generator=generator)  # none of the last class
    label[torch.rand(label.shape, generator=generator) < 0.2] = ignored
    return logits.requires_grad_(), label, torch.rand(label.shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize('form', [{}, dict(label_smoothing=0.1), dict(focal_gamma=1.5)], ids=str)
@pytest.mark.parametrize('weighted', [True, False])
@pytest.mark.parametrize('ignored', [255, 2, -1])
def test_figures_by_hand(form, weighted, ignored):
    class_weight = [0.1, 3.0, 1.0, 0.3, 2.0]
    logits, label, pixel_weight = batch(ignored=ignored)
    options = dict(class_weight=class_weight, ignore_index=ignored, **form)
    plain, seen = WeightedCrossEntropyLoss(**options), WeightedCrossEntropyLoss(**options)
    tally = ClassTally(5, torch.device('cpu'))
    seen.observer = tally.add
    options = dict(weight=pixel_weight) if weighted else {}

    loss = seen(logits, label, **options)
    (gradient,) = torch.autograd.grad(loss, logits)

    expected = plain(logits, label, **options)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0], rtol=0, atol=0)
    figures = ClassFigures.from_sums(tally.sums.numpy())
    assert not tally.sums.requires_grad
    weight_of_pixels, focal_gamma = pixel_weight.numpy() if weighted else 1.0, form.get('focal_gamma', 0)
    assert_same(figures, by_hand(logits.detach(), label, class_weight, weight_of_pixels, ignored, focal_gamma))
    assert np.isnan(figures.accuracy[4])
    counts = torch.bincount(label[label != ignored], minlength=5)
    assert tally.sums[0].tolist() == [*counts.tolist(), (label == ignored).sum().item()]


def test_spread_over_many_bins_as_on_an_accelerator(monkeypatch):
    """The way of CUDA, where the device is pretended to be one."""
    logits, label, _ = batch()
    loss, sums = WeightedCrossEntropyLoss(class_weight=[1.0, 2, 3, 4, 5]), []
    loss.observer = lambda seen: sums.append(_sums_on(monkeypatch, seen))
    loss(logits, label)

    torch.testing.assert_close(sums[0][1], sums[0][0])


def _sums_on(monkeypatch, seen):
    here = class_tally._sum_pixels(seen, torch.float64)
    monkeypatch.setattr(class_tally, '_SERIAL_DEVICES', ())
    return here, class_tally._sum_pixels(seen, torch.float64)


def test_sums_do_not_depend_on_the_chunk_size(monkeypatch):
    logits, label, pixel_weight = batch()
    loss, sums = WeightedCrossEntropyLoss(), []
    for size in (10**6, 7):
        monkeypatch.setattr(class_tally, '_SERIAL_CHUNK', size)
        tally = ClassTally(5, torch.device('cpu'))
        loss.observer = tally.add
        loss(logits, label, weight=pixel_weight[:, :1])  # broadcast over rows
        sums.append(tally.sums)

    torch.testing.assert_close(sums[1], sums[0])


def test_figures_without_pixels_are_zero_or_nan():
    figures = ClassFigures.from_sums(np.zeros((4, 4)))

    assert figures.ignored == figures.pixels.sum() == figures.nll_share.sum() == 0
    assert np.isnan(figures.accuracy).all()


@pytest.mark.parametrize(
    ('loss', 'sampler'),
    [
        (OURS, None),
        (dict(OURS, label_smoothing=0.1), None),
        (dict(OURS, focal_gamma=2), None),
        ([dict(type='DiceLoss', loss_name='loss_dice'), OURS], None),
        (OURS, dict(type='OHEMPixelSampler', thresh=0.3, min_kept=50)),
        (OURS, dict(type='OHEMPixelSampler', min_kept=50)),  # ranks pixels by the loss itself
    ],
)
def test_fused_and_unfused_heads_are_seen_alike(loss, sampler):
    init_default_scope('mmseg')
    options = dict(in_channels=4, channels=4, num_classes=4, norm_cfg=None, align_corners=False, dropout_ratio=0)
    head = MODELS.build(dict(type='FCNHead', loss_decode=loss, sampler=sampler, **options)).double()
    label = torch.randint(0, 4, (2, 1, 32, 32))
    label[:, :, :3] = 255
    data = [SegDataSample(gt_sem_seg=PixelData(data=y)) for y in label]
    features = torch.randn(2, 4, 8, 8).double()

    found = []
    for fused in (False, True):
        one = copy.deepcopy(head)
        if fused:
            assert 'fused' in fuse_decode_heads(SimpleNamespace(decode_head=one))[0]
        tally = ClassTally(4, torch.device('cpu'))
        ours = one.loss_decode[-1] if isinstance(loss, list) else one.loss_decode
        ours.observer = tally.add
        one.loss([features], data, {})
        found.append(tally.sums)

    assert found[0][0].sum() == label.numel()
    torch.testing.assert_close(found[1], found[0])


def test_only_training_is_observed():
    logits, label, _ = batch()
    loss, calls = WeightedCrossEntropyLoss(), []
    loss.observer = calls.append

    with torch.no_grad():
        loss(logits, label)
    loss.eval()(logits, label)
    assert calls == []
    loss.train()(logits, label)
    assert len(calls) == 1


def test_nothing_waits_for_the_device():
    """Tensors on the device 'meta' have no values: whoever reads one, or makes a shape of one, raises."""
    meta = torch.device('meta')
    logits, label, pixel_weight = (x.detach().to(meta) for x in batch())
    tally, watch = ClassTally(5, meta), LossHistory()

    tally.add(ObservedPixels(label, logits.new_empty(label.shape), label > 0, pixel_weight, None, 5, 255))
    watch.record(1, logits.mean(), ['a.png'])
    bad = watch.num_bad(meta)

    with pytest.raises(RuntimeError, match='meta'):
        bad.item()
    assert finite_flags([logits, label]).shape == (2,)


def test_an_observed_loss_compiles_whole():
    logits, label, _ = batch()
    loss, tally = WeightedCrossEntropyLoss(), ClassTally(5, torch.device('cpu'))
    loss.observer = tally.add

    value = torch.compile(loss, fullgraph=True, backend='eager')(logits, label)

    compiled, expected = tally.sums.clone(), loss(logits, label)
    torch.testing.assert_close((value, 2 * compiled), (expected, tally.sums))


def test_an_observer_is_not_copied_pickled_or_saved():
    loss = WeightedCrossEntropyLoss(class_weight=WEIGHTS)
    loss.observer = lambda seen: None  # cannot be pickled
    expected = WeightedCrossEntropyLoss(class_weight=WEIGHTS)

    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert copied.observer is None
        assert vars(copied).keys() == vars(expected).keys()
        assert copied.class_weight.tolist() == WEIGHTS
    assert loss.state_dict() == {}


def test_labels_of_another_number_of_classes():
    logits, label, _ = batch()
    loss = WeightedCrossEntropyLoss()
    loss.observer = ClassTally(7, torch.device('cpu')).add

    with pytest.raises(ValueError, match='logits of 5 classes, its head has 7'):
        loss(logits, label)


def test_logging_points(tmp_path):
    """Each interval has figures of its own, on disk and in the log; the rest comes at the end."""
    seen = []
    runner = runner_of(tmp_path, iterations=5, batch=1)
    head = runner.model.decode_head
    by_feat = head.loss_by_feat
    head.loss_by_feat = lambda logits, data: (seen.append(logits.detach()), by_feat(logits, data))[1]

    runner.train()

    found = scalars(tmp_path)
    assert list(found) == [2, 4, 5]
    labels = Scenes().labels[:, 0]
    for step, indices in ((2, [0, 1]), (4, [2, 3]), (5, [4])):
        figures = by_hand(torch.cat([seen[i] for i in indices]), labels[indices], WEIGHTS)
        values = found[step]
        assert values['ignored'] == pytest.approx(figures.ignored, rel=1e-3)
        for i, name in enumerate(NAMES):
            assert values[f'pixels/{name}'] == pytest.approx(figures.pixels[i], rel=1e-3)
            assert values[f'nll_share/{name}'] == pytest.approx(figures.nll_share[i], rel=1e-3)
            if name != 'kite':
                assert values[f'acc/{name}'] == pytest.approx(figures.accuracy[i], rel=1e-3)
        assert 'acc/kite' not in values
        assert not any('loss' in key for key in values)
    assert '1 of 4 classes not seen yet' in said(tmp_path)
    assert head.loss_decode.observer is None


class Masks(Scenes):
    """Labels 0 and 1."""

    def __init__(self, names):
        super().__init__(num_classes=2)
        self.metainfo = dict(classes=names)


@pytest.mark.parametrize(
    ('names', 'expected'),
    [(('road', 'pole'), ('road', 'pole')), (('pole',), ('background', 'pole')), (('a', 'b', 'c'), ('0', '1'))],
)
@pytest.mark.parametrize('fused', [False, True])
@pytest.mark.parametrize('threshold', [None, 0.6])
def test_one_channel_has_two_classes(tmp_path, names, expected, fused, threshold):
    """Divided at the threshold of the head, which is 0.3 unless the config says otherwise."""
    loss = dict(type='WeightedCrossEntropyLoss', use_sigmoid=True, class_weight=[0.5, 4.0])
    head = dict(num_classes=2, out_channels=1, threshold=threshold)
    hooks = [dict(type='FusedLossHook')] if fused else []
    runner = runner_of(tmp_path, Masks(names), loss, hooks, head=head, iterations=2, batch=1)
    seen, forward = [], runner.model.decode_head.forward
    runner.model.decode_head.forward = lambda features: seen.append(forward(features)) or seen[-1]

    runner.train()

    z = F.interpolate(torch.cat(seen).detach(), size=(16, 16), mode='bilinear').squeeze(1)
    label = Masks(names).labels[:2, 0]
    predicted = (z.sigmoid() > (threshold or 0.3)).long()
    two = by_hand(torch.stack([torch.zeros_like(z), z], 1), label, [0.5, 4.0])  # a softmax of (0, z)
    values = scalars(tmp_path)[2]
    for i, name in enumerate(expected):
        assert values[f'pixels/{name}'] == pytest.approx(two.pixels[i], rel=1e-3)
        assert values[f'nll_share/{name}'] == pytest.approx(two.nll_share[i], rel=1e-3)
        right = (predicted[label == i] == i).double().mean().item()
        assert values[f'acc/{name}'] == pytest.approx(right, rel=1e-3)
    assert runner.model.decode_head.loss_decode.observer is None


def test_sigmoids_of_many_channels(tmp_path):
    """The loss of a pixel is the weighted sum over its channels."""
    loss = dict(type='WeightedCrossEntropyLoss', use_sigmoid=True, class_weight=WEIGHTS)
    runner = runner_of(tmp_path, loss=loss, iterations=2, batch=1)
    seen, forward = [], runner.model.decode_head.forward
    runner.model.decode_head.forward = lambda features: seen.append(forward(features)) or seen[-1]

    runner.train()

    z, label = F.interpolate(torch.cat(seen).detach(), size=(16, 16), mode='bilinear'), Scenes().labels[:2, 0]
    one_hot = torch.stack([label == c for c in range(4)], 1).float()
    pos_weight = torch.tensor(WEIGHTS).view(4, 1, 1)
    elements = F.binary_cross_entropy_with_logits(z, one_hot, pos_weight=pos_weight, reduction='none').sum(1)
    shares = torch.stack([elements[label == c].sum() for c in range(4)])
    values = scalars(tmp_path)[2]
    for name, share in zip(NAMES, shares / shares.sum(), strict=True):
        assert values[f'nll_share/{name}'] == pytest.approx(share.item(), rel=1e-3)


def test_tensorboard(tmp_path):
    loader = pytest.importorskip('tensorboard.backend.event_processing.event_file_loader')

    runner_of(tmp_path, backends=['LocalVisBackend', 'TensorboardVisBackend']).train()

    (file,) = tmp_path.glob('*/vis_data/events*')
    events = [
        (e.step, v.tag, v.tensor.float_val[0])
        for e in loader.EventFileLoader(str(file)).Load()
        for v in e.summary.value
        if v.tensor.float_val
    ]
    expected = {(step, key): value for step, line in scalars(tmp_path).items() for key, value in line.items()}
    found = {(step, tag): value for step, tag, value in events if (step, tag) in expected}
    assert len(expected) == 2 * (1 + 3 * 4 - 1)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize('by_epoch', [False, True])
@pytest.mark.parametrize('kind', ['image', 'update'])
@pytest.mark.parametrize('iteration', [3, 4])
def test_the_last_good_checkpoint_stays(tmp_path, by_epoch, kind, iteration):
    """Checkpoints are due every 2 iterations, or every epoch of 2; iteration 4 is one of these, or the next is."""
    dataset = Scenes(4 if by_epoch else 16, bad=[2 * iteration - 1] if kind == 'image' and not by_epoch else ())
    hooks = [Poison(iteration)] if kind == 'update' else []
    if kind == 'image' and by_epoch:
        hooks = [BadImage(iteration)]
    length = dict(train_cfg=dict(by_epoch=True, max_epochs=4)) if by_epoch else dict(iterations=8)
    options = dict(checkpoint=dict(by_epoch=by_epoch, interval=1 if by_epoch else 2), monitor=dict(interval=100))
    runner = runner_of(tmp_path, dataset, hooks=hooks, **length, **options)

    with pytest.raises(FloatingPointError) as caught:
        runner.train()

    good = 'epoch_1.pth' if by_epoch else 'iter_2.pth'
    assert [file.name for file in tmp_path.glob('*.pth')] == [good]
    assert (tmp_path / 'last_checkpoint').read_text().endswith(good)
    state = torch.load(tmp_path / good, weights_only=False)['state_dict']
    assert all(value.isfinite().all() for value in state.values())
    message = str(caught.value)
    (config,) = tmp_path.glob('*.py')
    command = f'python tools/train.py {config} --resume-from {tmp_path / good}'
    assert f'the last good one is {tmp_path / good}. Go on from it: {command}' in message
    path = 2 * iteration - 2 - (4 if by_epoch else 0)
    images = f'scene_{path}.png, scene_{path + 1}.png.'
    if kind == 'image':
        assert f'The loss of iteration {iteration} is not finite: nan on rank 0. Its images: {images}' in message
    elif iteration == 4:
        start = 'Parameters are not finite after iteration 4, though every loss was: backbone.convolution.weight.'
        assert f'{start} The images of that iteration: {images}' in message
    else:  # the next loss shows it, and the images of the update come next
        assert 'The loss of iteration 4 is not finite' in message
        assert f'iteration 4 backwards: {images}' in message
    assert runner.model.decode_head.loss_decode.observer is None


class BadImage(Hook):
    """An image that goes bad in one epoch only."""

    def __init__(self, iteration):
        self.iteration = iteration

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.iteration:
            data_batch['inputs'][1] = torch.full_like(data_batch['inputs'][1], torch.nan)


@pytest.mark.parametrize('batches_a_step', [1, 3])
def test_a_bad_loss_is_found_at_the_next_logging_point(tmp_path, batches_a_step):
    wrapper = dict(type='OptimWrapper', accumulative_counts=batches_a_step)
    runner = runner_of(tmp_path, Scenes(16, bad=[4]), monitor=dict(interval=4), wrapper=wrapper, iterations=8)

    with pytest.raises(FloatingPointError, match=r'iteration 3 .* Its images: scene_4.png, scene_5.png') as caught:
        runner.train()

    assert runner.iter + 1 == 4
    others = 'scene_2.png, scene_3.png, scene_0.png, scene_1.png, scene_6.png, scene_7.png.'
    assert f'iteration 3 backwards: {others}' in str(caught.value)
    assert 'this run had written none before' in str(caught.value)


def test_the_last_iterations_are_checked_too(tmp_path):
    options = dict(checkpoint=dict(interval=100, save_last=False), monitor=dict(interval=100))

    with pytest.raises(FloatingPointError, match='iteration 4 is not finite'):
        runner_of(tmp_path, Scenes(8, bad=[7]), **options).train()


def test_parameters_are_checked_before_validation(tmp_path):
    """A best checkpoint would be written after it."""
    runner = runner_of(tmp_path, hooks=[Poison(3)], monitor=dict(interval=100), iterations=8)
    validated = []
    runner._train_loop = runner.build_train_loop(dict(by_epoch=False, max_iters=8, val_interval=3))

    class Validation(BaseLoop):
        def run(self):
            runner.call_hook('before_val')
            validated.append(runner.iter)

    runner._val_loop = Validation(runner, runner._train_dataloader)

    with pytest.raises(FloatingPointError, match='Parameters are not finite after iteration 3'):
        runner.train()

    assert validated == []


def test_validation_without_training_does_nothing(tmp_path):
    runner = runner_of(tmp_path)

    runner.call_hook('before_val')


def test_a_checkpoint_hook_that_comes_first_is_refused(tmp_path):
    with pytest.raises(ValueError, match='a CheckpointHook acts before this hook'):
        runner_of(tmp_path, monitor=dict(priority='LOWEST')).train()


@pytest.mark.parametrize('interval', [0, -1, 2.5, True])
def test_intervals_that_cannot_be_meant(interval):
    with pytest.raises(ValueError, match='positive number of iterations'):
        LossMonitorHook(interval)


@pytest.mark.parametrize(
    ('dataset', 'iterations', 'warned'),
    [
        (Scenes(8), 4, True),
        (Scenes(8), 3, False),  # not all samples yet
        (Scenes(8, num_classes=4), 4, False),
        (Repeated(Scenes(4)), 4, True),
    ],
)
def test_a_class_without_pixels_is_warned_of(tmp_path, dataset, iterations, warned):
    runner_of(tmp_path, dataset, monitor=dict(interval=1), iterations=iterations).train()

    words = 'no pixel of 1 of 4 classes was seen: kite'
    assert said(tmp_path).count(words) == warned


@pytest.mark.parametrize(
    ('class_weight', 'num_classes', 'warned'),
    [
        ([1.0, 1.0, 50.0, 1.0], 4, ['pole']),
        ([1.0, 1.0, 2.0, 1.0], 4, []),
        ([1.0, 1.0, 50.0, 1.0], 1, []),  # one class has it all, with or without weights
        (None, 4, []),
    ],
)
def test_steep_class_weights_are_warned_of(tmp_path, class_weight, num_classes, warned):
    loss = dict(OURS, class_weight=class_weight)
    runner_of(tmp_path, Scenes(num_classes=num_classes), loss, wrapper=dict(), monitor=dict(interval=1)).train()

    lines = [line for line in said(tmp_path).splitlines() if 'The class weights are steep' in line]
    assert [line.split('LossMonitorHook: ')[1].split()[0] for line in lines] == warned


def test_a_model_without_the_loss(tmp_path):
    loss = dict(type='CrossEntropyLoss', avg_non_ignore=True)

    runner_of(tmp_path / 'good', loss=loss).train()
    with pytest.raises(FloatingPointError, match='iteration 2 is not finite'):
        runner_of(tmp_path / 'bad', Scenes(bad=[3]), loss=loss).train()

    assert 'decode_head has no WeightedCrossEntropyLoss' in said(tmp_path / 'good')
    assert scalars(tmp_path / 'good') == {}


def test_names_are_numbers_where_the_data_set_has_none(tmp_path):
    dataset = Scenes()
    dataset.metainfo = dict(classes=('road', 'wall'))  # of another head

    runner_of(tmp_path, dataset).train()

    assert 'acc/2' in scalars(tmp_path)[2]


def rank_main(rank, folder, bad) -> None:
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    os.environ['LOCAL_RANK'] = str(rank)  # mmengine reads it, also on CPU
    train_on_rank(f'{folder}/two', Scenes(num_classes=4))
    try:
        train_on_rank(f'{folder}/bad', Scenes(bad=bad))
    except FloatingPointError as error:
        with open(f'{folder}/error_{rank}', 'w') as file:
            file.write(str(error))
    gc.collect()  # what still holds the process group would outlive it, with its threads
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def train_on_rank(folder, dataset) -> None:
    wrapper = dict(type='MMDistributedDataParallel', device_ids=None)
    options = dict(launcher='pytorch', cfg=dict(model_wrapper_cfg=wrapper))
    runner_of(folder, dataset, iterations=2, **options).train()


def test_two_ranks_give_the_figures_of_one_batch(tmp_path):
    """Rank r has the images r, r + 2, ...: figures as on one, and a bad loss on rank 1 stops both."""
    dataset = Scenes(num_classes=4)
    runner_of(tmp_path / 'one', dataset, batch=4, iterations=2).train()

    mp.spawn(rank_main, (str(tmp_path), (5,)), nprocs=2)

    found, expected = scalars(tmp_path / 'two'), scalars(tmp_path / 'one')
    assert list(found) == list(expected) == [2]
    assert found[2] == pytest.approx(expected[2], rel=1e-3)
    messages = [(tmp_path / f'error_{rank}').read_text() for rank in (0, 1)]
    assert messages[0] == messages[1]
    assert 'iteration 2 is not finite: nan on rank 1. Its images: scene_5.png, scene_7.png.' in messages[0]
    assert 'backwards: scene_4.png, scene_6.png, scene_0.png, scene_2.png, scene_1.png' in messages[0]
    assert not list((tmp_path / 'bad').glob('*.pth'))
