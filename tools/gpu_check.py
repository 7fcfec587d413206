"""Check the loss on a GPU within nine minutes: correctness, CUDA graphs, tests, benchmark. Needs torch and NumPy alone.

Every check runs in a process of its own with a time limit, the most informative ones first. A table at the end has what
was expected and found, and what to try where a check failed; a JSON file has all figures. The exit status is 0 if
nothing failed, 1 if something did or was not run, 2 without a CUDA device.
"""

import argparse
import faulthandler
import importlib
import json
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from gpu_checks.results import FAILED, CheckRun, Row, exit_status, summarize, table
from gpu_checks.runner import Check, run_stage

DETERMINISTIC = {'CUBLAS_WORKSPACE_CONFIG': ':4096:8'}  # PyTorch wants it for its own matrix products
SLABS = {'MMSEG_WCE_BACKEND': 'slabs'}
CRASH = 'run it alone with --only; MMSEG_WCE_BACKEND=slabs; CUDA_LAUNCH_BLOCKING=1 shows the kernel that crashed'
FIRST = "run one step before the capture; see 'CUDA graph, warm-up before'"

# A list a stage, whose checks run side by side; stages that measure time have one check.
STAGES = [
    [Check('device', 'machine.device', 60, advice='nvidia-smi; does another process use the device?')],
    [
        Check('versions', 'machine.versions', 60, on_cpu=True),
        Check('back end', 'machine.backend', 60, on_cpu=True),
        Check('float32', 'correctness.resizing', 180, ('float32',), on_cpu=True, advice=CRASH),
        Check('values', 'correctness.options_and_values', 180, on_cpu=True, advice=CRASH),
        Check('bfloat16', 'correctness.resizing', 180, ('bfloat16',), on_cpu=True, advice=CRASH),
        Check('float16', 'correctness.resizing', 180, ('float16',), on_cpu=True, advice=CRASH),
        Check('bad label', 'behaviour.bad_label', 90, on_cpu=True, advice=CRASH),
        Check('launches', 'behaviour.launches', 120, advice=CRASH),
        Check('synchronization', 'behaviour.no_synchronization', 90, advice=CRASH),
        Check('deterministic', 'behaviour.deterministic', 90, environment=DETERMINISTIC, on_cpu=True, advice=CRASH),
        Check('graph, nothing', 'behaviour.graph', 90, ('nothing',), advice=FIRST),
        Check('graph, other shapes', 'behaviour.graph', 90, ('other shapes',), advice=FIRST),
        Check('graph, warm-up', 'behaviour.graph', 90, ('warm-up',), advice=CRASH),
        Check('matmul precision', 'behaviour.matmul_precision', 90, advice=CRASH),
        Check('compile', 'behaviour.compiled', 150, advice=CRASH),
        Check('slabs', 'correctness.options_and_values', 120, ('slabs, ',), SLABS, on_cpu=True),
    ],
    [Check('benchmark', 'programs.benchmark', 150)],
    [
        Check('tests', 'programs.suite', 240),
        Check('memcheck', 'programs.sanitizer', 90, ('memcheck',)),
        Check('racecheck', 'programs.sanitizer', 90, ('racecheck',)),
    ],
]
# for compute-sanitizer, not run by itself
SMALL_STEP = Check('small step', 'behaviour.small_step', 90)
CHECKS = {check.name: check for check in [*[check for stage in STAGES for check in stage], SMALL_STEP]}


def run_one(args: argparse.Namespace) -> int:
    """Run a check in this process, which was started for it."""
    faulthandler.dump_traceback_later(max(args.seconds - 3, 1))  # where it hangs, before it is killed
    signal.alarm(int(args.seconds) + 10)  # ends it if nobody is left to kill it
    check = CHECKS[args.run]
    module, _, function = check.function.partition('.')
    if module != 'programs':
        sys.modules['mmseg'] = None  # the loss needs no mmseg, whose import takes seconds
    run = CheckRun(args.rows, args.device, args.seconds)
    getattr(importlib.import_module(f'gpu_checks.{module}'), function)(run, *check.arguments)
    return 0


def selected_stages(device: str, only: list[str] | None) -> list[list[Check]]:
    """Return the stages with the checks for a device, or the named ones of them."""
    names = [name for name, check in CHECKS.items() if device == 'cuda' or check.on_cpu]
    names = [name for name in names if name != SMALL_STEP.name and (only is None or name in only)]
    stages = [[check for check in stage if check.name in names] for stage in STAGES]
    return [stage for stage in stages if stage]


def run_all(args: argparse.Namespace) -> list[Row]:
    """Run the checks, print their progress, and write the JSON file after each of them."""
    rows: list[Row] = []
    begin, started = time.monotonic(), datetime.now(timezone.utc).isoformat(timespec='seconds')

    def on_end(check: Check, found: list[Row]) -> None:
        rows.extend(found)
        seconds = time.monotonic() - begin
        print(f'{seconds:5.0f} s  {check.name}: {summarize(found)}', flush=True)
        for row in found:
            if row.verdict == FAILED:
                print(f'         {row.check}: {row.found}', flush=True)
        results = dict(started=started, device=args.device, seconds=seconds, rows=[asdict(row) for row in rows])
        args.json.write_text(json.dumps(results, indent=1))

    with tempfile.TemporaryDirectory(prefix='gpu_check_') as folder:
        for stage in selected_stages(args.device, args.only):
            run_stage(stage, args.device, Path(folder), begin + args.seconds, args.jobs, on_end)
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status: 0, 1 if a check failed or was not run, or 2 without a CUDA device."""
    from gpu_checks.programs import parallel_processes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda', help='cpu: to try this tool [%(default)s]')
    parser.add_argument('--seconds', type=float, default=540, help='time for everything [%(default)s]')
    parser.add_argument('--json', type=Path, default=Path('gpu_check.json'), help='results [%(default)s]')
    parser.add_argument('--jobs', type=int, default=parallel_processes(), help='checks at a time [%(default)s]')
    parser.add_argument('--only', nargs='+', metavar='CHECK', choices=list(CHECKS), help=', '.join(CHECKS))
    parser.add_argument('--run', choices=list(CHECKS), help=argparse.SUPPRESS)  # both for the processes of checks
    parser.add_argument('--rows', type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.run:
        return run_one(args)
    if args.device == 'cuda':
        import torch

        if not torch.cuda.is_available():
            print('error: this machine shows no CUDA device; --device cpu tries the tool without one', file=sys.stderr)
            return 2
    rows = run_all(args)
    print(f'\n{table(rows)}\n\n{summarize(rows)}; everything: {args.json}')
    return exit_status(rows)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the checks end as well
    sys.exit(main())
