"""Table and picture of class frequencies and weights."""

import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from drawing import plain, save
from label_arguments import console
from mmseg_wce.class_weights import SCHEMES, LabelStatistics, class_weights
from rich.markup import escape
from rich.table import Table

FREQUENCY, CHOSEN, OTHER = '#5c7c99', '#d9480f', '#e3b294'


def print_table(statistics: LabelStatistics, scheme: str, weights: np.ndarray) -> None:
    """Print share of pixels, number of images and weight of every class, and the labels that are no class."""
    s = statistics
    table = Table(title=escape(f'{s.dataset}: {s.num_images} images; most frequent first'))
    for column in ('', 'class', 'share of pixels', 'images', f'weight, {scheme}'):
        table.add_column(column, justify='left' if column == 'class' else 'right')
    share = 100 * s.share
    for c in np.argsort(-s.pixels, kind='stable'):
        table.add_row(str(c), escape(s.classes[c]), f'{share[c]:.3f} %', str(s.images[c]), f'{weights[c]:.4g}')
    console.print(table)
    positive = weights[weights > 0]
    ignored = 100 * s.ignored_pixels / max(s.num_pixels, 1)
    console.print(
        f'Weights from {positive.min():.4g} to {positive.max():.4g}, ratio {positive.max() / positive.min():.4g}. '
        f'{ignored:.2f} % of all pixels are ignored.',
        highlight=False,
    )
    if s.unexpected:
        listed = ', '.join(
            f'{v} ({t.files} file{"s" * (t.files != 1)}, such as {t.example})' for v, t in s.unexpected.items()
        )
        console.print('[bold red]Labels that are no class:[/] ' + escape(listed), soft_wrap=True, highlight=False)
        console.print('They are not counted here, and the loss raises an error for them: see tools/check_labels.py.')
    if s.pixels_in_images is None:
        console.print(f'Approximate: {s.source}.', highlight=False)


def draw_weights(path: Path, statistics: LabelStatistics, chosen: dict) -> None:
    """Draw the share of pixels and the weights of every scheme, with the options of the chosen one."""
    order = np.argsort(-statistics.pixels, kind='stable')
    rows = np.arange(len(order))
    height = max(3.0, 0.19 * len(order) + 1.2)
    plt.rcParams.update({'font.size': 9, 'font.family': 'DejaVu Sans'})
    figure, axes = plt.subplots(
        1,
        1 + len(SCHEMES),
        figsize=(14, height),
        sharey=True,
        layout='constrained',
        width_ratios=[1.3, *[1] * len(SCHEMES)],
    )
    share = 100 * statistics.share[order]
    _style(axes[0])
    axes[0].barh(rows, share, 0.75, color=FREQUENCY)
    axes[0].set_title('share of pixels (%)', loc='left')
    axes[0].set_yticks(rows, [plain(statistics.classes[c]) for c in order])
    weights = _weights_by_scheme(statistics, chosen)
    positive = np.concatenate([w[w > 0] for w in weights.values() if w is not None])
    for axis, (scheme, scheme_weights) in zip(axes[1:], weights.items(), strict=True):
        if scheme_weights is None:
            axis.set_title(f'{scheme}\noverflows', loc='left')
            continue
        is_chosen, present = scheme == chosen['scheme'], scheme_weights[statistics.pixels > 0]
        drawn = np.where(scheme_weights > 0, scheme_weights, np.nan)[order]
        _style(axis)
        axis.barh(rows, np.abs(drawn - 1), 0.75, left=np.minimum(drawn, 1), color=CHOSEN if is_chosen else OTHER)
        title = f'{scheme}\nratio {present.max() / present.min():.3g}'
        axis.set_title(title, loc='left', weight='bold' if is_chosen else 'normal')
        axis.axvline(1, color='0.4', linewidth=0.8)
        axis.set_xlim(min(positive.min(), 0.5) / 1.2, max(positive.max(), 2) * 1.2)
    axes[0].set_ylim(len(order) - 0.4, -0.6)  # the most frequent at the top
    save(figure, path, dpi=100)


def _weights_by_scheme(statistics: LabelStatistics, chosen: dict) -> dict[str, np.ndarray | None]:
    """Return the weights of every scheme; None for one that cannot be computed with these options."""
    common = {key: value for key, value in chosen.items() if key not in ('scheme', 'beta')}
    weights: dict[str, np.ndarray | None] = {}
    with warnings.catch_warnings():  # about absent classes: the table shows them
        warnings.simplefilter('ignore')
        for scheme in SCHEMES:
            options = chosen if scheme == chosen['scheme'] else dict(common, scheme=scheme)
            try:
                weights[scheme] = class_weights(statistics, **options)
            except ValueError:  # a large exponent
                weights[scheme] = None
    return weights


def _style(axis) -> None:
    axis.set_xscale('log')
    axis.xaxis.set_major_formatter('{x:g}')
    axis.xaxis.set_minor_formatter('')
    axis.spines[['top', 'right', 'left']].set_visible(False)
    axis.tick_params(axis='y', length=0)
    axis.grid(axis='x', color='0.88', linewidth=0.6)
    axis.set_axisbelow(True)
