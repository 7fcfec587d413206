"""Two real processes (gloo): the gradient that DDP averages is that of the whole batch on one device."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

CLASS_WEIGHT = [0.1, 3.0, 0.0, 1.0]
STEPS = 3


def crops() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of very unequal weight; the second half of the batch is nearly, then entirely, ignored."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(STEPS, 4, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (STEPS, 4, 8, 8), generator=generator)
    labels[0, 2:, 1:] = 255
    labels[1:, 2:] = 255
    return images, labels


def train(model: nn.Module, loss: nn.Module, share: slice) -> list[torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for images, labels in zip(*crops(), strict=True):
        optimizer.zero_grad()
        loss(model(images[share]), labels[share]).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def model_and_loss(arguments: dict) -> tuple[nn.Module, nn.Module]:
    import mmseg_wce  # noqa: F401
    from mmseg_wce.losses import WeightedCrossEntropyLoss

    torch.manual_seed(0)
    return nn.Conv2d(3, 4, 3, padding=1).double(), WeightedCrossEntropyLoss(**arguments)


def bad_calls() -> list[tuple[dict, torch.Tensor, torch.Tensor, type[Exception], str]]:
    """Arguments, logits, label, and the error that one process alone gives too."""
    logits, label = torch.randn(1, 4, 2, 2, requires_grad=True), torch.zeros(1, 2, 2).long()
    return [
        (dict(class_weight=[1.0, 2.0, 3.0]), logits, label, ValueError, '4 channels'),
        (dict(), logits[:, :1], label, ValueError, 'out_channels=2'),
        (dict(), logits, label.float(), TypeError, 'integer dtype'),
        (dict(), logits, label.unsqueeze(-1).expand(1, 2, 2, 3), ValueError, 'colour channels'),
        (dict(), logits, label + 7, ValueError, r'7 \(4 px\)'),
    ]


def special_calls(normalize: bool) -> torch.Tensor:
    """What must not depend on the other ranks, and what must be finite though nothing counts anywhere."""
    from mmseg_wce.losses import WeightedCrossEntropyLoss

    torch.manual_seed(0)
    logits, label = torch.randn(1, 4, 2, 2, requires_grad=True), torch.randint(0, 4, (1, 2, 2))
    weight = torch.rand(1, 2, 2)
    loss = WeightedCrossEntropyLoss(class_weight=CLASS_WEIGHT, loss_weight=0.4, sync_normalizer=normalize)
    ignored = loss(logits, torch.full_like(label, 255))
    ignored.backward()
    return torch.stack(
        [
            loss(logits, label, weight=weight),  # the same on both ranks: so is the mean
            loss(logits, label, avg_factor=3.0),
            loss(logits, label, reduction_override='sum'),
            loss(logits, label, reduction_override='none').sum(),
            loss(logits.detach(), label),
            ignored,
            logits.grad.abs().sum(),
        ]
    )


def special_main(rank: int, folder: str) -> None:
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    import mmseg_wce  # noqa: F401
    from mmseg_wce.losses import WeightedCrossEntropyLoss

    torch.save(special_calls(True).detach(), f'{folder}/special_{rank}.pt')
    for arguments, logits, label, error, words in bad_calls():
        with pytest.raises(error, match=words):
            WeightedCrossEntropyLoss(**arguments)(logits, label)
    if rank == 0:  # without gradient nothing is averaged: the other rank does not take part
        WeightedCrossEntropyLoss()(torch.randn(1, 4, 2, 2), torch.zeros(1, 2, 2).long())
    dist.barrier()
    dist.destroy_process_group()


def test_calls_that_are_those_of_one_process(tmp_path):
    mp.spawn(special_main, (str(tmp_path),), nprocs=2)

    expected = special_calls(False).detach()
    for rank in (0, 1):
        torch.testing.assert_close(torch.load(tmp_path / f'special_{rank}.pt'), expected)


def rank_main(rank: int, folder: str, arguments: dict) -> None:
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=2)
    model, loss = model_and_loss(arguments)
    trained = train(DistributedDataParallel(model), loss, slice(2 * rank, 2 * rank + 2))
    with torch.no_grad():
        if rank == 0:  # a collective here would hang: the other rank does not take part
            loss(model(crops()[0][0]), crops()[1][0])
            torch.save(trained, f'{folder}/trained.pt')
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize('normalize_by', ['class_weight', 'valid', 'all'])
def test_two_ranks_train_like_one(tmp_path, normalize_by):
    arguments = dict(class_weight=CLASS_WEIGHT, normalize_by=normalize_by, label_smoothing=0.1)
    expected = train(*model_and_loss(arguments), slice(None))

    mp.spawn(rank_main, (str(tmp_path), arguments), nprocs=2)

    torch.testing.assert_close(torch.load(tmp_path / 'trained.pt'), expected, rtol=1e-10, atol=1e-12)


def test_without_synchronisation_they_do_not(tmp_path):
    arguments = dict(class_weight=CLASS_WEIGHT, sync_normalizer=False)
    expected = train(*model_and_loss(arguments), slice(None))

    mp.spawn(rank_main, (str(tmp_path), arguments), nprocs=2)

    different = torch.load(tmp_path / 'trained.pt')
    assert max((a - b).abs().max() for a, b in zip(different, expected, strict=True)) > 1e-2
