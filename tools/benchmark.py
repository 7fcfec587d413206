"""Measure time and memory of a loss step (upsampling, loss, accuracy, backward) against baselines.

On the CPU (benchmark_wall_time.py): time and memory of steps, of whole models and of predictions. On a GPU
(benchmark_cuda.py): time on the device and of its kernels, against what the device could do at best.
"""

import argparse
import sys
from importlib import import_module
from importlib.util import find_spec


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark of a device."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    args, others = parser.parse_known_args(arguments)
    if {'-h', '--help'} & set(others):
        print(__doc__)
        print(f'--device cpu (default) and --device cuda have options of their own. Those of {args.device}:\n')
    if args.device == 'cuda' and find_spec('triton') is None:
        sys.exit('error: --device cuda needs Triton, and it is not installed')
    import_module('benchmark_wall_time' if args.device == 'cpu' else 'benchmark_cuda').main(others)


if __name__ == '__main__':
    main()
