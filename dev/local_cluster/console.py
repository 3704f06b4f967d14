"""Progress for people: one line per step, and a sign of life while a long one runs."""

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
    total = round(seconds)
    return f"{total} s" if total < 60 else f"{total // 60} min {total % 60:02d} s"


def echo(text: str) -> None:
    """One line, stamped with the time since the command started."""
    elapsed = round(time.monotonic() - _started_at)
    with _print_lock:
        print(f"[{elapsed // 60:2d}:{elapsed % 60:02d}] {text}", flush=True)


def refresh_line(text: str, *, last: bool = False) -> None:
    """Overwrite the current line on a terminal; elsewhere print it."""
    if not sys.stdout.isatty():
        print(text, flush=True)
        return
    print(f"\r\033[K{text}", end="\n" if last else "", flush=True)


def read_last_line(log: Path | None) -> str:
    """What a running command said last, short enough for one terminal line."""
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip()[:70] for line in reversed(lines) if line.strip()), "")


@contextmanager
def log_step(title: str, log: Path | None = None) -> Iterator[None]:
    """Print the title's line when it is done; while it runs, say every half minute what it is at."""
    started = time.monotonic()
    is_done = threading.Event()

    def print_heartbeats() -> None:
        while not is_done.wait(HEARTBEAT_SECONDS):
            last_output = read_last_line(log)
            echo(f"{title} … {format_duration(time.monotonic() - started)}{f' ({last_output})' if last_output else ''}")

    threading.Thread(target=print_heartbeats, daemon=True).start()
    try:
        yield
    finally:
        is_done.set()
    echo(f"{title}: {format_duration(time.monotonic() - started)}")
