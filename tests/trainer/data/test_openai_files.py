"""The samples in OpenAI's formats are read completely and can be prepared."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.trainer.sample_manifests import SAMPLES_DIR, list_data_objects, load_manifest
from tests.support.trainer.tiny_model import CHATML, StoredFile, tokenizer

from finetune_trainer.contract import DataSource, TrainerConfig
from finetune_trainer.data.preparation import DataFiles, prepare_dataset
from finetune_trainer.data.row_reader import RowReader
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.data.row_types import Chat, Preference, Row
from finetune_trainer.training.methods import METHODS, get_method


def read(name: str, method: str) -> tuple[RowReader, list[Row]]:
    reader = RowReader(METHODS[method])
    file = StoredFile(f"s3://datasets/{name}", SAMPLES_DIR / "data" / name)
    rows = [each.row for each in reader.read([(DataSource(uri=file.uri), [file])])]
    assert not reader.rejections.counts
    return reader, rows


def test_openai_supervised_file_weights_are_read() -> None:
    reader, rows = read("openai-supervised-train.jsonl", "sft")
    assert len(rows) == 20
    assert [row.unsupervised_turns for row in rows if isinstance(row, Chat)] == [set()] * 16 + [{2}] * 4
    assert not reader.unused_columns


def test_openai_tools_file_calls_and_definitions_are_read() -> None:
    reader, rows = read("openai-tools.jsonl", "sft")
    assert reader.unused_columns == {"parallel_tool_calls": 4}
    for row in rows:
        assert isinstance(row, Chat)
        assert row.tools[0]["function"]["name"] == "get_stock"
        assert row.messages[2]["tool_calls"][0]["function"]["arguments"].keys() == {"bread"}
        assert row.messages[3]["tool_call_id"] == row.messages[2]["tool_calls"][0]["id"]


def test_openai_preference_file_pairs_are_read() -> None:
    reader, rows = read("openai-preference-train.jsonl", "dpo")
    assert len(rows) == 16
    for row in rows:
        assert isinstance(row, Preference)
        assert isinstance(row.chosen, Chat)
        assert [turn["role"] for turn in row.chosen.messages] == ["system", "user", "assistant"]
    assert reader.unused_columns == {"input.parallel_tool_calls": 16}


@pytest.mark.parametrize(
    ("sample", "kept", "validation"), [("openai-supervised", 20, 12), ("openai-preference", 16, 8)]
)
def test_openai_sample_is_prepared(tmp_path: Path, sample: str, kept: int, validation: int) -> None:
    config = TrainerConfig.from_manifest(load_manifest(sample))
    objects = {uri: StoredFile(uri, path) for uri, path in list_data_objects(sample)}
    assert config.dataset.validation
    training, held_out = (
        [(source, [objects[source.uri]]) for source in sources]
        for sources in (config.dataset.sources, config.dataset.validation.sources or [])
    )
    encoding = RowEncoding(tokenizer(CHATML), get_method(config))
    report = prepare_dataset(config, DataFiles(training, "sha256:0", held_out), encoding, tmp_path).report
    assert (report.kept, report.validation, report.rejected) == (kept, validation, {})
