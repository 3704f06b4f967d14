"""Generator of docs/reference/reasons.md: all reasons in one table, with the texts of the troubleshooting page."""

from __future__ import annotations

import re
from pathlib import Path

from documentation.tables import NOTE, parse_tables, render_table
from finetune_trainer.contract import ExitCode, Reason

_HEADER = """# Reasons

Every reason that a condition, an event or the end of a log can have, in alphabetical order, with its meaning and what
to do. The exit code is that of the trainer's container; *again* says whether another attempt follows: `no`, `counted`
(up to `backoffLimit` times), or `free` (does not count). [Troubleshooting](../operations/troubleshooting.md) groups
the reasons by kind and says where to look first.
"""
_KINDS = {
    "Reasons reported by the trainer": "run",
    "Reasons reported by the operator": "run",
    "Reasons of a FineTuneSchedule": "schedule",
    "Reasons of a FineTuneSweep": "sweep",
}
"""Kinds of objects by the sections of the troubleshooting page."""
_EXIT_HEAD = ("Exit code", "Name", "Meaning", "Again")
_EXITS = {
    ExitCode.OK: ("A result is published, or the run stopped at `suspendAtStep`.", "no"),
    ExitCode.INTERNAL: ("A bug, or a fault that no rule knows.", "counted"),
    ExitCode.PERMANENT: ("Another attempt would fail in the same way.", "no"),
    ExitCode.TRANSIENT: ("A transient fault outside of the trainer.", "counted"),
    ExitCode.PEER_LOST: ("Another rank of the run ended; its exit code decides.", "free"),
    ExitCode.PREEMPTED: ("The process was stopped by SIGTERM.", "free"),
}


def render_reasons_page(troubleshooting: Path) -> str:
    """Return the page as Markdown, from the tables of the troubleshooting page."""
    rows = [
        _build_row(heading, cells)
        for heading, cells in parse_tables(troubleshooting.read_text(encoding="utf-8"))
        if heading in _KINDS and cells[0].startswith("`")
    ]
    table = render_table(("Reason", "Of a", "Exit code", "Again", "Meaning", "What to do"), sorted(rows))
    exits = [(str(code.value), code.name, *_EXITS[code]) for code in ExitCode]
    return f"{NOTE}{_HEADER}\n{table}\n## Exit codes\n\n{render_table(_EXIT_HEAD, exits)}"


def _build_row(heading: str, cells: list[str]) -> tuple[str, ...]:
    name = cells[0].strip("`")
    exit_code = again = ""
    if heading == "Reasons reported by the trainer":
        exit_code, again = str(Reason(name).exit_code.value), cells[3]
    texts = cells[2:4] if heading == "Reasons of a FineTuneSchedule" and len(cells) == 4 else cells[1:3]
    return (cells[0], _KINDS[heading], exit_code, again, *(_adapt_links(text) for text in texts))


def _adapt_links(text: str) -> str:
    """Make links to pages beside the troubleshooting page relative to docs/reference."""
    return re.sub(r"\]\((?!\.\./|https?:)([^)]*)\)", _link_to_operations, text)


def _link_to_operations(match: re.Match[str]) -> str:
    page = "troubleshooting.md" if match[1].startswith("#") else ""
    return f"](../operations/{page}{match[1]})"
