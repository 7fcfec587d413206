"""Command line and progress bar of tools/class_weights.py and tools/check_labels.py."""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from mmseg_wce.class_weights import LabelStatistics
from mmseg_wce.dataset_checks import LabelFiles, cores, from_folder, scan_parts
from mmseg_wce.training.launch import ConfigOptions
from mmseg_wce.training.preflight import load_config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

NOT_RUN = 2
warnings.filterwarnings('ignore', category=UserWarning, module='mmseg')  # advice to authors of configs
warnings.filterwarnings('ignore', message='Glyph', category=UserWarning)  # of file names in pictures


class Parser(argparse.ArgumentParser):
    """One of the two tools' command line: a config, or a folder of labels and what is in it."""

    def __init__(self, description: str, of_source: str) -> None:
        super().__init__(description=description)
        self.add_argument('source', nargs='?', metavar='CONFIG', help=of_source)
        self.add_argument('--labels', metavar='DIR', help='folder of label files, instead of a config')
        self.add_argument('--num-classes', type=int, metavar='K', help='with --labels: number of classes')
        self.add_argument(
            '--reduce-zero-label', action='store_true', help='with --labels: raw 0 is no class, raw k is class k - 1'
        )
        self.add_argument('--ignore-index', type=int, help='with --labels: what does not count [255]')
        self.add_argument('--suffix', help='with --labels: of the label files [.png]')
        self.add_argument('--workers', type=int, default=min(cores(), 8), help='processes [%(default)s]')
        self.add_argument(
            '--cfg-options', nargs='+', action=ConfigOptions, help='settings that override the config: key=value ...'
        )

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """The arguments, with exactly one source of labels among them."""
        args = self.parse_args(arguments)
        if (args.source is None) == (args.labels is None):
            self.error('give either a CONFIG or --labels DIR')
        if args.labels is not None and args.num_classes is None:
            self.error('--labels needs --num-classes')
        if args.num_classes is not None and not 2 <= args.num_classes <= 256:
            self.error(f'--num-classes must be from 2 to 256, got {args.num_classes}')
        of_labels = args.num_classes, args.reduce_zero_label or None, args.ignore_index, args.suffix
        if args.labels is None and any(value is not None for value in of_labels):
            self.error(
                '--num-classes, --reduce-zero-label, --ignore-index and --suffix are for --labels: the CONFIG says'
            )
        args.ignore_index = 255 if args.ignore_index is None else args.ignore_index
        args.suffix = args.suffix or '.png'
        if args.ignore_index > 255:
            self.error(f'--ignore-index must be at most 255, got {args.ignore_index}')
        if args.workers < 0:
            self.error(f'--workers must not be negative, got {args.workers}')
        return args


def labels_in_folder(args: argparse.Namespace, **images: str | None) -> LabelFiles:
    """Of ``--labels`` and the options that go with it, as :func:`from_folder` takes them. Raises ValueError."""
    options = args.reduce_zero_label, args.ignore_index, args.suffix
    return from_folder(args.labels, args.num_classes, *options, **images)


def config_of(args: argparse.Namespace) -> Config:
    """The config that is meant. Raises PreflightError."""
    return load_config(args.source, args.cfg_options)


def name_of(args: argparse.Namespace) -> str:
    """For the files that a tool writes: of a folder its last three parts, as many data sets have a 'training'."""
    return '-'.join(Path(args.labels).resolve().parts[1:][-3:]) if args.labels else Path(args.source).resolve().stem


def check_output(path: Path, what: str) -> None:
    """Raise ValueError where a file cannot be written, before any work is done for it; makes its folder."""
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('ab'):
            pass
    except OSError as error:
        raise ValueError(f'{what} {str(path)!r} cannot be written: {error.strerror}: {error.filename!r}') from error
    if not existed:
        path.unlink()


def scan_with_progress(
    parts: Sequence[LabelFiles],
    workers: int,
    console: Console,
    title: str,
    unfinished: Path | None = None,
    with_images: bool = False,
) -> list[LabelStatistics]:
    """Statistics of all files, apart for each of the parts."""
    total, done, statistics = sum(map(len, parts)), 0, []
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(title, total=total)
            for done, so_far in scan_parts(parts, workers, unfinished, with_images):
                statistics = so_far
                progress.update(task, completed=done)
    except KeyboardInterrupt:
        if unfinished is not None:
            console.print(f'Interrupted. {done} of {total} files are kept: the same command goes on from there.')
        raise SystemExit(130) from None
    return statistics


def print_failures(console: Console, statistics: LabelStatistics, most: int = 20) -> None:
    """Name the files that could not be read."""
    failed = list(statistics.failed.items())
    if failed:
        number = f'{len(failed)} file{"s" * (len(failed) != 1)}'
        console.print(f'[bold red]{number} could not be read and count for nothing:[/]')
    for file, reason in failed[:most]:
        console.print(f'  {file}: {reason}', markup=False, highlight=False, soft_wrap=True)
    if len(failed) > most:
        console.print(f'  and {len(failed) - most} more')
