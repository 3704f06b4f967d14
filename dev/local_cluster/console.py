"""Console output: one line when a step starts and ends, and a heartbeat line while a long step runs."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEARTBEAT_SECONDS = 30
_started_at = time.monotonic()
_print_lock = threading.Lock()


def format_duration(seconds: float) -> str:
    """Return for example `59 s` or `12 min 35 s`."""
    total = round(seconds)
    return f"{total} s" if total < 60 else f"{total // 60} min {total % 60:02d} s"


def echo(text: str) -> None:
    """Print one line that begins with the time since the command started, as minutes and seconds."""
    elapsed = round(time.monotonic() - _started_at)
    with _print_lock:
        print(f"[{elapsed // 60:2d}:{elapsed % 60:02d}] {text}", flush=True)


def refresh_line(text: str, *, last: bool = False) -> None:
    """Overwrite the current line on a terminal, and print a new line elsewhere. `last` ends the line."""
    if not sys.stdout.isatty():
        print(text, flush=True)
        return
    print(f"\r\033[K{text}", end="\n" if last else "", flush=True)


def read_last_line(log: Path | None) -> str:
    """Return the last non-empty line of a log, cut to 70 characters so that it fits on a terminal line."""
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip()[:70] for line in reversed(lines) if line.strip()), "")


@contextmanager
def log_step(title: str, log: Path | None = None) -> Iterator[None]:
    """Print when a step starts and how long it took, and every 30 seconds the last line of its log.

    `title` names the step by a verb in the -ing form, such as "building etcd".
    """
    started = time.monotonic()
    is_done = threading.Event()

    def print_heartbeats() -> None:
        while not is_done.wait(HEARTBEAT_SECONDS):
            last_output = read_last_line(log)
            elapsed = format_duration(time.monotonic() - started)
            echo(f"{title}: {elapsed} so far{f' ({last_output})' if last_output else ''}")

    echo(title)
    threading.Thread(target=print_heartbeats, daemon=True).start()
    try:
        yield
    finally:
        is_done.set()
    echo(f"{title}: done in {format_duration(time.monotonic() - started)}")
