"""Extra peak memory of a benchmark step: of the allocator on CUDA, of a process made for it on CPU."""

import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from benchmark_predictions import Photo, Prediction
from benchmark_ways import Case, Step, TrainingStep

HAS_HIGH_WATER_MARK = Path('/proc/self/clear_refs').exists()


def extra_megabytes(way: str, case: Case | Photo | str, device: str, crop: int = 0) -> float | None:
    """Peak of a step above what was in use before, gradients included; None where it cannot be known.

    Args:
        way: of the benchmark.
        case: of the benchmark, a photo, or the name of a model for a training iteration.
        device: 'cpu' or 'cuda'.
        crop: of the training iteration.
    """
    if device == 'cuda':
        return _on_cuda(_step(way, case, device, crop))
    if not HAS_HIGH_WATER_MARK:
        return None
    question = dict(
        way=way,
        kind=type(case).__name__,
        case=case if isinstance(case, str) else asdict(case),
        crop=crop,
        threads=torch.get_num_threads(),
    )
    process = subprocess.run(
        [sys.executable, '-W', 'ignore', __file__],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def _step(way: str, case: Case | Photo | str, device: str, crop: int) -> Step | TrainingStep | Prediction:
    if isinstance(case, Photo):
        return Prediction(way, case, device)
    return TrainingStep(case, way, device, crop) if isinstance(case, str) else Step(way, case, device)


def _on_cuda(step: Step | TrainingStep | Prediction) -> float:
    step.run()
    step.clear()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step.run()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def resident(key: str) -> float:
    """MB of this process, by a line of its status: VmRSS now, VmHWM at most so far."""
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e6


def reset_high_water_mark() -> float:
    """MB in use, once what imports and compiling have freed went back: a step that fills it would seem small."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), 'malloc_trim', None):  # of glibc
        trim(0)
    before = resident('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')
    return before


def _answer() -> float:
    question = json.load(sys.stdin)
    torch.set_num_threads(question['threads'])
    way, case, crop = question['way'], question['case'], question['crop']
    # threads, code and caches of PyTorch are not the step's
    if isinstance(case, dict):
        case = {k: tuple(v) if isinstance(v, list) else v for k, v in case.items()}
        if question['kind'] == 'Photo':
            case = Photo(**case)
            small = Photo('warm-up', (8, 8), (32, 32), (64, 64), case.crop and (16, 16), case.stride and (16, 16))
        else:
            case = Case(**case)
            small = Case('warm-up', 1, 5, (8, 8), (32, 32), case.dtype, case.align_corners)
        warm_up = _step(way, small, 'cpu', crop)
        for _ in range(3):
            warm_up.run()
    step = _step(way, case, 'cpu', crop)
    before = reset_high_water_mark()
    step.run()
    return resident('VmHWM') - before


if __name__ == '__main__':
    print(json.dumps(_answer()))
