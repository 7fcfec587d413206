"""Compute class weights from the labels that a config trains on, or from a folder of label files.

python tools/class_weights.py CONFIG --scheme median_frequency --out weights.json
python tools/class_weights.py --labels DIR --num-classes 150 --reduce-zero-label --out weights.npy
python tools/class_weights.py ade20k --scheme enet                 statistics that come with the package
python tools/class_weights.py work_dirs/class_weights/NAME.json    statistics from an earlier call

Exit status: 0; 1 if label files could not be read (they are named) or most pixels are neither a class nor ignored; 2 if
nothing could be computed.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import mmseg_wce  # noqa: F401  (first: mmseg cannot be imported on mmcv-lite without it)
import numpy as np
from class_weights_report import draw_weights, print_table
from label_arguments import Parser, check_output, labels_in_folder, print_failures, say, scan_and_save, source_name
from mmengine.fileio import dump
from mmseg_wce.class_weights import SCHEMES, LabelStatistics, class_weights, load_statistics
from mmseg_wce.class_weights.schemes import NORMALIZATIONS, check_options
from mmseg_wce.class_weights.statistics_file import BUNDLED
from mmseg_wce.dataset_checks import LabelFiles, Severity, check_joined_classes, from_config
from mmseg_wce.training.preflight import PreflightError, check_data, load_config

SUFFIXES = ('.npy', '.json', '.yaml', '.yml', '.pkl')


def parse_args(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments; exit with a usage error if some contradict each other."""
    parser = Parser(
        __doc__.split('\n', 1)[0], f'config file; or statistics: {", ".join(BUNDLED)}, or a file that this tool wrote'
    )
    parser.add_argument('--scheme', choices=SCHEMES, default='sqrt_inverse_frequency', help='[%(default)s]')
    parser.add_argument('--out', type=Path, help='file for the weights: .npy, .json, .yaml or .pkl')
    parser.add_argument('--statistics', type=Path, help='file for the statistics [work_dirs/class_weights/NAME.json]')
    parser.add_argument('--picture', type=Path, help='PNG with the weights of all schemes [next to the statistics]')
    parser.add_argument('--exponent', type=float, help='power that the weights are raised to')
    parser.add_argument('--max-ratio', type=float, help='largest ratio of two weights')
    parser.add_argument(
        '--normalize',
        choices=[str(n).lower() for n in NORMALIZATIONS],
        help='the weights have mean 1 over the labelled pixels (default) or over the classes',
    )
    parser.add_argument('--absent', type=int, choices=(0, 1), help='weight of classes that never occur [0]')
    parser.add_argument('--beta', type=float, help='for effective_number [(N - 1) / N]')
    args = parser.parse(arguments)
    if has_statistics(args) and args.statistics is not None:
        parser.error('--statistics is the file for the statistics of a scan, but this source is not scanned')
    if args.out is not None and args.out.suffix not in SUFFIXES:
        parser.error(f'--out {args.out}: the suffix must be one of {", ".join(SUFFIXES)}')
    return args


def scheme_options(args: argparse.Namespace) -> dict:
    """Return the scheme and the options on the command line, in the form that ``class_weight`` takes in a config."""
    options = {name: getattr(args, name) for name in ('exponent', 'max_ratio', 'normalize', 'absent', 'beta')}
    options = {name: value for name, value in options.items() if value is not None}
    if options.get('normalize') == 'none':
        options['normalize'] = None
    return dict(scheme=args.scheme, **options)


def has_statistics(args: argparse.Namespace) -> bool:
    """Return True if the source is statistics, so that no labels are scanned."""
    return args.labels is None and (args.source in BUNDLED or args.source.endswith('.json'))


def check_outputs(args: argparse.Namespace, statistics_file: Path, picture: Path) -> None:
    """Raise ValueError if a file cannot be written, before any labels are read."""
    if args.out is not None:
        check_output(args.out, '--out')
        if args.out.resolve() == statistics_file.resolve():
            raise ValueError(f'--out {str(args.out)!r} is the file of the statistics: give the weights another name')
    check_output(picture, '--picture')
    if picture.suffix.lower() != '.png':
        raise ValueError(f'--picture {str(picture)!r} must end in .png')
    if not has_statistics(args):
        check_output(statistics_file, '--statistics')
        if statistics_file.suffix != '.json':
            raise ValueError(f'--statistics {str(statistics_file)!r} must end in .json')


def scan_labels(args: argparse.Namespace, statistics_file: Path) -> LabelStatistics:
    """Scan the labels, save their statistics, and return them."""
    if args.labels is None:
        config = load_config(args.source, args.cfg_options)
        check_data(config, 'train', first_files=False)
        parts = from_config(config)
    else:
        parts = [labels_in_folder(args)]
    check_overwrite(statistics_file, parts)
    for finding in check_joined_classes(parts):
        if finding.severity == Severity.ERROR:
            raise ValueError(str(finding))
        say(f'Note: {finding}')
    for note in dict.fromkeys(note for part in parts for note in part.notes):
        say(f'Note: {note}')
    return scan_and_save(parts, args.workers, 'Reading labels', statistics_file)


def check_overwrite(statistics_file: Path, parts: list[LabelFiles]) -> None:
    """Raise ValueError if the file holds statistics of other folders: a config may still name it."""
    if statistics_file.exists():
        try:
            old = set(load_statistics(statistics_file).folders)
        except ValueError as error:
            raise ValueError(f'{error}; give another file with --statistics, or remove it') from error
        if old != {part.common_folder for part in parts}:
            raise ValueError(
                f'{str(statistics_file)!r} holds statistics of other labels, in '
                f'{", ".join(sorted(old)) or "no folder"}: give another file with --statistics, or remove it'
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    args = parse_args(arguments)
    try:
        return run(args)
    except (PreflightError, TypeError, ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    """Compute, print and write the weights; return the exit status."""
    options = scheme_options(args)
    check_options(**options)
    is_shipped = args.source in BUNDLED
    statistics_file = Path(args.source) if has_statistics(args) and not is_shipped else args.statistics
    default_name = args.source if is_shipped else source_name(args)
    statistics_file = statistics_file or Path('work_dirs/class_weights', f'{default_name}.json')
    picture = args.picture or statistics_file.with_suffix('.png')
    check_outputs(args, statistics_file, picture)
    statistics = load_statistics(args.source) if has_statistics(args) else scan_labels(args, statistics_file)
    try:
        report(statistics, args.source if is_shipped else str(statistics_file), options, args.out, picture)
    finally:
        print_failures(statistics)
    return 1 if statistics.failed or has_mostly_unexpected_labels(statistics) else 0


def has_mostly_unexpected_labels(statistics: LabelStatistics) -> bool:
    """Return True, and print so, if most pixels are neither a class nor ignored: the weights rest on few labels."""
    pixels = sum(tally.pixels for tally in statistics.unexpected.values()) + statistics.more_unexpected
    if pixels <= 0.5 * statistics.num_pixels:
        return False
    share = f'{100 * pixels / statistics.num_pixels:.0f} %'
    say(f'{share} of all pixels are neither a class nor ignored: run tools/check_labels.py', style='bold red')
    return True


def report(statistics: LabelStatistics, name: str, options: dict, out: Path | None, picture: Path) -> None:
    """Print the table and the line for the config, which names ``out`` or the statistics; write picture and weights."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        weights = class_weights(statistics, **options)
    print_table(statistics, options['scheme'], weights)
    for warning in caught:
        say(str(warning.message), style='yellow')
    draw_weights(picture, statistics, options)
    say(f'Statistics: {name}\nPicture:    {picture}')
    class_weight = f'dict(statistics={name!r}, {", ".join(f"{key}={value!r}" for key, value in options.items())})'
    if out is not None:
        if out.suffix == '.npy':
            np.save(out, weights)
        else:
            dump(weights.tolist(), out)
        say(f'Weights:    {out}')
        class_weight = repr(str(out))
    say('\nIn the config:')
    print(f"loss_decode=dict(type='WeightedCrossEntropyLoss', class_weight={class_weight})")


if __name__ == '__main__':
    sys.exit(main())
