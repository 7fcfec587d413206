"""Check the labels of a config, or of a folder: values, conventions, sizes, pairs; and draw some to look at.

python tools/check_labels.py CONFIG
python tools/check_labels.py --labels DIR --num-classes 150 --reduce-zero-label [--images DIR]

Exit status: 0; 1 where something looks wrong, a line for each; 2 where nothing could be done.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import mmseg_wce  # noqa: F401  (first: mmseg cannot be imported on mmcv-lite without it)
from contact_sheet import draw_contact_sheet
from label_arguments import NOT_RUN, Parser, config_of, labels_in_folder, name_of, scan_with_progress
from mmengine.config import Config
from mmseg_wce.class_weights import LabelStatistics
from mmseg_wce.label_files import (
    Finding,
    LabelConflict,
    LabelFiles,
    Severity,
    check_classes,
    check_config,
    check_pairs,
    check_raw_zero,
    check_statistics,
    of_config,
    pairs_of,
)
from mmseg_wce.preflight import PreflightError, check_data
from rich.console import Console
from rich.progress import track

MARKS = {Severity.ERROR: '[bold red]wrong[/]', Severity.WARNING: '[yellow]doubt[/]', Severity.NOTE: '[cyan]note [/]'}
console = Console()


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__.split('\n', 1)[0], 'config file')
    parser.add_argument('--images', metavar='DIR', help='with --labels: folder of images at the same relative paths')
    parser.add_argument(
        '--splits', nargs='+', choices=('train', 'val', 'test'), default=('train', 'val', 'test'), help='[all three]'
    )
    parser.add_argument('--out', type=Path, help='folder for the contact sheets [work_dirs/check_labels/NAME]')
    return parser.parse(arguments)


def splits_of(config: Config, splits: Iterable[str]) -> dict[str, list[LabelFiles]]:
    """Label files of each split that the config has, the same files once."""
    present = [split for split in splits if config.get(f'{split}_dataloader') is not None]
    if not present:
        raise ValueError(f'the config has none of {", ".join(f"{split}_dataloader" for split in splits)}')
    check_data(config, *present, first_files=False)
    found: dict[str, list[LabelFiles]] = {}
    for split in present:
        try:
            parts = of_config(config, split)
        except LabelConflict:  # check_config has said so
            continue
        if not any([p.files for p in parts] == [p.files for p in others] for others in found.values()):
            found[split] = parts
    return found


def check(parts: list[LabelFiles], args: argparse.Namespace, name: str) -> tuple[LabelStatistics, list[Finding]]:
    """Findings of the label files of a split, and their statistics."""
    statistics = scan_with_progress(parts, args.workers, console, f'Reading labels, {name}')
    pairs = pairs_of(parts)
    shown = track(pairs, f'Comparing sizes, {name}', console=console) if pairs else ()
    found = [*check_statistics(statistics), *check_raw_zero(parts), *check_pairs(parts, shown)]
    return statistics, sorted(found, key=lambda finding: -finding.severity)


def print_findings(title: str, found: list[Finding]) -> None:
    console.print(f'[bold]{title}[/]', highlight=False)
    for finding in found:
        console.print(f'  {MARKS[finding.severity]}  ', end='')
        console.print(str(finding), markup=False, highlight=False, soft_wrap=True)
    if not any(finding.severity > Severity.NOTE for finding in found):
        console.print('  [green]nothing looks wrong[/]')


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    everything: list[Finding] = []
    try:
        if args.labels is not None:
            splits = dict(labels=[labels_in_folder(args, args.images)])
        else:
            config = config_of(args)
            everything = check_config(config)
            splits = splits_of(config, args.splits)
            everything += check_classes(config, next(iter(splits.values()))) if splits else []
            print_findings(f'{args.source}', everything)
    except (PreflightError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return NOT_RUN
    out = args.out or Path('work_dirs/check_labels', name_of(args))
    for name, parts in splits.items():
        statistics, found = check(parts, args, name)
        everything += found
        ignored = 100 * statistics.ignored_pixels / max(statistics.num_pixels, 1)
        print_findings(f'{name}: {statistics.num_images} labels, {ignored:.2f} % of their pixels ignored', found)
        if draw_contact_sheet(out / f'{name}.png', parts, statistics):
            console.print(f'  Picture: {out / f"{name}.png"}', highlight=False, soft_wrap=True)
    return 1 if any(finding.severity > Severity.NOTE for finding in everything) else 0


if __name__ == '__main__':
    sys.exit(main())
