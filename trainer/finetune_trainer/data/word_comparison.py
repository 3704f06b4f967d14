"""Comparison of the words of a text with those of a rendered text, without whitespace."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import SequenceMatcher

_WORD_PATTERN = re.compile(r"</?[^<>\s]+>|\w+|[^\w\s]")
"""A tag or special token, a word, or a punctuation mark."""
_MAX_COMPARED_WORDS = 1000


def remove_whitespace(text: str) -> str:
    """Return the text without any whitespace."""
    return "".join(text.split())


def has_words(content: str, text: str) -> bool:
    """Return whether the text has the words of `content` in their order, possibly in a JSON string as many templates
    write tools."""
    escaped_content = json.dumps(content, ensure_ascii=False)[1:-1]
    return _has_in_order(_WORD_PATTERN.findall(content), _WORD_PATTERN.findall(text)) or (
        escaped_content != content and escaped_content in text
    )


def _has_in_order(words: Iterable[str], text_words: Iterable[str]) -> bool:
    remaining_words = iter(text_words)
    return all(word in remaining_words for word in words)


def describe_removed_words(content: str, text: str) -> str:
    """Return the first consecutive words of the content that the text lacks."""
    matches = list(_WORD_PATTERN.finditer(content))[:_MAX_COMPARED_WORDS]
    words = _WORD_PATTERN.findall(text)[:_MAX_COMPARED_WORDS]
    operations = SequenceMatcher(None, [match.group() for match in matches], words, autojunk=False).get_opcodes()
    for operation, start, end, _, _ in operations:
        if operation in ("delete", "replace"):
            return " ".join(content[matches[start].start() : matches[end - 1].end()].split())
    return " ".join(content.split())
