"""Rows for methods that generate answers: a prompt, with or without an answer of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_trainer.data.conversation_columns import add_context
from finetune_trainer.data.conversations import build_turn, join_chats, parse_turns
from finetune_trainer.data.formats import PARSERS, detect_example_format
from finetune_trainer.data.row_columns import RowColumns, is_empty
from finetune_trainer.data.row_types import NO_ANSWER, Chat, PlainText, PromptCompletion, RowError

_TURN_COLUMNS = {"messages": "messages", "sharegpt": "conversations"}
"""The column with the turns, by format."""
_ANSWER_COLUMNS = {"promptCompletion": "completion", "alpaca": "output"}
"""The column with the answer, by format."""
_PROMPT_COLUMNS = {"prompt": "completion", "instruction": "output"}
"""The column with the answer, by that with the prompt."""


def detect_prompt_format(row: Mapping[str, Any]) -> str:
    """Return the format of a row, by its columns. The answer may be missing. Raises `RowError`."""
    missing = {
        answer: NO_ANSWER
        for prompt, answer in _PROMPT_COLUMNS.items()
        if not is_empty(row.get(prompt)) and is_empty(row.get(answer))
    }
    row_format = detect_example_format({**row, **missing})
    if row_format == "text":
        raise RowError("has only 'text', in which nothing is a prompt; write 'prompt', or 'messages' with turns")
    return row_format


def parse_prompt_row(row: RowColumns, row_format: str) -> Chat | PromptCompletion:
    """Return the row with `NO_ANSWER` in the place of an answer that it does not have. Raises `RowError`."""
    if row_format in _TURN_COLUMNS:
        return _parse_conversation(row, _TURN_COLUMNS[row_format])
    answer_column = _ANSWER_COLUMNS[row_format]
    if not row.has(answer_column):
        row.values = {**row.values, answer_column: NO_ANSWER}
    parsed = PARSERS[row_format](row)
    if isinstance(parsed, PlainText):
        raise RowError("has no prompt")
    return parsed


def _parse_conversation(row: RowColumns, column: str) -> Chat:
    conversation = parse_turns(row, column, row.require(column))
    if conversation.messages[-1]["role"] != "assistant":
        conversation = join_chats(conversation, build_turn("assistant", NO_ANSWER))
    return add_context(row, conversation)
