"""Every key of every row is used, refused by name or counted by name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.data_preparation import build_config, prepare_rows
from tests.support.trainer.tiny_model import chat, write_rows

from finetune_trainer.contract import DataSource
from finetune_trainer.data.row_reader import RowReader
from finetune_trainer.data.row_types import Chat, PlainText, PromptCompletion, Row
from finetune_trainer.training.methods import METHODS

MARK = "marked7"
USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "messages": ("sft", {"messages": [USER, ANSWER]}),
    "a system turn": ("sft", {"messages": [{"role": "system", "content": "s"}, USER, ANSWER]}),
    "sharegpt": ("sft", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}]}),
    "alpaca": ("sft", {"instruction": "q", "output": "good"}),
    "pair": ("sft", {"prompt": "q", "completion": "good"}),
    "pair of lists": ("sft", {"prompt": [USER], "completion": [ANSWER]}),
    "text": ("sft", {"text": "good"}),
    "preference": ("dpo", {"prompt": "q", "chosen": "good", "rejected": "bad"}),
    "preference of lists": ("dpo", {"prompt": [USER], "chosen": [ANSWER], "rejected": [BAD]}),
    "preference of conversations": ("dpo", {"chosen": [USER, ANSWER], "rejected": [USER, BAD]}),
    "dialogues": (
        "dpo",
        {"chosen": "Human: q\n\nAssistant: good", "rejected": "Human: q\n\nAssistant: bad"},
    ),
    "texts": ("dpo", {"chosen": "question\ngood", "rejected": "question\nbad"}),
    "OpenAI's preference": (
        "dpo",
        {"input": {"messages": [USER]}, "preferred_output": [ANSWER], "non_preferred_output": [BAD]},
    ),
    "judged": ("kto", {"prompt": "q", "completion": "good", "label": True}),
    "judged conversation": ("kto", {"messages": [USER, ANSWER], "label": True}),
    "judged alpaca": ("kto", {"instruction": "q", "output": "good", "label": False}),
}
MARKED_TURNS = [{"role": "user", "content": MARK}, ANSWER]
COLUMNS: dict[str, object] = {
    "messages": MARKED_TURNS,
    "conversations": MARKED_TURNS,
    "tools": [{"name": "f", "description": MARK}],
    "functions": [{"name": "f", "description": MARK}],
    "history": [[MARK, "a"]],
    "image": f"{MARK}.png",
    "videos": [MARK],
    "score": 0,
    "label": False,
}
for _name in (
    "system",
    "system_prompt",
    "context",
    "reasoning",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "text",
    "id",
):
    COLUMNS[_name] = MARK
COLUMNS["preferred_output"] = COLUMNS["non_preferred_output"] = MARK


def read(folder: Path, rows: Sequence[dict[str, Any]], method: str, **source: Any) -> tuple[RowReader, list[Row]]:
    folder.mkdir(parents=True, exist_ok=True)
    reader = RowReader(METHODS[method])
    files = [write_rows(folder / str(number), [row], f"s3://data/{number}") for number, row in enumerate(rows)]
    return reader, [each.row for each in reader.read([(DataSource(uri="s3://data/*", **source), files)])]


def is_accounted_for(name: str, reader: RowReader, rows: Sequence[Row]) -> bool:
    is_refused = any(f"'{name}'" in message or f"{name}[" in message for message in reader.rejections.invalid.messages)
    is_counted = reader.unused_columns.get(name, reader.unused_columns.get(f"messages[].{name}")) == 1
    return is_refused or is_counted or any(MARK in repr(row) for row in rows)


@pytest.mark.parametrize(("method", "row"), ROWS.values(), ids=ROWS)
def test_reader_each_additional_column_is_used_refused_or_counted(
    tmp_path: Path, method: str, row: dict[str, Any]
) -> None:
    reader, rows = read(tmp_path / "plain", [row], method)
    assert rows
    assert not reader.unused_columns
    row_format = "preference" if method != "sft" else METHODS["sft"].detect_format(row)
    for (name, value), source_format in product(COLUMNS.items(), ("auto", row_format)):
        if name not in row:
            marked_reader, rows = read(tmp_path, [{**row, name: value}], method, format=source_format)
            assert is_accounted_for(name, marked_reader, rows), (name, source_format)


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_reader_each_additional_key_of_a_turn_is_used_refused_or_counted(tmp_path: Path, role: str) -> None:
    turn = {"role": role, "content": "text"}
    turns = [turn, ANSWER] if role == "user" else [USER, turn] if role == "assistant" else [turn, USER, ANSWER]
    values: dict[str, object] = {"tool_calls": [{"name": MARK, "arguments": "{}"}], "function_call": {"name": MARK}}
    names = ["name", "reasoning", "thinking", "tool_call_id", "refusal", "images", "tools", "text", "value", "id"]
    for name, value in (values | dict.fromkeys(names, MARK)).items():
        marked_turns = [{**each, name: value} if each is turn else each for each in turns]
        reader, rows = read(tmp_path, [{"messages": marked_turns}], "sft")
        assert is_accounted_for(name, reader, rows), name


@pytest.mark.parametrize("name", ["tools", "functions", "history", "system", "images"])
@pytest.mark.parametrize("row_format", ["auto", "text"])
def test_reader_part_of_the_conversation_that_is_not_used_is_refused(
    tmp_path: Path, name: str, row_format: str
) -> None:
    reader, rows = read(tmp_path, [{"text": "t", name: COLUMNS.get(name, MARK)}], "sft", format=row_format)
    assert not rows
    assert f"has '{name}'" in reader.rejections.invalid.messages[0]


def test_reader_second_conversation_is_refused_unless_the_format_is_set(tmp_path: Path) -> None:
    row = {"messages": [USER, ANSWER], "prompt": "another text"}
    reader, rows = read(tmp_path, [row], "sft")
    assert not rows
    assert "set the format of the source to ignore it" in reader.rejections.invalid.messages[0]
    reader, rows = read(tmp_path, [row], "sft", format="messages")
    assert rows == [Chat([USER, ANSWER])]
    assert reader.unused_columns == {"prompt": 1}


def test_reader_copy_of_the_conversation_is_counted(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": [USER, ANSWER], "rejected": [USER, BAD], "messages": [USER, ANSWER], "score": 1.5}
    reader, rows = read(tmp_path, [row], "dpo")
    assert len(rows) == 1
    assert reader.unused_columns == {"messages": 1, "prompt": 1, "score": 1}


def test_reader_label_of_texts_names_the_fields(tmp_path: Path) -> None:
    reader, _ = read(tmp_path, [{"text": "fine", "label": "good"}], "sft")
    assert "set fields: {prompt: text, completion: label}" in reader.rejections.invalid.messages[0]
    _, rows = read(tmp_path, [{"text": "t", "label": "l"}], "sft", fields={"prompt": "text", "completion": "label"})
    assert rows == [PromptCompletion("t", "l")]
    _, rows = read(tmp_path, [{"text": "t", "label": "l"}], "sft", format="text")
    assert rows == [PlainText("t")]


def test_reader_named_column_that_is_not_used_is_refused(tmp_path: Path) -> None:
    row = {"messages": [USER, ANSWER], "context": "c"}
    reader, rows = read(tmp_path, [row], "sft", fields={"input": "context"})
    assert not rows
    expected = "has a column that its format does not use: 'context' (fields: input); remove input from fields"
    assert expected in reader.rejections.invalid.messages[0]


def test_reader_named_columns_are_used(tmp_path: Path) -> None:
    row = {"system_prompt": "s", "question": "q", "context": "c", "response": "good"}
    fields = {"system": "system_prompt", "prompt": "question", "input": "context", "completion": "response"}
    _, rows = read(tmp_path, [row], "sft", fields=fields)
    assert rows == [Chat([{"role": "system", "content": "s"}, {"role": "user", "content": "q\n\nc"}, ANSWER])]


def test_reader_column_replaced_by_a_field_is_counted(tmp_path: Path) -> None:
    row = {"prompt": "template", "question": "q", "completion": "a"}
    reader, rows = read(tmp_path, [row], "sft", fields={"prompt": "question"})
    assert rows == [PromptCompletion("q", "a")]
    assert reader.unused_columns == {"prompt": 1}


def test_reader_unused_columns_are_counted_by_name_up_to_a_limit(tmp_path: Path) -> None:
    row = {"prompt": "q", "completion": "a", **{f"feature{number:03}": 1 for number in range(100)}}
    reader, _ = read(tmp_path, [row, {**row, "empty": None}], "sft")
    assert len(reader.unused_columns) == 65
    assert reader.unused_columns["feature000"] == 2
    assert reader.unused_columns["(other columns)"] == 72


def test_preparation_unused_columns_are_logged_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    rows = [{**chat(f"q{number}", f"a{number}"), "parallel_tool_calls": False, "id": number} for number in range(3)]
    prepared = prepare_rows(tmp_path, rows, build_config())
    assert prepared.unused_columns == {"id": 3, "parallel_tool_calls": 3}
    assert "columns that are not used: id (3 rows), parallel_tool_calls (3 rows)" in caplog.text
