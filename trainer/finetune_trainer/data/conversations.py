"""Conversations and texts as they stand in a row, checked: what comes out can be rendered as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_trainer.data.readers.json_rows import kind
from finetune_trainer.data.row_types import RowError

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Who may speak in a conversation."""
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
Turn = dict[str, str]


def column(row: Mapping[str, Any], name: str) -> object:
    """A column that must be there. Raises `RowError`."""
    if name not in row:
        raise RowError(f"expected '{name}', found {names(row)}")
    return row[name]


def optional_text(row: Mapping[str, Any], name: str) -> str:
    """A text column that may be absent, null or blank, and then is empty. Raises `RowError`."""
    value = row.get(name)
    if value is None:
        return ""
    found = text(f"'{name}'", value)
    return found if found.strip() else ""


def text(name: str, value: object) -> str:
    """Text that a tokenizer can take. Raises `RowError`."""
    if not isinstance(value, str):
        raise RowError(f"expected {name} to be text, found {kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character ("\ud83d"); tokenizers crash on it
        raise RowError(f"expected {name} to be text, found half a surrogate pair at {error.start}") from error
    return value


def filled(name: str, value: object, what: str = "an answer") -> str:
    """Text that is not blank. Raises `RowError`."""
    found = text(name, value)
    if not found.strip():
        raise RowError(f"expected {name} to be {what}, found it empty")
    return found


def turns(name: str, value: object) -> list[Turn]:
    """A list of `{role, content}`, or of `{from, value}`, as `role` and `content`. Raises `RowError`."""
    if not isinstance(value, list) or not value:
        raise RowError(f"expected '{name}' to be a list of turns, found {kind(value)}")
    found = [_turn(f"{name}[{index}]", turn) for index, turn in enumerate(value)]
    for index in range(1, len(found)):
        if found[index]["role"] == found[index - 1]["role"] == "assistant":
            raise RowError(f"expected {name}[{index}] to be another's turn, found the assistant's again; join the two")
    return found


def _turn(name: str, turn: object) -> Turn:
    if not isinstance(turn, dict):
        raise RowError(f"expected {name} to be an object with role and content, found {kind(turn)}")
    by, said = ("from", "value") if "from" in turn and "role" not in turn else ("role", "content")
    role = _role(f"{name}.{by}", turn.get(by), by)
    unread = [key for key, value in turn.items() if key not in (by, said) and value is not None]
    if unread:
        raise RowError(
            f"expected {name} to have {by} and {said}, found also {', '.join(map(shown, sorted(unread)[:5]))}"
        )
    return {"role": role, "content": _content(f"{name}.{said}", role, turn.get(said))}


def _role(name: str, role: object, by: str) -> str:
    known = _SHAREGPT_ROLES if by == "from" else _ROLES
    if not isinstance(role, str) or role not in known:
        raise RowError(f"expected {name} to be one of {', '.join(known)}, found {shown(role)}")
    return known[role]


def _content(name: str, role: str, content: object) -> str:
    if role == "assistant":
        return filled(name, content)
    return filled(name, content, "what the user says") if role == "user" else text(name, content)


def answered(name: str, conversation: list[Turn]) -> list[Turn]:
    """A conversation in which the assistant speaks. Raises `RowError`."""
    if all(turn["role"] != "assistant" for turn in conversation):
        raise RowError(f"expected a turn of the assistant in '{name}', found none")
    return conversation


def ends_with_answer(name: str, conversation: list[Turn]) -> list[Turn]:
    """A conversation whose last turn is the assistant's, which is what gets judged. Raises `RowError`."""
    if conversation[-1]["role"] != "assistant":
        raise RowError(f"expected '{name}' to end with a turn of the assistant, found the {conversation[-1]['role']}'s")
    return conversation


def names(row: Mapping[str, Any]) -> str:
    """A row's keys, for a message."""
    return ", ".join(map(shown, list(row)[:8])) or "no keys"


def shown(value: object) -> str:
    """A value, for a message."""
    return repr(value[:40]) if isinstance(value, str) else kind(value)
