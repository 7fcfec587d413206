"""Time and memory on a CUDA device: replays of a captured graph, or many calls queued between two events."""

import gc
import math
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch

SAMPLE_SECONDS = 0.03
MIN_CALLS, MAX_CALLS = 5, 500
_CLOCKS = ('clocks.sm', 'clocks.max.sm', 'clocks.mem', 'temperature.gpu', 'power.draw', 'driver_version')


@dataclass(frozen=True)
class DeviceTimer:
    """Measure the device time of a function.

    Attributes:
        run: a replay of the function's graph, or the function itself.
        calls: number of calls in one sample.
        method: 'graph' or 'events'.
        why_events: the reason that there is no graph; None if there is one.
    """

    run: Callable[[], object]
    calls: int
    method: str
    why_events: str | None = None

    def sample(self) -> float:
        """Return the seconds of one call on the device, the mean of ``calls`` of them."""
        return _seconds_per_call(self.run, self.calls)


def device_timer(function: Callable[[], object]) -> DeviceTimer:
    """Return a timer for a function that has run before: with a graph where it can be captured, otherwise with events.

    A function that waits for the device is not captured: capturing it would fail, and a capture that fails leaves the
    memory allocator in a state of its own.
    """
    run, method, why_events = function, 'events', 'it waits for the device' if _waits_for_device(function) else None
    if why_events is None:
        try:
            run, method = capture(function), 'graph'
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            why_events = f'it cannot be captured: {first_line(error)}'
    seconds = _seconds_per_call(run, MIN_CALLS)
    calls = min(max(math.ceil(SAMPLE_SECONDS / max(seconds, 1e-9)), MIN_CALLS), MAX_CALLS)
    return DeviceTimer(run, calls, method, why_events)


def capture(function: Callable[[], object]) -> Callable[[], None]:
    """Capture a function in a CUDA graph; return what replays it."""
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            function()
    finally:
        torch.cuda.set_stream(current)  # a capture that failed leaves its own
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay


def peak_megabytes(run: Callable[[], object], clear: Callable[[], object] = lambda: None) -> float:
    """Return the peak of the memory that a call allocates, in MB; ``clear`` frees what an earlier call has left."""
    run()
    clear()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def clocks_under_load(load: Callable[[], object]) -> dict[str, str] | str:
    """Return what nvidia-smi reports while ``load`` runs again and again, or why it reports nothing."""
    uuid = getattr(torch.cuda.get_device_properties(), 'uuid', None)
    device = '0' if uuid is None else f'GPU-{uuid}'
    command = ['nvidia-smi', '-i', device, f'--query-gpu={",".join(_CLOCKS)}', '--format=csv,noheader']
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            while process.poll() is None:
                load()
                torch.cuda.synchronize()
            output = process.stdout.read().strip()
    except OSError as error:
        return f'not measured: {error}'
    values = output.split(', ')
    if process.returncode or len(values) != len(_CLOCKS):
        return f'not measured: {" ".join(output.split())}'
    return dict(zip(_CLOCKS, values, strict=True))


def first_line(error: BaseException) -> str:
    """Return the type and the first line of an error, and no more than 200 characters of them."""
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[0]}'[:200]


def _waits_for_device(function: Callable[[], object]) -> bool:
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode('error')
    try:
        function()
    except RuntimeError as error:
        if 'synchroniz' not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return False


def _seconds_per_call(run: Callable[[], object], calls: int) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    run()  # keeps the device busy until the calls that count are queued
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def release_memory() -> None:
    """Give the memory of deleted graphs and tensors back to the device, unless an error has stopped it."""
    gc.collect()
    with suppress(RuntimeError):
        torch.cuda.empty_cache()
