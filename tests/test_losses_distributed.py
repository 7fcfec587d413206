"""Real processes (gloo): the gradient that is averaged over ranks is that of the whole batch on one device.

All that a number of processes does is done in one start of them, because starting them is what takes the time.
"""

import itertools
from functools import partial
from multiprocessing import set_forkserver_preload

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmseg_wce.fused_heads import fuse_decode_heads
from mmseg_wce.losses import WeightedCrossEntropyLoss
from tiny_segmentor import NUM_CLASSES, tiny_batch, tiny_segmentor
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

WORLDS = (1, 2, 4)
STEPS, BATCH, LAST_BATCH = 3, 8, 5
CLASS_WEIGHT = [0.1, 3.0, 0.0, 1.0]
OURS = dict(type='WeightedCrossEntropyLoss', class_weight=CLASS_WEIGHT)
ONE = dict(type='WeightedCrossEntropyLoss', use_sigmoid=True, class_weight=[0.5, 4.0])
# fused or not, as they come; hard pixels are those below a probability, wherever the others are
SEGMENTORS = {
    'class_weight': dict(loss=OURS),
    'class_weight, fused': dict(loss=OURS, fused=True),
    'valid, fused, smoothing': dict(loss=dict(OURS, normalize_by='valid', label_smoothing=0.1), fused=True),
    'valid': dict(loss=dict(OURS, normalize_by='valid')),
    'all, smoothing': dict(loss=dict(OURS, normalize_by='all', label_smoothing=0.1)),
    'no weights, fused': dict(loss=dict(type='WeightedCrossEntropyLoss'), fused=True),
    'hard pixels': dict(loss=OURS, sampler=dict(type='OHEMPixelSampler', thresh=0.3, min_kept=2)),
    'hard pixels, fused': dict(loss=OURS, sampler=dict(type='OHEMPixelSampler', thresh=0.3, min_kept=2), fused=True),
    'sigmoids': dict(loss=dict(OURS, use_sigmoid=True)),
    'sigmoids, fused': dict(loss=dict(OURS, use_sigmoid=True), fused=True),
    'sigmoids, all': dict(loss=dict(OURS, use_sigmoid=True, normalize_by='all')),
    'one channel': dict(loss=dict(ONE, class_weight=3.0), one_channel=True),
    'one channel, class_weight, fused': dict(loss=dict(ONE, normalize_by='class_weight'), one_channel=True, fused=True),
    'unused parameters': dict(loss=OURS, unused=True),
    'two losses a head, fused': dict(loss=[OURS, dict(OURS, loss_name='loss_valid', normalize_by='valid')], fused=True),
    'built-in': dict(loss=dict(type='CrossEntropyLoss', avg_non_ignore=True)),
    'not synchronised': dict(loss=dict(OURS, sync_normalizer=False)),
}
EXACT = [name for name in SEGMENTORS if name not in ('built-in', 'not synchronised')]


def batches(empty: bool = False) -> list[list[tuple[Tensor, Tensor]]]:
    """Images and labels of every step and rank, of four ranks; of very unequal weight.

    In the first step one rank has few pixels that count, in the second one has none, and the last batch is smaller.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(STEPS, BATCH, 3, 16, 20, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, NUM_CLASSES, (STEPS, BATCH, 16, 20), generator=generator)
    labels[0, 4:, 2:] = 255
    labels[1, 4:] = 255
    sizes = [[2, 2, 2, 2], [2, 2, 2, 2], [3, 0, 1, 1] if empty else [2, 1, 1, 1]]
    return [
        list(zip(x[: sum(n)].split(n), y[: sum(n)].split(n), strict=True))
        for x, y, n in zip(images, labels, sizes, strict=True)
    ]


def share(step: list[tuple[Tensor, Tensor]], rank: int, world: int) -> tuple[Tensor, Tensor]:
    """Return the part of a batch on a rank: the first of two ranks has that of the first two of four."""
    each = len(step) // world
    images, labels = zip(*step[rank * each : (rank + 1) * each], strict=True)
    return torch.cat(images), torch.cat(labels)


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)


def weights_of(model: nn.Module) -> list[Tensor]:
    whole = (p.full_tensor() if hasattr(p, 'full_tensor') else p for p in model.parameters())
    return [p.detach().clone() for p in whole]


def train_segmentor(options: dict, rank: int = 0, world: int = 1) -> tuple[list[Tensor], list[float]]:
    """Three steps of ``train_step``, as a Runner makes them: all weights, and the losses that are logged."""
    options = dict(options)
    fused = options.pop('fused', False)
    model = tiny_segmentor(**options)
    if fused:
        assert all(line.endswith('fused') for line in fuse_decode_heads(model))
    optimizer = OptimWrapper(optimizer_of(model))
    stepped = model
    if dist.is_initialized():
        stepped = MMDistributedDataParallel(model, find_unused_parameters=options.get('unused', False))
    logged = []
    for step in batches():
        images, labels = share(step, rank, world)
        labels = labels.where(labels == 255, labels % 2) if options.get('one_channel') else labels
        outputs = stepped.train_step(tiny_batch(images, labels), optimizer)
        logged.append(outputs['loss'].item())
    return weights_of(model), logged


def train_plain(wrap, rank: int = 0, world: int = 1) -> list[Tensor]:
    """PyTorch alone, where a rank may have no image at all."""
    torch.manual_seed(0)
    model = wrap(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, NUM_CLASSES, 1)).double())
    loss, optimizer = WeightedCrossEntropyLoss(class_weight=CLASS_WEIGHT), optimizer_of(model)
    for step in batches(empty=True):
        images, labels = share(step, rank, world)
        optimizer.zero_grad()
        loss(model(images), labels).backward()
        optimizer.step()
    return weights_of(model)


def sharded(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh('cpu', (dist.get_world_size(),))
    for layer in model:
        if list(layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def bad_calls() -> list[tuple[dict, Tensor, Tensor, type[Exception], str]]:
    """Arguments, logits, label, and the error that one process alone gives too."""
    logits, label = torch.randn(1, 4, 2, 2, requires_grad=True), torch.zeros(1, 2, 2).long()
    return [
        (dict(class_weight=[1.0, 2.0, 3.0]), logits, label, ValueError, '4 channels'),
        (dict(), logits[:, :1], label, ValueError, 'out_channels=2'),
        (dict(), logits, label.float(), TypeError, 'integer dtype'),
        (dict(), logits, label.unsqueeze(-1).expand(1, 2, 2, 3), ValueError, 'colour channels'),
        (dict(), logits, label + 7, ValueError, r'7 \(4 px\)'),
        (dict(use_sigmoid=True), logits[:, :1], label + 2, ValueError, r'2 \(4 px\)'),
        (dict(use_sigmoid=True, class_weight=[1.0, 2.0]), logits, label, ValueError, 'each of the 4 channels'),
    ]


def special_calls(normalize: bool, use_sigmoid: bool = False) -> Tensor:
    """Return values that must not depend on other ranks, or be finite although all pixels are ignored."""
    torch.manual_seed(0)
    logits, label = torch.randn(1, 4, 2, 2, requires_grad=True), torch.randint(0, 4, (1, 2, 2))
    weight = torch.rand(1, 2, 2)
    options = dict(class_weight=CLASS_WEIGHT, use_sigmoid=use_sigmoid, sync_normalizer=normalize)
    loss = WeightedCrossEntropyLoss(loss_weight=0.4, **options)
    ignored = loss(logits, torch.full_like(label, 255))
    ignored.backward()
    return torch.stack(
        [
            loss(logits, label, weight=weight),  # the same on all ranks: so is the mean
            loss(logits, label, avg_factor=3.0),
            loss(logits, label, reduction_override='sum'),
            loss(logits, label, reduction_override='none').sum(),
            loss(logits.detach(), label),
            ignored,
            logits.grad.abs().sum(),
        ]
    ).detach()


def number_of_collectives(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a call of the loss sends something, and that it does so before the logits are read."""
    from mmseg_wce import pixel_batch
    from mmseg_wce.fused_heads import head_losses

    sent, all_reduce = [], dist.all_reduce
    logits, label = torch.randn(1, 4, 4, 4, requires_grad=True), torch.randint(0, 4, (1, 4, 4))
    weights = dict(class_weight=CLASS_WEIGHT)

    def counted(number: Tensor, **options):
        assert options == dict(async_op=True)
        assert number.shape == ()
        sent.append('denominator')
        return all_reduce(number, **options)

    def swept(function, *args, **options):
        sent.append('sweep')
        return function(*args, **options)

    def calls(*args, arguments=weights, grad=True, **options) -> list[str]:
        sent.clear()
        with torch.set_grad_enabled(grad):
            WeightedCrossEntropyLoss(**arguments)(*args, **options)
        return list(sent)

    with monkeypatch.context() as patch:
        patch.setattr(pixel_batch.dist, 'all_reduce', counted)
        for module, name in itertools.product((pixel_batch, head_losses), ('sweep_softmax', 'sweep_sigmoid')):
            patch.setattr(module, name, partial(swept, getattr(module, name)))
        sigmoid = dict(weights, use_sigmoid=True)
        found = dict(
            mean=calls(logits, label),
            sigmoid_mean=calls(logits, label, arguments=sigmoid),
            sigmoid_avg_factor=calls(logits, label, arguments=sigmoid, avg_factor=2.0),
            sigmoid_sum=calls(logits, label, arguments=sigmoid, reduction_override='sum'),
            avg_factor=calls(logits, label, avg_factor=2.0),
            sum=calls(logits, label, reduction_override='sum'),
            none=calls(logits, label, reduction_override='none'),
            no_grad=calls(logits, label, grad=False),
            off=calls(logits, label, arguments=dict(weights, sync_normalizer=False)),
        )
        for name, loss in (('fused', OURS), ('sigmoid_fused', dict(OURS, use_sigmoid=True))):
            model = tiny_segmentor(loss)
            fuse_decode_heads(model)
            images, labels = share(batches()[0], 0, 1)
            sent.clear()
            model(**tiny_batch(images, labels), mode='loss')
            found[name] = list(sent)
        return found


def rank_main(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=world)
    results = {name: train_segmentor(options, rank, world) for name, options in SEGMENTORS.items()}
    results['plain'] = train_plain(DistributedDataParallel, rank, world)
    results['fully_shard'] = train_plain(sharded, rank, world)
    results['special'] = torch.stack([special_calls(True, use_sigmoid) for use_sigmoid in (False, True)])
    results['collectives'] = number_of_collectives(pytest.MonkeyPatch())
    for arguments, logits, label, error, words in bad_calls():
        with pytest.raises(error, match=words):
            WeightedCrossEntropyLoss(**arguments)(logits, label)
    if rank == 0:  # without gradient nothing is averaged: the other ranks do not take part
        WeightedCrossEntropyLoss()(torch.randn(1, 4, 2, 2), torch.zeros(1, 2, 2).long())
    torch.save(results, f'{folder}/rank_{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> dict[int, list[dict]]:
    """For each number of processes, what each of them has to tell."""
    set_forkserver_preload([__name__])  # imported once for all of them
    found = {}
    for world in WORLDS:
        folder = str(tmp_path_factory.mktemp(f'world_{world}'))
        mp.start_processes(rank_main, (world, folder), nprocs=world, start_method='forkserver')
        found[world] = [torch.load(f'{folder}/rank_{rank}.pt') for rank in range(world)]
    return found


def largest_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize('world', WORLDS)
@pytest.mark.parametrize('name', EXACT)
def test_a_segmentor_trains_as_in_one_process(trained, world, name):
    expected, logged = train_segmentor(SEGMENTORS[name])
    untrained = weights_of(tiny_segmentor(SEGMENTORS[name]['loss'], one_channel='one_channel' in SEGMENTORS[name]))

    for rank in range(world):
        torch.testing.assert_close(trained[world][rank][name][0], expected, rtol=1e-10, atol=1e-12)
    of_ranks = torch.tensor([trained[world][rank][name][1] for rank in range(world)])
    torch.testing.assert_close(of_ranks.mean(0), torch.tensor(logged), rtol=1e-6, atol=1e-8)
    if 'unused' not in name:
        assert largest_difference(expected, untrained) > 0.1  # it did train


@pytest.mark.parametrize('world', WORLDS)
@pytest.mark.parametrize('wrapper', ['plain', 'fully_shard'])
def test_pytorch_alone_trains_as_in_one_process(trained, world, wrapper):
    expected = train_plain(lambda model: model)

    for rank in range(world):
        torch.testing.assert_close(trained[world][rank][wrapper], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('name', ['built-in', 'not synchronised'])
def test_without_one_denominator_for_all_ranks_training_differs(trained, name):
    """After three steps of these batches, which are unequal on purpose, by a good part of all that was learnt."""
    expected, _ = train_segmentor(SEGMENTORS[name])
    learnt = largest_difference(expected, weights_of(tiny_segmentor(SEGMENTORS[name]['loss'])))

    assert largest_difference(trained[1][0][name][0], expected) < 1e-10
    for world in (2, 4):
        assert largest_difference(trained[world][0][name][0], expected) > 0.1 * learnt


@pytest.mark.parametrize('world', WORLDS)
def test_calls_that_are_those_of_one_process(trained, world):
    expected = torch.stack([special_calls(False, use_sigmoid) for use_sigmoid in (False, True)])

    for rank in range(world):
        torch.testing.assert_close(trained[world][rank]['special'], expected)


@pytest.mark.parametrize('world', WORLDS)
def test_one_number_travels_before_the_logits_are_read(trained, world):
    one = ['denominator'] * (world > 1)

    for rank in range(world):
        found = trained[world][rank]['collectives']
        for name in ('mean', 'sigmoid_mean'):
            assert found.pop(name) == [*one, 'sweep']
        for name in ('fused', 'sigmoid_fused'):
            assert found.pop(name) == [*one, 'sweep'] * 3
        assert set(map(tuple, found.values())) == {('sweep',)}


def gradient(loss: nn.Module | dict, shares: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Mean over ranks of each one's gradient, which is what DistributedDataParallel makes of them."""
    torch.manual_seed(0)
    model = nn.Conv2d(3, NUM_CLASSES, 1).double()
    gradients = [torch.autograd.grad(loss(model(images), labels), model.weight)[0] for images, labels in shares]
    return torch.stack(gradients).mean(0)


def test_a_rank_that_is_all_ignored_halves_the_built_in_gradient():
    from mmseg.models.losses import CrossEntropyLoss

    shares = [share(batches()[1], rank, 2) for rank in range(2)]
    whole = [share(batches()[1], 0, 1)]
    loss = partial(CrossEntropyLoss(avg_non_ignore=True), ignore_index=255)

    torch.testing.assert_close(gradient(loss, shares), gradient(loss, whole) / 2)


@pytest.mark.parametrize('normalize_by', ['class_weight', 'valid', 'all'])
def test_gradient_accumulation(normalize_by):
    """Exact for 'all'; elsewhere a mean of means, which here loses half of the step."""
    loss = dict(OURS, normalize_by=normalize_by)
    halves = [share(batches()[1], rank, 2) for rank in range(2)]  # the second is all ignored
    whole = [share(batches()[1], 0, 1)]

    def train(parts: list[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        model = tiny_segmentor(loss)
        before = weights_of(model)
        optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), accumulative_counts=len(parts))
        optimizer.initialize_count_status(model, 0, len(parts))
        for part in parts:
            model.train_step(tiny_batch(*part), optimizer)
        return weights_of(model), before

    (accumulated, before), (expected, _) = train(halves), train(whole)

    relative = largest_difference(accumulated, expected) / largest_difference(before, expected)
    assert relative == pytest.approx(0.0 if normalize_by == 'all' else 0.5, abs=1e-10)
