"""Checks of the texts and conversations in a row. The result can be rendered without further checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from finetune_trainer.data.readers.json_rows import describe_type
from finetune_trainer.data.row_columns import MEDIA_COLUMNS, RowColumns, format_keys, format_value, is_empty
from finetune_trainer.data.row_types import REASONING_KEYS, Chat, Message, RowError
from finetune_trainer.data.tool_calls import parse_json, parse_tool_calls

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of the turns of a conversation."""
_ROLES = {role: role for role in ROLES} | {
    "function": "tool",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "chatbot": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
"""Roles by the names that data sets have for them, in lower case."""
_CALL_ROLES = ("function_call", "tool_call")
"""Roles of turns whose content is the JSON of a tool call."""
_TOOL_KINDS = frozenset({"tool_use", "tool_result"})
"""Types of the content parts with which Anthropic's messages call tools."""
_TURN_FORM = '; write each turn as {"role": "user", "content": "text"}'
_EXTRA_KEYS: Mapping[str, tuple[str, ...]] = {
    "system": ("name", "weight"),
    "developer": ("name", "weight"),
    "user": ("name", "weight"),
    "assistant": ("name", "weight", "tool_calls", "function_call", *REASONING_KEYS),
    "tool": ("name", "weight", "tool_call_id"),
}
"""Keys that a turn may have in addition to role and content, by role."""
_CONTENT_KEYS = frozenset(
    {
        *chain.from_iterable(_EXTRA_KEYS.values()),
        *("role", "from", "content", "value", "text", "parts", "message", "prompt", "completion", "response"),
        *("input", "output", "context", "documents", "system", "refusal", "thought", "thoughts", "cot"),
        *("reasoning_details", "thinking_blocks", "tools", "functions", "tool_use", "tool_result", "tool_results"),
        *("tool_response", "tool_responses", "attachments", "files", *MEDIA_COLUMNS),
        *("train", "training", "trainable", "loss", "mask"),
    }
)
"""Keys that are a part of the conversation, or that say what is trained on. Other keys, such as dates, are counted."""


def get_optional_text(row: RowColumns, name: str) -> str:
    """Return a text column, or an empty text if it is absent, null or blank. Raises `RowError` for other types.

    The text may be in parts, as Amazon's and Google's system instructions are.
    """
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, dict) and isinstance(value.get("parts"), list):
        value = value["parts"]
    if isinstance(value, list):
        value = _join_text_parts(f"'{name}'", value)
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


def build_turn(role: str, content: str) -> Chat:
    """Return a conversation of one turn."""
    return Chat([{"role": role, "content": content}])


def join_chats(first: Chat, second: Chat) -> Chat:
    """Return the turns of both conversations, with the tools of the second one."""
    offset = len(first.messages)
    unsupervised = first.unsupervised_turns | {offset + index for index in second.unsupervised_turns}
    return Chat([*first.messages, *second.messages], second.tools, frozenset(unsupervised))


def ignore_answers(chat: Chat) -> Chat:
    """Return the conversation without any supervised turn, as the context of the answers that follow."""
    answers = {index for index, message in enumerate(chat.messages) if message["role"] == "assistant"}
    return replace(chat, unsupervised_turns=frozenset(answers))


def parse_turns(row: RowColumns, name: str, value: object) -> Chat:
    """Parse a list of `{role, content}` or `{from, value}` objects as turns. Raises `RowError`.

    The list may be JSON text, as in CSV files. Keys of the turns that are not used are recorded in `row`.
    """
    is_json_text = isinstance(value, str) and value.lstrip().startswith("[")
    turns = parse_json(f"'{name}'", value) if is_json_text else value
    if not isinstance(turns, list) or not turns:
        raise RowError(f"expected '{name}' to be a list of turns, found {describe_type(turns)}")
    messages = []
    for index, turn in enumerate(turns):
        message, unused_keys = _parse_turn(f"{name}[{index}]", turn)
        messages.append(message)
        if unused_keys:
            row.record_unused_keys(name, unused_keys)
    unsupervised = [
        index for index, turn in enumerate(turns) if turn.get("weight") == 0 and messages[index]["role"] == "assistant"
    ]
    return Chat(messages, unsupervised_turns=frozenset(unsupervised))


def _parse_turn(name: str, turn: object) -> tuple[Message, list[str]]:
    """Return a turn, and its filled keys that are not used."""
    if not isinstance(turn, dict):
        raise RowError(
            f"expected {name} to be an object with role and content, found {describe_type(turn)}{_TURN_FORM}"
        )
    role_key, content_key = _get_turn_keys(turn)
    if role_key not in turn:
        raise RowError(f"expected {name} to have role and content, found {format_keys(turn)}{_TURN_FORM}")
    role = _parse_role(f"{name}.{role_key}", turn[role_key])
    extras = {key: value for key, value in turn.items() if key not in (role_key, content_key) and not is_empty(value)}
    unused_keys = [key for key in extras if key not in _EXTRA_KEYS[role]]
    if unused_keys:
        _reject_content_keys(name, unused_keys, (role_key, content_key))
    content = turn.get(content_key)
    if turn[role_key].lower() in _CALL_ROLES:
        content, extras = "", {**extras, "tool_calls": _require_call(f"{name}.{content_key}", content)}
    parsed_extras = _parse_extras(name, extras) if extras else {}
    text = _parse_content(f"{name}.{content_key}", role, content, is_call="tool_calls" in parsed_extras)
    return {"role": role, "content": text, **parsed_extras}, unused_keys


def _get_turn_keys(turn: Mapping[str, Any]) -> tuple[str, str]:
    """Return the keys of role and content: those of ShareGPT, of Google's `contents`, or else of OpenAI."""
    if "from" in turn and "role" not in turn:
        return "from", "value"
    return "role", "parts" if "parts" in turn and is_empty(turn.get("content")) else "content"


def _reject_content_keys(name: str, unused_keys: list[str], used_keys: tuple[str, str]) -> None:
    """Raise `RowError` for a key that is not used, but is a part of the conversation."""
    refused_keys = sorted(key for key in unused_keys if key in _CONTENT_KEYS)
    if refused_keys:
        found = ", ".join(map(format_value, refused_keys[:5]))
        raise RowError(
            f"expected {name} to have {' and '.join(used_keys)}, found also {found}; remove what is not for training, "
            f"and write the rest in {used_keys[1]} or in a turn of its own"
        )


def _parse_role(name: str, role: object) -> str:
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise RowError(f"expected {name} to be one of {', '.join(_ROLES)}, found {format_value(role)}")
    return _ROLES[role.lower()]


def _require_call(name: str, content: object) -> object:
    if is_empty(content):
        raise RowError(f"expected {name} to be a tool call, found it empty")
    return parse_tool_calls(name, content)


def _parse_extras(name: str, extras: dict[str, Any]) -> Message:
    """Return the keys of a message in addition to role and content."""
    _check_weight(f"{name}.weight", extras.get("weight", 1))
    parsed: Message = {}
    if reasoning := _parse_reasoning(name, extras):
        parsed["reasoning_content"] = reasoning
    if "tool_calls" in extras and "function_call" in extras:
        raise RowError(f"expected {name} to have tool_calls or function_call, found both")
    for key in ("tool_calls", "function_call"):
        if key in extras:
            parsed["tool_calls"] = parse_tool_calls(f"{name}.{key}", extras[key])
    return parsed | {
        key: require_text(f"{name}.{key}", extras[key]) for key in ("tool_call_id", "name") if key in extras
    }


def _check_weight(name: str, weight: object) -> None:
    if not isinstance(weight, bool | int | float) or weight not in (0, 1):
        found = weight if isinstance(weight, int | float) else format_value(weight)
        raise RowError(f"expected {name} to be 0 or 1, found {found}")


def _parse_reasoning(name: str, extras: dict[str, Any]) -> str:
    texts = {key: require_text(f"{name}.{key}", extras[key]) for key in REASONING_KEYS if key in extras}
    if len(set(texts.values())) > 1:
        raise RowError(f"expected one reasoning in {name}, found different texts in {' and '.join(texts)}")
    reasoning = next(iter(texts.values()), "")
    return reasoning if reasoning.strip() else ""


def _parse_content(name: str, role: str, content: object, *, is_call: bool) -> str:
    if isinstance(content, list):
        content = _join_text_parts(name, content)
    if is_call and is_empty(content):
        return ""
    if role == "assistant" and not is_call:
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
        hint = (
            "; write calls of tools as tool_calls, and their results as turns of role tool"
            if kinds & _TOOL_KINDS
            else ""
        )
        raise RowError(f"{name} has parts of type {', '.join(sorted(kinds))}; only text can be trained on{hint}")
    texts = [_get_part_text(part) for part in parts]
    return "".join(text for text in texts if text is not None) if texts and None not in texts else parts


def _get_part_text(part: object) -> str | None:
    """Return the text of a part `{"type": "text", "text": …}` or `{"text": …}`, or None if it has another form."""
    if not isinstance(part, dict):
        return None
    filled_keys = {key for key, value in part.items() if key != "text" and not is_empty(value)}
    text = part.get("text")
    return text if filled_keys <= {"type"} and isinstance(text, str) else None


def require_assistant_turn(name: str, conversation: Chat) -> Chat:
    """Return the conversation if it has a turn of the assistant. Raises `RowError` otherwise."""
    if all(turn["role"] != "assistant" for turn in conversation.messages):
        raise RowError(f"expected an assistant turn in '{name}', found none")
    return conversation


def require_final_answer(name: str, conversation: Chat) -> Chat:
    """Return the conversation if it ends with an assistant turn, the answer. Raises `RowError` otherwise."""
    role = conversation.messages[-1]["role"]
    if role != "assistant":
        raise RowError(f"expected '{name}' to end with an assistant turn, found a turn of {role}")
    return conversation
