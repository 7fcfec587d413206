"""Run the benchmark of CUDA on a CPU, on tiny sizes, with torch, Triton and NumPy alone, with the tool's arguments."""

import os
import sys
from dataclasses import replace
from pathlib import Path

BLOCKED = ('mmseg', 'mmengine', 'mmcv', 'rich', 'matplotlib', 'PIL', 'cv2', 'numba', 'liger_kernel', 'yaml', 'scipy')


def main() -> None:
    for name in BLOCKED:
        sys.modules[name] = None
    os.environ['TRITON_INTERPRET'] = '1'
    sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))

    import fake_cuda
    import torch

    torch.compile = lambda function, **options: function  # it needs a compiler, and half a minute a case
    fake_cuda.install()

    import benchmark
    import benchmark_cases
    import benchmark_cuda
    import cuda_floor
    import cuda_profile
    import cuda_timing

    benchmark_cuda.DEVICE = 'cpu'
    cuda_floor.ROUNDS, cuda_floor.BLOCK = 3, 32
    cuda_timing.SAMPLE_SECONDS = 0
    cuda_profile.ACTIVITIES = cuda_profile.ACTIVITIES[:1]  # that of the CPU
    for key, case in benchmark_cases.CUDA_CASES.items():
        benchmark_cases.CUDA_CASES[key] = replace(case, images=1, classes=5, nodes=(4, 4), pixels=(10, 12))
    benchmark.main(['--device', 'cuda', *sys.argv[1:]])


if __name__ == '__main__':
    main()
