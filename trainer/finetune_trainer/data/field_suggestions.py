"""Suggestions for `fields`, from the names that columns often have."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

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
    "inputs",
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
    "targets",
    "label",
    "answers",
    "correct_answer",
    "label_text",
)
"""Names that columns with an answer often have."""
_QUESTION_NAMES = ("question", "query", "problem", "input")
"""Names of columns that are the prompt of a pair of answers without `prompt`, rather than its source or its topic."""
_CONVERSATION_NAMES = ("conversation", "dialog", "dialogue", "chat", "turns")
_FIELD_GUESSES: Mapping[str, tuple[str, ...]] = {
    "system": ("system", "system_prompt", "system_message", "system_instruction", "systeminstruction", "systemprompt"),
    "prompt": _PROMPT_NAMES,
    "input": ("context", "passage"),
    "completion": COMPLETION_NAMES,
    "chosen": ("chosen", "preferred", "chosen_response", "response_j"),
    "rejected": ("rejected", "dispreferred", "rejected_response", "response_k"),
    "messages": (*_CONVERSATION_NAMES, "items", "data"),
    "text": ("content", "body", "document", "article"),
    "label": ("label", "kto_tag", "desirable", "is_good", "thumbs_up", "feedback"),
}
"""Names that columns often have, by the name of the field that they fit."""


_TURN_FIELDS = ("prompt", "completion", "chosen", "rejected")
"""Fields that may be lists of turns instead of texts."""
_PLACEHOLDER = "COLUMN"


def suggest_fields(row: Mapping[str, object], *alternatives: tuple[str, ...]) -> str:
    """Return the end of a message that suggests `fields` for a row, or an empty text.

    Each of the alternatives is a list of fields without which there is no suggestion. The first one counts for which
    the row has columns whose names and values fit.
    """
    for required in alternatives:
        guesses = _guess_fields(row, required)
        if all(name in guesses for name in required):
            return _format_fields(guesses)
    return ""


def complete_fields(row: Mapping[str, object], required: tuple[str, ...]) -> str:
    """Return the end of a message that asks for `fields`, with `COLUMN` for columns that cannot be guessed.

    If the row contains rows or columns below a key, it says what to do with them.
    """
    guesses = _guess_fields(row, required)
    if not guesses and (suggestion := _suggest_nested_rows(row)):
        return suggestion
    placeholders = {name: _PLACEHOLDER for name in required if name not in row}
    return _format_fields(placeholders | guesses)


def find_other_turns(row: Mapping[str, object]) -> str | None:
    """Return the name of a column that is probably a conversation, but is no list of turns."""
    names = {name.lower(): name for name, value in row.items() if value and isinstance(value, list)}
    return next((names[guess] for guess in _CONVERSATION_NAMES if guess in names), None)


def _suggest_nested_rows(row: Mapping[str, object]) -> str:
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


def _guess_fields(row: Mapping[str, object], required: tuple[str, ...]) -> dict[str, str]:
    """Return the names of columns by the fields that they fit."""
    guesses: dict[str, str] = {}
    values = dict(_iter_columns(row))
    columns = {name.lower(): name for name in values}
    for field_name in (*_list_context_fields(required), *required):
        names = [*_FIELD_GUESSES[field_name], *(columns if field_name == "messages" else ())]
        found = next((name for name in names if name in columns and _fits(field_name, values[columns[name]])), None)
        if found is not None:
            guesses[field_name] = columns.pop(found)
    return guesses


def _iter_columns(row: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Yield the names and values of the columns, and those of the keys of objects, such as `body.messages`."""
    for name, value in row.items():
        yield name, value
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", item) for key, item in value.items())


def _list_context_fields(required: tuple[str, ...]) -> Iterator[str]:
    """Yield the fields that a row may have in addition to the required ones."""
    if "text" not in required:
        yield "system"
    if "prompt" in required:
        yield "input"


def _fits(field_name: str, value: object) -> bool:
    """Return whether the value of a column can be that of a field. Whether the texts are valid is not checked."""
    if field_name == "messages":
        return _has_turns(value) or (isinstance(value, str) and value.lstrip().startswith("[{"))
    if field_name == "label":
        return isinstance(value, str | int | float)
    if field_name == "system" and isinstance(value, dict) and "parts" in value:
        return True
    if field_name in _TURN_FIELDS and (_has_turns(value) or _is_turn(value)):
        return True
    return value is None or isinstance(value, str)


def _has_turns(value: object) -> bool:
    return isinstance(value, list) and bool(value) and _is_turn(value[0])


def _is_turn(value: object) -> bool:
    return isinstance(value, dict) and ("role" in value or "from" in value)


def _format_fields(columns: Mapping[str, str]) -> str:
    fields = [f"{name}: {columns[name]}" for name in _FIELD_GUESSES if name in columns and name != columns[name]]
    return f"; set fields: {{{', '.join(fields)}}}" if fields else ""
