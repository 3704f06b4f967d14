"""Formats of rows: column renaming, format detection, and conversion of a raw row to a `Row`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from finetune_trainer.contract.dataset import FieldName
from finetune_trainer.data.conversations import (
    format_keys,
    format_value,
    get_optional_text,
    parse_turns,
    require_assistant_turn,
    require_column,
    require_nonblank_text,
    require_text,
)
from finetune_trainer.data.row_types import Chat, PlainText, PromptCompletion, RowError

RawRow = Mapping[str, Any]
_MEDIA_COLUMNS = ("image", "images", "video", "videos", "audio", "audios")
"""Columns of multimodal datasets, whose rows are not complete without them."""
_OPTIONAL_FIELDS = ("system", "input")
_FORMAT_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "promptCompletion": ("prompt", "completion"),
}
"""Columns that identify a format. `text` is not listed, because rows of other formats may have that column too."""
_EXPECTED_COLUMNS = (
    "expected 'messages', or 'prompt' and 'completion', 'conversations', 'instruction' and 'output', or 'text'; found "
)


def rename_columns(row: dict[str, Any], fields: Mapping[FieldName, str]) -> dict[str, Any]:
    """Rename columns to the names of the formats, using `fields`. Raises `RowError` if a column is missing."""
    if not fields:
        return row
    source_columns = set(fields.values())
    renamed_row = {key: value for key, value in row.items() if key not in source_columns}
    for name, source in fields.items():
        if source in row:
            renamed_row[name] = row[source]
        elif name not in _OPTIONAL_FIELDS:
            raise RowError(f"expected the column {source!r} (fields: {name}), found {format_keys(row)}")
    return renamed_row


def reject_media(row: RawRow) -> None:
    """Raise `RowError` if the row has images, video or audio: the model would learn answers about what it never saw."""
    media = [name for name in _MEDIA_COLUMNS if row.get(name)]
    if media:
        raise RowError(f"has {format_value(media[0])}; only text can be trained on, so remove such rows or the column")


def detect_example_format(row: RawRow) -> str:
    """Return the format of a row for method sft, by its columns. Raises `RowError`."""
    matches = [
        row_format for row_format, columns in _FORMAT_COLUMNS.items() if all(column in row for column in columns)
    ]
    if len(matches) > 1:
        candidates = " and ".join("/".join(f"'{mark}'" for mark in _FORMAT_COLUMNS[each]) for each in matches)
        raise RowError(f"has both {candidates}; set the format of the source")
    if matches:
        return matches[0]
    if "text" in row:
        return "text"
    if "chosen" in row and "rejected" in row:
        raise RowError("has 'chosen' and 'rejected', which need training.method dpo or kto")
    raise RowError(_EXPECTED_COLUMNS + format_keys(row))


def _parse_messages(row: RawRow) -> Chat:
    return Chat(require_assistant_turn("messages", parse_turns("messages", require_column(row, "messages"))))


def _parse_sharegpt(row: RawRow) -> Chat:
    conversation = parse_turns("conversations", require_column(row, "conversations"))
    system = get_optional_text(row, "system")
    if system and conversation[0]["role"] != "system":
        conversation = [{"role": "system", "content": system}, *conversation]
    return Chat(require_assistant_turn("conversations", conversation))


def _parse_alpaca(row: RawRow) -> Chat | PromptCompletion:
    prompt = require_nonblank_text("'instruction'", require_column(row, "instruction"), "an instruction")
    input_text = get_optional_text(row, "input")
    prompt = f"{prompt}\n\n{input_text}" if input_text else prompt
    answer = require_nonblank_text("'output'", require_column(row, "output"))
    system = get_optional_text(row, "system")
    if not system:
        return PromptCompletion(prompt, answer)
    turns = (("system", system), ("user", prompt), ("assistant", answer))
    return Chat([{"role": role, "content": content} for role, content in turns])


def _parse_prompt_completion(row: RawRow) -> PromptCompletion:
    return PromptCompletion(
        require_text("'prompt'", require_column(row, "prompt")),
        require_nonblank_text("'completion'", require_column(row, "completion")),
    )


def _parse_text(row: RawRow) -> PlainText:
    return PlainText(require_nonblank_text("'text'", require_column(row, "text"), "text"))


PARSERS: Mapping[str, Callable[[RawRow], Chat | PromptCompletion | PlainText]] = {
    "messages": _parse_messages,
    "sharegpt": _parse_sharegpt,
    "alpaca": _parse_alpaca,
    "promptCompletion": _parse_prompt_completion,
    "text": _parse_text,
}
"""Parsers by format for method `sft`. They ignore other columns and raise `RowError`."""
