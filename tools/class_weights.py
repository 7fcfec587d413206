"""Compute class weights from the labels that a config trains on, or from a folder of label files.

python tools/class_weights.py CONFIG --scheme median_frequency --out weights.json
python tools/class_weights.py --labels DIR --num-classes 150 --reduce-zero-label --out weights.npy
python tools/class_weights.py ade20k --scheme enet                 statistics that come with the package
python tools/class_weights.py work_dirs/class_weights/NAME.json    statistics that an earlier call wrote

Exit status: 0; 1 where label files could not be read, which are named; 2 where nothing could be done.
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
    config_of,
    labels_in_folder,
    name_of,
    print_failures,
    scan_with_progress,
)
from mmseg_wce.class_weights import SCHEMES, LabelStatistics, class_weights, load_statistics, save_statistics
from mmseg_wce.class_weights.schemes import NORMALIZATIONS
from mmseg_wce.class_weights.statistics_file import SHIPPED
from mmseg_wce.label_files import of_config
from mmseg_wce.preflight import PreflightError, check_data
from rich.console import Console

WRITERS: dict[str, Callable[[list[float]], bytes]] = {
    '.json': lambda weights: json.dumps(weights).encode(),
    '.yaml': lambda weights: yaml.safe_dump(weights).encode(),
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


def statistics_of(args: argparse.Namespace) -> tuple[LabelStatistics, str, Path]:
    """The statistics, what a config calls them, and where pictures go by default."""
    if args.labels is None and (args.source in SHIPPED or args.source.endswith('.json')):
        kept = Path('work_dirs/class_weights', args.source) if args.source in SHIPPED else Path(args.source)
        return load_statistics(args.source), args.source, kept
    kept = args.statistics or Path('work_dirs/class_weights', f'{name_of(args)}.json')
    if args.labels is None:
        config = config_of(args)
        check_data(config, 'train', first_files=False)
        parts = of_config(config)
    else:
        parts = [labels_in_folder(args)]
    unfinished = kept.with_name(kept.name + '.unfinished')
    statistics = scan_with_progress(parts, args.workers, console, 'Reading labels', unfinished)
    save_statistics(statistics, kept)
    return statistics, str(kept), kept


def write_weights(path: Path, weights: np.ndarray) -> None:
    """In the format that mmseg's ``class_weight='file'`` reads as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.npy':
        np.save(path, weights)
    else:
        path.write_bytes(WRITERS[path.suffix](weights.tolist()))


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    options, statistics = scheme_options(args), None
    try:
        statistics, name, kept = statistics_of(args)
        with warnings.catch_warnings(record=True) as aloud:
            warnings.simplefilter('always')
            weights = class_weights(statistics, **options)
    except (PreflightError, TypeError, ValueError) as error:
        if statistics is not None:
            print_failures(console, statistics)
        print(f'error: {error}', file=sys.stderr)
        return NOT_RUN
    print_table(console, statistics, args.scheme, weights)
    for warning in aloud:
        console.print(f'[yellow]{warning.message}[/]', highlight=False)
    picture = args.picture or kept.with_suffix('.png')
    draw_weights(picture, statistics, options)
    console.print(f'Statistics: {name}\nPicture:    {picture}', highlight=False, soft_wrap=True)
    pasted = f'dict(statistics={name!r}, {", ".join(f"{key}={value!r}" for key, value in options.items())})'
    if args.out is not None:
        write_weights(args.out, weights)
        console.print(f'Weights:    {args.out}', highlight=False, soft_wrap=True)
        pasted = repr(str(args.out))
    console.print('\nIn the config:')
    print(f"loss_decode=dict(type='WeightedCrossEntropyLoss', class_weight={pasted})")
    print_failures(console, statistics)
    return 1 if statistics.failed else 0


if __name__ == '__main__':
    sys.exit(main())
