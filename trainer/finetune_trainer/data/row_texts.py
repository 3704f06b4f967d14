"""Access to the texts of a row of any type."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from finetune_trainer.data.row_types import (
    Chat,
    LabeledExample,
    Message,
    PlainText,
    Preference,
    PromptCompletion,
    Row,
)

Conversation = Chat | PromptCompletion | PlainText
Turn = tuple[str, str]
"""Role and text: the reasoning, the content and the tool calls of a turn."""
_NON_WORD_PATTERN = re.compile(r"\W+")


def list_conversations(row: Row) -> list[Conversation]:
    """Return the conversations of a row that are rendered: two for a preference, otherwise one."""
    if isinstance(row, Preference):
        return [row.chosen, row.rejected]
    return [row.row if isinstance(row, LabeledExample) else row]


def list_turns(conversation: Conversation) -> list[Turn]:
    """Return the turns of a conversation. Plain text is one turn of the assistant."""
    if isinstance(conversation, Chat):
        return [(message["role"], join_message_texts(message)) for message in conversation.messages]
    if isinstance(conversation, PromptCompletion):
        return [("user", conversation.prompt), ("assistant", conversation.completion)]
    return [("assistant", conversation.text)]


def join_message_texts(message: Message) -> str:
    """Return all texts of a turn: its reasoning, its content, and the names and arguments of its tool calls."""
    if len(message) == 2:
        return str(message["content"])
    return "\n".join(text for text in _iter_message_texts(message) if text)


def _iter_message_texts(message: Message) -> Iterator[str]:
    yield message.get("reasoning_content", "")
    yield message["content"]
    for call in message.get("tool_calls", ()):
        yield call["function"]["name"]
        yield from iter_json_scalars(call["function"]["arguments"])


def iter_json_scalars(value: object) -> Iterator[str]:
    """Yield the texts in a JSON value, and its numbers, truth values and nulls as JSON."""
    if isinstance(value, dict):
        for item in value.values():
            yield from iter_json_scalars(item)
    elif isinstance(value, list):
        for item in value:
            yield from iter_json_scalars(item)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


def list_texts(row: Row) -> list[str]:
    """Return all texts of the row. Turns that both conversations of a preference share are returned once."""
    first_turns, *further_conversations = map(list_turns, list_conversations(row))
    unshared_turns = [
        turn
        for further_turns in further_conversations
        for turn in further_turns[_count_shared_turns(first_turns, further_turns) :]
    ]
    return [content for _, content in [*first_turns, *unshared_turns]]


def _count_shared_turns(first_turns: list[Turn], second_turns: list[Turn]) -> int:
    return next(
        (index for index, (a, b) in enumerate(zip(first_turns, second_turns, strict=False)) if a != b), len(first_turns)
    )


def map_texts(row: Row, transform: Callable[[str], str]) -> Row:
    """Return the row with each of its texts transformed."""
    if isinstance(row, Preference):
        return Preference(_map_conversation(row.chosen, transform), _map_conversation(row.rejected, transform))
    if isinstance(row, LabeledExample):
        return replace(row, row=_map_conversation(row.row, transform))
    return PlainText(transform(row.text)) if isinstance(row, PlainText) else _map_conversation(row, transform)


def _map_conversation(
    conversation: Chat | PromptCompletion, transform: Callable[[str], str]
) -> Chat | PromptCompletion:
    if isinstance(conversation, PromptCompletion):
        return PromptCompletion(transform(conversation.prompt), transform(conversation.completion))
    messages = [_map_message(message, transform) for message in conversation.messages]
    return Chat(messages, conversation.tools, conversation.unsupervised_turns)


def _map_message(message: Message, transform: Callable[[str], str]) -> Message:
    mapped = {**message, "content": transform(message["content"])}
    if "reasoning_content" in message:
        mapped["reasoning_content"] = transform(message["reasoning_content"])
    if "tool_calls" in message:
        mapped["tool_calls"] = [_map_tool_call(call, transform) for call in message["tool_calls"]]
    return mapped


def _map_tool_call(call: dict[str, Any], transform: Callable[[str], str]) -> dict[str, Any]:
    """Transform the texts among the arguments of a call. The name of the function is kept."""
    function = call["function"]
    return {**call, "function": {**function, "arguments": _map_strings(function["arguments"], transform)}}


def _map_strings(value: object, transform: Callable[[str], str]) -> object:
    if isinstance(value, dict):
        return {key: _map_strings(item, transform) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_strings(item, transform) for item in value]
    return transform(value) if isinstance(value, str) else value


def serialize_canonical(row: Row) -> bytes:
    """Return bytes that are equal for equal rows and different for different rows."""
    # Each text is preceded by its length, so that a text cannot imitate the boundary between two texts.
    parts = [
        f"{len(part)}:{part}"
        for conversation in list_conversations(row)
        for turn in _iter_canonical_turns(conversation)
        for part in turn
    ]
    label = str(row.desirable) if isinstance(row, LabeledExample) else ""
    return f"{len(label)}:{label}{''.join(parts)}".encode()


def _iter_canonical_turns(conversation: Conversation) -> Iterator[tuple[str, ...]]:
    """Yield what distinguishes the turns: usually role and content."""
    if not isinstance(conversation, Chat):
        yield from list_turns(conversation)
        return
    if conversation.tools or conversation.unsupervised_turns:
        yield _to_json(conversation.tools), _to_json(sorted(conversation.unsupervised_turns))
    for message in conversation.messages:
        extras = {key: value for key, value in message.items() if key not in ("role", "content")}
        yield (message["role"], message["content"], *([_to_json(extras)] if extras else []))


def _to_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def normalize_prompt(row: Row) -> str:
    """Return the text before the last answer without case and punctuation; for plain text, all of the text."""
    turns = list_turns(list_conversations(row)[0])
    prompt_turns = turns[:-1] or turns
    return _NON_WORD_PATTERN.sub(" ", " ".join(content for _, content in prompt_turns)).casefold().strip()
