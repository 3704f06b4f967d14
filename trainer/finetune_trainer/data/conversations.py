"""Checks of the texts and conversations in a row. The result can be rendered without further checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_trainer.data.readers.json_rows import describe_type
from finetune_trainer.data.row_types import Message, RowError

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of the turns of a conversation."""
_ROLES = {role: role for role in ROLES}
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "observation": "tool",
}


def require_column(row: Mapping[str, Any], name: str) -> object:
    """Return the value of a required column. Raises `RowError` if the row does not have it."""
    if name not in row:
        raise RowError(f"expected '{name}', found {format_keys(row)}")
    return row[name]


def get_optional_text(row: Mapping[str, Any], name: str) -> str:
    """Return a text column, or an empty text if it is absent, null or blank. Raises `RowError` for other types."""
    value = row.get(name)
    if value is None:
        return ""
    value_text = require_text(f"'{name}'", value)
    return value_text if value_text.strip() else ""


def require_text(name: str, value: object) -> str:
    """Return the value as text that a tokenizer accepts. Raises `RowError`."""
    if not isinstance(value, str):
        raise RowError(f"expected {name} to be text, found {describe_type(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can contain half of a surrogate pair ("\ud83d"); tokenizers crash on it
        raise RowError(f"expected {name} to be text, found half a surrogate pair at {error.start}") from error
    return value


def require_nonblank_text(name: str, value: object, description: str = "an answer") -> str:
    """Return the value as text that is not blank. Raises `RowError`."""
    value_text = require_text(name, value)
    if not value_text.strip():
        raise RowError(f"expected {name} to be {description}, found it empty")
    return value_text


def parse_turns(name: str, value: object) -> list[Message]:
    """Parse a list of `{role, content}` or `{from, value}` objects as turns. Raises `RowError`."""
    if not isinstance(value, list) or not value:
        raise RowError(f"expected '{name}' to be a list of turns, found {describe_type(value)}")
    parsed_turns = [_parse_turn(f"{name}[{index}]", turn) for index, turn in enumerate(value)]
    for index in range(1, len(parsed_turns)):
        if parsed_turns[index]["role"] == parsed_turns[index - 1]["role"] == "assistant":
            raise RowError(f"{name}[{index}]: two consecutive assistant turns; merge them")
    return parsed_turns


def _parse_turn(name: str, turn: object) -> Message:
    if not isinstance(turn, dict):
        raise RowError(f"expected {name} to be an object with role and content, found {describe_type(turn)}")
    role_key, content_key = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    role = _parse_role(f"{name}.{role_key}", turn.get(role_key), role_key)
    unknown_keys = [key for key, value in turn.items() if key not in (role_key, content_key) and not _is_empty(value)]
    if unknown_keys:
        raise RowError(
            f"expected {name} to have {role_key} and {content_key}, found also "
            f"{', '.join(map(format_value, sorted(unknown_keys)[:5]))}"
        )
    return {"role": role, "content": _parse_content(f"{name}.{content_key}", role, turn.get(content_key))}


def _is_empty(value: object) -> bool:
    """Return whether a value says nothing, as the empty columns that OpenAI's SDK and Arrow write."""
    return value is None or value in ("", [], {})


def _parse_role(name: str, role: object, role_key: str) -> str:
    known_roles = _SHAREGPT_ROLES if role_key == "from" else _ROLES
    if not isinstance(role, str) or role not in known_roles:
        raise RowError(f"expected {name} to be one of {', '.join(known_roles)}, found {format_value(role)}")
    return known_roles[role]


def _parse_content(name: str, role: str, content: object) -> str:
    if isinstance(content, list):
        content = _join_text_parts(name, content)
    if role == "assistant":
        return require_nonblank_text(name, content)
    return (
        require_nonblank_text(name, content, "a message of the user") if role == "user" else require_text(name, content)
    )


def _join_text_parts(name: str, parts: list[object]) -> object:
    """Return the text of the parts of a content, as multimodal models have them, or the parts if they have other keys.

    Raises `RowError` if a part is not text.
    """
    kinds = {part["type"] for part in parts if isinstance(part, dict) and isinstance(part.get("type"), str)} - {"text"}
    if kinds:
        raise RowError(f"{name} has parts of type {', '.join(sorted(kinds))}; only text can be trained on")
    texts = [_get_part_text(part) for part in parts]
    return "".join(text for text in texts if text is not None) if texts and None not in texts else parts


def _get_part_text(part: object) -> str | None:
    """Return the text of a part `{"type": "text", "text": …}`, or None if it has another form."""
    if not isinstance(part, dict):
        return None
    filled_keys = {key for key, value in part.items() if key != "text" and not _is_empty(value)}
    text = part.get("text")
    return text if filled_keys == {"type"} and isinstance(text, str) else None


def require_assistant_turn(name: str, conversation: list[Message]) -> list[Message]:
    """Return the conversation if it has a turn of the assistant. Raises `RowError` otherwise."""
    if all(turn["role"] != "assistant" for turn in conversation):
        raise RowError(f"expected an assistant turn in '{name}', found none")
    return conversation


def require_final_answer(name: str, conversation: list[Message]) -> list[Message]:
    """Return the conversation if it ends with an assistant turn, the answer. Raises `RowError` otherwise."""
    if conversation[-1]["role"] != "assistant":
        raise RowError(f"expected '{name}' to end with an assistant turn, found a turn of {conversation[-1]['role']}")
    return conversation


def format_keys(row: Mapping[str, Any]) -> str:
    """Return the keys of a row for an error message."""
    return ", ".join(map(format_value, list(row)[:8])) or "no keys"


def format_value(value: object) -> str:
    """Return a short description of a value for an error message."""
    return repr(value[:40]) if isinstance(value, str) else describe_type(value)
