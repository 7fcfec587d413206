"""Measure time and memory of a scan over label files, compared with decoding them only.

python tools/benchmark_labels.py                       generated labels of ADE20K's size
python tools/benchmark_labels.py --labels DIR          labels in a folder

All of it runs in turn in one process, so that a busy machine slows down all of it. Medians, with the range.
"""

import argparse
import io
import resource
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import mmseg_wce  # noqa: F401  (first: mmseg cannot be imported on mmcv-lite without it)
import numpy as np
from mmseg_wce.dataset_checks import LabelFiles, from_folder, scan
from mmseg_wce.datasets.demo_scenes import draw_scene
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from timing import interleaved

HEIGHT, WIDTH = 512, 683  # as most of ADE20K's images: a shorter side of 512, 4:3
SCENES = 100
console = Console()


def write_labels(folder: Path, number: int) -> None:
    """Write labels of generated scenes, each shifted at random, every second one mirrored."""
    rng = np.random.default_rng(0)
    scenes = [cv2.resize(draw_scene(rng)[1], (WIDTH, HEIGHT), interpolation=cv2.INTER_NEAREST) for _ in range(SCENES)]
    for i in track(range(number), f'Writing {number} labels', console=console):
        labels = np.roll(scenes[i % SCENES], rng.integers(WIDTH), axis=1)[:, :: 1 - 2 * (i % 2)]
        cv2.imwrite(str(folder / f'{i:06d}.png'), labels)


def decode(files: Sequence[str]) -> None:
    """Read and decode the files, and do nothing with their pixels."""
    for file in files:
        Image.open(io.BytesIO(Path(file).read_bytes())).load()


def scan_all(part: LabelFiles, workers: int = 0) -> None:
    """Run a scan to its end."""
    for _ in scan([part], workers):
        pass


def peak_megabytes() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--labels', help='folder of PNG label files, instead of generated ones')
    parser.add_argument('--images', type=int, default=20000, help='number of generated labels [%(default)s]')
    parser.add_argument('--rounds', type=int, default=3, help='interleaved rounds [%(default)s]')
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        if args.labels is None:
            write_labels(Path(folder), args.images)
        part = from_folder(args.labels or folder, 150, reduce_zero_label=True)
        scan_all(part.subset(range(max(1, len(part) // 10))))
        peak_tenth = peak_megabytes()
        scan_all(part)
        peak_all = peak_megabytes()
        functions = {
            'decode only': lambda: decode(part.files),
            'scan, one process': lambda: scan_all(part),
            'scan, two processes': lambda: scan_all(part, 2),
        }
        times = interleaved(functions, args.rounds, 'Measuring')
    number = len(part.files)
    table = Table(title=f'{number} label files')
    for column in ('', 'seconds', 'range', 'ms a file', 'of decoding', 'speed-up'):
        table.add_column(column, justify='right' if column else 'left')
    decoding, one = (statistics.median(times[name]) for name in ('decode only', 'scan, one process'))
    for name, values in times.items():
        median = statistics.median(values)
        value_range = f'{min(values):.2f}-{max(values):.2f}'
        ratios = f'{median / decoding:.2f} x', f'{one / median:.2f} x'
        table.add_row(name, f'{median:.2f}', value_range, f'{1000 * median / number:.2f}', *ratios)
    console.print(table)
    console.print(f'Peak memory: {peak_tenth:.0f} MB after a tenth of the files, {peak_all:.0f} MB after all of them.')


if __name__ == '__main__':
    main()
