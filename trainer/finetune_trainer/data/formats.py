"""Formats of rows for method `sft`: their detection, and the conversion of the columns of a row to a `Row`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from finetune_trainer.data.conversation_columns import add_context, build_answered_row, parse_answer, parse_prompt
from finetune_trainer.data.conversations import (
    ignore_answers,
    parse_turns,
    require_assistant_turn,
    require_nonblank_text,
)
from finetune_trainer.data.field_suggestions import (
    complete_fields,
    find_other_turns,
    suggest_fields,
)
from finetune_trainer.data.row_columns import PAIR_COLUMNS, RowColumns, format_keys, is_empty
from finetune_trainer.data.row_types import Chat, PlainText, PromptCompletion, RowError

_FORMAT_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "promptCompletion": ("prompt", "completion"),
}
"""Columns that identify a format. `text` is not listed, because rows of other formats may have that column too."""
_TURNS_FORM = '{"messages": [{"role": "user", "content": "text"}, …]}'
_EXPECTED_COLUMNS = (
    "expected 'messages', or 'prompt' and 'completion', 'conversations', 'instruction' and 'output', or 'text'; found "
)


def detect_example_format(row: Mapping[str, Any]) -> str:
    """Return the format of a row for method sft, by its columns. Raises `RowError`."""
    filled_columns = {name for name, value in row.items() if not is_empty(value)}
    matches = _match_formats(filled_columns) or _match_formats(set(row))
    if len(matches) > 1:
        candidates = " and ".join("/".join(f"'{mark}'" for mark in _FORMAT_COLUMNS[each]) for each in matches)
        raise RowError(f"has both {candidates}; set the format of the source")
    if matches:
        return matches[0]
    if not is_empty(row.get("role")) and ("text" in row or "content" in row):
        hint = ", or set format: text to train on each text alone" if "text" in row else ""
        raise RowError(f"has only one turn of a conversation; write all turns of it in one row: {_TURNS_FORM}{hint}")
    if "text" in row:
        return "text"
    for chosen, rejected in PAIR_COLUMNS:
        if chosen in row and rejected in row:
            raise RowError(f"has '{chosen}' and '{rejected}', which need training.method dpo or kto")
    raise RowError(_EXPECTED_COLUMNS + format_keys(row) + _describe_cure(row))


def _describe_cure(row: Mapping[str, Any]) -> str:
    if suggestion := suggest_fields(row, ("prompt", "completion"), ("messages",), ("text",)):
        return suggestion
    if name := find_other_turns(row):
        return f"; write the turns of {name!r} as {_TURNS_FORM}"
    return complete_fields(row, ("prompt", "completion"))


def _match_formats(names: set[str]) -> list[str]:
    return [row_format for row_format, columns in _FORMAT_COLUMNS.items() if names.issuperset(columns)]


def _parse_messages(row: RowColumns) -> Chat:
    return _parse_conversation(row, "messages")


def _parse_sharegpt(row: RowColumns) -> Chat:
    return _parse_conversation(row, "conversations")


def _parse_conversation(row: RowColumns, column: str) -> Chat:
    return add_context(row, require_assistant_turn(column, parse_turns(row, column, row.require(column))))


def _parse_alpaca(row: RowColumns) -> Chat | PromptCompletion:
    require_nonblank_text("'instruction'", row.require("instruction"), "an instruction")
    answer = require_nonblank_text("'output'", row.require("output"))
    return build_answered_row(row, parse_prompt(row, "instruction"), answer)


def _parse_prompt_completion(row: RowColumns) -> Chat | PromptCompletion:
    prompt, answer = parse_prompt(row, "prompt"), parse_answer(row, "completion")
    if isinstance(answer, Chat):
        require_assistant_turn("completion", answer)
    return build_answered_row(row, ignore_answers(prompt) if isinstance(prompt, Chat) else prompt, answer)


def _parse_text(row: RowColumns) -> PlainText:
    return PlainText(require_nonblank_text("'text'", row.require("text"), "text"))


PARSERS: Mapping[str, Callable[[RowColumns], Chat | PromptCompletion | PlainText]] = {
    "messages": _parse_messages,
    "sharegpt": _parse_sharegpt,
    "alpaca": _parse_alpaca,
    "promptCompletion": _parse_prompt_completion,
    "text": _parse_text,
}
"""Parsers by format for method `sft`. They raise `RowError`."""
