"""Text normalization: composed characters, one kind of line break, no invisible characters."""

from __future__ import annotations

import re
import unicodedata

_LINE_BREAKS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
# Listed one by one, because category Cf includes visible signs of Arabic and Syriac. The joiners U+200C and U+200D are
# kept, because Persian, Indic scripts and emoji need them.
_INVISIBLE_CHARS = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b\u200e\u200f"
    "\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)


def clean_text(text: str) -> str:
    """Return the text in NFC, with `\\n` as line break and without control and invisible characters."""
    if "\r" in text or not text.isascii() or not text.isprintable():
        text = _INVISIBLE_CHARS.sub("", _LINE_BREAKS.sub("\n", text))
    return text if text.isascii() else unicodedata.normalize("NFC", text)
