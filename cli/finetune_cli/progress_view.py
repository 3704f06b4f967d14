"""The progress of a run: a live view on a terminal, one line for each change elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

from finetune_trainer.text import to_one_line

if TYPE_CHECKING:
    from rich.console import Group
    from rich.progress_bar import ProgressBar

    from finetune_cli.terminal import Terminal
    from finetune_operator.api import FineTuneJob
    from finetune_operator.client import Event, RunSummary

BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-~=*%#"
"""Heights of a sparkline, for terminals with and without Unicode."""
_MAX_VALUES = 400
_SPARKLINE_WIDTH = 40
_EVENTS_SECONDS = 5.0
_MESSAGE_CHARS = 400


class SilentView:
    """Shows nothing, for output that is data."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Do nothing."""

    def update(self, job: FineTuneJob) -> None:
        """Ignore a change of the run."""


class LineView(SilentView):
    """Prints a line when what it says has changed."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._last_line = ""

    def update(self, job: FineTuneJob) -> None:
        """Print the state of the run, if it has changed."""
        line = describe_progress(job)
        if line != self._last_line:
            self._last_line = line
            self._terminal.print_line(line)
            self._terminal.flush()


class LiveView:
    """Shows progress bar, losses, stage and the last Event, and redraws them in place."""

    def __init__(self, name: str, read_events: Callable[[], Sequence[Event]]) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console()
        self._live = Live(console=console, refresh_per_second=4, transient=True)
        self._bars = BARS if "utf" in console.encoding.lower() else PLAIN_BARS
        self._name = name
        self._read_events = read_events
        self._values: dict[int, float] = {}
        self._last_event = ""
        self._next_events_time = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the view: the outcome is printed in its place."""
        self._live.stop()

    def update(self, job: FineTuneJob) -> None:
        """Show the state of the run."""
        from finetune_operator.client import summarize_job

        summary = summarize_job(job)
        name, value = ("loss", summary.loss) if summary.reward is None else ("reward", summary.reward)
        if summary.step is not None and value is not None:
            self._values[summary.step] = value
            for step in sorted(self._values)[:-_MAX_VALUES]:
                del self._values[step]
        self._refresh_event()
        values = [self._values[step] for step in sorted(self._values)]
        curve = f"{name} {draw_sparkline(values, self._bars)} {values[-1]:.4g}" if values else ""
        self._live.update(render_progress(job, curve, self._last_event))

    def _refresh_event(self) -> None:
        """Read the last Event, at most every few seconds. A user who may not read Events sees none."""
        from finetune_operator.client import ClientError

        if time.monotonic() < self._next_events_time:
            return
        self._next_events_time = time.monotonic() + _EVENTS_SECONDS
        try:
            events = self._read_events()
        except ClientError:
            return
        if events:
            self._last_event = f"{events[-1].reason}: {events[-1].message}"


def describe_progress(job: FineTuneJob) -> str:
    """Return the state of a run on one line."""
    from finetune_operator.client import summarize_job

    summary = summarize_job(job)
    state = f"{summary.phase} ({summary.reason})" if summary.reason else summary.phase
    progress = ", ".join(_list_progress(job, summary))
    return f"{state}: {progress or to_one_line(summary.message, _MESSAGE_CHARS)}".rstrip(": ")


def render_progress(job: FineTuneJob, curve: str, last_event: str) -> Group:
    """Return the live view of a run, with the curve of its losses or rewards as text."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    from finetune_operator.client import summarize_job

    summary = summarize_job(job)
    state = f"{summary.name}  {summary.phase}  {summary.reason}"
    lines = [Text(to_one_line(state, _MESSAGE_CHARS), style="bold", no_wrap=True, overflow="ellipsis")]
    progress = ", ".join(_list_progress(job, summary))
    if curve:
        lines.append(Text(curve, no_wrap=True, overflow="ellipsis"))
    details = {"": progress, "event": last_event, "message": summary.message}
    lines += [
        Text(to_one_line(f"{name} {text}".strip(), _MESSAGE_CHARS), overflow="fold")
        for name, text in details.items()
        if text
    ]
    bar = Padding(_build_bar(job), 0)  # a bar alone does not end its line
    return Group(lines[0], bar, *lines[1:])


def draw_sparkline(values: Sequence[float], levels: str = BARS, width: int = _SPARKLINE_WIDTH) -> str:
    """Draw values as bars of eight heights, from the lowest to the highest value. Many values are thinned out."""
    count = min(len(values), width)
    if not count:
        return ""
    chosen = [values[(index + 1) * len(values) // count - 1] for index in range(count)]
    low, high = min(chosen), max(chosen)
    scale = (len(levels) - 1) / (high - low) if high > low else 0.0
    return "".join(levels[round((value - low) * scale)] for value in chosen)


def _build_bar(job: FineTuneJob) -> ProgressBar:
    from rich.progress_bar import ProgressBar

    progress = job.status.progress if job.status else None
    return ProgressBar(total=100, completed=progress.percentage if progress else 0)


def _list_values(summary: RunSummary) -> Iterator[tuple[str, float | None]]:
    """Yield what a step is judged by: the loss of a method that generates answers says nothing."""
    yield ("loss", summary.loss) if summary.reward is None else ("reward", summary.reward)
    yield "eval loss", summary.eval_loss


def _list_progress(job: FineTuneJob, summary: RunSummary) -> list[str]:
    """Return what is known of the progress: stage, share, step, losses and remaining time."""
    progress = job.status.progress if job.status else None
    if progress is None:
        return []
    parts = [progress.stage.value if progress.stage else "", summary.completed]
    if summary.step is not None:
        parts.append(f"step {summary.step}" + (f"/{summary.total_steps}" if summary.total_steps else ""))
    parts += [
        f"{name} {value:.4g}" for name, value in _list_values(summary)
        if value is not None
    ]  # fmt: skip
    if summary.remaining:
        parts.append(f"{summary.remaining} left" if summary.remaining[:1].isdigit() else summary.remaining)
    return [part for part in parts if part]
