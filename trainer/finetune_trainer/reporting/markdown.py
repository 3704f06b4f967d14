"""Markdown that shows any text as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from finetune_trainer.text import LONGEST, one_line, shown

# What begins or ends markup, raw HTML, cells and bare links; an underscore inside a word does not.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&@$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=\bwww)\.")
_FIRST = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+#=]))")


def escaped(text: str, limit: int = 400) -> str:
    """On one line, in a table or outside: nothing in it is markup."""
    return _FIRST.sub(r"\1\\", _SPECIAL.sub(r"\\\g<0>", one_line(text, limit)))


def code(text: str, limit: int = 400) -> str:
    """The same between backticks, more of them than stand in it; for a table, its pipes are escaped."""
    line = one_line(text, limit).replace("|", "\\|") or "none"
    ticks = "`" * (_longest_run(line) + 1)
    return f"{ticks} {line} {ticks}" if line.startswith("`") or line.endswith("`") else f"{ticks}{line}{ticks}"


def fenced(text: str, limit: int = LONGEST) -> str:
    """As a block of code that its own backticks cannot end."""
    inner = shown(text, limit)
    fence = "`" * max(3, _longest_run(inner) + 1)
    return f"{fence}text\n{inner}\n{fence}"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def bullets(lines: Iterable[str]) -> str:
    """A list; its lines are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)
