"""Measure time and memory of a loss step (upsampling, loss, accuracy, backward) and of predictions against baselines.

All implementations run in turn in one process, so that a busy machine slows down all of them. Medians, with the range.
"""

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import mmseg_wce
import torch
from benchmark_cases import CASES, Case
from benchmark_implementations import IMPLEMENTATIONS, Step
from benchmark_predictions import PHOTOS, Photo, Prediction, implementations_for
from benchmark_report import draw_memory, draw_times, markdown, predictions_markdown, print_predictions, print_table
from benchmark_training import END_TO_END, TrainingStep
from exponentials import seconds_on_cpu
from memory import extra_megabytes
from rich.console import Console
from rich.progress import track
from timing import interleaved, summary

console = Console()


def time_steps(steps: dict[str, Step], rounds: int, device: str, title: str) -> dict[str, dict]:
    """Return median and range, in seconds, of forward, backward and both together for each implementation."""
    parts = {(name, part): getattr(step, part) for name, step in steps.items() for part in ('forward', 'backward')}
    times, results = interleaved(parts, rounds, title, device), {}
    for name in steps:
        forward, backward = times[name, 'forward'], times[name, 'backward']
        both = list(map(sum, zip(forward, backward, strict=True)))
        results[name] = dict(forward=summary(forward), backward=summary(backward), both=summary(both))
    return results


def measure_case(case: Case, args: argparse.Namespace) -> dict:
    """Return seconds and memory of the loss step of each implementation, and the seconds of its exponentials."""
    names = args.ways or [name for name, implementation in IMPLEMENTATIONS.items() if implementation.by_default]
    results = time_steps({name: Step(name, case, args.device) for name in names}, args.rounds, args.device, case.title)
    for name in track(names, f'Memory, {case.title}', console=console, transient=True):
        results[name]['megabytes'] = extra_megabytes(name, case, args.device)
    return dict(case=case.title, ways=results, floor=seconds_on_cpu(case.exponentials(), args.rounds))


def measure_end_to_end(model: str, args: argparse.Namespace) -> dict:
    """Return seconds and memory of training iterations of a whole model, without and with fused heads."""
    steps = {name: TrainingStep(model, name, args.device, args.crop) for name in ('built-in', 'mmseg_wce')}
    results = time_steps(steps, max(1, args.rounds // 2), args.device, f'Training iterations of {model}')
    for name in steps:
        results[name]['megabytes'] = extra_megabytes(name, model, args.device, args.crop)
    return dict(case=f'training iteration, {model}', ways=results)


def measure_photo(photo: Photo, args: argparse.Namespace) -> dict:
    """Return seconds and memory of the prediction of a photo, after the network has run."""
    functions = {name: Prediction(name, photo, args.device).run for name in implementations_for(photo)}
    times = interleaved(functions, args.rounds, f'Prediction: {photo.title}', args.device)
    results = {
        name: dict(summary(values), megabytes=extra_megabytes(name, photo, args.device))
        for name, values in times.items()
    }
    return dict(case=photo.title, ways=results)


def measure_crops(args: argparse.Namespace) -> list[dict]:
    """Return the extra memory for each crop size; of the built-in loss only up to ``--largest-built-in-crop``."""
    rows = []
    for crop in track(args.crops, 'Memory over crop sizes', console=console, transient=True):
        case = Case(f'crop {crop}', 1, 150, (crop // 4, crop // 4), (crop, crop))
        row = dict(crop=crop)
        for name in ('built-in', 'mmseg_wce'):
            if name == 'mmseg_wce' or crop <= args.largest_built_in_crop:
                row[name] = extra_megabytes(name, case, args.device)
        rows.append(row)
    return rows


def environment(device: str) -> dict:
    """Return device, versions and date."""
    name = torch.cuda.get_device_name() if device == 'cuda' else f'{torch.get_num_threads()} threads'
    return dict(
        device=f'{device}: {name}',
        torch=torch.__version__,
        python=platform.python_version(),
        mmseg_wce=mmseg_wce.__version__,
        date=str(date.today()),
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print tables and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.set_defaults(device='cpu')
    parser.add_argument('--rounds', type=int, default=7, help='interleaved rounds [%(default)s]')
    parser.add_argument('--threads', type=int, help="PyTorch's threads [all]")
    parser.add_argument('--cases', nargs='+', choices=list(CASES), help='[all but one-channel]')
    parser.add_argument('--ways', nargs='+', choices=list(IMPLEMENTATIONS), help='implementations [with softmax]')
    parser.add_argument('--models', nargs='*', choices=END_TO_END, default=list(END_TO_END), help='end to end [all]')
    parser.add_argument('--photos', nargs='*', choices=PHOTOS, default=list(PHOTOS), help='predictions [all]')
    parser.add_argument('--crop', type=int, default=512, help='size of training crops [%(default)s]')
    parser.add_argument('--crops', nargs='*', type=int, default=[256, 512, 1024, 2048], help='sizes in the memory plot')
    parser.add_argument('--largest-built-in-crop', type=int, default=1024, help='in the memory plot [%(default)s]')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'), help='folder [%(default)s]')
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)

    args.out.mkdir(parents=True, exist_ok=True)
    results = dict(environment=environment(args.device), cases=[], predictions=[], crops=[])
    console.print(', '.join(f'{k} {v}' for k, v in results['environment'].items()))
    for key in args.cases or [key for key, case in CASES.items() if case.by_default]:
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
    (args.out / 'benchmark.md').write_text(markdown(results) + '\n' + predictions_markdown(results))
    draw_times(args.out / 'times.png', results)
    if results['crops']:
        draw_memory(args.out / 'memory.png', results)
    console.print(f'Results: {args.out} (benchmark.json, benchmark.md, times.png, memory.png)', markup=False)


if __name__ == '__main__':
    main()
