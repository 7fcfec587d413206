"""Time a loss step, upsampling and accuracy included, with the built-in loss and with ours."""

import statistics
import time

import mmseg_wce  # noqa: F401  (makes the stack work on today's PyTorch)
import torch
from mmseg.models.losses import CrossEntropyLoss, accuracy
from mmseg.models.utils import resize
from mmseg_wce.functional import weighted_cross_entropy
from rich.progress import track

SHAPES = ((2, 150, 128, 512), (4, 10, 24, 192))  # N, C, size of the logits, size of the labels
ROUNDS = 7


def step(loss, logits: torch.Tensor, target: torch.Tensor) -> float:
    """Seconds of upsampling, loss, accuracy and backward, as ``BaseDecodeHead.loss_by_feat`` runs them."""
    logits = logits.clone().requires_grad_()
    start = time.perf_counter()
    full_size = resize(logits, size=target.shape[1:], mode='bilinear', align_corners=False)
    loss(full_size, target).backward()
    accuracy(full_size.detach(), target, ignore_index=255)
    return time.perf_counter() - start


def main() -> None:
    built_in = CrossEntropyLoss(avg_non_ignore=True)
    ways = {
        'built-in': lambda z, y: built_in(z, y, ignore_index=255),
        'mmseg_wce': weighted_cross_entropy,
        'mmseg_wce, weighted': lambda z, y: weighted_cross_entropy(z, y, torch.ones(z.shape[1])),
    }
    threads = torch.get_num_threads()
    print(f'torch {torch.__version__}, {threads} threads, float32, medians of {ROUNDS} interleaved rounds')
    for batch, classes, small, large in SHAPES:
        torch.manual_seed(0)
        logits = torch.randn(batch, classes, small, small)
        target = torch.randint(0, classes, (batch, large, large))
        target[torch.rand(target.shape) < 0.08] = 255
        times = {name: [] for name in ways}
        for i in track(range(ROUNDS + 1), f'N={batch} C={classes} {small} -> {large}', transient=True):
            for name, loss in ways.items():
                seconds = step(loss, logits, target)
                if i > 0:  # the first round warms up
                    times[name].append(seconds)
        base = statistics.median(times['built-in'])
        for name, seconds in times.items():
            middle = statistics.median(seconds)
            print(
                f'N={batch} C={classes} {small} -> {large}  {name:20} {middle:.3f} s '
                f'({min(seconds):.3f} to {max(seconds):.3f})  {middle / base:.2f} x built-in'
            )


if __name__ == '__main__':
    main()
