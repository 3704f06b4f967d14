"""Suggestions for `fields`, from the names that columns often have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_PROMPT_NAMES = (
    "prompt",
    "question",
    "query",
    "instruction",
    "problem",
    "document",
    "article",
    "dialogue",
    "source",
    "user",
    "input",
    "text",
    "sentence",
    "review",
    "comment",
    "message",
)
COMPLETION_NAMES = (
    "completion",
    "answer",
    "response",
    "output",
    "solution",
    "summary",
    "highlights",
    "target",
    "reply",
    "assistant",
    "label",
    "answers",
)
"""Names that columns with an answer often have."""
_QUESTION_NAMES = ("question", "query", "problem", "input")
"""Names of columns that are the prompt of a pair of answers without `prompt`, rather than its source or its topic."""
_FIELD_GUESSES: Mapping[str, tuple[str, ...]] = {
    "system": ("system", "system_prompt"),
    "prompt": _PROMPT_NAMES,
    "input": ("context", "passage"),
    "completion": COMPLETION_NAMES,
    "chosen": ("chosen", "preferred", "chosen_response"),
    "rejected": ("rejected", "dispreferred", "rejected_response"),
    "messages": ("conversation", "dialog", "dialogue", "chat", "turns"),
    "text": ("content", "body", "document", "article"),
    "label": ("label", "kto_tag", "desirable", "is_good", "thumbs_up", "feedback"),
}
"""Names that columns often have, by the name of the field that they fit."""


def suggest_fields(names: Collection[str], required: tuple[str, ...]) -> str:
    """Return the end of a message that suggests `fields` for a row with columns of these names, or an empty text.

    `required` are the fields without which there is no suggestion.
    """
    guesses: dict[str, str] = {}
    by_lower_name = {name.lower(): name for name in names}
    for field_name in ("system", "input", *required):
        found = next((guess for guess in _FIELD_GUESSES[field_name] if guess in by_lower_name), None)
        if found is not None:
            guesses[field_name] = by_lower_name.pop(found)
    fields = [f"{name}: {guesses[name]}" for name in _FIELD_GUESSES if name in guesses and name != guesses[name]]
    return f"; set fields: {{{', '.join(fields)}}}" if fields and all(name in guesses for name in required) else ""


def suggest_nested_rows(row: Mapping[str, Any]) -> str:
    """Return the end of a message for a row that contains rows, or its columns, below a key, or an empty text."""
    for name, value in row.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return f"; if the rows are in {name[:40]!r}, write only these, one per line"
    objects = [name for name, value in row.items() if isinstance(value, dict)]
    if len(objects) > 1 and len(objects) == len(row):
        return "; if each key has a row, write only the rows, one per line"
    return f"; if the columns are in {objects[0][:40]!r}, write only this object" if objects else ""


def has_question(names: Collection[str]) -> bool:
    """Return whether one of the columns is probably the prompt of the row, by its name."""
    return any(name.lower() in _QUESTION_NAMES for name in names)
