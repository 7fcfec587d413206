"""Report of a comparison: a self-contained HTML page, its pictures as PNG files, and its tables in Markdown."""

import base64
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from drawing import shrink
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from marked_tables import markdown
from mmseg_wce.metrics import MEANS

from compare.figures import draw_agreement, draw_changes, draw_classes, draw_confusions, draw_curves, draw_means
from compare.rebalanced import Rebalanced, draw_prices, load_rebalanced
from compare.results import ConfigResults, load_results
from compare.runs import Comparison, Run
from compare.scenes import draw_scenes, keep_predictions, scenes

TEMPLATE = Path(__file__).with_name('report.html.j2')


def write_report(out: Path, comparisons: Sequence[Comparison], runs: Sequence[Run], command: str) -> Path:
    """Write pictures, ``summary.md`` and the page about the configs with finished trainings; return the page's path."""
    sections = []
    for comparison in comparisons:
        folder, config_runs = out / comparison.name, [run for run in runs if run.comparison is comparison]
        if not any(run.result_file.exists() for run in config_runs):
            continue
        results = load_results(config_runs)
        finished = [run for outcome in results.outcomes.values() for run in outcome.runs]
        section = dict(results=results, rows=_rows(results), agreement=_agreement(results))
        section['done'] = dict(runs=len(finished), of=len(config_runs))
        section['environment'] = _environment(finished)
        section['rebalanced'] = load_rebalanced(config_runs)
        section['pictures'] = _pictures(folder, comparison, config_runs, results, section['rebalanced'])
        sections.append(section)
    if not sections:
        raise ValueError(f'no training of {", ".join(c.name for c in comparisons)} is finished')
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, trim_blocks=True, undefined=StrictUndefined
    )
    page = out / 'report.html'
    page.write_text(environment.get_template(TEMPLATE.name).render(sections=sections, command=command))
    lines = []
    titles = dict(iou='IoU', accuracy='Accuracy, which is recall', precision='Precision')
    for section in sections:
        results = section['results']
        lines += [f'## {results.name}', '', *_table(section['rows']), '']
        if section['rebalanced']:
            lines += [f'### {results.name}, moved after the training', '', *_moved_table(section['rebalanced']), '']
        for figure, title in titles.items():
            lines += [f'### {title} of {results.name}', '', *_class_table(results, figure), '']
    (out / 'summary.md').write_text('\n'.join(lines))
    return page


def _pictures(
    folder: Path,
    comparison: Comparison,
    runs: Sequence[Run],
    results: ConfigResults,
    rebalanced: Sequence[Rebalanced],
) -> dict[str, str]:
    """Draw the pictures of a config, and return them as data URLs by name."""
    urls = {}

    def add(name: str, draw, *arguments) -> None:
        path = folder / f'{name}.png'
        if draw(path, *arguments) is not False:
            shrink(path)
            urls[name] = 'data:image/png;base64,' + base64.b64encode(path.read_bytes()).decode()

    add('means', draw_means, results)
    add('prices', draw_prices, results, rebalanced)
    add('classes', draw_classes, results)
    add('changes', draw_changes, results)
    add('confusions', draw_confusions, results)
    add('curves', draw_curves, results)
    add('agreement', draw_agreement, results)
    first_seed_runs = [run for run in runs if run.seed == runs[0].seed]
    chosen = scenes(comparison, results.share)
    for run in first_seed_runs:
        keep_predictions(run, chosen)
    add('scenes', draw_scenes, False, first_seed_runs, chosen, results)
    add('zoomed', draw_scenes, True, first_seed_runs, chosen, results)
    return urls


def _rows(results: ConfigResults) -> list[dict]:
    """Return a row of the table for each loss."""
    rows = []
    for loss, outcome in results.outcomes.items():
        is_base = loss == results.base.loss
        row = dict(loss=loss, seeds=outcome.seeds, is_base=is_base)
        for key, values in outcome.means.items():
            differences = results.difference(loss, key)
            spread = values.std(ddof=1) if len(values) > 1 else None
            row[key] = dict(mean=values.mean(), spread=spread, apart=bool(results.apart(loss, key)))
            row[key]['difference'] = None if is_base or not len(differences) else differences.mean()
        validation = outcome.last_validation.mean()
        row['validation'] = '' if np.isnan(validation) else f'{validation:.1f}'
        row['validation_apart'] = bool(results.apart(loss, 'last_validation'))
        row['rarest'] = outcome.mean_iou_of(results.rarest_third).mean()
        row['better'] = results.classes_apart(loss, 'iou', +1)
        row['worse'] = results.classes_apart(loss, 'iou', -1)
        row['seconds'] = _min(run['seconds_per_iteration'] for run in outcome.runs)
        row['megabytes'] = _min(run['megabytes'] for run in outcome.runs)
        rows.append(row)
    return rows


def _table(rows: list[dict]) -> list[str]:
    """Return the means in Markdown, with their standard deviation and the difference to the base."""
    lines = []
    for row in rows:
        cells = [f'`{row["loss"]}`', str(len(row['seeds']))]
        for key in ('mIoU', 'mAcc', 'aAcc'):
            cell, spread, difference = f'{row[key]["mean"]:.1f}', row[key]['spread'], row[key]['difference']
            if spread is not None:
                cell += f' ± {spread:.1f}'
            if difference is not None:
                points = f'{difference:+.1f}'
                cell += f', **{points}**' if row[key]['apart'] else f', {points}'
            cells.append(cell)
        cells.append(f'{row["rarest"]:.1f}')
        cells.append(f'**{row["validation"]}**' if row['validation_apart'] else row['validation'])
        lines.append(cells)
    return markdown(['loss', 'seeds', 'mIoU', 'mAcc', 'aAcc', 'IoU, rarest third', 'mIoU, validation'], lines)


def _moved_table(rebalanced: Sequence[Rebalanced]) -> list[str]:
    """Return the means with the chosen tau in Markdown, with the difference to the trainings as they are."""
    lines = []
    for row in (moved.row() for moved in rebalanced):
        cells = [f'`{row["loss"]}`', str(row['seeds']), row['taus']]
        for name in MEANS:
            spread = '' if row[name]['spread'] is None else f' ± {row[name]["spread"]:.1f}'
            cells.append(f'{row[name]["mean"]:.1f}{spread}, {row[name]["difference"]:+.1f}')
        lines.append(cells)
    return markdown(['trained with', 'seeds', 'tau', *MEANS], lines)


def _class_table(results: ConfigResults, figure: str) -> list[str]:
    """Return the mean of a score over the seeds, for every class and loss, in Markdown; most frequent class first."""
    means = [getattr(outcome, figure).mean(0) for outcome in results.outcomes.values()]
    lines = []
    for c in results.order:
        cells = ['' if np.isnan(mean[c]) else f'{mean[c]:.1f}' for mean in means]
        lines.append([results.classes[c], f'{100 * results.share[c]:.2g} %', *cells])
    return markdown(['class', 'of the training pixels', *(f'`{loss}`' for loss in results.outcomes)], lines)


def _agreement(results: ConfigResults) -> dict | None:
    """Return the largest relative difference of the training losses of mmseg and ours: at the first step, at any."""
    if results.same_function is None:
        return None
    built_in, ours, seeds = results.same_function
    (steps_a, a), (steps_b, b) = (outcome.curve('training', 'loss') for outcome in (built_in, ours))
    steps, columns_a, columns_b = np.intersect1d(steps_a, steps_b, return_indices=True)
    if not len(steps):
        return None
    a, b = built_in.select_seeds(seeds, a)[:, columns_a], ours.select_seeds(seeds, b)[:, columns_b]
    difference = np.abs(a - b) / np.abs(a)
    return dict(step=int(steps[0]), first=float(difference[:, 0].max()), most=float(difference.max()))


def _min(values) -> float | None:
    # other work of the machine only adds time and memory
    return min((value for value in values if value is not None), default=None)


def _environment(runs: Sequence[dict]) -> dict[str, list[str]]:
    """Return the devices, versions and dates of all trainings."""
    environment: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for name, value in run['environment'].items():
            environment[name].add(value)
    return {name: sorted(values) for name, values in environment.items()}
