"""Run tools/train.py or tools/test.py in a subprocess, and follow their progress."""

import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

ITERATION = re.compile(r'(?:Iter|Epoch)\((train|test)\) *(?:\[\d+\])?\[ *(\d+)/ *(\d+)\](?:.*? loss: (\S+))?')


_running: set[subprocess.Popen] = set()


class Failed(Exception):
    """Error for a tool that ended with one; has the last lines of its log."""


def watch(
    command: list[str],
    log_file: Path,
    on_iteration: Callable[[int, int, str | None], None],
    environment: dict[str, str] | None = None,
) -> float:
    """Run a command to its end, append its output to a file, and return its peak memory in MB.

    ``on_iteration`` is called with the iteration, the number of iterations, and the logged loss, if there is one. The
    memory is without the worker processes of data loaders. Raises Failed if the command fails.
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
    """Terminate the commands that other threads run; their calls of :func:`watch` raise :class:`Failed`."""
    for process in list(_running):
        process.terminate()


def free_port() -> int:
    """Return a port that is free now, for a launcher."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]
