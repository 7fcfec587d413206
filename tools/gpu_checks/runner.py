"""Run checks, each in a process group of its own with a time limit, so that a crash or a hang ends no other check."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpu_checks.results import FAILED, NOT_RUN, Row, read_rows

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / 'tools/gpu_check.py'
_SHORTEST = 5.0  # seconds: a process that imports torch takes as long
_KILLED = 5.0  # seconds that a killed process may take to end; one that waits for the driver may never
_TAIL = 6000  # characters of the output that are kept


@dataclass(frozen=True)
class Check:
    """A check, and how it is run.

    Attributes:
        name: names it in the table and for ``--only``.
        function: module and function in gpu_checks, as in 'correctness.resizing'; called with a CheckRun.
        limit: seconds it may take.
        arguments: further arguments of the function.
        environment: environment variables of its process.
        on_cpu: whether it makes sense without a GPU.
        advice: what to try if its process crashes or hangs, or a row without advice fails.
        program: the command that runs it.
    """

    name: str
    function: str
    limit: float
    arguments: tuple = ()
    environment: dict[str, str] = field(default_factory=dict)
    on_cpu: bool = False
    advice: str = ''
    program: tuple[str, ...] = (sys.executable, '-X', 'faulthandler', str(SCRIPT))


def run_stage(
    checks: Sequence[Check],
    device: str,
    folder: Path,
    deadline: float,
    jobs: int,
    on_end: Callable[[Check, list[Row]], None],
) -> None:
    """Run the checks of a stage side by side.

    Args:
        checks: in the order in which they start.
        device: 'cuda' or 'cpu'.
        folder: for the files of the checks.
        deadline: value of ``time.monotonic()`` at which all have to have ended.
        jobs: processes at a time.
        on_end: called with each check that has ended and its rows.
    """
    waiting, running = list(checks), []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                check = waiting.pop(0)
                left = deadline - time.monotonic()
                if left < _SHORTEST:
                    on_end(check, [Row(check.name, '', 'no time left', NOT_RUN)])
                else:
                    running.append(_Process(check, device, folder, min(check.limit, left)))
            for process in [process for process in running if process.has_ended()]:
                running.remove(process)
                on_end(process.check, process.rows())
            time.sleep(0.05)
    finally:
        for process in running:
            process.kill()


class _Process:
    """The process group of a running check."""

    def __init__(self, check: Check, device: str, folder: Path, seconds: float) -> None:
        name = re.sub(r'\W+', '_', check.name)
        self.check, self.seconds, self.timed_out = check, seconds, False
        self._rows, self._log = (folder.resolve() / f'{name}.{suffix}' for suffix in ('jsonl', 'log'))
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])])
        environment = {**os.environ, 'PYTHONPATH': path, 'PYTHONUNBUFFERED': '1', **check.environment}
        options = ['--run', check.name, '--rows', str(self._rows), '--device', device, '--seconds', str(seconds)]
        with self._log.open('w') as log:
            self._process = subprocess.Popen(
                [*check.program, *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
                start_new_session=True,  # a process group of its own, with all that it starts
            )
        self._end = time.monotonic() + seconds

    def has_ended(self) -> bool:
        """Return whether it has ended; end it if its time is up."""
        if self._process.poll() is None and time.monotonic() < self._end:
            return False
        self.timed_out = self._process.returncode is None
        self.kill()
        return True

    def kill(self) -> None:
        """Kill the group: also programs that the check started and left behind."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(_KILLED)
        except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            pass  # nothing is left of it, or it waits for the driver

    def rows(self) -> list[Row]:
        """Return the rows it wrote, and one for an end that is not normal."""
        rows, output = read_rows(self._rows), self._log.read_text(errors='replace')[-_TAIL:]
        expected, status = f'ends within {self.seconds:.0f} s', self._process.returncode
        if self.timed_out:
            found = f'stopped after {self.seconds:.0f} s, {len(rows)} results before'
        elif status is not None and status < 0:
            found = f'killed by {signal.Signals(-status).name}: {error_line(output)}'
        elif status:
            found = f'exit status {status}: {error_line(output)}'
        elif not rows:
            found = 'ended without a result'
        else:
            found = ''
        if found:
            rows.append(Row(self.check.name, expected, found, FAILED, raw=dict(output=output)))
        for row in rows:
            row.advice = row.advice or self.check.advice
        return rows


def error_line(output: str) -> str:
    """Return the line of a program's output that most likely names the error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r'([\w.]*(Error|Exception)\b|Fatal Python error)', line)]
    return (errors or lines or ['no output'])[-1]
