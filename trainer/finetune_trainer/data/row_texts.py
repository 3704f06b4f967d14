"""A row's texts, whatever kind of row it is: read, changed, compared."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from finetune_trainer.data.row_types import Chat, LabeledExample, PlainText, Preference, PromptCompletion, Row

Conversation = Chat | PromptCompletion | PlainText
Turn = tuple[str, str]
"""Who speaks, and what is said."""
_NON_WORD_PATTERN = re.compile(r"\W+")


def list_conversations(row: Row) -> list[Conversation]:
    """All that is rendered for a row: two for a preference, else one."""
    if isinstance(row, Preference):
        return [row.chosen, row.rejected]
    return [row.row if isinstance(row, LabeledExample) else row]


def list_turns(conversation: Conversation) -> list[Turn]:
    """The conversation's turns; plain text is one turn of the assistant."""
    if isinstance(conversation, Chat):
        return [(message["role"], message["content"]) for message in conversation.messages]
    if isinstance(conversation, PromptCompletion):
        return [("user", conversation.prompt), ("assistant", conversation.completion)]
    return [("assistant", conversation.text)]


def list_texts(row: Row) -> list[str]:
    """Every text of the row; what both answers of a preference share is given once."""
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
    """The row with each of its texts changed."""
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
    """The same bytes for rows that say the same, and for no others."""
    # Lengths before the texts: no text can then look like the end of one and the start of the next.
    parts = [
        f"{len(part)}:{part}"
        for conversation in list_conversations(row)
        for turn in list_turns(conversation)
        for part in turn
    ]
    label = str(row.desirable) if isinstance(row, LabeledExample) else ""
    return f"{len(label)}:{label}{''.join(parts)}".encode()


def normalize_prompt(row: Row) -> str:
    """What comes before the last answer, without case and punctuation; of plain text, all of it."""
    turns = list_turns(list_conversations(row)[0])
    prompt_turns = turns[:-1] or turns
    return _NON_WORD_PATTERN.sub(" ", " ".join(content for _, content in prompt_turns)).casefold().strip()


def find_rejection_reason(row: Row) -> str | None:
    """The kind of rejection of a row that teaches nothing, whatever its length."""
    conversations = [list_turns(conversation) for conversation in list_conversations(row)]
    if any(role == "assistant" and not content.strip() for turns in conversations for role, content in turns):
        return "emptyAnswer"
    is_identical = len(conversations) == 2 and conversations[0] == conversations[1]
    return "identicalAnswers" if is_identical or any(map(_echoes_prompt, conversations)) else None


def _echoes_prompt(turns: list[Turn]) -> bool:
    return len(turns) > 1 and turns[-1][0] == "assistant" and turns[-1][1].strip() == turns[-2][1].strip()
