"""Run tools/train.py or tools/test.py and see how far they are."""

import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

ITERATION = re.compile(r'(?:Iter|Epoch)\((train|test)\) *(?:\[\d+\])?\[ *(\d+)/ *(\d+)\](?:.*? loss: (\S+))?')


_running: set[subprocess.Popen] = set()


class Failed(Exception):
    """A tool ended with an error: its last lines."""


def watch(
    command: list[str],
    log_file: Path,
    on_iteration: Callable[[int, int, str | None], None],
    environment: dict[str, str] | None = None,
) -> float:
    """Run a command to its end, with its output in a file.

    Args:
        command: of the tool.
        log_file: for its output, which is added to what it holds.
        on_iteration: called with the iteration, of how many, and the loss as it was logged.
        environment: variables beside those of this process.

    Returns:
        The most memory that it had in use, in MB; without the processes of its data loaders.

    Raises:
        Failed: it ended with an error.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with (
        log_file.open('a', buffering=1) as log,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environment or {})},
        ) as process,
    ):
        _running.add(process)
        try:
            for line in process.stdout:
                log.write(line)
                if match := ITERATION.search(line):
                    on_iteration(int(match[2]), int(match[3]), match[4])
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            _running.discard(process)
    if process.returncode != 0:
        raise Failed(f'failed, see {log_file}:\n{"".join(log_file.read_text().splitlines(True)[-5:])}')
    return usage.ru_maxrss * 1024 / 1e6


def stop_all() -> None:
    """End what other threads watch; their calls raise :class:`Failed`."""
    for process in list(_running):
        process.terminate()


def free_port() -> int:
    """For a launcher."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]
