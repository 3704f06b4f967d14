"""From the columns of a row to what it means: formats told apart, columns renamed, each row checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from finetune_trainer.contract.dataset import FieldName
from finetune_trainer.data.conversations import answered, column, filled, names, optional_text, text, turns
from finetune_trainer.data.preferences import parse_judged, parse_preference
from finetune_trainer.data.row_types import Chat, Pair, Row, RowError, Text

Columns = Mapping[str, Any]
_OPTIONAL = ("system", "input")
_MARKS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "promptCompletion": ("prompt", "completion"),
}
"""The columns by which a format is known; `text` is a column that the others may have as well."""
_EXPECTED = (
    "expected 'messages', or 'prompt' and 'completion', 'conversations', 'instruction' and 'output', or 'text'; found "
)


def parse(row: Columns, row_format: str, method: str = "sft") -> list[Row]:
    """A row as what it means to `method`: one, or for kto two of a pair of answers. Raises `RowError`."""
    if method == "kto":
        return list(parse_judged(row))
    return [parse_preference(row)] if method == "dpo" else [PARSERS[row_format](row)]


def renamed(row: dict[str, Any], fields: Mapping[FieldName, str]) -> dict[str, Any]:
    """The row with the names that the formats know; `fields` says which columns they stand in. Raises `RowError`."""
    if not fields:
        return row
    taken = set(fields.values())
    known = {key: value for key, value in row.items() if key not in taken}
    for name, source in fields.items():
        if source in row:
            known[name] = row[source]
        elif name not in _OPTIONAL:
            raise RowError(f"expected the column {source!r} (fields: {name}), found {names(row)}")
    return known


def detect_format(row: Columns, method: str = "sft") -> str:
    """The format that a row's keys tell. Raises `RowError`."""
    if method != "sft":
        return "preference"
    found = [each for each, marks in _MARKS.items() if all(mark in row for mark in marks)]
    if len(found) > 1:
        both = " and ".join("/".join(f"'{mark}'" for mark in _MARKS[each]) for each in found)
        raise RowError(f"has both {both}; say which by the source's format")
    if found:
        return found[0]
    if "text" in row:
        return "text"
    if "chosen" in row and "rejected" in row:
        raise RowError("has 'chosen' and 'rejected'; these are for training.method dpo or kto")
    raise RowError(_EXPECTED + names(row))


def _parse_messages(row: Columns) -> Chat:
    return Chat(answered("messages", turns("messages", column(row, "messages"))))


def _parse_sharegpt(row: Columns) -> Chat:
    found = turns("conversations", column(row, "conversations"))
    system = optional_text(row, "system")
    if system and found[0]["role"] != "system":
        found = [{"role": "system", "content": system}, *found]
    return Chat(answered("conversations", found))


def _parse_alpaca(row: Columns) -> Chat | Pair:
    prompt = filled("'instruction'", column(row, "instruction"), "an instruction")
    more = optional_text(row, "input")
    prompt = f"{prompt}\n\n{more}" if more else prompt
    answer = filled("'output'", column(row, "output"))
    system = optional_text(row, "system")
    if not system:
        return Pair(prompt, answer)
    said = (("system", system), ("user", prompt), ("assistant", answer))
    return Chat([{"role": role, "content": content} for role, content in said])


def _parse_pair(row: Columns) -> Pair:
    return Pair(text("'prompt'", column(row, "prompt")), filled("'completion'", column(row, "completion")))


def _parse_text(row: Columns) -> Text:
    return Text(filled("'text'", column(row, "text"), "text"))


PARSERS: Mapping[str, Callable[[Columns], Chat | Pair | Text]] = {
    "messages": _parse_messages,
    "sharegpt": _parse_sharegpt,
    "alpaca": _parse_alpaca,
    "promptCompletion": _parse_pair,
    "text": _parse_text,
}
"""By format, for method sft; other columns are not looked at. They raise `RowError`."""
