"""The texts of a turn by kind: reasoning, content and tool calls, which chat templates write in different notations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetune_trainer.data.row_texts import Conversation, iter_json_scalars, list_turns
from finetune_trainer.data.row_types import Chat, Message, ToolDefinition


@dataclass(frozen=True)
class TurnParts:
    """The texts of a turn."""

    role: str
    content: str
    reasoning: str = ""
    calls: tuple[tuple[str, ...], ...] = ()
    """For each tool call the name of the function and the values of the arguments, as JSON if they are no texts."""


def list_turn_parts(conversation: Conversation) -> list[TurnParts]:
    """Return the texts of each turn."""
    if isinstance(conversation, Chat):
        return [_split_message(message) for message in conversation.messages]
    return [TurnParts(role, content) for role, content in list_turns(conversation)]


def list_definition_parts(tools: Sequence[ToolDefinition]) -> Iterator[str]:
    """Yield the names of the functions and of their parameters, and the descriptions of the functions."""
    for tool in tools:
        function = tool["function"]
        yield function["name"]
        yield function.get("description") or ""
        parameters = function.get("parameters")
        properties = parameters.get("properties") if isinstance(parameters, dict) else None
        yield from properties if isinstance(properties, dict) else ()


def _split_message(message: Message) -> TurnParts:
    calls = (call["function"] for call in message.get("tool_calls", ()))
    return TurnParts(
        message["role"],
        message["content"],
        message.get("reasoning_content", ""),
        tuple((function["name"], *iter_json_scalars(function["arguments"])) for function in calls),
    )
