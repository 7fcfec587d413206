"""Time and memory of a loss step (upsampling, loss, accuracy, backward) against honest opponents; where we lose, too.

Everything runs interleaved in one process, so that a busy machine slows down all of them. Medians, with the range.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import mmseg_wce
import torch
from benchmark_predictions import PHOTOS, Photo, Prediction, ways_of
from benchmark_report import draw_memory, draw_times, markdown, markdown_of_predictions, print_predictions, print_table
from benchmark_ways import CASES, END_TO_END, WAYS, Case, Step, TrainingStep
from exponentials import per_second_on_gpu, seconds_on_cpu
from memory import extra_megabytes
from rich.console import Console
from rich.progress import track

console = Console()


def seconds(function: Callable[[], object], device: str) -> float:
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(steps: dict[str, Step], rounds: int, device: str, title: str) -> dict[str, dict[str, list[float]]]:
    """Seconds of each way: forward, backward and both together, after a round that warms up."""
    times = {name: dict(forward=[], backward=[], both=[]) for name in steps}
    for i in track(range(rounds + 1), title, console=console, transient=True):
        for name, step in steps.items():
            forward = seconds(step.forward, device)
            backward = seconds(step.backward, device)
            if i > 0:
                for part, value in (('forward', forward), ('backward', backward), ('both', forward + backward)):
                    times[name][part].append(value)
    return times


def summary(values: list[float]) -> dict[str, float]:
    return dict(median=statistics.median(values), min=min(values), max=max(values))


def measure_case(case: Case, args: argparse.Namespace) -> dict:
    asked = args.ways or [name for name, way in WAYS.items() if way.by_default]
    names = [name for name in asked if WAYS[name].runs(args.device)]
    times = interleaved({name: Step(name, case, args.device) for name in names}, args.rounds, args.device, case.title)
    ways = {name: {part: summary(values) for part, values in parts.items()} for name, parts in times.items()}
    for name in track(names, f'Memory, {case.title}', console=console, transient=True):
        ways[name]['megabytes'] = extra_megabytes(name, case, args.device)
    result = dict(case=case.title, ways=ways)
    if args.device == 'cpu':
        result['floor'] = seconds_on_cpu(case.exponentials(), args.rounds)
    elif rate := per_second_on_gpu():
        result['floor'] = case.exponentials() / rate
    return result


def measure_end_to_end(name: str, args: argparse.Namespace) -> dict:
    steps = {way: TrainingStep(name, way, args.device, args.crop) for way in ('built-in', 'mmseg_wce')}
    times = interleaved(steps, max(1, args.rounds // 2), args.device, f'Training iterations of {name}')
    ways = {way: {part: summary(values) for part, values in parts.items()} for way, parts in times.items()}
    for way in steps:
        ways[way]['megabytes'] = extra_megabytes(way, name, args.device, args.crop)
    return dict(case=f'training iteration, {name}', ways=ways)


def measure_photo(photo: Photo, args: argparse.Namespace) -> dict:
    """Seconds and memory of predicting it, after the network."""
    steps = {way: Prediction(way, photo, args.device) for way in ways_of(photo)}
    times: dict[str, list[float]] = {way: [] for way in steps}
    for i in track(range(args.rounds + 1), f'Prediction: {photo.title}', console=console, transient=True):
        for way, step in steps.items():
            elapsed = seconds(step.run, args.device)
            if i > 0:
                times[way].append(elapsed)
    ways = {
        way: dict(summary(values), megabytes=extra_megabytes(way, photo, args.device)) for way, values in times.items()
    }
    return dict(case=photo.title, ways=ways)


def measure_crops(args: argparse.Namespace) -> list[dict]:
    """Extra memory over crop sizes: of the built-in path only as far as it fits."""
    found = []
    for crop in track(args.crops, 'Memory over crop sizes', console=console, transient=True):
        case = Case(f'crop {crop}', 1, 150, (crop // 4, crop // 4), (crop, crop))
        row = dict(crop=crop)
        for name in ('built-in', 'mmseg_wce'):
            if name == 'mmseg_wce' or crop <= args.largest_built_in_crop:
                row[name] = extra_megabytes(name, case, args.device)
        found.append(row)
    return found


def environment(device: str) -> dict:
    name = torch.cuda.get_device_name() if device == 'cuda' else f'{torch.get_num_threads()} threads'
    return dict(
        device=f'{device}: {name}',
        torch=torch.__version__,
        python=platform.python_version(),
        mmseg_wce=mmseg_wce.__version__,
        date=str(date.today()),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--rounds', type=int, default=7, help='interleaved rounds [%(default)s]')
    parser.add_argument('--threads', type=int, help="PyTorch's threads [all]")
    parser.add_argument('--cases', nargs='+', choices=list(CASES), help='[all that are made for the device]')
    parser.add_argument('--ways', nargs='+', choices=list(WAYS), help='[those with a softmax that run on the device]')
    parser.add_argument('--models', nargs='*', choices=END_TO_END, default=list(END_TO_END), help='end to end [all]')
    parser.add_argument('--photos', nargs='*', choices=PHOTOS, default=list(PHOTOS), help='predictions [all]')
    parser.add_argument('--crop', type=int, default=512, help='of the training iterations [%(default)s]')
    parser.add_argument('--crops', nargs='*', type=int, default=[256, 512, 1024, 2048], help='of the memory plot')
    parser.add_argument('--largest-built-in-crop', type=int, default=1024, help='of the memory plot [%(default)s]')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'), help='folder [%(default)s]')
    args = parser.parse_args(arguments)
    if args.device == 'cuda' and not torch.cuda.is_available():
        sys.exit('error: --device cuda needs a CUDA device, and this machine shows none')
    if args.threads:
        torch.set_num_threads(args.threads)

    args.out.mkdir(parents=True, exist_ok=True)
    results = dict(environment=environment(args.device), cases=[], predictions=[], crops=[])
    console.print(', '.join(f'{k} {v}' for k, v in results['environment'].items()))
    for key in args.cases or [key for key, case in CASES.items() if args.device in case.devices]:
        results['cases'].append(measure_case(CASES[key], args))
        print_table(console, results['cases'][-1])
    for model in args.models:
        results['cases'].append(measure_end_to_end(model, args))
        print_table(console, results['cases'][-1])
    for photo in args.photos:
        results['predictions'].append(measure_photo(PHOTOS[photo], args))
        print_predictions(console, results['predictions'][-1])
    results['crops'] = measure_crops(args)
    (args.out / 'benchmark.json').write_text(json.dumps(results, indent=1))
    (args.out / 'benchmark.md').write_text(markdown(results) + '\n' + markdown_of_predictions(results))
    draw_times(args.out / 'times.png', results)
    if results['crops']:
        draw_memory(args.out / 'memory.png', results)
    console.print(f'Results: {args.out} (benchmark.json, benchmark.md, times.png, memory.png)', markup=False)


if __name__ == '__main__':
    main()
