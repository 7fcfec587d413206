"""Compute the losses of PyTorch, mmseg and this package for all combinations of weights, ignored pixels and options.

Prints the table. With --write it adds this environment's column to docs/semantics.json and rewrites the tables of
docs/semantics.md and README.md; run it on each stack.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
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
    """Return PyTorch's loss, whose mean never counts ignored pixels; it has no ``avg_non_ignore``."""
    weight = None if class_weight is None else torch.tensor(class_weight, dtype=logits.dtype)
    return F.cross_entropy(logits, label, weight, ignore_index=255)


def module(kind: type, logits: torch.Tensor, label: torch.Tensor, class_weight: list | None, **options) -> torch.Tensor:
    """Return the loss of a module: mmseg's or ours."""
    return kind(class_weight=class_weight, **options)(logits, label, ignore_index=255)


def installed(*names: str) -> str:
    """Return name and version of the first of these distributions that is installed; raise RuntimeError without one."""
    for name in names:
        if any(metadata.distributions(name=name)):
            return f'{name} {metadata.version(name)}'
    raise RuntimeError(f'none of {", ".join(names)} is an installed distribution')


def mmseg_name() -> str:
    """Return name and version of the installed mmseg: upstream or the fork."""
    return installed('mmsegmentation', 'onedl-mmsegmentation')


def outcome(loss: Callable, row: Row) -> str:
    """Return the rounded loss of three pixels with three classes, or the first line of the error."""
    dtype, weights, ignored, avg_non_ignore = row
    logits = torch.tensor(LOGITS, dtype=DTYPES[dtype]).T[None, :, None]
    label = torch.tensor(LABELS[ignored])[None, None]
    try:
        value = loss(logits, label, WEIGHTS[weights], **AVG_NON_IGNORE[avg_non_ignore])
    except Exception as error:
        return f'{type(error).__name__}: {str(error).splitlines()[0]}'
    return f'{value.item():.4f}' if dtype == 'float32' else f'{value.item():.3f}'


def measure() -> dict[str, dict[str, str]]:
    """Return the outcome of each loss in this environment, by row."""
    modules = {mmseg_name(): CrossEntropyLoss, OURS: WeightedCrossEntropyLoss}
    losses = {PYTORCH: pytorch, **{name: partial(module, kind) for name, kind in modules.items()}}
    return {name: {' | '.join(row): outcome(loss, row) for row in ROWS} for name, loss in losses.items()}


def columns(results: dict) -> list[str]:
    """Return the losses in the order of the columns: PyTorch, upstream, the fork, ours."""
    return [PYTORCH, *sorted(set(results) - {PYTORCH, OURS}), OURS]


def full_table(results: dict, dtype: str) -> list[str]:
    """Return the Markdown table for docs/semantics.md."""
    names = columns(results)
    header = ['weights', 'ignored', '`avg_non_ignore`', *names]
    rows = [[*row[1:], *(results[name][' | '.join(row)] for name in names)] for row in ROWS if row[0] == dtype]
    return markdown(header, rows)


def small_table(results: dict) -> list[str]:
    """Return the Markdown table for README.md: float32, ``avg_non_ignore`` not given or True, errors by their class."""
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
    """Return all tables in README and docs."""
    page = ROOT / 'docs/semantics.md'
    return [
        (page, 'semantics-float32', full_table(results, 'float32')),
        (page, 'semantics-float16', full_table(results, 'float16')),
        (ROOT / 'README.md', 'semantics', small_table(results)),
    ]


def print_table(results: dict) -> None:
    """Print all rows."""
    table = Table('dtype', 'weights', 'ignored', 'avg_non_ignore', *results)
    for row in ROWS:
        table.add_row(*row, *(results[name][' | '.join(row)] for name in results))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main(arguments: list[str] | None = None) -> None:
    """Compute the losses, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--write', action='store_true', help='write docs/semantics.json and the tables')
    args = parser.parse_args(arguments)
    measured = measure()
    print_table(measured)
    if args.write:
        record(RESULTS, measured, tables)


if __name__ == '__main__':
    main()
