"""Markdown that shows any text literally."""

from __future__ import annotations

import re

from finetune_trainer.text import MAX_CHARS, shorten, to_one_line

# Characters that begin or end markup, raw HTML, table cells and bare links. An underscore inside a word is not markup.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~&@$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|:(?=//)|(?<=\bwww)\.")
_LINE_START = re.compile(r"^(\d+(?=[.)](?:\s|$))|(?=[-+#=]))")


class Markdown(str):
    """Text that is already Markdown, so it must not be escaped again."""

    __slots__ = ()


def escape(text: str, limit: int = 400) -> Markdown:
    """Escape all markup in a text and put it on one line, for use in a table or elsewhere."""
    return Markdown(_LINE_START.sub(r"\1\\", _SPECIAL.sub(r"\\\g<0>", to_one_line(text, limit))))


def format_code(text: str, limit: int = 400) -> Markdown:
    """Format a text as inline code, with more backticks than it contains. Pipes are escaped for tables."""
    line = to_one_line(text, limit).replace("|", "\\|") or "none"
    ticks = "`" * (_longest_backtick_run(line) + 1)
    return Markdown(
        f"{ticks} {line} {ticks}" if line.startswith("`") or line.endswith("`") else f"{ticks}{line}{ticks}"
    )


def format_code_block(text: str, limit: int = MAX_CHARS) -> Markdown:
    """Format a text as a code block, with a fence that is longer than any run of backticks in it."""
    inner = shorten(text, limit)
    fence = "`" * max(3, _longest_backtick_run(inner) + 1)
    return Markdown(f"{fence}text\n{inner}\n{fence}")


def _longest_backtick_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
