"""Running other programs; their output goes to a log, their failure becomes one line."""

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from local_cluster.console import read_last_line
from local_cluster.errors import UserError

_running_processes: set[subprocess.Popen[bytes]] = set()
_running_lock = threading.Lock()


def run(
    argv: Sequence[str | Path], log: Path, *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> None:
    """Run a long command; its output is appended to the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as log_file:
        process = subprocess.Popen(
            [str(arg) for arg in argv],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
        )
    exit_code = _wait_for(process)
    if exit_code:
        raise UserError(
            f"{Path(argv[0]).name} failed with exit code {exit_code}: {read_last_line(log)} (all of it: {log})"
        )


def _wait_for(process: subprocess.Popen[bytes]) -> int:
    with _running_lock:
        _running_processes.add(process)
    try:
        return process.wait()
    finally:
        with _running_lock:
            _running_processes.discard(process)


def terminate_running() -> None:
    """End the commands that other threads are waiting for, so that an interrupt ends the program."""
    with _running_lock:
        for process in _running_processes:
            process.terminate()


def capture_output(
    argv: Sequence[str | Path], *, stdin: str | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a short command and return what it printed."""
    result = subprocess.run(
        [str(arg) for arg in argv],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        error_output = " ".join(result.stderr.split()) or f"exit code {result.returncode}"
        raise UserError(f"{Path(argv[0]).name} {' '.join(str(arg) for arg in argv[1:3])}: {error_output}")
    return result.stdout


def succeeds(argv: Sequence[str | Path]) -> bool:
    """Whether a short command ends well; what it prints is of no interest."""
    devnull = subprocess.DEVNULL
    return subprocess.run([str(arg) for arg in argv], stdin=devnull, stdout=devnull, stderr=devnull).returncode == 0
