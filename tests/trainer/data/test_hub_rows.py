"""Rows in the form of datasets of the Hugging Face hub: used, counted, or refused with a remedy that works."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.support.trainer.tiny_model import write_rows

from finetune_trainer.contract import DataSource
from finetune_trainer.data.row_reader import RowReader
from finetune_trainer.data.row_types import Chat, PlainText, PromptCompletion, Row
from finetune_trainer.training.methods import METHODS

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
SYSTEM = {"role": "system", "content": "s"}
CHAT = Chat([USER, ANSWER])
FILLED_TEMPLATE = "Below is an instruction.\n### Instruction:\nq\n### Input:\ni\n### Output:\ngood"
PARAMETERS = {"city": {"type": "str", "description": "the city"}}


def read(folder: Path, row: dict[str, Any], method: str = "sft", **source: Any) -> tuple[RowReader, list[Row]]:
    reader = RowReader(METHODS[method])
    files = [write_rows(folder / "rows", [row], "s3://data/rows.jsonl")]
    return reader, [each.row for each in reader.read([(DataSource(uri="s3://data/*", **source), files)])]


def read_message(folder: Path, row: dict[str, Any], method: str = "sft", **source: Any) -> str:
    reader, rows = read(folder, row, method, **source)
    assert not rows
    return reader.rejections.invalid.messages[0]


def parse_suggestion(message: str) -> dict[str, str]:
    """Return the `fields` that a message suggests."""
    _, _, fields = message.partition("set fields: {")
    return dict(field.split(": ") for field in fields.partition("}")[0].split(", "))


USED_ROWS: dict[str, tuple[dict[str, Any], Row, dict[str, int]]] = {
    "WildChat's keys of turns": (
        {
            "messages": [
                {**USER, "toxic": False, "hashed_ip": "ab", "header": {"a": "b"}},
                {**ANSWER, "hashed_ip": None},
            ]
        },
        CHAT,
        {"messages[].hashed_ip": 1, "messages[].header": 1, "messages[].toxic": 1},
    ),
    "ShareGPT's keys of turns": (
        {
            "conversations": [
                {"from": "human", "value": "q", "id": 1},
                {"from": "bing", "value": "good", "markdown": "x"},
            ]
        },
        CHAT,
        {"conversations[].id": 1, "conversations[].markdown": 1},
    ),
    "names of roles": (
        {"messages": [{"role": "User", "content": "q"}, {"role": "model", "content": "good"}]},
        CHAT,
        {},
    ),
    "parts without type": (
        {
            "messages": [
                {"role": "user", "content": [{"text": "q"}]},
                {"role": "assistant", "content": [{"text": "good"}]},
            ]
        },
        CHAT,
        {},
    ),
    "filled template": (
        {"instruction": "q", "input": "i", "output": "good", "prompt": FILLED_TEMPLATE},
        PromptCompletion("q\n\ni", "good"),
        {"prompt": 1},
    ),
    "equal system prompt": (
        {"messages": [SYSTEM, USER, ANSWER], "system_prompt": "s"},
        Chat([SYSTEM, USER, ANSWER]),
        {"system_prompt": 1},
    ),
}


@pytest.mark.parametrize(("row", "expected_row", "unused"), USED_ROWS.values(), ids=USED_ROWS)
def test_reader_hub_row_is_used_and_further_keys_are_counted(
    tmp_path: Path, row: dict[str, Any], expected_row: Row, unused: dict[str, int]
) -> None:
    reader, rows = read(tmp_path, row)
    assert rows == [expected_row]
    assert reader.unused_columns == unused


PARTS = {"contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "good"}]}]}
SYSTEM_PARTS = {"role": "system", "parts": [{"text": "s"}]}


def test_reader_contents_of_google_are_turns(tmp_path: Path) -> None:
    row = {"systemInstruction": SYSTEM_PARTS, **PARTS}
    fields = parse_suggestion(read_message(tmp_path, row))
    assert fields == {"system": "systemInstruction", "messages": "contents"}
    assert read(tmp_path, row, fields=fields)[1] == [Chat([SYSTEM, USER, ANSWER])]


def test_reader_system_of_bedrock_in_parts_is_a_turn(tmp_path: Path) -> None:
    row = {"system": [{"text": "s"}], "messages": [{**USER, "content": [{"text": "q"}]}, ANSWER]}
    assert read(tmp_path, row)[1] == [Chat([SYSTEM, USER, ANSWER])]


@pytest.mark.parametrize("name", ["system_prompt", "system_message", "system_instruction", "systemInstruction"])
def test_reader_system_column_of_another_name_is_not_left_out(tmp_path: Path, name: str) -> None:
    message = read_message(tmp_path, {name: "s", "messages": [USER, ANSWER]})
    assert read(tmp_path, {name: "s", "messages": [USER, ANSWER]}, fields=parse_suggestion(message))[1] == [
        Chat([SYSTEM, USER, ANSWER])
    ]


SUGGESTED_ROWS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "OpenOrca": (
        "sft",
        {"id": "n", "system_prompt": "s", "question": "q", "response": "good"},
        {"system": "system_prompt", "prompt": "question", "completion": "response"},
    ),
    "OpenHermes": (
        "sft",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}], "system_prompt": "s"},
        {"system": "system_prompt"},
    ),
    "ShareGPT's items": (
        "sft",
        {"id": "n", "items": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}]},
        {"messages": "items"},
    ),
    "turns in a column of any name": ("sft", {"trace": [USER, ANSWER], "context": "web"}, {"messages": "trace"}),
    "turns in an object": ("sft", {"body": {"messages": [USER, ANSWER], "model": "m"}}, {"messages": "body.messages"}),
    "context of an instruction": ("sft", {"instruction": "q", "output": "good", "context": "c"}, {"input": "context"}),
    "label as text": ("sft", {"text": "q", "label": 1, "label_text": "good"}, {}),
    "When2Call": (
        "dpo",
        {"messages": [USER], "chosen_response": ANSWER, "rejected_response": BAD},
        {"chosen": "chosen_response", "rejected": "rejected_response"},
    ),
    "Aya": ("sft", {"inputs": "q", "targets": "good", "language": "en"}, {"prompt": "inputs", "completion": "targets"}),
}


@pytest.mark.parametrize(("method", "row", "fields"), SUGGESTED_ROWS.values(), ids=SUGGESTED_ROWS)
def test_reader_suggested_fields_make_the_row_usable(
    tmp_path: Path, method: str, row: dict[str, Any], fields: dict[str, str]
) -> None:
    if not fields:
        assert "set the format of the source to ignore it (format: text)" in read_message(tmp_path, row, method)
        return
    assert parse_suggestion(read_message(tmp_path, row, method)) == fields
    reader, rows = read(tmp_path, row, method, fields=fields)
    assert len(rows) == 1
    assert not set(fields.values()) & reader.unused_columns.keys()


REFUSED_ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown columns": ("sft", {"Frage": "q", "Antwort": "a"}, "; set fields: {prompt: COLUMN, completion: COLUMN}"),
    "known prompt": ("sft", {"prompt": "q", "generations": ["a"]}, "; set fields: {completion: COLUMN}"),
    "answer is an object": (
        "sft",
        {"question": "q", "context": "c", "answers": {"text": ["a"]}},
        "'answers.text'; set fields: {prompt: question, input: context, completion: COLUMN}",
    ),
    "unknown pair": ("dpo", {"prompt": "q", "a0": "a", "a1": "b"}, "; set fields: {chosen: COLUMN, rejected: COLUMN}"),
    "one turn in each row": (
        "sft",
        {"text": "q", "role": "prompter", "parent_id": None},
        "has only one turn of a conv",
    ),
    "one message in each row": ("sft", {"content": "q", "role": "user"}, "has only one turn of a conversation; write"),
    "dialogue of texts": ("sft", {"dialog": ["q", "a"]}, "write the turns of 'dialog' as {\"messages\": ["),
    "turns of input and output": (
        "sft",
        {"messages": [{"input": "q", "output": "a"}]},
        "messages[0] to have role and content, found 'input', 'output'; write each turn as",
    ),
    "calls as parts": (
        "sft",
        {"messages": [USER, {"role": "assistant", "content": [{"type": "tool_use", "name": "f"}]}]},
        "write calls of tools as tool_calls",
    ),
    "mask of a turn": ("sft", {"messages": [USER, {**ANSWER, "train": False}]}, "found also 'train'"),
    "reasoning in a column": (
        "sft",
        {"prompt": "q", "completion": "a", "reasoning": "r"},
        "has 'reasoning' in addition",
    ),
    "label with the words of the text": ("sft", {"text": "great", "label": "a great one"}, "has 'label' in addition"),
    "second prompt": (
        "sft",
        {"instruction": "q", "input": "i", "output": "good", "prompt": "### Instruction:\nq\n### Input:\ni"},
        "has 'prompt' in addition to the columns of its format",
    ),
    "number as label": (
        "sft",
        {"text": "t", "label": 2},
        "write it as text, and set fields: {prompt: text, completion",
    ),
    "number as answer": ("sft", {"prompt": "q", "completion": 4}, "found a number; write numbers as text"),
}


@pytest.mark.parametrize(("method", "row", "expected"), REFUSED_ROWS.values(), ids=REFUSED_ROWS)
def test_reader_refused_row_names_the_remedy(tmp_path: Path, method: str, row: dict[str, Any], expected: str) -> None:
    assert expected in read_message(tmp_path, row, method)


def test_reader_key_of_an_object_is_used_and_the_others_are_counted(tmp_path: Path) -> None:
    row = {"id": "1", "translation": {"en": "Hello", "de": "Hallo", "fr": "Salut"}}
    assert "found 'id', 'translation.en', 'translation.de'" in read_message(tmp_path, row)
    reader, rows = read(tmp_path, row, fields={"prompt": "translation.en", "completion": "translation.de"})
    assert rows == [PromptCompletion("Hello", "Hallo")]
    assert reader.unused_columns == {"id": 1, "translation.fr": 1}


def test_reader_missing_key_of_an_object_is_refused(tmp_path: Path) -> None:
    message = read_message(tmp_path, {"text": "t", "meta": {"a": "b"}}, fields={"text": "meta.title"})
    assert "expected the column 'meta.title' (fields: text), found 'text', 'meta.a'" in message


def test_reader_answer_that_is_json_of_calls_becomes_calls(tmp_path: Path) -> None:
    calls = [{"name": "get_weather", "arguments": {"city": city}} for city in ("Rome", "Oslo")]
    tools = orjson.dumps([{"name": "get_weather", "parameters": PARAMETERS}]).decode()
    row = {"query": "q", "answers": orjson.dumps(calls).decode(), "tools": tools}
    _, rows = read(tmp_path, row, fields={"prompt": "query", "completion": "answers"})
    assert isinstance(rows[0], Chat)
    assert [call["function"] for call in rows[0].messages[-1]["tool_calls"]] == calls
    for answer in (
        "[]",
        '[{"name": "Ada", "arguments": {}}]',
        '[{"name": "get_weather"}]',
        '{"name": "x", "arguments": {}, "id": 1}',
        "[1] is the source",
    ):
        _, rows = read(tmp_path, {"prompt": "q", "completion": answer, "tools": tools})
        assert isinstance(rows[0], Chat)
        assert rows[0].messages[-1] == {"role": "assistant", "content": answer}


def test_reader_tools_as_the_text_null_are_absent(tmp_path: Path) -> None:
    assert read(tmp_path, {"messages": [USER, ANSWER], "tools": "null"})[1] == [CHAT]


def test_reader_json_of_calls_without_tools_stays_text(tmp_path: Path) -> None:
    answer = '[{"name": "f", "arguments": {}}]'
    assert read(tmp_path, {"prompt": "q", "completion": answer})[1] == [PromptCompletion("q", answer)]


def test_reader_empty_pair_beside_a_labeled_answer_is_absent(tmp_path: Path) -> None:
    row = {"chosen": None, "rejected": None, "prompt": [USER], "completion": [ANSWER], "label": True}
    _, rows = read(tmp_path, row, "kto")
    assert len(rows) == 1


def test_reader_set_format_ignores_other_parts(tmp_path: Path) -> None:
    reader, rows = read(tmp_path, {"text": "t", "label": 1, "reasoning": "r"}, format="text")
    assert rows == [PlainText("t")]
    assert reader.unused_columns == {"label": 1, "reasoning": 1}
