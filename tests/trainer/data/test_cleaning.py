"""Text normalization keeps what scripts and emoji need, and removes what is invisible elsewhere."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data.cleaning import clean_text

CLEANED = {
    "composed accents": ("Cafe\u0301", "Café"),
    "line breaks of Windows and old Macs": ("a\r\nb\rc\nd", "a\nb\nc\nd"),
    "page breaks and separators": ("a\fb\u2028c\x85d", "a\nb\nc\nd"),
    "control characters": ("a\x00b\x07c\x1b[0m", "abc[0m"),
    "invisible characters": ("\ufeffa\u200bb\u00adc\u2060d\u202ee", "abcde"),
    "accent behind an invisible character": ("e\u200b\u0301", "é"),
    "text hidden in tags": ("hi\U000e0068\U000e0069", "hi"),
    "text hidden in tags behind an emoji": ("\U0001f600\U000e0068\U000e0069\U000e007f", "\U0001f600"),
    "text hidden in tags behind a flag": ("\U0001f3f4" + "\U000e0061" * 9 + "\U000e007f", "\U0001f3f4"),
    "text hidden in variation selectors": ("\U0001f600\ufe0f\ufe01\U000e0100, a\ufe01", "\U0001f600\ufe0f, a"),
    "text hidden in joiners": ("\U0001f600" + "\u200d" * 9 + "\U0001f600", "\U0001f600\u200d\u200d\u200d\U0001f600"),
    "joiners in Latin": ("a\u200db\u200c, fi\u200cn\u00e9", "ab, fin\u00e9"),
    "directions in Latin": ("a\u202eb\u200fc\u2066d\u061ce", "abcde"),
    "overridden directions in Hebrew": ("\u05e9\u202eab", "\u05e9ab"),
    "fillers without a syllable": ("\u3164a\u115f\u1160b\uffa0", "ab"),
    "variants without a letter": ("a\u180bb\u180ec\u17b4d\U0001d173e", "abcde"),
    "grapheme joiner between letters": ("a\u034fb", "ab"),
    "zero width space in Latin": ("a\u200bb", "ab"),
    "letters that look alike stay": ("\uff21\u2460\ufb01\u00b2\u00a0", "\uff21\u2460\ufb01\u00b2\u00a0"),
    "tabs and blank lines stay": ("\ta\n\n  b ", "\ta\n\n  b "),
    "signs of Arabic stay": ("\u0600\u06dd", "\u0600\u06dd"),
}


@pytest.mark.parametrize(("before", "after"), CLEANED.values(), ids=CLEANED)
def test_clean_text_is_normalized(before: str, after: str) -> None:
    assert clean_text(before) == after


# Words and sequences with invisible characters that belong to their spelling.
NEEDED = {
    "Persian": "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
    "Persian abbreviation": "\u0647\u200d.\u0642",
    "Kurdish": "\u0646\u0627\u0648\u200c\u0686\u06d5",
    "Hindi": "\u0915\u094d\u200d\u0937 \u0936\u094d\u200c\u0930",
    "Bengali": "\u09b0\u200d\u09cd\u09af\u09be\u09ac",
    "Malayalam": "\u0d05\u0d35\u0d28\u0d4d\u200d",
    "Sinhala": "\u0dc1\u0dca\u200d\u0dbb\u0dd3 \u0dbd\u0d82\u0d9a\u0dcf",
    "Arabic": "\u0644\u063a\u0629 C++\u200f! \u0661\u061c-\u0662",
    "Hebrew": "\u05e9\u05dc\u05d5\u05dd (\u2067C++\u2069\u200e)",
    "Biblical Hebrew": "\u05d0\u05b8\u034f\u05bd",
    "Mongolian": "\u1820\u180b\u1828\u180e\u1820 \u1836\u180f",
    "Khmer": "\u1781\u17d2\u1789\u17bb\u17c6\u200b\u179f\u17d2\u179a\u17a1\u17b6\u1789\u17cb",
    "Khmer inherent vowel": "\u1780\u17b4\u1780",
    "Thai": "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u200b\u0e04\u0e23\u0e31\u0e1a",
    "Burmese": "\u1019\u103c\u1014\u103a\u1019\u102c\u200b\u1005\u102c",
    "old Hangul": "\u1112\u119e\u11ab \u1112\u1160\u11ab \u115f\u1161",
    "old Hangul in compatibility letters": "\u3164\u3131",
    "Tibetan": "\u0f56\u0f7c\u0f51\u0f0b\u0f61\u0f72\u0f42",
    "Phags-pa": "\ua856\ufe00",
    "variants of ideographs": "\u845b\U000e0100\u57ce \u6e6f\ufe00",
    "Japanese annotation": "\ufff9\u6f22\ufffa\u304b\u3093\ufffb",
    "shorthand": "\U0001bc00\U0001bca0\U0001bc01",
    "beams of music": "\U0001d173\U0001d175\U0001d158\U0001d165\U0001d176",
    "family": "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "profession": "\U0001f469\U0001f3fd\u200d\U0001f4bb \u2764\ufe0f\u200d\U0001f525",
    "keycap and text form": "1\ufe0f\u20e3 \u260e\ufe0e",
    "flags": "\U0001f1f5\U0001f1f1 \U0001f3f3\ufe0f\u200d\U0001f308",
    "flag of England": "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
}


@pytest.mark.parametrize("text", NEEDED.values(), ids=NEEDED)
def test_clean_text_needed_invisible_characters_stay(text: str) -> None:
    assert clean_text(text) == unicodedata.normalize("NFC", text)
    assert clean_text(f"a\u00adb {text}\r\n") == f"ab {unicodedata.normalize('NFC', text)}\n"


INVISIBLE = "\u00ad\u034f\u061c\u115f\u1160\u17b4\u180b\u180e\u200b\u200c\u200d\u200f\u202e\u2060\u3164\ufe0f\ufeff"
VISIBLE = "a1\u00e9\u0301\u05e9\u0915\u1780\u1820\u1112\u212a\U0001f3f4\U0001f600\U0001d158\r\n"
MIXED = st.text(st.sampled_from(INVISIBLE + VISIBLE + "\U0001d173\U000e0061\U000e007f\U000e0100"), max_size=12)


@given(st.text() | MIXED)
def test_clean_is_idempotent(text: str) -> None:
    assert clean_text(clean_text(text)) == clean_text(text)
    assert unicodedata.is_normalized("NFC", clean_text(text))
