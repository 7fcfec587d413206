"""Check the labels of a config, or of a folder: values, conventions, sizes, pairs; and draw some to look at.

python tools/check_labels.py CONFIG
python tools/check_labels.py --labels DIR --num-classes 150 --reduce-zero-label [--images DIR]

Exit status: 0; 1 where something looks wrong, a line for each; 2 where nothing could be done.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import mmseg_wce  # noqa: F401  (first: mmseg cannot be imported on mmcv-lite without it)
from contact_sheet import draw_contact_sheet
from label_arguments import NOT_RUN, Parser, check_output, config_of, labels_in_folder, name_of, scan_with_progress
from mmengine.config import Config
from mmseg_wce.class_weights import LabelStatistics
from mmseg_wce.config_walk import preprocessor_of_others
from mmseg_wce.dataset_checks import (
    Finding,
    LabelConflict,
    LabelFiles,
    Severity,
    UnreadableDataset,
    check_classes,
    check_config,
    check_raw_zero,
    check_statistics,
    check_unused_labels,
    from_config,
)
from mmseg_wce.training.preflight import PreflightError, check_data
from rich.console import Console

MARKS = {Severity.ERROR: '[bold red]wrong[/]', Severity.WARNING: '[yellow]doubt[/]', Severity.NOTE: '[cyan]note [/]'}
SPLITS = ('train', 'val', 'test')
console = Console()


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__.split('\n', 1)[0], 'config file')
    parser.add_argument('--images', metavar='DIR', help='with --labels: folder of images at the same relative paths')
    parser.add_argument('--image-suffix', help='with --images: of the images, where their stems differ from the labels')
    parser.add_argument('--splits', nargs='+', choices=SPLITS, default=SPLITS, help='of the config [all three]')
    parser.add_argument('--out', type=Path, help='folder for the contact sheets [work_dirs/check_labels/NAME]')
    args = parser.parse(arguments)
    if args.labels is None and (args.images or args.image_suffix):
        parser.error('--images and --image-suffix are for --labels: a CONFIG says which images it has')
    if args.image_suffix and not args.images:
        parser.error('--image-suffix needs --images')
    if args.labels is not None and args.splits is not SPLITS:
        parser.error('--splits is for a CONFIG')
    return args


def splits_of(config: Config, splits: Iterable[str]) -> tuple[dict[str, list[LabelFiles]], list[Finding]]:
    """Label files of each split that the config has, the same files once; and what is to be said of other splits."""
    present = [split for split in splits if config.get(f'{split}_dataloader') is not None]
    if not present:
        raise ValueError(f'the config has none of {", ".join(f"{split}_dataloader" for split in splits)}')
    found: dict[str, list[LabelFiles]] = {}
    notes: list[Finding] = []
    unread: list[str] = []
    for split in present:
        try:
            check_data(config, split, first_files=False)
            parts = from_config(config, split)
        except LabelConflict as error:
            notes.append(Finding(Severity.ERROR, f'{split}: {error}', 'nothing else was checked there'))
        except (PreflightError, UnreadableDataset) as error:
            notes.append(Finding(Severity.ERROR, str(error), 'nothing else was checked there'))
            unread.append(str(error))
        except ValueError as error:
            severity = Severity.NOTE if split == 'test' else Severity.WARNING
            notes.append(Finding(severity, f'{split}: no labels to check: {error}', 'it may be meant to have none'))
            unread.append(notes[-1].what)
        else:
            if not any(_same_labels(parts, others) for others in found.values()):
                found[split] = parts
    if len(unread) == len(present):
        raise ValueError(unread[0])
    return found, notes


def _same_labels(parts: list[LabelFiles], others: list[LabelFiles]) -> bool:
    """Whether two splits read the same files in the same way, and compare them with images in the same way."""
    one, other = (
        [(p.files, p.classes, p.convention, str(p.transforms), p.reader.resizes) for p in side]
        for side in (parts, others)
    )
    return one == other


def check(
    parts: list[LabelFiles], others: list[LabelFiles], args: argparse.Namespace, name: str, changed_later_by: str
) -> tuple[list[LabelStatistics], list[Finding]]:
    """Findings of the label files of a split, and the statistics of its parts."""
    title = f'Reading labels, {name}'
    images = any(part.has_images for part in parts)
    statistics = scan_with_progress(parts, args.workers, console, title, with_images=images)
    found = [Finding(Severity.NOTE, note, 'see docs/labels.md') for part in parts for note in part.notes]
    for part, counted in zip(parts, statistics, strict=True):
        found += [*check_statistics(counted, changed_later_by), *check_raw_zero([part], counted)]
    found += check_unused_labels(parts, others)
    return statistics, sorted(dict.fromkeys(found), key=lambda finding: -finding.severity)


def print_findings(title: str, found: list[Finding]) -> None:
    console.print(title, style='bold', markup=False, highlight=False, soft_wrap=True)
    for finding in found:
        console.print(f'  {MARKS[finding.severity]}  ', end='')
        console.print(str(finding), markup=False, highlight=False, soft_wrap=True)
    if not any(finding.severity > Severity.NOTE for finding in found):
        console.print('  [green]nothing looks wrong[/]')


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    try:
        everything = run(args)
    except (PreflightError, ValueError, OSError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        return NOT_RUN
    return 1 if any(finding.severity > Severity.NOTE for finding in everything) else 0


def run(args: argparse.Namespace) -> list[Finding]:
    """Print what is found, and draw."""
    everything: list[Finding] = []
    changed_later_by = ''
    out = args.out or Path('work_dirs/check_labels', name_of(args))
    check_output(out / 'train.png', '--out')
    if args.labels is not None:
        splits = dict(labels=[labels_in_folder(args, images=args.images, image_suffix=args.image_suffix)])
    else:
        config = config_of(args)
        changed_later_by = preprocessor_of_others(config)
        splits, notes = splits_of(config, args.splits)
        of_classes = [f for split, parts in splits.items() for f in check_classes(config, parts, split)]
        everything = [*check_config(config), *notes, *dict.fromkeys(of_classes)]
        print_findings(args.source, everything)
    for name, parts in splits.items():
        statistics, found = check(parts, [*chain.from_iterable(splits.values())], args, name, changed_later_by)
        everything += found
        number, pixels, ignored = (
            sum(getattr(s, figure) for s in statistics) for figure in ('num_images', 'num_pixels', 'ignored_pixels')
        )
        share = 100 * ignored / max(pixels, 1)
        print_findings(f'{name}: {number} labels, {share:.2f} % of their pixels ignored', found)
        if draw_contact_sheet(out / f'{name}.png', parts, statistics):
            console.print(f'  Picture: {out / f"{name}.png"}', markup=False, highlight=False, soft_wrap=True)
    return everything


if __name__ == '__main__':
    sys.exit(main())
