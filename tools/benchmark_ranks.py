"""Measure the cost of the exact gradient on several ranks (gloo processes on this machine), and the error without it.

Times the loss step with and without ``sync_normalizer``, in turn, and the all-reduce of one number. With --camvid also
prints how much the denominators of random crops differ between ranks: DDP's average of gradients is wrong by that much.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import set_random_seed
from mmseg.registry import DATASETS
from mmseg_wce.functional import normalizer
from mmseg_wce.losses import WeightedCrossEntropyLoss
from rich.progress import track

ROOT = Path(__file__).resolve().parent.parent
CAMVID_CONFIG = ROOT / 'configs' / 'camvid' / 'fast_scnn_1xb8-wce-4k_camvid-352x480.py'
CLASSES, CROP = 150, 256


def seconds(function: Callable[[], object]) -> float:
    """Return the duration of one call on the slowest rank; all ranks start together."""
    dist.barrier()
    start = time.perf_counter()
    function()
    elapsed = torch.tensor(time.perf_counter() - start)
    dist.all_reduce(elapsed, dist.ReduceOp.MAX)
    return elapsed.item()


def measure(rank: int, world: int, folder: str, rounds: int) -> None:
    """Time the steps on one rank; rank 0 writes ``times.json``."""
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/rendezvous', rank=rank, world_size=world)
    torch.manual_seed(rank)
    logits = torch.randn(1, CLASSES, CROP // 4, CROP // 4, requires_grad=True)
    label, number = torch.randint(0, CLASSES, (1, CROP, CROP)), torch.ones(())
    weights = torch.linspace(0.5, 2, CLASSES).tolist()
    losses = {sync: WeightedCrossEntropyLoss(class_weight=weights, sync_normalizer=sync) for sync in (False, True)}

    def step(synchronised: bool) -> None:
        losses[synchronised](logits, label).backward()
        logits.grad = None

    times = []
    for _ in range(rounds + 1):
        times.append(
            dict(
                plain=seconds(lambda: step(False)),
                synchronised=seconds(lambda: step(True)),
                again=seconds(lambda: step(False)),
                alone=statistics.median(seconds(lambda: dist.all_reduce(number)) for _ in range(20)),
            )
        )
    if rank == 0:
        Path(folder, 'times.json').write_text(json.dumps(times[1:]))
    dist.barrier()
    dist.destroy_process_group()


def report_times(world: int, rounds: int) -> None:
    """Print the medians of a measurement with ``world`` processes."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (world, folder, rounds), nprocs=world)
        measured = json.loads(Path(folder, 'times.json').read_text())
    plain, alone = (statistics.median(times[key] for times in measured) for key in ('plain', 'alone'))
    synchronised, again = (
        statistics.median(t[key] / t['plain'] for t in measured) for key in ('synchronised', 'again')
    )
    print(
        f'{world} processes: loss step {1e3 * plain:.1f} ms; with the common denominator {synchronised:.3f} times '
        f'that, without it once more {again:.3f}; the sum of one number alone {1e3 * alone:.2f} ms'
    )


def report_denominators(camvid: Path, images: int, draws: int) -> None:
    """Print the spread of the denominators of random crops, as the config augments them."""
    init_default_scope('mmseg')
    set_random_seed(0)
    config = Config.fromfile(CAMVID_CONFIG)
    config.train_dataloader.dataset.data_root = str(camvid)
    weight = torch.tensor(config.class_weight)
    dataset = DATASETS.build(config.train_dataloader.dataset)
    indices = torch.randint(0, len(dataset), (draws * images,)).tolist()
    logits = torch.empty(1, len(weight), 1, 1)  # only its shape counts
    sums = {normalize_by: [] for normalize_by in ('class_weight', 'valid')}
    for i in track(indices, 'Crops of CamVid', transient=True):
        label = dataset[i]['data_samples'].gt_sem_seg.data
        for normalize_by, values in sums.items():
            values.append(normalizer(logits, label, weight, normalize_by=normalize_by).item())
    for normalize_by, values in sums.items():
        per_rank = torch.tensor(values).view(draws, images).sum(1)
        relative = per_rank / per_rank.mean()
        low, high = relative.quantile(torch.tensor([0.05, 0.95])).tolist()
        print(
            f"'{normalize_by}', {images} crops a rank: denominators from {relative.min():.2f} to {relative.max():.2f} "
            f'times their mean, nine of ten from {low:.2f} to {high:.2f}'
        )


def main(arguments: list[str] | None = None) -> None:
    """Measure with each number of processes, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--processes', type=int, nargs='+', default=[2, 4], help='numbers of ranks [%(default)s]')
    parser.add_argument('--rounds', type=int, default=30, help='interleaved rounds [%(default)s]')
    parser.add_argument('--camvid', type=Path, help='folder of CamVid, for the denominators of real crops')
    parser.add_argument('--images', type=int, default=2, help='crops a rank [%(default)s]')
    parser.add_argument('--draws', type=int, default=100, help='random draws of that many crops [%(default)s]')
    args = parser.parse_args(arguments)
    for world in args.processes:
        report_times(world, args.rounds)
    if args.camvid is not None:
        report_denominators(args.camvid, args.images, args.draws)


if __name__ == '__main__':
    sys.exit(main())
