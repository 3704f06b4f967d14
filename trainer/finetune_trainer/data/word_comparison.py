"""Comparison of the words of a text with those of a rendered text, without whitespace."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from difflib import SequenceMatcher

_WORD_PATTERN = re.compile(r"</?[^<>\s]+>|\w+|[^\w\s]")
"""A tag or special token, a word, or a punctuation mark."""
_PYTHON_CONSTANTS = {"true": "True", "false": "False", "null": "None"}
_MAX_COMPARED_WORDS = 1000


def remove_whitespace(text: str) -> str:
    """Return the text without any whitespace."""
    return "".join(text.split())


def is_contained(content: str, text: str) -> bool:
    """Return whether the text has the words of `content`, not regarding whitespace."""
    return remove_whitespace(content) in remove_whitespace(text) or has_words(content, text)


def find_value(value: str, text: str, span: tuple[int, int]) -> int:
    """Return the position of the last occurrence of an argument of a tool call in a part of the text, or -1.

    Templates write arguments as JSON, as Python, or between tags.
    """
    start, end = span
    position = max(text.rfind(form, start, end) for form in _list_notations(value))
    return start if position < 0 and is_contained(value, text[start:end]) else position


def _list_notations(value: str) -> set[str]:
    return {
        value.strip(),
        json.dumps(value, ensure_ascii=False)[1:-1],
        json.dumps(value)[1:-1],
        repr(value)[1:-1],
        _PYTHON_CONSTANTS.get(value, value),
    }


def has_words(content: str, text: str) -> bool:
    """Return whether the text has the words of `content` in their order, possibly in a JSON string as many templates
    write tools."""
    if _has_in_order(_WORD_PATTERN.findall(content), _WORD_PATTERN.findall(text)):
        return True
    escaped_contents = {json.dumps(content, ensure_ascii=is_ascii)[1:-1] for is_ascii in (False, True)}
    return any(escaped != content and escaped in text for escaped in escaped_contents)


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
