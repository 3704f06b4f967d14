"""Columns that graders read: kept as the data has them, cleaned like the row, and no longer unused."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.support.trainer.data_preparation import build_config
from tests.support.trainer.tiny_model import CHATML, StoredFile, tokenizer

from finetune_trainer.contract import DataSource, TrainerConfig
from finetune_trainer.data.preparation import DataFiles, PreparedData, prepare_dataset
from finetune_trainer.data.row_archive import ArchivedRow
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.graders.base import GradedAnswer
from finetune_trainer.graders.suite import GraderSuite
from finetune_trainer.training.methods import get_method


def build_graded_config(references: list[str], **dataset: Any) -> TrainerConfig:
    graders = [
        {"name": f"grader{number}", "numeric": {"reference": reference}} for number, reference in enumerate(references)
    ]
    content = build_config(**dataset).to_json()
    content["dataset"]["validation"] = {"fraction": 0.5}
    return TrainerConfig.model_validate(content | {"evaluation": {"graders": graders}})


def prepare(folder: Path, config: TrainerConfig, name: str) -> PreparedData:
    uri = f"s3://data/{name}"
    files = DataFiles([(DataSource(uri=uri), [StoredFile(uri, folder / name)])], "sha256:0")
    return prepare_dataset(config, files, RowEncoding(tokenizer(CHATML), get_method(config)), folder)


def list_items(prepared: PreparedData) -> list[dict[str, Any]]:
    texts = [texts for texts in (prepared.texts, prepared.validation_texts) if texts is not None]
    return [dict(ArchivedRow.from_columns(row).item) for each in texts for row in each]


def test_graded_columns_of_parquet_keep_their_values(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table(
        {
            "prompt": ["one", "two"],
            "completion": ["1.50", "2.25"],
            "price": pa.array([Decimal("1.50"), Decimal("2.25")], pa.decimal128(10, 2)),
            "other": ["a", "b"],
        }
    )
    parquet.write_table(table, tmp_path / "rows.parquet")
    config = build_graded_config(["{{item.price}}"])
    prepared = prepare(tmp_path, config, "rows.parquet")
    assert sorted(item["price"] for item in list_items(prepared)) == ["1.50", "2.25"]
    assert prepared.unused_columns == {"other": 2}
    with GraderSuite(config.evaluation.graders) as suite:
        assert suite.grade([GradedAnswer("It is 1.5", {"price": "1.50"})])["grader0"][0].score == 1


def test_graded_columns_are_cleaned_and_redacted_like_the_row(tmp_path: Path) -> None:
    item = {"text": "cafe\u0301 \u200bno", "mail": {"to": ["ann@example.com"]}}
    rows = [{"prompt": f"What {number}?", "completion": "Yes", "item": item} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = build_graded_config(["{{item.item.text}}"], preparation={"redact": ["email"]})
    items = list_items(prepare(tmp_path, config, "rows.jsonl"))
    assert items == [{"item": {"text": "caf\u00e9 no", "mail": {"to": ["[EMAIL]"]}}}] * 4


def test_graded_column_of_a_renamed_one_has_the_name_of_the_data(tmp_path: Path) -> None:
    rows = [{"question": f"What {number}?", "answer": "Yes"} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = build_graded_config(["{{item.question}}"])
    source = DataSource.model_validate(
        {"uri": "s3://data/rows.jsonl", "fields": {"prompt": "question", "completion": "answer"}}
    )
    files = DataFiles([(source, [StoredFile("s3://data/rows.jsonl", tmp_path / "rows.jsonl")])], "sha256:0")
    prepared = prepare_dataset(config, files, RowEncoding(tokenizer(CHATML), get_method(config)), tmp_path)
    assert sorted(item["question"] for item in list_items(prepared)) == [f"What {number}?" for number in range(4)]
