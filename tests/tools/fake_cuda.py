"""A stand-in for ``torch.cuda`` where there is none: the processor does the work, events read its clock.

Capturing a graph fails, as it does for a function that cannot be captured. The memory is always the same.
"""

import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch

PEAK, BEFORE = 7_000_000, 2_000_000


class Event:
    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: 'Event') -> float:
        return 1e3 * (end.time - self.time)


@contextmanager
def refused_graph(graph: object):
    yield
    raise RuntimeError('no graphs here\nsecond line')


def install(put: Callable[[object, str, object], None] = setattr) -> None:
    """Replace what the benchmark uses of ``torch.cuda``; ``put`` may be monkeypatch.setattr."""
    properties = SimpleNamespace(multi_processor_count=1, L2_cache_size=1 << 20)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    replaced = dict(
        is_available=lambda: True,
        synchronize=lambda: None,
        empty_cache=lambda: None,
        reset_peak_memory_stats=lambda: None,
        memory_allocated=lambda: BEFORE,
        max_memory_allocated=lambda: PEAK,
        mem_get_info=lambda: (1 << 20, 1 << 20),
        get_device_properties=lambda: properties,
        get_device_name=lambda: 'none',
        get_sync_debug_mode=lambda: 0,
        set_sync_debug_mode=lambda mode: None,
        Event=Event,
        Stream=lambda: stream,
        current_stream=lambda: stream,
        set_stream=lambda stream: None,
        stream=lambda stream: nullcontext(),
        CUDAGraph=lambda: SimpleNamespace(replay=None),
        graph=refused_graph,
    )
    for name, value in replaced.items():
        put(torch.cuda, name, value)
