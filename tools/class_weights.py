"""Compute class weights from the labels that a config trains on, or from a folder of label files.

python tools/class_weights.py CONFIG --scheme median_frequency --out weights.json
python tools/class_weights.py --labels DIR --num-classes 150 --reduce-zero-label --out weights.npy
python tools/class_weights.py ade20k --scheme enet                 statistics that come with the package
python tools/class_weights.py work_dirs/class_weights/NAME.json    statistics that an earlier call wrote

Exit status: 0; 1 where label files could not be read, which are named, or most pixels are neither a class nor ignored;
2 where nothing could be done.
"""

import argparse
import json
import pickle
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import mmseg_wce  # noqa: F401  (first: mmseg cannot be imported on mmcv-lite without it)
import numpy as np
import yaml
from class_weights_report import draw_weights, print_table
from label_arguments import (
    NOT_RUN,
    Parser,
    check_output,
    config_of,
    labels_in_folder,
    name_of,
    print_failures,
    scan_with_progress,
)
from mmseg_wce.class_weights import SCHEMES, LabelStatistics, class_weights, load_statistics, save_statistics
from mmseg_wce.class_weights.schemes import NORMALIZATIONS, check_options
from mmseg_wce.class_weights.statistics_file import SHIPPED
from mmseg_wce.dataset_checks import LabelFiles, Severity, check_joined_classes, from_config, sum_statistics
from mmseg_wce.training.preflight import PreflightError, check_data
from rich.console import Console

WRITERS: dict[str, Callable[[list[float]], bytes]] = {
    '.json': lambda weights: json.dumps(weights).encode(),
    '.yaml': lambda weights: yaml.safe_dump(weights).encode(),
    '.yml': lambda weights: yaml.safe_dump(weights).encode(),
    '.pkl': pickle.dumps,
}
console = Console()


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        __doc__.split('\n', 1)[0], f'config file; or statistics: {", ".join(SHIPPED)}, or a file that this tool wrote'
    )
    parser.add_argument('--scheme', choices=SCHEMES, default='sqrt_inverse_frequency', help='[%(default)s]')
    parser.add_argument('--out', type=Path, help='file for the weights: .npy, .json, .yaml or .pkl')
    parser.add_argument('--statistics', type=Path, help='file for the statistics [work_dirs/class_weights/NAME.json]')
    parser.add_argument('--picture', type=Path, help='PNG of all schemes [beside the statistics]')
    parser.add_argument('--exponent', type=float, help='power that the weights are raised to')
    parser.add_argument('--max-ratio', type=float, help='largest ratio of two weights')
    parser.add_argument(
        '--normalize',
        choices=[str(n).lower() for n in NORMALIZATIONS],
        help='what has a mean weight of 1: the labelled pixels (default) or the classes',
    )
    parser.add_argument('--absent', type=int, choices=(0, 1), help='weight of classes that never occur [0]')
    parser.add_argument('--beta', type=float, help='of effective_number [(N - 1) / N]')
    args = parser.parse(arguments)
    if needs_no_scan(args) and args.statistics is not None:
        parser.error('--statistics is where those of a scan are kept, and this reads no labels')
    if args.out is not None and args.out.suffix not in ('.npy', *WRITERS):
        parser.error(f'--out {args.out}: the suffix must be one of .npy, {", ".join(WRITERS)}')
    return args


def scheme_options(args: argparse.Namespace) -> dict:
    """What was asked for beside the scheme's defaults, as it stands in a config."""
    options = {name: getattr(args, name) for name in ('exponent', 'max_ratio', 'normalize', 'absent', 'beta')}
    options = {name: value for name, value in options.items() if value is not None}
    if options.get('normalize') == 'none':
        options['normalize'] = None
    return dict(scheme=args.scheme, **options)


def needs_no_scan(args: argparse.Namespace) -> bool:
    return args.labels is None and (args.source in SHIPPED or args.source.endswith('.json'))


def check_outputs(args: argparse.Namespace, kept: Path, picture: Path) -> None:
    """Raise ValueError where something cannot be written, before the labels are read for it."""
    if args.out is not None:
        check_output(args.out, '--out')
        if args.out.resolve() == kept.resolve():
            raise ValueError(f'--out {str(args.out)!r} is the file of the statistics: give the weights another name')
    check_output(picture, '--picture')
    if picture.suffix.lower() != '.png':
        raise ValueError(f'--picture {str(picture)!r} must end in .png')
    if not needs_no_scan(args):
        check_output(kept, '--statistics')
        if kept.suffix != '.json':
            raise ValueError(f'--statistics {str(kept)!r} must end in .json')


def scanned(args: argparse.Namespace, kept: Path) -> LabelStatistics:
    """Statistics of the labels, which are kept in a file."""
    if args.labels is None:
        config = config_of(args)
        check_data(config, 'train', first_files=False)
        parts = from_config(config)
    else:
        parts = [labels_in_folder(args)]
    refuse_to_overwrite(kept, parts)
    for finding in check_joined_classes(parts):
        if finding.severity == Severity.ERROR:
            raise ValueError(str(finding))
        say(f'Note: {finding}')
    for note in dict.fromkeys(note for part in parts for note in part.notes):
        say(f'Note: {note}')
    unfinished = kept.with_name(kept.name + '.unfinished')
    statistics = sum_statistics(scan_with_progress(parts, args.workers, console, 'Reading labels', unfinished))
    save_statistics(statistics, kept)
    return statistics


def refuse_to_overwrite(kept: Path, parts: list[LabelFiles]) -> None:
    """Raise ValueError where the file has statistics of other folders, which a config may name."""
    if kept.exists():
        try:
            old = set(load_statistics(kept).folders)
        except ValueError as error:
            raise ValueError(f'{error}; give another file with --statistics, or remove it') from error
        if old != {part.common_folder for part in parts}:
            raise ValueError(
                f'{str(kept)!r} holds statistics of other labels, in {", ".join(sorted(old)) or "no folder"}: give '
                'another file with --statistics, or remove it'
            )


def write_weights(path: Path, weights: np.ndarray) -> None:
    """In the format that mmseg's ``class_weight='file'`` reads as well."""
    if path.suffix == '.npy':
        np.save(path, weights)
    else:
        path.write_bytes(WRITERS[path.suffix](weights.tolist()))


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    try:
        return run(args)
    except (PreflightError, TypeError, ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return NOT_RUN


def run(args: argparse.Namespace) -> int:
    options = scheme_options(args)
    check_options(**options)
    shipped = args.source in SHIPPED
    kept = Path(args.source) if needs_no_scan(args) and not shipped else args.statistics
    kept = kept or Path('work_dirs/class_weights', f'{args.source if shipped else name_of(args)}.json')
    picture = args.picture or kept.with_suffix('.png')
    check_outputs(args, kept, picture)
    statistics = load_statistics(args.source) if needs_no_scan(args) else scanned(args, kept)
    try:
        report(statistics, args.source if shipped else str(kept), options, args.out, picture)
    finally:
        print_failures(console, statistics)
    return 1 if statistics.failed or mostly_no_class(statistics) else 0


def mostly_no_class(statistics: LabelStatistics) -> bool:
    """Whether most pixels are neither a class nor ignored, which is said: such weights are of few labels."""
    pixels = sum(tally.pixels for tally in statistics.unexpected.values()) + statistics.more_unexpected
    if pixels <= 0.5 * statistics.num_pixels:
        return False
    share = f'{100 * pixels / statistics.num_pixels:.0f} %'
    say(f'{share} of all pixels are neither a class nor ignored: run tools/check_labels.py', style='bold red')
    return True


def report(statistics: LabelStatistics, name: str, options: dict, out: Path | None, picture: Path) -> None:
    """Table, picture, weights, and the line for the config, in which the statistics are ``name``."""
    with warnings.catch_warnings(record=True) as aloud:
        warnings.simplefilter('always')
        weights = class_weights(statistics, **options)
    print_table(console, statistics, options['scheme'], weights)
    for warning in aloud:
        say(str(warning.message), style='yellow')
    draw_weights(picture, statistics, options)
    say(f'Statistics: {name}\nPicture:    {picture}')
    pasted = f'dict(statistics={name!r}, {", ".join(f"{key}={value!r}" for key, value in options.items())})'
    if out is not None:
        write_weights(out, weights)
        say(f'Weights:    {out}')
        pasted = repr(str(out))
    say('\nIn the config:')
    print(f"loss_decode=dict(type='WeightedCrossEntropyLoss', class_weight={pasted})")


def say(text: str, **style: str) -> None:
    """Print names as they are: some hold brackets, which are markup to rich."""
    console.print(text, markup=False, highlight=False, soft_wrap=True, **style)


if __name__ == '__main__':
    sys.exit(main())
