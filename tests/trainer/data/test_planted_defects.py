"""Every defect that is planted in files of each type is counted to the row."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet
from tests.support.trainer.data_preparation import build_config
from tests.support.trainer.sensitive_texts import SENSITIVE
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, tokenizer

from finetune_trainer.contract import DataSource, Storage
from finetune_trainer.data import preparation
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.inputs.data_sources import list_data
from finetune_trainer.storage import S3
from finetune_trainer.training.methods import get_method

Pair = tuple[str, str]
_RANDOM = random.Random(5)
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
TEMPLATE = "Decide which department handles the message of the customer. Answer with one word and no more. Message: "


def make_text(words: int) -> str:
    return " ".join("".join(_RANDOM.choices(_SYLLABLES, k=3)) for _ in range(words))


def make_pairs(held_out: list[Pair]) -> tuple[list[Pair], Counter[str]]:
    """Return pairs with defects, and the number of each. `kept` are the pairs without a defect that drops them."""
    kept = [(TEMPLATE * (index % 2) + make_text(18), make_text(12)) for index in range(60)]
    templated = kept[1:20:4]
    sensitive = [(f"{make_text(9)} {SENSITIVE['creditCard'][0]}", make_text(8)) for _ in range(4)]
    planted = {
        "kept": kept + sensitive,
        "duplicate": kept[:6],
        "nearDuplicate": [(prompt, f"{answer} {make_text(1)}") for prompt, answer in templated],
        "leaked": held_out,
        "overlength": [(make_text(9), make_text(300)) for _ in range(3)],
        "echo": [(prompt, prompt) for prompt in (make_text(9), make_text(9))],
        "emptyAnswer": [(make_text(9), "\u200b\u2060") for _ in range(7)],
        "invalid": [(make_text(9), "") for _ in range(8)],
    }
    pairs = [pair for planted_pairs in planted.values() for pair in planted_pairs]
    counts = Counter({name: len(planted_pairs) for name, planted_pairs in planted.items()})
    return pairs, counts + Counter(sensitive=len(sensitive))


def to_chat(pair: Pair, **extras: Any) -> dict[str, Any]:
    roles = zip(("user", "assistant"), pair, strict=True)
    return {"messages": [{"role": role, "content": content, **extras} for role, content in roles]}


def to_json_lines(pairs: list[Pair]) -> bytes:
    return "".join(json.dumps(to_chat(pair), ensure_ascii=False) + "\n" for pair in pairs).encode()


def to_table(pairs: list[Pair], separator: str) -> bytes:
    file = io.StringIO()
    csv.writer(file, delimiter=separator).writerows([("prompt", "completion"), *pairs])
    return file.getvalue().encode("utf-8-sig")


def to_parquet(pairs: list[Pair]) -> bytes:
    file = io.BytesIO()
    rows = [{**to_chat(pair, tool_calls=None, name=None), "tools": None} for pair in pairs]
    parquet.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


WRITERS: dict[str, Callable[[list[Pair]], bytes]] = {
    "a.jsonl": to_json_lines,
    "b.json": lambda pairs: json.dumps([{"instruction": p, "input": "", "output": c} for p, c in pairs]).encode(),
    "c.csv": lambda pairs: to_table(pairs, ";"),
    "d.tsv": lambda pairs: to_table(pairs, "\t"),
    "e.parquet": to_parquet,
    "f.jsonl.gz": lambda pairs: gzip.compress(to_json_lines(pairs)),
    "g.jsonl.zst": lambda pairs: zstandard.compress(to_json_lines(pairs)),
}


@pytest.mark.timeout(TRAINING_TIMEOUT)
def test_planted_defects_are_counted_to_the_row(tmp_path: Path) -> None:
    held_out = [(make_text(15), make_text(10)) for _ in range(5 * len(WRITERS))]
    expected: Counter[str] = Counter()
    for folder in ("train", "held-out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "held-out" / "rows.jsonl").write_bytes(to_json_lines(held_out))
    for index, (name, write) in enumerate(WRITERS.items()):
        pairs, counts = make_pairs(held_out[5 * index : 5 * index + 5])
        _RANDOM.shuffle(pairs)
        (tmp_path / "train" / name).write_bytes(write(pairs))
        expected += counts
    for name in ("_SUCCESS", ".a.jsonl", "a.jsonl.tmp"):
        (tmp_path / "train" / name).write_bytes(to_json_lines(held_out))

    preparation_settings = {"deduplicate": "near", "maxInvalidFraction": 0.5, "dropEchoes": True}
    settings = build_config(max_length=900, preparation=preparation_settings)
    listings = {
        folder: list_data(DataSource(uri=f"file://{tmp_path / folder}/"), S3(Storage()), "")
        for folder in ("train", "held-out")
    }
    sources = {
        folder: [(settings.dataset.sources[0], listing.fetch(tmp_path, lambda _: None))]
        for folder, listing in listings.items()
    }
    files = preparation.DataFiles(sources["train"], "sha256:0", sources["held-out"])
    encoding = RowEncoding(tokenizer(), get_method(settings))
    report = preparation.prepare_dataset(settings, files, encoding, tmp_path / "work").report

    assert listings["train"].selection.skipped_count == 3
    assert report.kept == expected.pop("kept")
    assert report.sensitive == {"creditCard": expected.pop("sensitive")}
    assert report.rejected == expected
    assert report.validation == len(held_out)
