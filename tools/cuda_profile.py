"""The kernels of a step, from a trace of torch.profiler."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

PARTS = ('forward', 'backward')
ACTIVITIES = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
ON_DEVICE = ('kernel', 'gpu_memcpy', 'gpu_memset')


def profile_kernels(forward: Callable[[], object], backward: Callable[[], object], steps: int = 5) -> list[dict]:
    """Return the kernels, copies and fills of one step, the mean of several.

    Args:
        forward, backward: the two parts of a step, called in turn.
        steps: number of steps in the trace.

    Returns:
        As :func:`kernels_of_trace`; empty if the profiler saw none.
    """
    forward()
    backward()
    torch.cuda.synchronize()
    with profile(activities=ACTIVITIES) as profiler:
        for _ in range(steps):
            for name, part in zip(PARTS, (forward, backward), strict=True):
                with record_function(name):
                    part()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'trace.json')
        profiler.export_chrome_trace(str(path))
        return kernels_of_trace(json.loads(path.read_text(errors='replace'))['traceEvents'], steps)


def kernels_of_trace(events: list[dict], steps: int) -> list[dict]:
    """Return what ran on the device in the events of a trace, in the order of its first launches.

    Args:
        events: ``traceEvents`` of a Chrome trace.
        steps: number of steps in it.

    Returns:
        Name, part ('forward', 'backward' or '' if unknown), launches and microseconds per step, and the registers,
        grid and block of the first launch where the trace has them.
    """
    events = [event for event in events if event.get('ph') == 'X']
    spans = [
        (event['ts'], event['ts'] + event['dur'], event['name'])
        for event in events
        if event.get('cat') == 'user_annotation' and event['name'] in PARTS
    ]
    launched = {
        event['args']['correlation']: event['ts']
        for event in events
        if event.get('cat') in ('cuda_runtime', 'cuda_driver') and 'correlation' in event.get('args', {})
    }
    found = defaultdict(list)
    for event in sorted(events, key=lambda event: event['ts']):
        if event.get('cat') in ON_DEVICE:
            time = launched.get(event.get('args', {}).get('correlation'), -1)
            part = next((name for start, end, name in spans if start <= time <= end), '')
            found[part, event['name']].append(event)
    return [
        dict(
            part=part,
            name=name,
            launches=len(launches) / steps,
            microseconds=sum(event['dur'] for event in launches) / steps,
            **{
                key.split()[0]: launches[0]['args'][key]
                for key in ('registers per thread', 'grid', 'block')
                if key in launches[0].get('args', {})
            },
        )
        for (part, name), launches in found.items()
    ]
