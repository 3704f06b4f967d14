"""Progress for people: one line per step, and a sign of life while a long one runs."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HEARTBEAT_SECONDS = 30
_started = time.monotonic()
_lock = threading.Lock()


def duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def say(text: str) -> None:
    """One line, stamped with the time since the command started."""
    elapsed = round(time.monotonic() - _started)
    with _lock:
        print(f"[{elapsed // 60:2d}:{elapsed % 60:02d}] {text}", flush=True)


def refresh(text: str, *, last: bool = False) -> None:
    """Overwrite the current line on a terminal; elsewhere print it."""
    if not sys.stdout.isatty():
        print(text, flush=True)
        return
    print(f"\r\033[K{text}", end="\n" if last else "", flush=True)


def last_line(log: Path | None) -> str:
    """What a running command said last, short enough for one terminal line."""
    if log is None or not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip()[:70] for line in reversed(lines) if line.strip()), "")


@contextmanager
def step(title: str, log: Path | None = None) -> Iterator[None]:
    """Print the title's line when it is done; while it runs, say every half minute what it is at."""
    begun = time.monotonic()
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            at = last_line(log)
            say(f"{title} … {duration(time.monotonic() - begun)}{f' ({at})' if at else ''}")

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        done.set()
    say(f"{title}: {duration(time.monotonic() - begun)}")
