"""Readers of all file types, compressed or not, with valid but unusual files."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet
from tests.support.trainer.tiny_model import StoredFile

from finetune_trainer.contract import DataSource
from finetune_trainer.data.row_reader import RowReader
from finetune_trainer.data.row_types import PromptCompletion
from finetune_trainer.training.methods import METHODS

ROWS = [{"prompt": "1 + 1", "completion": "2"}, {"prompt": 'say "ą,\n"', "completion": "ą"}]
PAIRS = [PromptCompletion(row["prompt"], row["completion"]) for row in ROWS]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS, indent=2).encode()
CSV = 'prompt,completion\n1 + 1,2\n"say ""ą,\n""",ą\n'.encode()
BOM = b"\xef\xbb\xbf"


def to_parquet() -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(ROWS), file)
    return file.getvalue()


TYPES: dict[str, tuple[bytes, list[str]]] = {
    "a.jsonl": (LINES, ["line 1", "line 2"]),
    "a.json": (ARRAY, ["row 1", "row 2"]),
    "a.csv": (CSV, ["line 2", "line 3"]),
    "a.parquet": (to_parquet(), ["row 1", "row 2"]),
}
QUIRKS: dict[str, tuple[str, bytes]] = {
    "an unknown name is JSON lines": ("a.data", LINES),
    "upper case": ("A.JSONL", LINES),
    "lines in a .json": ("a.json", LINES),
    "no last line break": ("a.jsonl", LINES.rstrip()),
    "byte order mark before lines": ("a.jsonl", BOM + LINES),
    "byte order mark before an array": ("a.json", BOM + ARRAY),
    "byte order mark before CSV": ("a.csv", BOM + CSV),
    "Windows line breaks": ("a.jsonl", LINES.replace(b"\n", b"\r\n")),
    "blank lines": ("a.jsonl", b"\n" + LINES.replace(b"\n", b"\n \n")),
    "space before an array": ("a.json", b"\n  " + ARRAY),
    "gzip in two members": ("a.jsonl.gz", b"".join(gzip.compress(line) for line in LINES.splitlines(keepends=True))),
    "zstd in two frames": ("a.jsonl.zst", b"".join(zstandard.compress(line) for line in LINES.splitlines(True))),
    "blank lines in CSV": ("a.csv", CSV + b"\n\n"),
}


def read_rows(tmp_path: Path, name: str, content: bytes) -> tuple[list[str], list[object]]:
    (tmp_path / "copy").write_bytes(content)
    reader = RowReader(METHODS["sft"])
    rows = list(reader.read([(DataSource(uri="s3://data/*"), [StoredFile(f"s3://data/{name}", tmp_path / "copy")])]))
    reader.rejections.invalid.raise_if_any(reader.row_count)
    return [str(each.location) for each in rows], [each.row for each in rows]


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", TYPES)
def test_reader_each_type_and_compression_is_read(tmp_path: Path, name: str, packing: str) -> None:
    content, places = TYPES[name]
    packed = {"": content, ".gz": gzip.compress(content), ".zst": zstandard.compress(content)}[packing]
    uri = f"s3://data/{name}{packing}"
    assert read_rows(tmp_path, name + packing, packed) == ([f"{uri} {place}" for place in places], PAIRS)


@pytest.mark.parametrize(("name", "content"), QUIRKS.values(), ids=QUIRKS)
def test_reader_harmless_quirks_are_accepted(tmp_path: Path, name: str, content: bytes) -> None:
    assert read_rows(tmp_path, name, content)[1] == PAIRS


def test_reader_parquet_date_column_is_ignored(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(ROWS).append_column("at", pa.array([1, 2], pa.timestamp("ns")))
    file = io.BytesIO()
    parquet.write_table(table, file)
    assert read_rows(tmp_path, "a.parquet", file.getvalue())[1] == PAIRS
