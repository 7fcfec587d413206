"""What a loss comes to, for every combination of weights, ignored pixels and options: PyTorch's, mmseg's and ours.

Prints the table. With --write it enters this environment's column into docs/semantics.json and writes the tables of
docs/semantics.md and README.md anew; run it on each stack.
"""

import argparse
import sys
from collections.abc import Callable
from importlib import metadata
from itertools import product
from pathlib import Path

import mmseg_wce  # noqa: F401  (first: makes mmseg importable on mmcv-lite)
import torch
import torch.nn.functional as F
from marked_tables import Table as MarkedTable
from marked_tables import markdown, record
from mmseg.models.losses import CrossEntropyLoss
from mmseg_wce.losses import WeightedCrossEntropyLoss
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'docs/semantics.json'

LOGITS = [[-0.7795, -1.7373, 0.3856], [0.4031, -0.5632, -0.2389], [-2.3908, 0.7452, 0.7748]]
LABELS = dict(none=[0, 1, 2], some=[0, 1, 255], all=[255, 255, 255])
WEIGHTS = dict(no=None, yes=[0.3, 0.6, 0.1])
AVG_NON_IGNORE = {'not given': {}, 'False': dict(avg_non_ignore=False), 'True': dict(avg_non_ignore=True)}
DTYPES = dict(float32=torch.float32, float16=torch.float16)
Row = tuple[str, str, str, str]
ROWS: list[Row] = list(product(DTYPES, WEIGHTS, LABELS, AVG_NON_IGNORE))
PYTORCH, OURS = 'PyTorch', 'mmseg_wce'


def pytorch(logits: torch.Tensor, label: torch.Tensor, class_weight: list | None, **_) -> torch.Tensor:
    """It knows no ``avg_non_ignore``: its mean leaves ignored pixels out."""
    weight = None if class_weight is None else torch.tensor(class_weight, dtype=logits.dtype)
    return F.cross_entropy(logits, label, weight, ignore_index=255)


def built_in(logits: torch.Tensor, label: torch.Tensor, class_weight: list | None, **options) -> torch.Tensor:
    return CrossEntropyLoss(class_weight=class_weight, **options)(logits, label, ignore_index=255)


def ours(logits: torch.Tensor, label: torch.Tensor, class_weight: list | None, **options) -> torch.Tensor:
    return WeightedCrossEntropyLoss(class_weight=class_weight, **options)(logits, label, ignore_index=255)


def installed(*names: str) -> str:
    """Name and version of the first of these distributions that is installed."""
    for name in names:
        if any(metadata.distributions(name=name)):
            return f'{name} {metadata.version(name)}'
    raise RuntimeError(f'none of {", ".join(names)} is an installed distribution')


def built_in_name() -> str:
    """Of the installed mmseg, upstream's or the fork's, with its version."""
    return installed('mmsegmentation', 'onedl-mmsegmentation')


def outcome(loss: Callable, row: Row) -> str:
    """The loss of three pixels of three classes, rounded, or the first line of what it raised."""
    dtype, weights, ignored, avg_non_ignore = row
    logits = torch.tensor(LOGITS, dtype=DTYPES[dtype]).T[None, :, None]
    label = torch.tensor(LABELS[ignored])[None, None]
    try:
        value = loss(logits, label, WEIGHTS[weights], **AVG_NON_IGNORE[avg_non_ignore])
    except Exception as error:
        return f'{type(error).__name__}: {str(error).splitlines()[0]}'
    return f'{value.item():.4f}' if dtype == 'float32' else f'{value.item():.3f}'


def measure() -> dict[str, dict[str, str]]:
    """The outcome of each way in this environment, by row."""
    ways = {PYTORCH: pytorch, built_in_name(): built_in, OURS: ours}
    return {name: {' | '.join(row): outcome(loss, row) for row in ROWS} for name, loss in ways.items()}


def columns(results: dict) -> list[str]:
    """Upstream before the fork, ours last."""
    return [PYTORCH, *sorted(set(results) - {PYTORCH, OURS}), OURS]


def full_table(results: dict, dtype: str) -> list[str]:
    """Markdown lines for docs/semantics.md."""
    names = columns(results)
    header = ['weights', 'ignored', '`avg_non_ignore`', *names]
    rows = [[*row[1:], *(results[name][' | '.join(row)] for name in names)] for row in ROWS if row[0] == dtype]
    return markdown(header, rows)


def small_table(results: dict) -> list[str]:
    """Markdown lines for README.md: float32, the default of ``avg_non_ignore`` and True, errors by their name."""
    stacks = columns(results)[1:-1]
    names = [f'{stack}{options}' for stack in stacks for options in ('', ', `avg_non_ignore=True`')]
    rows = []
    for weights, ignored in product(WEIGHTS, LABELS):
        cells = [
            results[stack][f'float32 | {weights} | {ignored} | {option}'].split(':')[0]
            for stack in stacks
            for option in ('not given', 'True')
        ]
        cells += [results[name][f'float32 | {weights} | {ignored} | not given'] for name in (PYTORCH, OURS)]
        rows.append([weights, ignored, *cells])
    return markdown(['weights', 'ignored pixels', *names, PYTORCH, OURS], rows)


def tables(results: dict) -> list[MarkedTable]:
    """Every table in the project's text."""
    page = ROOT / 'docs/semantics.md'
    return [
        (page, 'semantics-float32', full_table(results, 'float32')),
        (page, 'semantics-float16', full_table(results, 'float16')),
        (ROOT / 'README.md', 'semantics', small_table(results)),
    ]


def print_table(results: dict) -> None:
    table = Table('dtype', 'weights', 'ignored', 'avg_non_ignore', *results)
    for row in ROWS:
        table.add_row(*row, *(results[name][' | '.join(row)] for name in results))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--write', action='store_true', help='write docs/semantics.json and the tables')
    args = parser.parse_args(arguments)
    measured = measure()
    print_table(measured)
    if args.write:
        record(RESULTS, measured, tables)


if __name__ == '__main__':
    main()
