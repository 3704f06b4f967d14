"""CSV, JSON and Parquet as Excel, LibreOffice and pandas write them. The oracle is pandas' own writer."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.support.trainer.tiny_model import StoredFile

from finetune_trainer.contract import DataSource
from finetune_trainer.data.readers.files import read_raw_rows
from finetune_trainer.data.row_reader import RowReader
from finetune_trainer.data.row_types import Chat, RowError
from finetune_trainer.errors import TrainerError
from finetune_trainer.training.methods import METHODS

ROWS = [{"prompt": "Is it; here?", "completion": "Yes, ą"}, {"prompt": 'Say\n"x"', "completion": "x"}]
TABLE = pd.DataFrame(ROWS)
COMMAS = TABLE.to_csv(index=False)
SEMICOLONS, TABS = TABLE.to_csv(index=False, sep=";"), TABLE.to_csv(index=False, sep="\t")
BOM = "\ufeff"
TURNS = [{"role": "user", "content": "it's"}, {"role": "assistant", "content": "a"}]

HABITS: dict[str, bytes | str] = {
    "separator line": "sep=,\n" + COMMAS,
    "separator line with empty cells": "sep=,,\r\n" + COMMAS,
    "separator line in quotes": '"sep=,"\n' + COMMAS,
    "semicolons after a separator line": BOM + "sep=;\r\n" + SEMICOLONS,
    "semicolons": SEMICOLONS,
    "semicolons and quoted names": SEMICOLONS.replace("prompt;completion", '"prompt";"completion"'),
    "tabs": TABS,
    "pipes": TABLE.to_csv(index=False, sep="|"),
    "Unicode text": TABS.replace("\n", "\r\n").encode("utf-16"),
    "big-endian Unicode text": b"\xfe\xff" + TABS.encode("utf-16-be"),
    "byte order mark": BOM + COMMAS,
    "byte order marks of joined files": BOM + BOM + COMMAS,
    "lines of old Macs": COMMAS.replace("\n", "\r"),
    "blanks around names": COMMAS.replace("prompt,completion", " prompt ,completion "),
    "blanks after separators": 'prompt, completion\n"Is it; here?", "Yes, ą"\n"Say\n""x""", x\n',
    "blank lines before the header": "\n\n" + SEMICOLONS,
    "empty columns": "".join(line + ",,\n" for line in TABLE.head(1).to_csv(index=False).splitlines()),
    "empty cells of unnamed columns": COMMAS.replace("prompt,completion", "prompt,completion,,"),
    "empty cells beyond the header": COMMAS.replace('ą"\n', 'ą",,\n'),
}


def read_raw(tmp_path: Path, content: bytes | str, name: str = "a.csv") -> list[dict[str, Any] | RowError]:
    (tmp_path / "copy").write_bytes(content.encode() if isinstance(content, str) else content)
    return [row for _, row in read_raw_rows(StoredFile(f"s3://data/{name}", tmp_path / "copy"))]


@pytest.mark.parametrize("content", HABITS.values(), ids=HABITS)
def test_csv_habits_of_spreadsheets_are_read(tmp_path: Path, content: bytes | str) -> None:
    rows = [dict(row) for row in read_raw(tmp_path, content) if isinstance(row, dict)]
    for row in rows:
        row["prompt"] = row["prompt"].replace("\r\n", "\n")
    assert rows
    assert rows == ROWS[: len(rows)]


def test_tsv_is_read_as_csv(tmp_path: Path) -> None:
    assert read_raw(tmp_path, TABS, "a.tsv") == ROWS


def test_tsv_names_may_have_commas(tmp_path: Path) -> None:
    assert read_raw(tmp_path, "prompt, short\tcompletion\nq, r\ta\n", "a.tsv") == [
        {"prompt, short": "q, r", "completion": "a"}
    ]


def test_csv_separator_line_is_counted_as_a_line(tmp_path: Path) -> None:
    (tmp_path / "copy").write_text("sep=;\nprompt;completion\nq;a\n")
    (location, _), *_ = read_raw_rows(StoredFile("s3://data/a.csv", tmp_path / "copy"))
    assert str(location) == "s3://data/a.csv line 3"


def test_csv_columns_without_a_name_keep_their_content(tmp_path: Path) -> None:
    assert read_raw(tmp_path, TABLE.to_csv())[1] == {"unnamed column 1": "1", **ROWS[1]}
    saved_twice = pd.read_csv(io.StringIO(TABLE.to_csv())).to_csv()
    assert read_raw(tmp_path, saved_twice)[1] == {"unnamed column 1": "1", "Unnamed: 0": "1", **ROWS[1]}
    assert read_raw(tmp_path, "a,,\n1,,\n2,,note\n") == [{"a": "1"}, {"a": "2", "unnamed column 3": "note"}]


def test_csv_cells_beyond_the_header_are_an_error(tmp_path: Path) -> None:
    (row,) = read_raw(tmp_path, "a,b\n1,2,,3\n")
    assert str(row) == "expected 2 columns as in the header, found 4; is a quote missing?"


def test_csv_missing_values_of_pandas_and_sql_are_empty(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": ["x", str(float("nan")), str(pd.NA), r"\N", "NaN", "None", "nano", r"\Nu"]})
    texts = [row["a"] for row in read_raw(tmp_path, table.to_csv()) if isinstance(row, dict)]
    assert texts == ["x", "", "", "", "NaN", "None", "nano", r"\Nu"]


def test_csv_turns_in_json_are_a_conversation(tmp_path: Path) -> None:
    pd.DataFrame({"chat": [json.dumps(TURNS), " " + json.dumps(TURNS, indent=1)], "id": [1, 2]}).to_csv(
        tmp_path / "copy"
    )
    source = DataSource(uri="s3://data/*", fields={"messages": "chat"})
    rows = RowReader(METHODS["sft"]).read([(source, [StoredFile("s3://data/a.csv", tmp_path / "copy")])])
    assert [each.row for each in rows] == [Chat(TURNS)] * 2


@pytest.mark.parametrize("answer", ['[{"name": "x"}]', "[1]", '[{"role": "admin", "id": 1}]', "[note] x", "[]"])
def test_csv_answers_in_json_stay_text(tmp_path: Path, answer: str) -> None:
    assert read_raw(tmp_path, pd.DataFrame({"completion": [answer]}).to_csv(index=False)) == [{"completion": answer}]


UNUSABLE_CELLS = {
    "notation of Python": (str(TURNS), "apply json.dumps to the column before to_csv"),
    "damaged": (json.dumps(TURNS)[:-2], "a list of turns: expected a JSON object, found something else"),
    "key twice": ('[{"role": "user", "role": "user", "content": "a"}]', "found 'role' twice"),
}


@pytest.mark.parametrize(("cell", "expected_message"), UNUSABLE_CELLS.values(), ids=UNUSABLE_CELLS)
def test_csv_unusable_turns_are_an_error(tmp_path: Path, cell: str, expected_message: str) -> None:
    row, good = read_raw(tmp_path, pd.DataFrame({"messages": [cell, json.dumps(TURNS)]}).to_csv(index=False))
    assert isinstance(row, RowError)
    assert expected_message in str(row)
    assert good == {"messages": TURNS}


TABLES_IN_JSON = {
    "rows below a key": (json.dumps({"data": ROWS}), "found it below the key 'data'; write only the array"),
    "indented": (json.dumps({"train": ROWS}, indent=2), "found it below the key 'train'; write only the array"),
    **{
        f"pandas, orient={orient}": (TABLE.to_json(orient=orient), "use to_json(orient='records')")
        for orient in ("columns", "index", "split", "table")
    },
}


@pytest.mark.parametrize(("content", "expected_message"), TABLES_IN_JSON.values(), ids=TABLES_IN_JSON)
def test_json_of_another_shape_names_remedy(tmp_path: Path, content: str, expected_message: str) -> None:
    with pytest.raises(TrainerError, match=r"s3://data/a\.json line 1: expected an array of rows") as caught:
        read_raw(tmp_path, content, "a.json")
    assert expected_message in caught.value.message


JSON_LINES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "turns below a key that often has rows": (json.dumps({"data": TURNS}), [{"data": TURNS}]),
    "byte order marks of joined files": ("".join(f"{BOM}{json.dumps(row)}\n" for row in ROWS), ROWS),
    "lines of old Macs": ("".join(f"{json.dumps(row)}\r" for row in ROWS), ROWS),
    "UTF-16": ("\n".join(map(json.dumps, ROWS)), ROWS),
}


@pytest.mark.parametrize("name", JSON_LINES)
def test_json_lines_habits_are_read(tmp_path: Path, name: str) -> None:
    content, expected = JSON_LINES[name]
    assert read_raw(tmp_path, content.encode("utf-16" if name == "UTF-16" else "utf-8"), "a.json") == expected


def test_json_line_with_a_comma_at_its_end_names_remedy(tmp_path: Path) -> None:
    (error, _) = read_raw(tmp_path, '{"a": 1},\n{"a": 2}\n', "a.jsonl")
    assert "remove the comma at the end of the line" in str(error)


def test_parquet_dates_and_incomplete_structs_are_kept(tmp_path: Path) -> None:
    table = TABLE.assign(at=pd.Timestamp("2020-01-01"), turns=[[{"role": "user"}, {"tool_calls": None}]] * 2)
    file = io.BytesIO()
    table.to_parquet(file)
    row = read_raw(tmp_path, file.getvalue(), "a.parquet")[0]
    assert isinstance(row, dict)
    assert isinstance(row.pop("at"), int)
    turns = [{"role": "user", "tool_calls": None}, {"role": None, "tool_calls": None}]
    assert row == {**ROWS[0], "turns": turns}
