"""Display of untrusted text (rows, keys, answers): invisible characters become visible, long texts are shortened."""

from __future__ import annotations

import re

MAX_CHARS = 1500
MAX_LINES = 40

# Control characters except line break and tab, marks that change the direction of text, and invisible characters.
# Joiners are kept, because emoji and several scripts need them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufffe\uffff\U000e0000-\U000e007f]"
)


def escape_invisible(text: str) -> str:
    """Replace each character that is invisible or changes the direction of text by its code: `[U+202E]`."""
    return _HIDDEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", text.replace("\r\n", "\n"))


def shorten(text: str, limit: int = MAX_CHARS) -> str:
    """Make a text visible and shorten it. A shortened text ends with its original length."""
    cut = "\n".join(text[:limit].split("\n")[:MAX_LINES])
    if len(cut) == len(text):
        return escape_invisible(text)
    return f"{escape_invisible(cut)} … [shortened, {len(text):,} characters in all]"


def to_one_line(text: str, limit: int = MAX_CHARS) -> str:
    """Make a text visible, shorten it, and put it on one line."""
    return " ".join(shorten(text, limit).split())


def format_names(names: list[str], max_names: int = 12) -> str:
    """Join names with commas, and add the number of names that are not shown."""
    suffix = f" and {len(names) - max_names:,} more" if len(names) > max_names else ""
    return ", ".join(to_one_line(name, 200) for name in names[:max_names]) + suffix
