"""Markdown that shows any text as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from finetune_trainer.text import MAX_CHARS, shorten, to_one_line

# What begins or ends markup, raw HTML, cells and bare links; an underscore inside a word does not.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&@$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=\bwww)\.")
_LINE_START = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+#=]))")


def escape(text: str, limit: int = 400) -> str:
    """On one line, in a table or outside: nothing in it is markup."""
    return _LINE_START.sub(r"\1\\", _SPECIAL.sub(r"\\\g<0>", to_one_line(text, limit)))


def format_code(text: str, limit: int = 400) -> str:
    """The same between backticks, more of them than stand in it; for a table, its pipes are escaped."""
    line = to_one_line(text, limit).replace("|", "\\|") or "none"
    ticks = "`" * (_longest_backtick_run(line) + 1)
    return f"{ticks} {line} {ticks}" if line.startswith("`") or line.endswith("`") else f"{ticks}{line}{ticks}"


def format_code_block(text: str, limit: int = MAX_CHARS) -> str:
    """As a block of code that its own backticks cannot end."""
    inner = shorten(text, limit)
    fence = "`" * max(3, _longest_backtick_run(inner) + 1)
    return f"{fence}text\n{inner}\n{fence}"


def _longest_backtick_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def format_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; its cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def format_list(lines: Iterable[str]) -> str:
    """A list; its lines are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)
