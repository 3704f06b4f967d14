"""Access to the texts of a row of any type."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from finetune_trainer.data.row_types import Chat, LabeledExample, PlainText, Preference, PromptCompletion, Row

Conversation = Chat | PromptCompletion | PlainText
Turn = tuple[str, str]
"""Role and content."""
_NON_WORD_PATTERN = re.compile(r"\W+")


def list_conversations(row: Row) -> list[Conversation]:
    """Return the conversations of a row that are rendered: two for a preference, otherwise one."""
    if isinstance(row, Preference):
        return [row.chosen, row.rejected]
    return [row.row if isinstance(row, LabeledExample) else row]


def list_turns(conversation: Conversation) -> list[Turn]:
    """Return the turns of a conversation. Plain text is one turn of the assistant."""
    if isinstance(conversation, Chat):
        return [(message["role"], message["content"]) for message in conversation.messages]
    if isinstance(conversation, PromptCompletion):
        return [("user", conversation.prompt), ("assistant", conversation.completion)]
    return [("assistant", conversation.text)]


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
    return Chat([{**message, "content": transform(message["content"])} for message in conversation.messages])


def serialize_canonical(row: Row) -> bytes:
    """Return bytes that are equal for equal rows and different for different rows."""
    # Each text is preceded by its length, so that a text cannot imitate the boundary between two texts.
    parts = [
        f"{len(part)}:{part}"
        for conversation in list_conversations(row)
        for turn in list_turns(conversation)
        for part in turn
    ]
    label = str(row.desirable) if isinstance(row, LabeledExample) else ""
    return f"{len(label)}:{label}{''.join(parts)}".encode()


def normalize_prompt(row: Row) -> str:
    """Return the text before the last answer without case and punctuation; for plain text, all of the text."""
    turns = list_turns(list_conversations(row)[0])
    prompt_turns = turns[:-1] or turns
    return _NON_WORD_PATTERN.sub(" ", " ".join(content for _, content in prompt_turns)).casefold().strip()
