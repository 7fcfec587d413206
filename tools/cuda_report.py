"""Tables of the benchmark on CUDA, in plain text."""

from collections.abc import Sequence

NAME_WIDTH = 64
HEADER = ('implementation', 'device ms', 'range', 'from', 'wall ms', 'kernels ms', 'launches', 'time / floor')
HEADER += ('time / eager', 'memory MB', 'loss')


def case_tables(result: dict) -> str:
    """Return the tables of one case: the implementations, what was not measured, and the kernels of ours."""
    lines = [f'== {result["case"]}: {result["sizes"]}', '']
    if 'not_measured' in result:
        return f'{lines[0]}\nnot measured: {result["not_measured"]}\n'
    floor, ways = result['floor'], result['ways']
    measured = {name: way for name, way in ways.items() if 'device' in way}
    base = ways.get('eager', {}).get('device')
    lines += text_table(HEADER, [_row(name, way, floor['seconds'], base) for name, way in measured.items()])
    of = floor['seconds_of']
    moved = sum(sum(tensors.values()) for tensors in floor['bytes'].values())
    lines += [
        f'floor {milliseconds(floor["seconds"])} ms: {floor["exponentials"]:.3g} exponentials take '
        f'{milliseconds(of["exponentials"])} ms, {moved / 1e6:.0f} MB to move take {milliseconds(of["bytes"])} ms'
        + ('; these fit into the L2 cache, so that they may move faster' if result['fits_in_l2'] else '')
    ]
    lines += [f'{name}: timed with events, {way["why_events"]}' for name, way in measured.items() if way['why_events']]
    lines += [f'{name}: not measured: {way["not_measured"]}' for name, way in ways.items() if 'not_measured' in way]
    lines += [
        f'{name}: kernels not measured: {way.get("why_no_kernels", "the profiler saw none")}'
        for name, way in measured.items()
        if not way.get('kernels')
    ]
    if kernels := ways.get('mmseg_wce', {}).get('kernels'):
        lines += ['', 'kernels of a step of mmseg_wce:', *kernel_table(kernels, result['pairs'], floor['bytes'])]
    return '\n'.join([*lines, ''])


def kernel_table(kernels: list[dict], pairs: int, moved: dict[str, dict[str, int]]) -> list[str]:
    """Return the lines of a table of kernels, and of the forward and the backward with the rates that they reach.

    Args:
        kernels: as from :func:`cuda_profile.kernels_of_trace`.
        pairs: number of pairs of a pixel and a class.
        moved: bytes of the forward and the backward, by the tensor.
    """
    total = sum(kernel['microseconds'] for kernel in kernels)
    rows = [
        [
            kernel['part'],
            kernel['name'][:NAME_WIDTH],
            f'{kernel["launches"]:g}',
            f'{kernel["microseconds"]:.1f}',
            f'{100 * kernel["microseconds"] / total:.0f} %',
            str(kernel.get('registers', '')),
            '',
            '',
        ]
        for kernel in kernels
    ]
    for part, tensors in moved.items():
        of_part = [kernel for kernel in kernels if kernel['part'] == part]
        seconds = sum(kernel['microseconds'] for kernel in of_part) / 1e6
        if seconds:
            launches = sum(kernel['launches'] for kernel in of_part)
            rates = f'{pairs / seconds / 1e9:.0f}', f'{sum(tensors.values()) / seconds / 1e9:.0f}'
            share = f'{100e6 * seconds / total:.0f} %'
            rows.append([part, 'together', f'{launches:g}', f'{1e6 * seconds:.1f}', share, '', *rates])
    header = ['part', 'kernel', 'launches', 'us', 'share', 'registers', '10^9 pairs/s', 'GB/s']
    return text_table(header, rows, left=2)


def overview(cases: list[dict]) -> str:
    """Return a table of all cases: the device time of ours, and how many times as long the others take."""
    names = list(dict.fromkeys(name for case in cases for name in case.get('ways', {}) if name != 'mmseg_wce'))
    rows = []
    for case in cases:
        ways = case.get('ways', {})
        ours = ways.get('mmseg_wce', {}).get('device')
        if ours is None:
            rows.append([case['case'], *['not measured'] * 3, *[''] * len(names)])
            continue
        floor = case['floor']['seconds']
        times = [milliseconds(ours['median']), milliseconds(floor), f'{ours["median"] / floor:.1f} x']
        others = [ways.get(name, {}).get('device') for name in names]
        ratios = ['not measured' if other is None else f'{other["median"] / ours["median"]:.1f} x' for other in others]
        rows.append([case['case'], *times, *ratios])
    return '\n'.join(text_table(['case', 'mmseg_wce ms', 'floor ms', 'time / floor', *names], rows))


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return the lines of a table; the first ``left`` columns are aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return '  '.join(padded).rstrip()

    return [line(header), line(['-' * width for width in widths]), *map(line, rows)]


def milliseconds(seconds: float) -> str:
    """Format a duration in ms, with three decimals."""
    return f'{1e3 * seconds:.3f}'


def _row(name: str, way: dict, floor: float, base: dict | None) -> list[str]:
    device, kernels = way['device'], way.get('kernels')
    return [
        name,
        milliseconds(device['median']),
        f'{milliseconds(device["min"])} to {milliseconds(device["max"])}',
        way['method'],
        milliseconds(way['wall']['median']),
        f'{sum(kernel["microseconds"] for kernel in kernels) / 1e3:.3f}' if kernels else 'not measured',
        f'{sum(kernel["launches"] for kernel in kernels):g}' if kernels else 'not measured',
        f'{device["median"] / floor:.1f} x',
        '' if base is None else f'{device["median"] / base["median"]:.2f}',
        f'{way["megabytes"]:.0f}',
        f'{way["loss"]:.5f}',
    ]
