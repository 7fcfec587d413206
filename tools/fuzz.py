"""Run the property-based tests on random examples for as long as asked, and keep what they find as test cases.

Hypothesis draws problems, compares with PyTorch or mmseg, and shrinks what fails; the property-based tests of the suite
do that on a few hundred examples. Here each has many times more, in turn and with new random seeds.
"""

import argparse
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import cycle
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

ROOT = Path(__file__).resolve().parent.parent
PASSING = re.compile(r'during generate phase .*?- (\d+) passing examples', re.DOTALL)
FAILURE = re.compile(r'^[E| ]*Falsifying example: \w+\(\n(.*?)^[E| ]*\)$', re.DOTALL | re.MULTILINE)

console = Console()


def pytest(*arguments: str, times: int = 1, seconds: float | None = None) -> subprocess.CompletedProcess:
    """Run pytest on one thread, so that several can run side by side."""
    return subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-W', 'ignore', '-p', 'no:cacheprovider', *arguments],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS='1', MMSEG_WCE_FUZZ=str(times)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def properties(only: str | None) -> list[str]:
    """The tests that draw their arguments."""
    chosen = ['-k', only] if only else []
    listed = pytest('--collect-only', '-m', 'hypothesis', *chosen)
    return [line for line in listed.stdout.splitlines() if '::' in line]


def test_case(test: str, output: str) -> str:
    """A file that fails as the test did, for each example that was shrunk."""
    path, name = test.split('::')
    name, module = name.split('[')[0], Path(path).stem
    found = [indented(arguments) for arguments in FAILURE.findall(output)]
    body = ''.join(
        f'\n\ndef test_found_{i}():\n    {module}.{name}.hypothesis.inner_test(\n{arguments}    )\n'
        for i, arguments in enumerate(found)
    )
    used = [used for used in ('Recipe', 'Way') if f'{used}(' in body]
    origins = dict(Recipe='cases', Way='ways')
    imports = ''.join(f'from {origins[used]} import {used}\n' for used in used)
    folders = [str(ROOT / folder) for folder in Path(path).parents if folder.name]
    return (
        f'"""Found by tools/fuzz.py in {test}"""\n\nimport sys\n\nsys.path[:0] = {folders}\n'
        f'import conftest  # noqa: F401\nimport {module}\n{imports}{body}'
    )


def indented(arguments: str) -> str:
    lines = [line.lstrip('E| ') for line in arguments.splitlines()]
    return ''.join(f'        {line}\n' for line in lines if line and not line.startswith('#'))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=float, default=10, help='[%(default)s]')
    parser.add_argument('--times', type=int, default=10, help="a test's own number of examples at once [%(default)s]")
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='tests side by side [%(default)s]')
    parser.add_argument('--only', help="tests whose name matches, as pytest's -k")
    parser.add_argument('--out', type=Path, default=Path('work_dirs/fuzz'), help='folder for test cases [%(default)s]')
    args = parser.parse_args(arguments)
    tests = properties(args.only)
    if not tests:
        console.print('error: no property-based test found', style='red')
        return 2
    passed, failed = fuzz(tests, args)
    for test, number in passed.items():
        console.print(f'{number:9,}  {test}', markup=False, highlight=False, soft_wrap=True)
    console.print(f'{sum(passed.values()):9,}  examples passed; {len(failed)} of {len(tests)} tests failed')
    for test, file in failed.items():
        console.print(f'{test}: {file}', style='red', markup=False, soft_wrap=True)
    return 1 if failed else 0


def fuzz(tests: list[str], args: argparse.Namespace) -> tuple[Counter[str], dict[str, Path]]:
    """Examples that passed, and a file for each test that failed."""
    deadline, passed, failed = time.monotonic() + 60 * args.minutes, Counter(), {}

    def run(test: str) -> tuple[str, subprocess.CompletedProcess | None]:
        seed = random.randrange(2**32)
        options = (f'--hypothesis-seed={seed}', '--hypothesis-show-statistics', test)
        try:
            left = deadline - time.monotonic()
            return test, pytest(*options, times=args.times, seconds=left) if left > 0 else None
        except subprocess.TimeoutExpired:
            return test, None

    turns, running = cycle(tests), set()
    columns = (TextColumn('Fuzzing'), BarColumn(), TextColumn('{task.fields[examples]:,} examples'))
    with (
        Progress(*columns, TimeRemainingColumn(), console=console) as progress,
        ThreadPoolExecutor(args.jobs) as pool,
    ):
        task = progress.add_task('', total=60 * args.minutes, examples=0)
        while (left := deadline - time.monotonic()) > 0 and len(failed) < len(tests):
            while len(running) < args.jobs:
                running.add(pool.submit(run, next(turn for turn in turns if turn not in failed)))
            done, running = wait(running, timeout=1, return_when=FIRST_COMPLETED)
            for future in done:
                keep(future, passed, failed, args.out)
            progress.update(task, completed=60 * args.minutes - left, examples=sum(passed.values()))
        for future in wait(running)[0]:
            keep(future, passed, failed, args.out)
    return passed, failed


def keep(future: Future, passed: Counter[str], failed: dict[str, Path], folder: Path) -> None:
    test, process = future.result()
    if process is None:  # the time was up
        return
    passed[test] += sum(int(number) for number in PASSING.findall(process.stdout))
    if process.returncode != 0 and test not in failed:
        folder.mkdir(parents=True, exist_ok=True)
        failed[test] = folder / f'test_found_{re.sub(r"[^a-z0-9]+", "_", test.split("::")[1])}_{len(failed)}.py'
        failed[test].write_text(test_case(test, process.stdout))
        failed[test].with_suffix('.log').write_text(process.stdout + process.stderr)


if __name__ == '__main__':
    sys.exit(main())
