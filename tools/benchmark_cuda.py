"""Measure loss steps on a GPU: time on the device, of every kernel, and against the least that the device needs.

A step is upsampling, loss, accuracy and the gradient of the logits. Needs torch, Triton and NumPy; mmseg and
liger_kernel are measured where they are installed. A figure that was not measured is not printed.
"""

import argparse
import json
import platform
import sys
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mmseg_wce
import torch
from benchmark_cases import CUDA_CASES, Case
from cuda_floor import Rates, floor, measure_rates
from cuda_report import case_tables, overview
from cuda_steps import IMPLEMENTATIONS, CudaStep, sample_in_turn, why_left_out
from cuda_timing import first_line, release_memory

DEVICE = 'cuda'


class Budget:
    """Seconds that are left, and how long each implementation took to prepare the last time."""

    def __init__(self, seconds: float, cases: int) -> None:
        self.start, self.cases = time.monotonic(), cases
        self.end = self.start + seconds
        self.durations: dict[str, float] = {}
        self.end_of_case = self.end

    def next_case(self) -> None:
        """Give the next case its share of what is left."""
        now = time.monotonic()
        self.end_of_case = now + max(self.end - now, 0) / max(self.cases, 1)
        self.cases -= 1

    def is_used_up(self) -> bool:
        """Return whether no time is left."""
        return time.monotonic() >= self.end

    def has_time_for(self, name: str) -> bool:
        """Return whether an implementation can be prepared before the share of this case ends."""
        return time.monotonic() + self.durations.get(name, 0) < self.end_of_case

    def say(self, text: str) -> None:
        """Print what is being done, and since when."""
        print(f'[{time.monotonic() - self.start:4.0f} s] {text}', flush=True)


def measure_case(case: Case, names: list[str], rounds: int, rates: Rates, budget: Budget) -> dict:
    """Return what was measured of each implementation in one case, or why it was not, and the floor of the case."""
    l2_bytes = getattr(torch.cuda.get_device_properties(), 'L2_cache_size', 0)
    result = dict(case=case.title, sizes=sizes(case), pairs=case.pairs(), floor=floor(case, rates), ways={})
    result['fits_in_l2'] = sum(sum(t.values()) for t in result['floor']['bytes'].values()) < l2_bytes
    ways, steps = result['ways'], {}
    logits, target = case.make(DEVICE)
    tensors = logits.requires_grad_(), target, case.class_weight(DEVICE)

    def fail(name: str, error: Exception) -> None:
        is_memory = isinstance(error, torch.cuda.OutOfMemoryError)
        ways[name] = dict(not_measured='out of memory' if is_memory else first_line(error), failed=not is_memory)
        steps.pop(name, None)

    for name in names:
        if reason := why_left_out(name, case):
            ways[name] = dict(not_measured=reason)
        elif not budget.has_time_for(name):
            ways[name] = dict(not_measured='it would take longer than this case may; see --seconds')
        else:
            budget.say(f'{case.title}: preparing {name}')
            start, step = time.monotonic(), CudaStep(name, case, tensors)
            try:
                ways[name] = step.prepare()
                steps[name] = step
            except Exception as error:
                fail(name, error)
            budget.durations[name] = time.monotonic() - start
            if name not in steps:
                del step
                release_memory()
    budget.say(f'{case.title}: timing {", ".join(steps)}')
    for name, times in sample_in_turn(steps, rounds, fail).items():
        ways[name].update(times)
    budget.say(f'{case.title}: looking at the kernels')
    for name, step in steps.items():
        step.timer = None  # with its graph
        release_memory()
        try:
            ways[name]['kernels'] = step.profile()
        except Exception as error:
            ways[name]['why_no_kernels'] = first_line(error)
        step.clear()
    return result


def measure_whole_models(args: argparse.Namespace) -> dict[str, list[dict]]:
    """Return the wall time and memory of whole models and predictions, and print their tables."""
    import benchmark_wall_time as wall  # needs mmseg

    args.device = DEVICE
    found = dict(models=[wall.measure_end_to_end(model, args) for model in args.models])
    found['predictions'] = [wall.measure_photo(wall.PHOTOS[photo], args) for photo in args.photos]
    for result in found['models']:
        wall.print_table(wall.console, result)
    for result in found['predictions']:
        wall.print_predictions(wall.console, result)
    return found


def sizes(case: Case) -> str:
    """Return the sizes of a case in words."""
    shape, pixels = (case.images, case.classes, *case.nodes), 'x'.join(map(str, case.pixels))
    return f'logits {"x".join(map(str, shape))} {case.dtype}, labels {pixels}'


def environment() -> dict:
    """Return the device, versions and date."""
    packages = {}
    for name in ('triton', 'numpy', 'mmsegmentation', 'liger_kernel'):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    properties = torch.cuda.get_device_properties()
    return dict(
        device=f'cuda: {torch.cuda.get_device_name()}',
        multiprocessors=properties.multi_processor_count,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        python=platform.python_version(),
        mmseg_wce=mmseg_wce.__version__,
        date=str(date.today()),
        **packages,
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print tables and write the results; exit with status 1 if a step of ours failed."""
    parser = argparse.ArgumentParser('benchmark.py --device cuda', description=__doc__)
    parser.add_argument('--rounds', type=int, default=7, help='interleaved rounds [%(default)s]')
    parser.add_argument('--seconds', type=float, default=600, help='time to keep within, roughly [%(default)s]')
    cases = dict(nargs='+', choices=list(CUDA_CASES), default=list(CUDA_CASES), metavar='CASE')
    parser.add_argument('--cases', **cases, help=f'{", ".join(CUDA_CASES)} [all, in this order]')
    ways = dict(nargs='+', choices=list(IMPLEMENTATIONS), metavar='WAY')
    parser.add_argument('--ways', **ways, help=f'implementations: {"; ".join(IMPLEMENTATIONS)} [all]')
    out = Path('work_dirs/benchmark/benchmark_cuda.json')
    parser.add_argument('--json', type=Path, default=out, metavar='FILE', help='results [%(default)s]')
    parser.add_argument('--models', nargs='+', default=[], help='wall time of whole models, as on the CPU [none]')
    parser.add_argument('--photos', nargs='+', default=[], help='wall time of predictions, as on the CPU [none]')
    parser.add_argument('--crop', type=int, default=512, help='size of training crops of --models [%(default)s]')
    args = parser.parse_args(arguments)
    if (args.models or args.photos) and mmseg_wce.why_not_registered is not None:
        parser.error(f'--models and --photos need mmseg: {mmseg_wce.why_not_registered}')
    if not torch.cuda.is_available():
        sys.exit('error: --device cuda needs a CUDA device, and this machine shows none')
    names = [name for name in IMPLEMENTATIONS if args.ways is None or name in args.ways]

    args.json.parent.mkdir(parents=True, exist_ok=True)
    budget, results = Budget(args.seconds, len(args.cases)), dict(environment=environment(), cases=[])
    print(', '.join(f'{key} {value}' for key, value in results['environment'].items() if value is not None))
    budget.say('measuring the rates of a copy and of exponentials')
    rates, clocks = measure_rates(DEVICE)
    release_memory()
    results.update(rates=rates._asdict(), clocks=clocks)
    print(f'copy {rates.copied_bytes / 1e9:.0f} GB/s, {rates.exponentials / 1e9:.0f} x 10^9 exponentials/s')
    print('clocks:', clocks if isinstance(clocks, str) else ', '.join(f'{k} {v}' for k, v in clocks.items()))
    for key in args.cases:
        case = CUDA_CASES[key]
        budget.next_case()
        if budget.is_used_up():
            result = dict(case=case.title, sizes=sizes(case), not_measured=f'--seconds {args.seconds:g} were used up')
        else:
            try:
                result = measure_case(case, names, args.rounds, rates, budget)
            except Exception as error:
                result = dict(case=case.title, sizes=sizes(case), not_measured=first_line(error), failed=True)
            release_memory()
        results['cases'].append(result)
        print('\n' + case_tables(result), flush=True)
        args.json.write_text(json.dumps(results, indent=1) + '\n')
    print(overview(results['cases']))
    if args.models or args.photos:
        results.update(measure_whole_models(args))
        args.json.write_text(json.dumps(results, indent=1) + '\n')
    print(f'Results: {args.json}')
    failed = [r['case'] for r in results['cases'] if r.get('ways', {}).get('mmseg_wce', r).get('failed')]
    if failed:
        sys.exit(f'error: mmseg_wce failed in {", ".join(failed)}; see above')


if __name__ == '__main__':
    main()
