"""Check the labels of a config or of a folder (values, conventions, sizes, pairs), and draw examples.

python tools/check_labels.py CONFIG
python tools/check_labels.py --labels DIR --num-classes 150 --reduce-zero-label [--images DIR]

Exit status: 0; 1 if something looks wrong, with a line for each finding; 2 if nothing could be checked.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import mmseg_wce  # noqa: F401  (first: mmseg cannot be imported on mmcv-lite without it)
from contact_sheet import draw_contact_sheet
from label_arguments import Parser, check_output, console, labels_in_folder, say, scan_with_progress, source_name
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
from mmseg_wce.training.preflight import PreflightError, check_data, load_config

MARKS = {Severity.ERROR: '[bold red]wrong[/]', Severity.WARNING: '[yellow]doubt[/]', Severity.NOTE: '[cyan]note [/]'}
SPLITS = ('train', 'val', 'test')


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments; exit with a usage error if some contradict each other."""
    parser = Parser(__doc__.split('\n', 1)[0], 'config file')
    parser.add_argument('--images', metavar='DIR', help='with --labels: folder of images at the same relative paths')
    parser.add_argument(
        '--image-suffix', help='with --images: suffix of the images, if their stems differ from the labels'
    )
    parser.add_argument(
        '--splits', nargs='+', choices=SPLITS, default=SPLITS, help='splits of the config to check [all three]'
    )
    parser.add_argument('--out', type=Path, help='folder for the contact sheets [work_dirs/check_labels/NAME]')
    args = parser.parse(arguments)
    if args.labels is None and (args.images or args.image_suffix):
        parser.error('--images and --image-suffix are for --labels: a CONFIG says which images it has')
    if args.image_suffix and not args.images:
        parser.error('--image-suffix needs --images')
    if args.labels is not None and args.splits is not SPLITS:
        parser.error('--splits is for a CONFIG')
    return args


def read_splits(config: Config, splits: Iterable[str]) -> tuple[dict[str, list[LabelFiles]], list[Finding]]:
    """Return the label files of each split, the same files once, and findings for splits that cannot be read.

    Raises ValueError if the config has none of the splits, or if none of them can be read.
    """
    present = [split for split in splits if config.get(f'{split}_dataloader') is not None]
    if not present:
        raise ValueError(f'the config has none of {", ".join(f"{split}_dataloader" for split in splits)}')
    label_files: dict[str, list[LabelFiles]] = {}
    findings: list[Finding] = []
    unreadable: list[str] = []
    for split in present:
        try:
            check_data(config, split, first_files=False)
            parts = from_config(config, split)
        except LabelConflict as error:
            findings.append(Finding(Severity.ERROR, f'{split}: {error}', 'nothing else was checked there'))
        except (PreflightError, UnreadableDataset) as error:
            findings.append(Finding(Severity.ERROR, str(error), 'nothing else was checked there'))
            unreadable.append(str(error))
        except ValueError as error:
            severity = Severity.NOTE if split == 'test' else Severity.WARNING
            findings.append(Finding(severity, f'{split}: no labels to check: {error}', 'it may be meant to have none'))
            unreadable.append(findings[-1].what)
        else:
            if not any(_reads_same_labels(parts, others) for others in label_files.values()):
                label_files[split] = parts
    if len(unreadable) == len(present):
        raise ValueError(unreadable[0])
    return label_files, findings


def _reads_same_labels(parts: list[LabelFiles], others: list[LabelFiles]) -> bool:
    """Return True if two splits read the same files alike, and compare them with images of the same size."""
    one, other = (
        [(p.files, p.classes, p.convention, str(p.transforms), p.resizes) for p in side] for side in (parts, others)
    )
    return one == other


def check(
    parts: list[LabelFiles], others: list[LabelFiles], args: argparse.Namespace, name: str, changed_later_by: str
) -> tuple[list[LabelStatistics], list[Finding]]:
    """Scan the label files of a split; return the statistics of each part, and the findings, most severe first."""
    title = f'Reading labels, {name}'
    images = any(part.has_images for part in parts)
    statistics = scan_with_progress(parts, args.workers, title, with_images=images)
    findings = [Finding(Severity.NOTE, note, 'see docs/labels.md') for part in parts for note in part.notes]
    for part, part_statistics in zip(parts, statistics, strict=True):
        findings += [*check_statistics(part_statistics, changed_later_by), *check_raw_zero([part], part_statistics)]
    findings += check_unused_labels(parts, others)
    return statistics, sorted(dict.fromkeys(findings), key=lambda finding: -finding.severity)


def print_findings(title: str, findings: list[Finding]) -> None:
    """Print a line for each finding below a title."""
    say(title, style='bold')
    for finding in findings:
        console.print(f'  {MARKS[finding.severity]}  ', end='')
        say(str(finding))
    if not any(finding.severity > Severity.NOTE for finding in findings):
        console.print('  [green]nothing looks wrong[/]')


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    args = parse_args(arguments)
    try:
        findings = run(args)
    except (PreflightError, ValueError, OSError, ImportError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 1 if any(finding.severity > Severity.NOTE for finding in findings) else 0


def run(args: argparse.Namespace) -> list[Finding]:
    """Print all findings, and draw contact sheets."""
    all_findings: list[Finding] = []
    changed_later_by = ''
    out = args.out or Path('work_dirs/check_labels', source_name(args))
    check_output(out / 'train.png', '--out')
    if args.labels is not None:
        splits = dict(labels=[labels_in_folder(args, images=args.images, image_suffix=args.image_suffix)])
    else:
        config = load_config(args.source, args.cfg_options)
        changed_later_by = preprocessor_of_others(config)
        splits, findings = read_splits(config, args.splits)
        class_findings = [f for split, parts in splits.items() for f in check_classes(config, parts, split)]
        all_findings = [*check_config(config), *findings, *dict.fromkeys(class_findings)]
        print_findings(args.source, all_findings)
    for name, parts in splits.items():
        statistics, findings = check(parts, [*chain.from_iterable(splits.values())], args, name, changed_later_by)
        all_findings += findings
        number, pixels, ignored = (
            sum(getattr(s, name) for s in statistics) for name in ('num_images', 'num_pixels', 'ignored_pixels')
        )
        share = 100 * ignored / max(pixels, 1)
        print_findings(f'{name}: {number} labels, {share:.2f} % of their pixels ignored', findings)
        if draw_contact_sheet(out / f'{name}.png', parts, statistics):
            say(f'  Picture: {out / f"{name}.png"}')
    return all_findings


if __name__ == '__main__':
    sys.exit(main())
