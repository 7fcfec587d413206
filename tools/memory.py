"""Extra peak memory of a benchmark step: from the allocator on CUDA, from a separate process on CPU."""

import ctypes
import gc
import pickle
import subprocess
import sys
from pathlib import Path

import torch
from benchmark_cases import Case
from benchmark_implementations import Step
from benchmark_predictions import Photo, Prediction
from benchmark_training import TrainingStep
from cuda_timing import peak_megabytes

HAS_HIGH_WATER_MARK = Path('/proc/self/clear_refs').exists()


def extra_megabytes(implementation: str, case: Case | Photo | str, device: str, crop: int = 0) -> float | None:
    """Return the extra peak memory in MB of a loss step, a prediction, or an iteration of the model with this name.

    None on CPU where the system cannot reset the peak (all but Linux).
    """
    if device == 'cuda':
        step = _build_step(implementation, case, device, crop)
        return peak_megabytes(step.run, step.clear)
    if not HAS_HIGH_WATER_MARK:
        return None
    request = pickle.dumps((implementation, case, crop, torch.get_num_threads()))
    command = [sys.executable, '-W', 'ignore', __file__]
    return float(subprocess.run(command, input=request, capture_output=True, check=True).stdout.splitlines()[-1])


def _build_step(implementation: str, case: Case | Photo | str, device: str, crop: int) -> Step | Prediction:
    if isinstance(case, Photo):
        return Prediction(implementation, case, device)
    if isinstance(case, str):
        return TrainingStep(case, implementation, device, crop)
    return Step(implementation, case, device)


def resident(key: str) -> float:
    """Return the resident memory of this process in MB: now for the key 'VmRSS', its peak for 'VmHWM'."""
    line = next(line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024 / 1e6


def reset_high_water_mark() -> float:
    """Start a new measurement of the peak; return the memory in use in MB."""
    # give back what imports and compilation have freed: a step that reuses it would seem to need less
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), 'malloc_trim', None):  # glibc only
        trim(0)
    before = resident('VmRSS')
    Path('/proc/self/clear_refs').write_text('5')
    return before


def _measure_request() -> float:
    implementation, case, crop, threads = pickle.load(sys.stdin.buffer)
    torch.set_num_threads(threads)
    # a warm-up step: PyTorch's threads, code and caches do not count for the measured one
    if not isinstance(case, str):
        if isinstance(case, Photo):
            small = Photo('warm-up', (8, 8), (32, 32), (64, 64), case.crop and (16, 16), case.stride and (16, 16))
        else:
            small = Case('warm-up', 1, 5, (8, 8), (32, 32), case.dtype, case.align_corners)
        warm_up = _build_step(implementation, small, 'cpu', crop)
        for _ in range(3):
            warm_up.run()
    step = _build_step(implementation, case, 'cpu', crop)
    before = reset_high_water_mark()
    step.run()
    return resident('VmHWM') - before


if __name__ == '__main__':
    print(_measure_request())
