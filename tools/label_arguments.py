"""Command line of tools/class_weights.py and tools/check_labels.py; console and progress bar of what scans labels."""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

from mmseg_wce.class_weights import LabelStatistics, save_statistics
from mmseg_wce.class_weights.file_record import FileRecord, save_file_record
from mmseg_wce.dataset_checks import LabelFiles, cores, from_folder, scan_parts, sum_statistics
from mmseg_wce.training.launch import ConfigOptions
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console()
warnings.filterwarnings('ignore', category=UserWarning, module='mmseg')  # advice to authors of configs
warnings.filterwarnings('ignore', message='Glyph', category=UserWarning)  # file names in pictures


class Parser(argparse.ArgumentParser):
    """Parser with the options for a config, or for a folder of labels and their encoding."""

    def __init__(self, description: str, source_help: str) -> None:
        super().__init__(description=description)
        self.add_argument('source', nargs='?', metavar='CONFIG', help=source_help)
        self.add_argument('--labels', metavar='DIR', help='folder of label files, instead of a config')
        self.add_argument('--num-classes', type=int, metavar='K', help='with --labels: number of classes')
        self.add_argument(
            '--reduce-zero-label', action='store_true', help='with --labels: raw 0 is no class, raw k is class k - 1'
        )
        self.add_argument('--ignore-index', type=int, help='with --labels: label of ignored pixels [255]')
        self.add_argument('--suffix', help='with --labels: suffix of the label files [.png]')
        self.add_argument(
            '--workers', type=int, default=min(cores(), 8), help='processes that read files [%(default)s]'
        )
        self.add_argument(
            '--cfg-options', nargs='+', action=ConfigOptions, help='settings that override the config: key=value ...'
        )

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Return the arguments; exit with a usage error unless they name exactly one source of labels."""
        args = self.parse_args(arguments)
        if (args.source is None) == (args.labels is None):
            self.error('give either a CONFIG or --labels DIR')
        if args.labels is not None and args.num_classes is None:
            self.error('--labels needs --num-classes')
        if args.num_classes is not None and not 2 <= args.num_classes <= 256:
            self.error(f'--num-classes must be from 2 to 256, got {args.num_classes}')
        folder_options = args.num_classes, args.reduce_zero_label or None, args.ignore_index, args.suffix
        if args.labels is None and any(value is not None for value in folder_options):
            self.error(
                '--num-classes, --reduce-zero-label, --ignore-index and --suffix are for --labels: a CONFIG has its own'
            )
        args.ignore_index = 255 if args.ignore_index is None else args.ignore_index
        args.suffix = args.suffix or '.png'
        if args.ignore_index > 255:
            self.error(f'--ignore-index must be at most 255, got {args.ignore_index}')
        if args.workers < 0:
            self.error(f'--workers must not be negative, got {args.workers}')
        return args


def labels_in_folder(args: argparse.Namespace, **images: str | None) -> LabelFiles:
    """Return the label files for ``--labels`` and its options."""
    return from_folder(args.labels, args.num_classes, args.reduce_zero_label, args.ignore_index, args.suffix, **images)


def source_name(args: argparse.Namespace) -> str:
    """Return a name for output files: stem of the config, or the last three parts of the folder's path."""
    return '-'.join(Path(args.labels).resolve().parts[1:][-3:]) if args.labels else Path(args.source).resolve().stem


def check_output(path: Path, option: str) -> None:
    """Raise ValueError unless the file that a command-line option names can be written; create its folder."""
    existed = path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open('ab'):
            pass
    except OSError as error:
        raise ValueError(f'{option} {str(path)!r} cannot be written: {error.strerror}: {error.filename!r}') from error
    if not existed:
        path.unlink()


def scan_with_progress(
    parts: Sequence[LabelFiles],
    workers: int,
    title: str,
    unfinished: Path | None = None,
    with_images: bool = False,
    class_pixels: dict[str, dict[int, int]] | None = None,
) -> list[LabelStatistics]:
    """Scan label files and show the progress; a scan that was interrupted goes on from the file ``unfinished``.

    ``class_pixels`` is filled with the pixels of each class in each file.
    """
    total, done, statistics = sum(map(len, parts)), 0, []
    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(title, total=total)
            for done, so_far in scan_parts(parts, workers, unfinished, with_images, class_pixels):
                statistics = so_far
                progress.update(task, completed=done)
    except KeyboardInterrupt:
        if unfinished is not None:
            console.print(f'Interrupted. {done} of {total} files are kept: the same command goes on from there.')
        raise SystemExit(130) from None
    return statistics


def scan_and_save(parts: Sequence[LabelFiles], workers: int, title: str, statistics_file: Path) -> LabelStatistics:
    """Scan label files, save their statistics, and beside them the class pixels of each file; return the statistics."""
    files: dict[str, dict[int, int]] = {}
    unfinished = statistics_file.with_name(statistics_file.name + '.unfinished')
    statistics = sum_statistics(scan_with_progress(parts, workers, title, unfinished, class_pixels=files))
    save_file_record(FileRecord(statistics.classes, files), statistics_file)
    save_statistics(statistics, statistics_file)
    return statistics


def print_failures(statistics: LabelStatistics, most: int = 20) -> None:
    """Print the names of the files that could not be read, at most ``most`` of them."""
    failed = list(statistics.failed.items())
    if failed:
        number = f'{len(failed)} file{"s" * (len(failed) != 1)}'
        console.print(f'[bold red]{number} could not be read and {"are" if len(failed) > 1 else "is"} not counted:[/]')
    for file, reason in failed[:most]:
        say(f'  {file}: {reason}')
    if len(failed) > most:
        console.print(f'  and {len(failed) - most} more')


def say(text: str, **options: str) -> None:
    """Print without rich's markup: names may contain brackets."""
    console.print(text, markup=False, highlight=False, soft_wrap=True, **options)
