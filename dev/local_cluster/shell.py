"""Running other programs. Their output goes to a log or is returned, and a failure is raised as UserError."""

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
    """Run a long command and append its output to the log. Raises UserError if it fails."""
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
            f"{Path(argv[0]).name} failed with exit code {exit_code}: {read_last_line(log)} (full log: {log})"
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
    """Terminate the commands that other threads wait for, so that an interrupt ends this program."""
    with _running_lock:
        for process in _running_processes:
            process.terminate()


def capture_output(
    argv: Sequence[str | Path], *, stdin: str | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Run a short command and return its standard output. Raises UserError with its standard error if it fails."""
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
    """Run a short command and return whether its exit code is 0. Its output is discarded."""
    devnull = subprocess.DEVNULL
    return subprocess.run([str(arg) for arg in argv], stdin=devnull, stdout=devnull, stderr=devnull).returncode == 0
