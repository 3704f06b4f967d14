"""Text normalization: composed characters, one kind of line break, no invisible characters without a function.

Invisible characters are those with the Unicode property Default_Ignorable_Code_Point, and control characters. Many
scripts and emoji need some of them, so these stay beside the characters that they act on, and are removed elsewhere,
where they only hide text or make equal texts different. Properties: https://www.unicode.org/reports/tr44/.
"""

from __future__ import annotations

import re
import unicodedata

import regex

_ASCII_CANDIDATES = re.compile("[^\t\n -~]")
_CANDIDATES = regex.compile(r"[[\p{Cc}\p{Default_Ignorable_Code_Point}\u2028\u2029]--[\t\n]]", regex.V1)
"""Characters that may have to change."""
_LINE_BREAKS = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_RIGHT_TO_LEFT_LETTERS = regex.compile(
    r"[[\p{Bidi_Class=R}\p{Bidi_Class=AL}]--\p{Default_Ignorable_Code_Point}]", regex.V1
)
_FLAG = r"(\U0001f3f4[\U000e0030-\U000e0039\U000e0061-\U000e007a]{3,6}\U000e007f)"
"""Flag of a part of a country, such as Scotland, whose name is spelled in tags. Other tags hide text."""
_DIRECTION_MARKS = r"\p{Bidi_Control}"
"""They place punctuation and numbers in text from right to left, and have no function in other text."""
_REMOVED_PATTERNS = (
    r"[\p{Cc}--[\t\n]]",
    # Soft hyphens, word joiners, invisible operators, overrides of the direction (they display another text than the
    # characters say), deprecated controls, byte order marks, unassigned characters, tags.
    r"[\u00ad\u2060-\u2065\u206a-\u206f\u202d\u202e\ufeff\ufff0-\ufff8]",
    r"[\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]",
    # The grapheme joiner keeps the order of the marks around it, as in Biblical Hebrew.
    r"\u034f(?![\p{M}--\u034f])",
    # Scripts without spaces (Khmer, Thai, Myanmar, …) separate words with the zero width space.
    r"(?<!\p{Line_Break=Complex_Context})\u200b++(?!\p{Line_Break=Complex_Context})",
    # Joiners act on letters of other scripts than Latin, and on emoji, at most three in a row.
    r"(?<![^\p{ASCII}\p{Latin}])[\u200c\u200d]++(?![^\p{ASCII}\p{Latin}])|(?<=[\u200c\u200d]{3})[\u200c\u200d]++",
    # Fillers take the place of a missing letter in a syllable of old Hangul.
    r"(?<![\u1100-\u11ff\ua960-\ua97f])[\u115f\u1160]++(?![\u1161-\u11ff\ud7b0-\ud7ff])",
    r"(?<![\u3131-\u3163\u3165-\u318e])\u3164++(?![\u3131-\u318e])",
    r"(?<![\uffa1-\uffdc])\uffa0++(?![\uffa1-\uffdc])",
    # Inherent vowels of Khmer; variants of letters and the vowel separator of Mongolian; controls of shorthand; beams,
    # ties and phrases of music.
    r"(?<!\p{Khmer})[\u17b4\u17b5]++",
    r"(?<!\p{Mongolian})[\u180b-\u180f]++|\u180e(?!\p{Mongolian})",
    r"(?<!\p{Duployan})[\U0001bca0-\U0001bca3]++",
    r"(?<![\U0001d100-\U0001d172\U0001d17b-\U0001d1ff])[\U0001d173-\U0001d17a]++(?![\U0001d100-\U0001d1ff])",
    # A variation selector chooses a form of the emoji, keycap or ideograph before it. Several in a row hide text.
    r"(?<![#*0-9]|[^\p{ASCII}\p{Default_Ignorable_Code_Point}])[\ufe00-\ufe0f\U000e0100-\U000e01ef]",
)
_REMOVED_CHARS = regex.compile("|".join((_FLAG, _DIRECTION_MARKS, *_REMOVED_PATTERNS)), regex.V1)
_REMOVED_CHARS_RIGHT_TO_LEFT = regex.compile("|".join((_FLAG, *_REMOVED_PATTERNS)), regex.V1)


def clean_text(text: str) -> str:
    """Return the text in NFC, with `\\n` as line break and without control and invisible characters.

    Invisible characters that a script or an emoji needs are kept.
    """
    if text.isascii():
        is_clean = text.isprintable() or not _ASCII_CANDIDATES.search(text)
        return text if is_clean else _ASCII_CANDIDATES.sub("", _LINE_BREAKS.sub("\n", text))
    text = unicodedata.normalize("NFC", text)
    return _remove_invisible_chars(text) if _CANDIDATES.search(text) else text


def _remove_invisible_chars(text: str) -> str:
    text = _LINE_BREAKS.sub("\n", text)
    pattern = _REMOVED_CHARS_RIGHT_TO_LEFT if _RIGHT_TO_LEFT_LETTERS.search(text) else _REMOVED_CHARS
    cleaned = ""
    while cleaned != text:  # again, because a character that stayed may have lost its neighbor
        cleaned, text = text, unicodedata.normalize("NFC", pattern.sub(r"\1", text))
    return text
