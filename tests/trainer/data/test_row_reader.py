"""Reading of rows from JSON Lines objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.tiny_model import StoredFile, chat, write_rows

from finetune_trainer.contract import DataSource, Reason
from finetune_trainer.data.row_reader import RowReader
from finetune_trainer.data.row_types import Chat, PromptCompletion, Row
from finetune_trainer.errors import TrainerError
from finetune_trainer.training.methods import METHODS

URI = "s3://data/a.jsonl"
PAIR = {"prompt": "1+1=", "completion": "2"}

WRONG_ROWS: dict[str, tuple[Any, str]] = {
    "not json": ('{"a"', "expected a JSON object, found something else (unexpected end of data at character 6)"),
    "a list": ("[1]", "expected a JSON object, found a list"),
    "an array": ([PAIR], "found a list; is the file one JSON array? Write one object per line"),
    "a comment": ("// v2", "JSON has no comments: remove the line"),
    "notation of Python": ("{'prompt': None}", "write the rows with json.dumps"),
    "two objects": ("{} {}", "write one object per line"),
    "a line of a table": ("prompt\tcompletion", "or name a table .csv or .tsv"),
    "rows below a key": ({"version": "1", "data": [PAIR]}, "if the rows are in 'data', write only these"),
    "rows by number": ({"1": PAIR, "2": PAIR}, "if each key has a row, write only the rows, one per line"),
    "columns below a key": ({"row_idx": 0, "row": PAIR}, "if the columns are in 'row', write only this object"),
    "latin-1": ('{"prompt": "café"}'.encode("latin-1"), "expected UTF-8, found byte 0xe9 at position 15"),
    "nested without end": ("[" * 100_000, "nested too deeply"),
    "no column": ({"q": "a"}, "expected 'messages', or 'prompt' and 'completion', "),
    "half a pair": ({"prompt": "a"}, "found 'prompt'"),
    "both formats": ({**PAIR, **chat("a", "b")}, "has both 'messages' and 'prompt'/'completion'"),
    "messages is text": ({"messages": "a"}, "expected 'messages' to be a list of turns, found text"),
    "no messages": ({"messages": []}, "found an empty list"),
    "turn is text": ({"messages": ["a"]}, "expected messages[0] to be an object with role and content, found text"),
    "unknown role": ({"messages": [{"role": "narrator", "content": "a"}]}, "messages[0].role to be one of system, "),
    "role is a list": ({"messages": [{"role": [], "content": "a"}]}, "found an empty list"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content to be text, found nothing"),
    "parts": ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content to be text, found a list"),
    "number": ({"prompt": 1, "completion": "a"}, "expected 'prompt' to be text, found a number"),
    "tool call": (
        {"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]},
        "messages[0] to have role and content, found also 'tool_calls'",
    ),
    "no answer": ({"messages": [{"role": "user", "content": "a"}]}, "expected an assistant turn"),
    "empty answer": (chat("a", " \n"), "expected messages[1].content to be an answer, found it empty"),
    "empty completion": ({"prompt": "a", "completion": ""}, "expected 'completion' to be an answer"),
    "half a character": ('{"prompt": "\\ud83d", "completion": "a"}', "found half a surrogate pair"),
}


def read_rows(*files: StoredFile, **source: Any) -> tuple[RowReader, list[tuple[str, Row]]]:
    reader = RowReader(METHODS["sft"])
    rows = reader.read([(DataSource(uri="s3://data/*", **source), files)])
    return reader, [(str(each.location), each.row) for each in rows]


@pytest.mark.parametrize(("line", "expected"), WRONG_ROWS.values(), ids=WRONG_ROWS)
def test_reader_invalid_row_names_expectation(tmp_path: Path, line: object, expected: str) -> None:
    good = write_rows(tmp_path / "good", [PAIR], "s3://data/good")
    reader, rows = read_rows(good, write_rows(tmp_path / "wrong", ["", line], URI))
    assert len(rows) == 1
    assert reader.rejections.invalid.count == 1
    with pytest.raises(TrainerError) as caught:
        reader.rejections.invalid.raise_if_any(reader.row_count)
    assert caught.value.reason is Reason.DATA_INVALID
    assert caught.value.message.startswith(f"1 of 2 rows cannot be used:\n{URI} line 2: ")
    assert expected in caught.value.message


def test_reader_format_is_detected_per_object(tmp_path: Path) -> None:
    files = [
        write_rows(tmp_path / "a", [chat("q", "a")], "s3://data/a"),
        write_rows(tmp_path / "b", [PAIR], "s3://b/b"),
    ]
    _, rows = read_rows(*files)
    assert rows == [
        ("s3://data/a line 1", Chat([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}])),
        ("s3://b/b line 1", PromptCompletion("1+1=", "2")),
    ]


def test_reader_row_of_other_format_is_invalid(tmp_path: Path) -> None:
    reader, rows = read_rows(write_rows(tmp_path / "a", [PAIR, chat("q", "a")], URI))
    assert len(rows) == 1
    assert reader.rejections.invalid.messages == [f"{URI} line 2: expected 'prompt', found 'messages'"]


def test_reader_stated_format_wins_over_detection(tmp_path: Path) -> None:
    _, rows = read_rows(write_rows(tmp_path / "a", [{**PAIR, **chat("q", "a")}]), format="promptCompletion")
    assert [row for _, row in rows] == [PromptCompletion("1+1=", "2")]


def test_reader_blank_lines_count_as_lines_only(tmp_path: Path) -> None:
    reader, rows = read_rows(write_rows(tmp_path / "a", ["", PAIR, "  \t\r", "", PAIR], URI))
    assert [place for place, _ in rows] == [f"{URI} line 2", f"{URI} line 5"]
    assert reader.row_count == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", b"\xef\xbb\xbf"],
    ids=["empty", "blank lines", "a byte order mark"],
)
def test_reader_empty_object_has_no_rows(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    reader, rows = read_rows(StoredFile(URI, tmp_path / "a"))
    assert (reader.row_count, rows, reader.rejections.invalid.count) == (0, [], 0)


def test_reader_windows_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\r\n" + json.dumps(PAIR).encode())
    _, rows = read_rows(StoredFile(URI, tmp_path / "a"))
    assert [row for _, row in rows] == [PromptCompletion("1+1=", "2")] * 2


def test_reader_limit_counts_across_objects(tmp_path: Path) -> None:
    files = [write_rows(tmp_path / name, [PAIR, "", PAIR], f"s3://data/{name}") for name in "abc"]
    reader, rows = read_rows(*files, limit=3)
    assert [place for place, _ in rows] == ["s3://data/a line 1", "s3://data/a line 3", "s3://data/b line 1"]
    assert reader.row_count == 3


def test_reader_invalid_rows_are_counted_and_first_shown(tmp_path: Path) -> None:
    long = "s3://data/" + "x" * 1000
    reader, _ = read_rows(write_rows(tmp_path / "a", [{"q": "a"}] * 1000, long))
    with pytest.raises(TrainerError, match=r"^1000 of 1000 rows cannot be used:") as caught:
        reader.rejections.invalid.raise_if_any(reader.row_count)
    assert caught.value.message.endswith("… and 995 more")
    assert len(caught.value.message) < 2048  # maximum size of the termination message
    assert "line 5: expected 'messages'" in caught.value.message
