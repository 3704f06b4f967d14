"""A row's texts, whatever kind of row it is: read, changed, compared."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from finetune_trainer.data.rows import Chat, Judged, Pair, Preference, Row, Text

Conversation = Chat | Pair | Text
Turn = tuple[str, str]
"""Who speaks, and what is said."""
_SPACE = re.compile(r"\W+")


def conversations(row: Row) -> list[Conversation]:
    """All that is rendered for a row: two for a preference, else one."""
    if isinstance(row, Preference):
        return [row.chosen, row.rejected]
    return [row.row if isinstance(row, Judged) else row]


def turns(conversation: Conversation) -> list[Turn]:
    """The conversation's turns; plain text is one turn of the assistant."""
    if isinstance(conversation, Chat):
        return [(message["role"], message["content"]) for message in conversation.messages]
    if isinstance(conversation, Pair):
        return [("user", conversation.prompt), ("assistant", conversation.completion)]
    return [("assistant", conversation.text)]


def texts(row: Row) -> list[str]:
    """Every text of the row; what both answers of a preference share is given once."""
    first, *others = map(turns, conversations(row))
    rest = [turn for other in others for turn in other[_shared(first, other) :]]
    return [content for _, content in [*first, *rest]]


def _shared(one: list[Turn], other: list[Turn]) -> int:
    return next((index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))


def mapped(row: Row, change: Callable[[str], str]) -> Row:
    """The row with each of its texts changed."""
    if isinstance(row, Preference):
        return Preference(_changed(row.chosen, change), _changed(row.rejected, change))
    if isinstance(row, Judged):
        return replace(row, row=_changed(row.row, change))
    return Text(change(row.text)) if isinstance(row, Text) else _changed(row, change)


def _changed(row: Chat | Pair, change: Callable[[str], str]) -> Chat | Pair:
    if isinstance(row, Pair):
        return Pair(change(row.prompt), change(row.completion))
    return Chat([{**message, "content": change(message["content"])} for message in row.messages])


def canonical(row: Row) -> bytes:
    """The same bytes for rows that say the same, and for no others."""
    # Lengths before the texts: no text can then look like the end of one and the start of the next.
    spoken = [f"{len(part)}:{part}" for each in conversations(row) for turn in turns(each) for part in turn]
    verdict = str(row.good) if isinstance(row, Judged) else ""
    return f"{len(verdict)}:{verdict}{''.join(spoken)}".encode()


def prompt(row: Row) -> str:
    """What comes before the last answer, without case and punctuation; of plain text, all of it."""
    spoken = turns(conversations(row)[0])
    before = spoken[:-1] or spoken
    return _SPACE.sub(" ", " ".join(content for _, content in before)).casefold().strip()


def why_no_example(row: Row) -> str | None:
    """The kind of rejection of a row that teaches nothing, whatever its length."""
    spoken = [turns(each) for each in conversations(row)]
    if any(role == "assistant" and not content.strip() for each in spoken for role, content in each):
        return "emptyAnswer"
    same = len(spoken) == 2 and spoken[0] == spoken[1]
    return "identicalAnswers" if same or any(map(_echoes, spoken)) else None


def _echoes(spoken: list[Turn]) -> bool:
    return len(spoken) > 1 and spoken[-1][0] == "assistant" and spoken[-1][1].strip() == spoken[-2][1].strip()
