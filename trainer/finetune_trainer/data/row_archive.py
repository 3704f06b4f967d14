"""The texts of prepared rows, in an Arrow file beside their tokens: what the evaluation compares generated answers
with. A row has the same number in both files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from finetune_trainer.data.answer_text import join_answer, parse_answer
from finetune_trainer.data.row_texts import Turn, list_turns, serialize_canonical
from finetune_trainer.data.row_types import NO_ANSWER, Chat, Message, PromptCompletion, Row

_COLUMNS = {
    "digest": "string",
    "turns": "string",
    "answer": "string",
    "reasoning": "string",
    "has_calls": "bool",
    "answer_start": "int32",
    "item": "string",
}


@dataclass(frozen=True)
class ArchivedRow:
    """The last supervised answer of a row, and the turns before it."""

    digest: str
    """`sha256:…` of the row as the data has it. It does not depend on the config."""
    turns: tuple[Turn, ...] = ()
    """Turns before the answer; definitions of tools are one of the role `tools`. Empty for a row without a prompt, such
    as plain text."""
    answer: str = ""
    """The answer without reasoning, with its tool calls as `answer_text.format_call` writes them."""
    reasoning: str = ""
    has_calls: bool = False
    """Whether the answer has tool calls in the form of chat templates, not only as text."""
    answer_start: int = 0
    """Index of the first token of the answer in the tokenized row."""
    item: Mapping[str, Any] = field(default_factory=dict)
    """The columns of the data that graders read, by name."""

    @property
    def reference(self) -> str | None:
        """The answer of the data, or None if the row has none."""
        return None if self.answer == NO_ANSWER else self.answer

    @classmethod
    def from_columns(cls, columns: Mapping[str, Any]) -> ArchivedRow:
        """Return the row of a record that `to_columns` wrote."""
        turns = tuple((role, text) for role, text in json.loads(columns["turns"]))
        return cls(**{**columns, "turns": turns, "item": json.loads(columns["item"])})

    def to_columns(self) -> dict[str, object]:
        """Return the row as a record of the Arrow file."""
        turns = json.dumps(self.turns, ensure_ascii=False)
        # Columns of Parquet files may have values that JSON does not have, such as decimal numbers: they become text.
        return {**vars(self), "turns": turns, "item": json.dumps(self.item, default=str)}


def compute_row_digest(row: Row) -> str:
    """Return `sha256:…` of the turns and tools of a row."""
    return "sha256:" + hashlib.sha256(serialize_canonical(row)).hexdigest()


def build_archived_row(digest: str, row: Row, answer_start: int) -> ArchivedRow:
    """Return the last supervised answer of a row. There is none in plain text, and in rows with several answers."""
    if isinstance(row, PromptCompletion):
        answer = parse_answer(row.completion)
        return ArchivedRow(digest, (("user", row.prompt),), answer.text, answer.reasoning, answer_start=answer_start)
    if not isinstance(row, Chat):
        return ArchivedRow(digest)
    index = _find_last_answer(row)
    if not index:
        return ArchivedRow(digest)
    message, prompt = row.messages[index], list_turns(Chat(row.messages[:index]))
    if row.tools:
        prompt = [("tools", "\n".join(json.dumps(tool, ensure_ascii=False) for tool in row.tools)), *prompt]
    return ArchivedRow(digest, tuple(prompt), *_read_answer(message), "tool_calls" in message, answer_start)


def _find_last_answer(row: Chat) -> int | None:
    """Return the index of the last turn of the assistant that the loss is computed on."""
    answers = [index for index, message in enumerate(row.messages) if message["role"] == "assistant"]
    return next((index for index in reversed(answers) if index not in row.unsupervised_turns), None)


def _read_answer(message: Message) -> tuple[str, str]:
    """Return the answer and its reasoning, which is in a field of its own or at the start of the content."""
    parts = parse_answer(message["content"])
    calls = [call["function"] for call in message.get("tool_calls", ())]
    return join_answer(parts.text, calls), message.get("reasoning_content") or parts.reasoning


class RowArchiveWriter:
    """Writes the texts of rows to an Arrow stream, which `datasets` can map into memory."""

    def __init__(self, path: Path) -> None:
        from datasets import Features, Value
        from datasets.arrow_writer import ArrowWriter

        features = Features({name: Value(column_type) for name, column_type in _COLUMNS.items()})
        self._writer = ArrowWriter(path=str(path), features=features)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._writer.finalize()
        self._writer.close()

    def add(self, row: ArchivedRow) -> None:
        """Append a row."""
        self._writer.write(row.to_columns())
