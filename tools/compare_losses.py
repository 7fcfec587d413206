"""Train configs from the same seeds with several losses, and report the scores of every class for each loss.

python tools/compare_losses.py my_config.py --seeds 0 1 2

Only the losses on pixels are replaced, in every head. Finished trainings are kept: the same command continues.
"""

import argparse
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

import mmseg_wce  # noqa: F401  (registers the losses, and makes the stack work on today's PyTorch)
import torch
from base_configs import check_style, find_configs
from compare.report import write_report
from compare.runs import DEFAULT, HARD_PIXELS, NAMES, Comparison, Run, check_hard_pixels, losses_on_pixels
from label_arguments import console, print_failures, say, scan_and_save
from mmengine.registry import init_default_scope
from mmseg_wce.class_weights.file_record import record_path
from mmseg_wce.dataset_checks import cores, from_config
from mmseg_wce.safe_io.errors import in_one_line
from mmseg_wce.training.launch import ConfigOptions
from mmseg_wce.training.preflight import PreflightError, check_data, check_work_dir, load_config
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from subprocess_runner import Failed, stop_all

RESERVED = re.compile(r'(randomness|test_evaluator)|model\..*(loss_decode|sampler)')  # set by the comparison


def prepare(base: str, file: Path, args: argparse.Namespace) -> Comparison:
    """Check a config, and scan its training labels unless their statistics exist."""
    config = load_config(str(file), args.cfg_options)
    place = f'config file {str(file)!r}'
    rebalanced = tuple(dict.fromkeys(args.rebalance))
    comparison = Comparison(base, file, config, args.work_dir, args.out, args.words, args.gpus, rebalanced)
    check_data(config, 'train', 'val', 'test')
    if not isinstance(config.get('model'), dict) or not losses_on_pixels(config):
        raise PreflightError(f'{place} has no softmax loss on pixels')
    check_style(file)
    if HARD_PIXELS in args.losses:
        check_hard_pixels(config)
    try:
        (part,) = from_config(config, 'test')
        part.labels(0)
    except Exception as error:  # custom data sets and transforms may raise anything
        reason = in_one_line(error)
        raise PreflightError(
            f'{place}: test_dataloader must have one data set with LoadAnnotations: {reason}'
        ) from error
    if not (comparison.labels.exists() and Path(record_path(comparison.labels)).exists()):
        title = f'Counting pixels for {file.stem}'
        print_failures(scan_and_save(from_config(config), 0, title, comparison.labels))
    return comparison


def plan(args: argparse.Namespace) -> tuple[list[Comparison], list[Run]]:
    """Return the comparisons and all their trainings, each once; raise PreflightError if one cannot be started."""
    check_work_dir(str(args.work_dir))
    check_work_dir(str(args.out), '--out')
    reserved = [key for key in args.cfg_options or () if RESERVED.match(key)]
    if reserved:
        raise PreflightError(f'--cfg-options {reserved[0]}: the comparison sets it itself')
    files = [pair for name in dict.fromkeys(args.config) for pair in find_configs(name)]
    stems = [Path(file).stem for _, file in files]
    if len(set(stems)) < len(stems):
        raise PreflightError(f'configs with the same name share their folders: {", ".join(stems)}')
    comparisons = [
        prepare(base if base.startswith('mmseg::') else str(file.resolve()), file, args) for base, file in files
    ]
    seeds, losses = dict.fromkeys(args.seeds), dict.fromkeys(args.losses)
    return comparisons, [Run(c, loss, seed) for seed in seeds for c in comparisons for loss in losses]


class _OptionsWithWords(ConfigOptions):
    """ConfigOptions that also stores the words as given, for the command lines of the trainings."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        namespace.words = tuple(values)
        super().__call__(parser, namespace, values, option_string)


class Slots:
    """Resources for trainings at the same time: each slot has its own GPUs, or its share of the CPU threads."""

    def __init__(self, jobs: int, processes: int) -> None:
        self._free = SimpleQueue()
        visible = os.environ.get('CUDA_VISIBLE_DEVICES')
        gpus = visible.split(',') if visible else [str(i) for i in range(jobs * processes)]
        threads = os.environ.get('OMP_NUM_THREADS') or str(max(1, cores() // (jobs * processes)))
        for slot in range(jobs):
            gpu_variables = dict(CUDA_VISIBLE_DEVICES=','.join(gpus[slot * processes : (slot + 1) * processes]))
            self._free.put(gpu_variables if torch.cuda.is_available() else dict(OMP_NUM_THREADS=threads))

    def run(self, run: Run, progress: Progress, stop: threading.Event) -> None:
        """Wait for a free slot, then train and test in it, unless ``stop`` is set by then."""
        environment = self._free.get()
        task = progress.add_task(f'{run.comparison.name}: {run.loss}, seed {run.seed}', total=None, loss='')
        try:
            if not stop.is_set():

                def show(tool: str, iteration: int, total: int, loss: str | None) -> None:
                    progress.update(task, completed=iteration, total=total, loss=f'loss {loss}' if loss else tool)

                run.train_and_test(environment, show)
        finally:
            progress.remove_task(task)
            self._free.put(environment)


def train_all(runs: Sequence[Run], jobs: int, processes: int) -> list[str]:
    """Run all trainings, ``jobs`` at a time; return a line for each failure."""
    slots, stop, failures = Slots(jobs, processes), threading.Event(), []
    columns = (TextColumn('{task.description}', markup=False), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TextColumn('{task.fields[loss]}'), TimeRemainingColumn(), console=console) as progress,
        ThreadPoolExecutor(jobs) as pool,
    ):
        overall = progress.add_task('Trainings', total=len(runs), loss='')
        futures = {pool.submit(slots.run, run, progress, stop): run for run in runs}
        try:
            for future in as_completed(futures):
                if error := future.exception():
                    if not isinstance(error, Exception):
                        raise error
                    reason = str(error) if isinstance(error, Failed) else in_one_line(error)
                    failures.append(f'{futures[future].name}: {reason}')
                    say(failures[-1])
                progress.advance(overall)
        except BaseException:
            stop.set()
            stop_all()
            raise
    return failures


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    """Return the arguments; exit with a usage error if they ask for too many GPUs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='+', help="config files; or 'mmseg::' and the name of one it ships")
    parser.add_argument(
        '--losses', nargs='+', choices=NAMES, default=list(DEFAULT), metavar='LOSS', help=f'some of {", ".join(NAMES)}'
    )
    parser.add_argument(
        '--rebalance',
        nargs='+',
        choices=NAMES,
        default=[],
        metavar='LOSS',
        help='losses whose trainings are moved between rare and common classes afterwards (tools/rebalance.py)',
    )
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2], help='[0 1 2]')
    parser.add_argument(
        '--work-dir', type=Path, default=Path('work_dirs/compare'), help='folder for trainings [%(default)s]'
    )
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/compare/report'), help='folder for results [%(default)s]'
    )
    parser.add_argument('--jobs', type=int, default=1, help='trainings at the same time [%(default)s]')
    parser.add_argument('--gpus', type=int, default=1, help='processes of each training [%(default)s]')
    parser.add_argument('--report', action='store_true', help='train nothing; report the finished trainings')
    parser.add_argument('--cfg-options', nargs='+', action=_OptionsWithWords, help='settings that override the configs')
    parser.set_defaults(words=())
    args = parser.parse_args(arguments)
    if min(args.jobs, args.gpus) < 1:
        parser.error('--jobs and --gpus must be at least 1')
    if torch.cuda.is_available() and args.jobs * args.gpus > torch.cuda.device_count():
        parser.error(f'--jobs {args.jobs} times --gpus {args.gpus}: there are {torch.cuda.device_count()} GPUs')
    return args


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0; 1 if a training failed; 2 if none is finished in the end; 130 if interrupted."""
    args = parse_args(arguments)
    init_default_scope('mmseg')
    try:
        comparisons, runs = plan(args)
        to_do = [run for run in runs if not run.is_done()]
    except (PreflightError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    console.print(f'{len(runs)} trainings, {len(runs) - len(to_do)} of them done')
    if args.report:
        to_do = []
    for run in to_do:  # before threads start: reading configs is not thread-safe
        run.write_config()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # sent by schedulers: the trainings must end, too
    try:
        failures = train_all(to_do, args.jobs, args.gpus) if to_do else []
    except KeyboardInterrupt:
        console.print('Interrupted. Finished work is kept: the same command goes on from there.')
        return 130
    words = [word for word in arguments or sys.argv[1:] if word != '--report']
    command = ' '.join(['python tools/compare_losses.py', *map(shlex.quote, words)])
    try:
        page = write_report(args.out, comparisons, runs, command)
    except ValueError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    say(f'Report: {page}, with its pictures and summary.md next to it')
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
