"""Tables and pictures of the benchmark's results."""

from collections.abc import Sequence
from pathlib import Path

import marked_tables
import matplotlib.pyplot as plt
import numpy as np
from drawing import save
from rich.console import Console
from rich.table import Table

COLORS = {
    'built-in': '#9aa5b1',
    'compiled': '#c8b88a',
    'checkpointed': '#8fb7a3',
    'mmseg_wce': '#d9480f',
    'mmseg_wce, weighted': '#f08c5a',
    'mmseg_wce, focal': '#7950f2',
}


def milliseconds(seconds: float) -> str:
    """Format a duration: with two decimals below 10 ms, with none above."""
    return f'{1e3 * seconds:.2f}' if seconds < 10e-3 else f'{1e3 * seconds:.0f}'


def _with_range(timing: dict) -> str:
    median, low, high = (milliseconds(timing[key]) for key in ('median', 'min', 'max'))
    return f'{median} ms ({low} to {high})'


def _memory(timing: dict) -> str:
    return '' if timing.get('megabytes') is None else f'{timing["megabytes"]:.0f} MB'


def print_table(console: Console, result: dict) -> None:
    """Print time and memory of every implementation in one case."""
    parts, rows, base = ('forward', 'backward', 'both'), [], result['ways'].get('built-in')
    for name, timing in result['ways'].items():
        times = [f'{milliseconds(timing[part]["median"])} ms' for part in parts]
        rows.append([name, *times, *_compared(timing['both'], base and base['both']), _memory(timing)])
    floor = result.get('floor')
    caption = None if floor is None else f'The exponentials alone take {1e3 * floor:.2f} ms.'
    _print(console, parts, rows, title=result['case'], caption=caption)


def print_predictions(console: Console, result: dict) -> None:
    """Print time and memory of every implementation for one photo."""
    rows = [
        [name, f'{milliseconds(t["median"])} ms', *_compared(t, result['ways']['built-in']), _memory(t)]
        for name, t in result['ways'].items()
    ]
    _print(console, ['time'], rows, title=f'Prediction after the network: {result["case"]}')


def _compared(timing: dict, base: dict | None) -> tuple[str, str]:
    """Return the cells with the range and the speed relative to the built-in implementation."""
    time_range = f'{milliseconds(timing["min"])} to {milliseconds(timing["max"])}'
    return time_range, '' if base is None else f'{base["median"] / timing["median"]:.1f} x'


def _print(console: Console, times: Sequence[str], rows: list[list[str]], **titles: str | None) -> None:
    table = Table('implementation', **titles)
    for column in (*times, 'range', 'against built-in', 'extra memory'):
        table.add_column(column, justify='right')
    for row in rows:
        table.add_row(*row)
    console.print(table)


def markdown(results: dict) -> str:
    """Return a Markdown table for docs/benchmarks.md: the time of the built-in loss, and how much faster others are."""
    cases = [result for result in results['cases'] if 'built-in' in result['ways']]
    names = [name for name in COLORS if any(name in result['ways'] for result in cases)]
    rows = []
    for result in cases:
        timings, base = result['ways'], result['ways']['built-in']['both']
        row = [result['case'], _with_range(base)]
        for name in names[1:]:
            row.append(f'{base["median"] / timings[name]["both"]["median"]:.1f} x' if name in timings else '')
        row.append(f'{milliseconds(result["floor"])} ms' if 'floor' in result else '')
        rows.append([*row, *(_memory(timings.get(name, {})) for name in ('built-in', 'mmseg_wce'))])
    header = ['case', *names, 'exponentials alone', 'extra memory, built-in', 'mmseg_wce']
    return '\n'.join(marked_tables.markdown(header, rows)) + '\n'


def predictions_markdown(results: dict) -> str:
    """Return a Markdown table of the predictions for docs/benchmarks.md."""
    if not results['predictions']:
        return ''
    names, rows = list(results['predictions'][0]['ways']), []
    for result in results['predictions']:
        base, row = result['ways']['built-in'], [result['case']]
        for name in names:
            timing = result['ways'].get(name)
            if timing is None:
                row += ['', '']
            else:
                speed = _with_range(base) if timing is base else f'{base["median"] / timing["median"]:.1f} x'
                row += [speed, _memory(timing)]
        rows.append(row)
    header = ['prediction', *(cell for name in names for cell in (name, 'extra memory'))]
    return '\n'.join(marked_tables.markdown(header, rows)) + '\n'


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
        medians = [{way: timing['both']['median'] for way, timing in cases[i]['ways'].items()} for i in rows]
        ratios = [median['built-in'] / median[name] for median in medians]
        y = np.array(rows) + (k - (len(names) - 1) / 2) * height
        axis.barh(y, ratios, height, color=COLORS[name], label=name)
        for position, ratio in zip(y, ratios, strict=True):
            axis.text(ratio + 0.08, position, f'{ratio:.1f}', va='center', fontsize=7)
    axis.axvline(1, color='0.7', linewidth=0.8, zorder=0)
    axis.set_yticks(range(len(cases)), [result['case'] for result in cases])
    axis.set_ylim(len(cases) - 0.4, -0.6)
    axis.set_xlabel('times as fast as the built-in path, forward and backward (1: as fast)')
    axis.set_title('{device}, torch {torch}'.format(**results['environment']), loc='left')
    axis.spines[['top', 'right']].set_visible(False)
    axis.legend(frameon=False, loc='lower right')
    save(figure, path)


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
    save(figure, path)
