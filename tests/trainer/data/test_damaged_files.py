"""Damaged and mislabeled inputs. Each gives a one-sentence error with the location."""

from __future__ import annotations

import bz2
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet
from tests.support.trainer.tiny_model import StoredFile

from finetune_trainer.contract import DataSource, Reason
from finetune_trainer.data.row_reader import RowReader
from finetune_trainer.data.row_types import PromptCompletion
from finetune_trainer.errors import TrainerError
from finetune_trainer.inputs.model_files import check_model_dir
from finetune_trainer.training.methods import METHODS

GOOD = b'{"prompt": "q", "completion": "a"}\n'
MANY = b"".join(b'{"prompt": "q%d", "completion": "a"}\n' % number for number in range(20_000))
CSV = b"prompt,completion\n"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
MIB = 1 << 20


def to_parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def make_messages_line(*turns: Any) -> bytes:
    messages = [{"role": role, "content": content} for role, content in turns]
    return GOOD.replace(b'"prompt": "q", "completion": "a"', b'"messages": ' + json.dumps(messages).encode())


FAR_DATE = pa.StructArray.from_arrays([pa.array([2**62], pa.timestamp("us"))], ["at"])
LATIN_1 = pa.array([b"\xe9"]).view(pa.string())[0]
WHOLE = to_parquet(prompt=[f"q{number}" for number in range(5000)], completion=["a"] * 5000)
NESTED = b'[{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]"

DATA: dict[str, tuple[str, bytes, str, str]] = {
    # name of the object, content, location of the error, part of the message
    "cut off line": ("a.jsonl", GOOD + GOOD[:20], "line 2", "found something else (unexpected end of data"),
    "two objects on a line": ("a.jsonl", GOOD + GOOD.strip() * 2, "line 2", "unexpected content after document"),
    "one quote": ("a.jsonl", GOOD + GOOD.replace(b'"', b"'"), "line 2", "expected a JSON object"),
    "trailing comma": ("a.jsonl", GOOD + GOOD.replace(b"}", b",}"), "line 2", "expected a JSON object"),
    "text": ("a.jsonl", GOOD + b"hello\n", "line 2", "expected a JSON object"),
    "web page": ("a.jsonl", b"\n<!DOCTYPE html>\n" + GOOD, "line 1", "expected text, found a web page"),
    "error of a store": ("a.csv", b'<?xml version="1.0"?>\n<Error/>', "line 1", "expected text, found a web page"),
    "pointer of Git LFS": ("a.csv", POINTER, "line 1", "upload the file itself, as git lfs pull fetches it"),
    "pointer named .gz": ("a.jsonl.gz", POINTER, "line 1", "expected gzip data by the name, found a pointer of Git"),
    "pointer named .parquet": ("a.parquet", POINTER, "row 1", "expected a Parquet file, found a pointer of Git LFS"),
    "Arrow file": ("a.parquet", b"ARROW1\0\0", "row 1", "expected a Parquet file, found an Arrow file; write Parquet"),
    "Excel 97": ("a.csv", bytes.fromhex("d0cf11e0a1b11ae1") + b"\0" * 99, "line 1", "save the sheet as CSV UTF-8"),
    "bzip2": ("a.jsonl.bz2", bz2.compress(GOOD), "line 1", "found bzip2 data; decompress it, or compress it as .gz"),
    "tar": ("a.tar.gz", gzip.compress(b"a.jsonl".ljust(257, b"\0") + b"ustar"), "line 1", "found a tar archive"),
    "PDF": ("a.jsonl", b"%PDF-1.7\n", "line 1", "found a PDF document"),
    "number": ("a.jsonl", b"1\n", "line 1", "expected a JSON object, found a number"),
    "null": ("a.jsonl", b"null\n", "line 1", "expected a JSON object, found nothing"),
    "no keys": ("a.jsonl", b"{}\n", "line 1", "found no keys"),
    "indented object": ("a.jsonl", b'{\n"prompt": "q"\n}\n', "line 1", "spread over several lines"),
    "array in a .jsonl": ("a.jsonl", b"[\n", "line 1", "name the file .json"),
    "NaN": ("a.jsonl", GOOD.replace(b'"q"', b"NaN"), "line 1", "JSON has no NaN or Infinity"),
    "huge number": ("a.jsonl", GOOD.replace(b'"q"', b"1" * 5000), "line 1", "infinity when parsed"),
    "number for text": ("a.jsonl", GOOD.replace(b'"q"', b"1" * 30), "line 1", "'prompt' to be text, found a number"),
    "key twice": ("a.jsonl", GOOD + GOOD.replace(b"completion", b"prompt"), "line 2", "found 'prompt' twice"),
    "key twice in a turn": (
        "a.jsonl",
        make_messages_line(("user", "q")).replace(b'"content"', b'"role"'),
        "line 1",
        "found 'role' twice",
    ),
    "nested too deeply": ("a.jsonl", GOOD + NESTED[1:-1], "line 2", "nested too deeply"),
    "17 MiB line": ("a.jsonl", GOOD + b"x" * 17 * MIB + b"\n" + GOOD, "line 2", "at most 16 MiB on one line"),
    "Latin-1": (
        "a.jsonl",
        GOOD + GOOD.replace(b"q", b"\xe9"),
        "line 2",
        "found byte 0xe9 at position 12; is it Latin-1",
    ),
    "UTF-16 cut off": (
        "a.jsonl",
        GOOD.decode().encode("utf-16")[:-1],
        "line 1",
        "expected UTF-16 after its byte order",
    ),
    "UTF-32": ("a.jsonl", GOOD.decode().encode("utf-32"), "line 1", "found UTF-32 text; convert it to UTF-8"),
    "UTF-16 without": ("a.jsonl", GOOD.decode().encode("utf-16-le"), "line 1", "found NUL bytes; is it UTF-16?"),
    "NUL byte": ("a.jsonl", GOOD + GOOD.replace(b"q", b"\0"), "line 2", "found NUL bytes"),
    "half a character": ("a.jsonl", GOOD.replace(b"q", b"\\ud83d"), "line 1", "half a surrogate pair"),
    "control character": ("a.jsonl", GOOD.replace(b"q", b"\x01"), "line 1", "control character"),
    "Parquet named .jsonl": ("a.jsonl", WHOLE, "line 1", "found a Parquet file; name it .parquet"),
    "gzip named .jsonl": ("a.jsonl", gzip.compress(GOOD), "line 1", "found gzip data; use a name that ends with .gz"),
    "zstd named .csv": ("a.csv", zstandard.compress(CSV), "line 1", "found zstd data; use a name that ends with .zst"),
    "gzip twice": (
        "a.jsonl.gz",
        gzip.compress(gzip.compress(GOOD)),
        "line 1",
        "if it is compressed twice, decompress it once",
    ),
    "ZIP": ("a.json", b"PK\x03\x04" + b"\0" * 99, "line 1", "found a ZIP archive"),
    "another format": (
        "a.jsonl",
        GOOD + make_messages_line(("assistant", "a")),
        "line 2",
        "expected 'prompt', found 'messages'",
    ),
    "answers twice": (
        "a.jsonl",
        make_messages_line(("user", "q"), ("assistant", "a"), ("assistant", "b")),
        "line 1",
        "two consecutive assistant turns; set dataset.preparation.mergeTurns",
    ),
    "unknown role": (
        "a.jsonl",
        make_messages_line(("narrator", "q")),
        "line 1",
        "messages[0].role to be one of system",
    ),
    "null turn": (
        "a.jsonl",
        make_messages_line(("user", None)),
        "line 1",
        "messages[0].content to be text, found nothing",
    ),
    "empty answer": (
        "a.jsonl",
        make_messages_line(("user", "q"), ("assistant", "")),
        "line 1",
        "to be an answer, found it empty",
    ),
    "gzip cut off": ("a.jsonl.gz", gzip.compress(MANY)[:-2000], "line 1", "the object is damaged or truncated"),
    "gzip without its end": ("a.jsonl.gz", gzip.compress(MANY)[:-8], "line 20001", "decompression failed"),
    "gzip, wrong checksum": ("a.jsonl.gz", gzip.compress(GOOD)[:-8] + b"\1" * 8, "line", "CRC check failed"),
    "gzip, wrong bytes": ("a.jsonl.gz", gzip.compress(MANY)[:40] + b"\xff" * 99, "line 1", "decompression failed"),
    "no gzip": ("a.jsonl.gz", GOOD, "line 1", "expected gzip data by the name, found other data"),
    "zstd cut off": ("a.jsonl.zst", zstandard.compress(MANY)[:-9], "line 1", "the object is damaged or truncated"),
    "zstd, wrong bytes": (
        "a.jsonl.zst",
        zstandard.compress(MANY)[:40] + b"\xff" * 99,
        "line 1",
        "decompression failed",
    ),
    "no zstd": ("a.jsonl.zst", GOOD, "line 1", "if it is not compressed, remove the suffix"),
    "array cut off": ("a.json", b"[" + GOOD + b"," + GOOD, "row 2", "the array ends in or after this row"),
    "array cut off in a row": ("a.json", b"[" + GOOD + b"," + GOOD[:20], "row 2", "the array ends in or after"),
    "array, more after it": ("a.json", b"[" + GOOD + b"] x", "row 2", "nothing after the array, found b'x'"),
    "array, no comma": ("a.json", b"[" + GOOD + GOOD + b"]", "row 1", "unexpected content after document"),
    "array, comma at its end": ("a.json", b"[" + GOOD + b",]", "row 2", "is there a comma too many before it"),
    "array in a .jsonl, indented": ("a.jsonl", b"\n[\n" + GOOD + b"]", "line 2", "or name the file .json"),
    "objects of jq": ("a.json", b'{\n"prompt": "q"\n}\n' * 9, "line 1", "Write one object per line"),
    "array, open bracket": ("a.json", b"[" + GOOD.replace(b"}", b"") + b"]", "row 1", "a quote or bracket is missing"),
    "array, open quote": ("a.json", b"[" + GOOD.replace(b'"}', b"}") + b"]", "row 1", "a quote or bracket is missing"),
    "array of numbers": ("a.json", b"[1]", "row 1", "expected a JSON object, found a number"),
    "array, nested too deeply": ("a.json", NESTED, "row 1", "nested too deeply"),
    "array, 17 MiB row": ("a.json", b'[{"prompt": "' + b"x" * 17 * MIB + b'"}]', "row 1", "larger than 16 MiB"),
    "array, key twice": ("a.json", b'[{"prompt": "q", "prompt": "p"}]', "row 1", "found 'prompt' twice"),
    "array, Latin-1": ("a.json", b'[{"prompt": "\xe9"}]', "row 1", "found byte 0xe9 at position 12; is it Latin-1"),
    "array, half a character": ("a.json", b"[" + GOOD.replace(b"q", b"\\ud83d") + b"]", "row 1", "half a surrogate"),
    "array, 5000 digits": ("a.json", b'[{"prompt": ' + b"1" * 5000 + b"}]", "row 1", "infinity when parsed"),
    "CSV, a cell too few": ("a.csv", CSV + b"q,a\nq\n", "line 3", "expected 2 columns as in the header, found 1"),
    "CSV, a cell too many": ("a.csv", CSV + b"q,a,b\n", "line 2", "expected 2 columns as in the header, found 3"),
    "CSV, open quote": ("a.csv", CSV + b'q,a\n"q,a\nq,a\n', "line 3", "unexpected end of data"),
    "CSV, open quote closed by another": ("a.csv", CSV + b'"q,a\nq,a\n"q,"a\n', "line 2", "is a quote missing in this"),
    "CSV, 17 MiB line": ("a.csv", CSV + b"q," + b"x" * 17 * MIB + b"\n", "line 2", "at most 16 MiB on one line"),
    "CSV, Latin-1 header": ("a.csv", b"\xe9,b\nq,a\n", "line 1", "expected UTF-8, found byte 0xe9"),
    "CSV, text after a quote": ("a.csv", CSV + b'q,"a"b\n', "line 2", "expected after"),
    "CSV, quote after a backslash": ("a.csv", CSV + b'"say \\"q\\"",a\n', "line 2", "Write it twice"),
    "CSV, carriage return in a cell": (
        "a.csv",
        CSV + b"q,a\rb\n",
        "line 2",
        "a carriage return in a cell without quotes",
    ),
    "CSV, row names of R": ("a.csv", CSV + b"1,q,a\n", "line 2", "the name of a column of row names, as R writes"),
    "CSV, escaped comma": ("a.csv", CSV + b"q\\,r\\,s,a\n", "line 2", "is a backslash written before a separator?"),
    "CSV, comment first": ("a.csv", b"# v1\n" + CSV, "line 2", "is the first line, '# v1', the header?"),
    "JSON named .csv": ("a.csv", GOOD, "line 1", "found a JSON object; name the file .jsonl"),
    "CSV, comma in a name": ("a.csv", b"a, b;c\nq;a\n", "line 2", "are the columns separated by commas?"),
    "CSV, Latin-1": ("a.csv", CSV + b"q,a\nq,\xe9\n", "line 3", "expected UTF-8, found byte 0xe9"),
    "CSV with two separators": ("a.csv", b"prompt;completion\tid\nq;a\t1\n", "line 1", "columns separated by commas"),
    "CSV, name twice": ("a.csv", b"prompt,prompt\nq,a\n", "line 1", "found 'prompt' twice"),
    "CSV without header": ("a.csv", b"What is it?,A lamp\nq,a\n", "line 2", "found 'What is it?', 'A lamp'"),
    "CSV, NUL byte": ("a.csv", CSV + b"q,\0\n", "line 2", "found NUL bytes"),
    "CSV, empty answer": ("a.csv", CSV + b"q,\n", "line 2", "'completion' to be an answer, found it empty"),
    "Parquet cut off": ("a.parquet", WHOLE[:-50], "row 1", "expected a complete Parquet file"),
    "Parquet, wrong bytes": ("a.parquet", WHOLE[:2000] + b"\xff" * 500 + WHOLE[2500:], "row 1", "damaged"),
    "Parquet, empty": ("a.parquet", b"", "row 1", "Parquet file size is 0 bytes"),
    "JSON named .parquet": ("a.parquet", GOOD, "row 1", "expected a complete Parquet file"),
    "Parquet, null": ("a.parquet", to_parquet(prompt=["q", None], completion=["a"] * 2), "row 2", "found nothing"),
    "Parquet, far date": ("a.parquet", to_parquet(meta=FAR_DATE), "row 1", "found a date within a column that is out"),
    "Parquet, Latin-1": ("a.parquet", to_parquet(prompt=[LATIN_1], completion=["a"]), "row 1", "texts in UTF-8"),
    "Parquet, bytes": ("a.parquet", to_parquet(prompt=[b"q"], completion=["a"]), "row 1", "to be text, found bytes"),
}


def read_all(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "copy").write_bytes(content)
    reader = RowReader(METHODS["sft"])
    for _ in reader.read([(DataSource(uri="s3://data/*"), [StoredFile(f"s3://data/{name}", tmp_path / "copy")])]):
        pass
    reader.rejections.invalid.raise_if_any(reader.row_count)


@pytest.mark.parametrize(("name", "content", "place", "expected_message"), DATA.values(), ids=DATA)
def test_reader_damaged_data_names_location(
    tmp_path: Path, name: str, content: bytes, place: str, expected_message: str
) -> None:
    with pytest.raises(TrainerError) as caught:
        read_all(tmp_path, name, content)
    assert caught.value.reason is Reason.DATA_INVALID
    assert f"s3://data/{name} {place}" in caught.value.message
    assert expected_message in caught.value.message
    assert "Traceback" not in caught.value.message
    assert len(caught.value.message) < 2048


ROW = GOOD.strip()
AROUND: dict[str, tuple[str, bytes, list[int]]] = {
    # name of the object, content with one invalid row, lines of the other rows
    "a line that is too long": ("a.jsonl", GOOD + b"x" * 17 * MIB + b"\n" + GOOD, [1, 3]),
    "an element that is no JSON": ("a.json", b"[" + ROW + b', {"a" 1}, ' + ROW + b"]", [1, 3]),
    "half a character in an array": ("a.json", b"[" + ROW.replace(b"q", b"\\udc00") + b"," + ROW + b"]", [2]),
    "brackets and quotes in a text": ("a.json", b"[" + ROW.replace(b"q", b'\\\\\\"],[{') + b",7," + ROW + b"]", [1, 3]),
    "a first line that is cut off": ("a.jsonl", b"{\n" + GOOD + GOOD, [2, 3]),
    "a cell too many": ("a.csv", CSV + b"q,a\nq,a,b\nq,a\n", [2, 4]),
    "text after a quote": ("a.csv", CSV + b'q,a\nq,"a"b\nq,a\n', [2, 4]),
    "a cell in Latin-1": ("a.csv", CSV + b'q,a\n"q\n",\xe9\nq,a\n', [2, 5]),
    "a NUL byte in a table": ("a.csv", CSV + b"q,a\nq,\0\nq,a\n", [2, 4]),
}


@pytest.mark.parametrize(("name", "content", "places"), AROUND.values(), ids=AROUND)
def test_reader_rows_around_invalid_one_are_read(tmp_path: Path, name: str, content: bytes, places: list[int]) -> None:
    (tmp_path / "copy").write_bytes(content)
    reader = RowReader(METHODS["sft"])
    source = DataSource(uri="s3://data/*")
    rows = reader.read([(source, [StoredFile(f"s3://data/{name}", tmp_path / "copy")])])
    assert [each.location.line for each in rows] == places
    assert reader.rejections.invalid.count == 1
    assert reader.row_count == len(places) + 1


def test_reader_elements_across_chunks_are_complete(tmp_path: Path) -> None:
    texts = ['\\"]' * size for size in (1, 20_000, 40_000, 3, 100_000)]
    (tmp_path / "copy").write_text(json.dumps([{"prompt": text, "completion": "a"} for text in texts]))
    source = DataSource(uri="s3://data/*")
    rows = RowReader(METHODS["sft"]).read([(source, [StoredFile("s3://data/a.json", tmp_path / "copy")])])
    assert [each.row for each in rows] == [PromptCompletion(text, "a") for text in texts]


def _write_file(name: str, content: bytes | str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def _remove_file(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _write_index(weights: object) -> Callable[[Path], None]:
    return _write_file("model.safetensors.index.json", json.dumps({"weight_map": weights}))


MODELS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (_remove_file("config.json"), "config.json is missing"),
    "config cut off": (_write_file("config.json", '{"model_type"'), "config.json is not JSON"),
    "config is a list": (_write_file("config.json", "[]"), "config.json is not a JSON object"),
    "config refers to code": (
        _write_file("config.json", '{"auto_map": {"AutoModel": "x.Y"}}'),
        "refers to code (auto_map)",
    ),
    "tokenizer refers to code": (
        _write_file("tokenizer_config.json", '{"auto_map": {}}'),
        "tokenizer_config.json refers to",
    ),
    "kernel of others": (
        _write_file("config.json", '{"attn_implementation": "a/b"}'),
        "refers to code (attn_implementation)",
    ),
    "code": (_write_file("modeling.py", "print()"), "modeling.py is code"),
    "no tokenizer": (_remove_file("tokenizer.json"), "no tokenizer; expected one of tokenizer.json"),
    "no weights": (_remove_file("model.safetensors"), "no *.safetensors file"),
    "an adapter": (_write_file("adapter_config.json", "{}"), "it is an adapter"),
    "weights above the folder": (
        _write_index({"a": "../a.safetensors"}),
        "lists '../a.safetensors', which is not a safetensors",
    ),
    "weights anywhere": (_write_index({"a": "/etc/a.safetensors"}), "lists '/etc/a.safetensors'"),
    "weights in a pickle": (_write_index({"a": "a.bin"}), "lists 'a.bin'"),
    "a shard is missing": (
        _write_index({"a": "a.safetensors"}),
        "1 of 1 weight files are missing, the first is a.safetensors",
    ),
    "an index of nothing": (_write_index({}), "has no weight_map"),
}


@pytest.mark.parametrize(("change", "expected_message"), MODELS.values(), ids=MODELS)
def test_check_model_dir_damaged_model_names_file(
    tmp_path: Path, change: Callable[[Path], None], expected_message: str
) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    check_model_dir(tmp_path)
    change(tmp_path)
    with pytest.raises(TrainerError) as caught:
        check_model_dir(tmp_path)
    assert caught.value.reason is Reason.MODEL_INVALID
    assert expected_message in caught.value.message
