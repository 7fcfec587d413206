"""Time of functions on a machine that others may share: they run in turn, and the first round only warms up."""

import statistics
import time
from collections.abc import Callable, Hashable

import torch


def seconds(function: Callable[[], object], device: str = 'cpu') -> float:
    """Return the duration of one call, until the device has finished."""
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def median_seconds(function: Callable[[], object], rounds: int, device: str = 'cpu') -> float:
    """Return the median duration, after one call to warm up."""
    return statistics.median([seconds(function, device) for _ in range(rounds + 1)][1:])


def interleaved(
    functions: dict[Hashable, Callable[[], object]], rounds: int, title: str, device: str = 'cpu'
) -> dict[Hashable, list[float]]:
    """Return the seconds of each function, which run in turn, after one round to warm up."""
    from rich.progress import track  # not needed by the benchmark on CUDA

    times = {name: [] for name in functions}
    for _ in track(range(rounds + 1), title, transient=True):
        for name, function in functions.items():
            times[name].append(seconds(function, device))
    return {name: values[1:] for name, values in times.items()}


def summary(values: list[float]) -> dict[str, float]:
    """Return median and range."""
    return dict(median=statistics.median(values), min=min(values), max=max(values))
