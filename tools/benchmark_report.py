"""Tables and pictures of the benchmark's results."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

COLORS = {
    'built-in': '#9aa5b1',
    'compiled': '#c8b88a',
    'checkpointed': '#8fb7a3',
    'liger': '#7b8fc9',
    'mmseg_wce': '#d9480f',
    'mmseg_wce, weighted': '#f08c5a',
}


def milliseconds(seconds: float) -> str:
    """Format a duration: with two decimals below 10 ms, with none above."""
    return f'{1e3 * seconds:.2f}' if seconds < 10e-3 else f'{1e3 * seconds:.0f}'


def print_table(console: Console, result: dict) -> None:
    """Print time and memory of every implementation in one case."""
    floor = result.get('floor')
    table = Table(
        title=result['case'],
        caption=None if floor is None else f'The exponentials alone take {1e3 * floor:.2f} ms.',
    )
    table.add_column('implementation')
    for column in ('forward', 'backward', 'both', 'range', 'against built-in', 'extra memory'):
        table.add_column(column, justify='right')
    base = result['ways'].get('built-in')
    for name, timing in result['ways'].items():
        both = timing['both']
        ratio = '' if base is None else f'{base["both"]["median"] / both["median"]:.1f} x'
        table.add_row(
            name,
            *(f'{milliseconds(timing[part]["median"])} ms' for part in ('forward', 'backward', 'both')),
            f'{milliseconds(both["min"])} to {milliseconds(both["max"])}',
            ratio,
            '' if timing['megabytes'] is None else f'{timing["megabytes"]:.0f} MB',
        )
    console.print(table)


def markdown(results: dict) -> str:
    """Return a Markdown table for docs/benchmarks.md: the time of the built-in loss, and how much faster others are."""
    cases = [result for result in results['cases'] if 'built-in' in result['ways']]
    names = [name for name in COLORS if any(name in result['ways'] for result in cases)]
    lines = [
        '| case | ' + ' | '.join(names) + ' | exponentials alone | extra memory, built-in | mmseg_wce |',
        '| --- ' * (len(names) + 4) + '|',
    ]
    for result in cases:
        timings, base = result['ways'], result['ways']['built-in']['both']
        median, low, high = (milliseconds(base[key]) for key in ('median', 'min', 'max'))
        cells = [f'{median} ms ({low} to {high})']
        for name in names[1:]:
            cells.append(f'{base["median"] / timings[name]["both"]["median"]:.1f} x' if name in timings else '')
        cells.append(f'{milliseconds(result["floor"])} ms' if 'floor' in result else '')
        for name in ('built-in', 'mmseg_wce'):
            megabytes = timings.get(name, {}).get('megabytes')
            cells.append('' if megabytes is None else f'{megabytes:.0f} MB')
        lines.append(f'| {result["case"]} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def print_predictions(console: Console, result: dict) -> None:
    """Print time and memory of every implementation for one photo."""
    table = Table(title=f'Prediction after the network: {result["case"]}')
    table.add_column('implementation')
    for column in ('time', 'range', 'against built-in', 'extra memory'):
        table.add_column(column, justify='right')
    base = result['ways']['built-in']['median']
    for name, timing in result['ways'].items():
        table.add_row(
            name,
            f'{milliseconds(timing["median"])} ms',
            f'{milliseconds(timing["min"])} to {milliseconds(timing["max"])}',
            f'{base / timing["median"]:.1f} x',
            '' if timing['megabytes'] is None else f'{timing["megabytes"]:.0f} MB',
        )
    console.print(table)


def predictions_markdown(results: dict) -> str:
    """Return a Markdown table of the predictions for docs/benchmarks.md."""
    if not results['predictions']:
        return ''
    names = list(results['predictions'][0]['ways'])
    lines = [
        '| prediction | ' + ' | '.join(f'{name} | extra memory' for name in names) + ' |',
        '| --- ' * (2 * len(names) + 1) + '|',
    ]
    for result in results['predictions']:
        base, cells = result['ways']['built-in'], []
        for name in names:
            timing = result['ways'].get(name)
            if timing is None:
                cells += ['', '']
                continue
            median, low, high = (milliseconds(timing[key]) for key in ('median', 'min', 'max'))
            cells.append(
                f'{median} ms ({low} to {high})' if timing is base else f'{base["median"] / timing["median"]:.1f} x'
            )
            cells.append('' if timing['megabytes'] is None else f'{timing["megabytes"]:.0f} MB')
        lines.append(f'| {result["case"]} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def draw_times(path: Path, results: dict) -> None:
    """Draw the speed of each implementation relative to the built-in loss as bars, case by case; a line at 1."""
    cases = [result for result in results['cases'] if 'built-in' in result['ways']]
    if not cases:
        return
    names = [name for name in COLORS if name != 'built-in' and any(name in result['ways'] for result in cases)]
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.62 * len(cases)), layout='constrained')
    height = 0.8 / max(len(names), 1)
    for k, name in enumerate(names):
        rows = [i for i, result in enumerate(cases) if name in result['ways']]
        ratios = [
            cases[i]['ways']['built-in']['both']['median'] / cases[i]['ways'][name]['both']['median'] for i in rows
        ]
        y = np.array(rows) + (k - (len(names) - 1) / 2) * height
        axis.barh(y, ratios, height, color=COLORS[name], label=name)
        for position, ratio in zip(y, ratios, strict=True):
            axis.text(ratio + 0.08, position, f'{ratio:.1f}', va='center', fontsize=7)
    axis.axvline(1, color='0.7', linewidth=0.8, zorder=0)
    axis.set_yticks(range(len(cases)), [result['case'] for result in cases])
    axis.set_ylim(len(cases) - 0.4, -0.6)
    axis.set_xlabel('times as fast as the built-in path, forward and backward (1: as fast)')
    axis.set_title(
        ', '.join((results['environment']['device'], f'torch {results["environment"]["torch"]}')), loc='left'
    )
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(frameon=False, loc='lower right')
    figure.savefig(path, dpi=110, facecolor='white')
    plt.close(figure)


def draw_memory(path: Path, results: dict) -> None:
    """Draw the extra memory over the crop size, for one image with 150 classes at stride 4."""
    figure, axis = plt.subplots(figsize=(6.5, 4), layout='constrained')
    for name in ('built-in', 'mmseg_wce'):
        rows = [row for row in results['crops'] if row.get(name) is not None]
        if rows:
            axis.plot([row['crop'] for row in rows], [row[name] for row in rows], 'o-', color=COLORS[name], label=name)
            for row in rows:
                axis.annotate(
                    f'{row[name]:.0f}', (row['crop'], row[name]), (4, 5), textcoords='offset points', fontsize=9
                )
    crops = np.array([row['crop'] for row in results['crops']])
    axis.plot(crops, 150 * (crops / 4) ** 2 * 4 / 1e6, ':', color='0.4', label='the gradient of the logits alone')
    axis.set_xscale('log', base=2)
    axis.set_yscale('log')
    axis.set_xticks(crops, [str(crop) for crop in crops])
    axis.set_xlabel('crop size (pixels)')
    axis.set_ylabel('extra peak memory, forward and backward (MB)')
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110, facecolor='white')
    plt.close(figure)
