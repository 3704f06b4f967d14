"""Prepared rows: from objects in S3 to tokens."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.tiny_model import CHATML, TRAINING_TIMEOUT, StoredFile, chat, config, tokenizer, write_rows

from finetune_trainer.contract import Reason
from finetune_trainer.data.preparation import DataFiles, PreparedData, prepare_dataset
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.errors import TrainerError
from finetune_trainer.training.methods import get_method

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]


def prepare_files(
    folder: Path, *files: StoredFile, max_length: int = 128, template: str = CHATML, **fields: Any
) -> PreparedData:
    settings = config(fields, max_length)
    words = tokenizer(template)
    return prepare_dataset(
        settings,
        DataFiles([(settings.dataset.sources[0], files)], "sha256:0"),
        RowEncoding(words, get_method(settings)),
        folder / "work",
    )


def test_prepare_report_counts_match_dataset(tmp_path: Path) -> None:
    rows = [chat("Hi", "Hello!"), chat("Hi", "x " * 200), chat("a", "b", "c", "d"), "", chat("y " * 300, "z")]
    prepared = prepare_files(tmp_path, write_rows(tmp_path / "a", rows))
    report, data = prepared.report, prepared.dataset
    assert (report.rows, report.kept, report.rejected) == (4, 2, {"overlength": 2})
    assert len(data) == report.kept
    assert sum(len(row["input_ids"]) for row in data) == report.tokens
    assert sum(value != -100 for row in data for value in row["labels"]) == report.supervised_tokens
    assert report.digest == "sha256:0"
    words = tokenizer()
    assert words.decode(data[1]["input_ids"]).startswith("<|im_start|>user\na<|im_end|>")


def test_prepare_row_of_max_length_is_kept(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a", [chat("Hi", "Hello!")])
    length = prepare_files(tmp_path, file).report.tokens
    assert prepare_files(tmp_path, file, max_length=length).report.kept == 1
    with pytest.raises(TrainerError, match=f"1 overlength; the longest row has {length} tokens") as caught:
        prepare_files(tmp_path, file, max_length=length - 1)
    assert caught.value.reason is Reason.DATASET_EMPTY


def test_prepare_rows_without_supervised_tokens_are_counted(tmp_path: Path) -> None:
    template = (
        "{% if messages[0].content == 'quiet' %}hush{% else %}"
        "{{ messages[0].content }}{% generation %}{{ messages[1].content }}{% endgeneration %}{% endif %}"
    )
    file = write_rows(tmp_path / "a", [chat("loud", "a b c"), chat("quiet", "a"), chat("quiet", "b")])
    report = prepare_files(tmp_path, file, template=template).report
    assert (report.rows, report.kept, report.rejected) == (3, 1, {"noSupervisedTokens": 2})


def test_prepare_invalid_rows_of_all_kinds_are_counted(tmp_path: Path) -> None:
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
    rows = [
        chat("a", "b"),
        *["{"] * 300,
        chat("a", "b"),
        *[chat("a", f"b{number}", system="s") for number in range(300)],
    ]
    with pytest.raises(TrainerError, match=r"^600 of 602 rows cannot be used:\ns3://data/x line 2: ") as caught:
        prepare_files(tmp_path, write_rows(tmp_path / "a", rows, "s3://data/x"), template=refusing)
    assert caught.value.reason is Reason.DATA_INVALID


@pytest.mark.parametrize("rows", [[], ["", " "]], ids=["empty", "blank"])
def test_prepare_no_rows_raises_dataset_empty(tmp_path: Path, rows: list[str]) -> None:
    with pytest.raises(TrainerError, match=r"the data objects contain no rows: s3://data/train\.jsonl") as caught:
        prepare_files(tmp_path, write_rows(tmp_path / "a", rows))
    assert caught.value.reason is Reason.DATASET_EMPTY


def test_prepare_same_folder_other_data_is_not_stale(tmp_path: Path) -> None:
    for answer in ("one", "two"):
        prepared = prepare_files(tmp_path, write_rows(tmp_path / "a", [chat("q", answer)]))
        assert answer in tokenizer().decode(prepared.dataset[0]["input_ids"])


def test_prepare_loss_all_supervises_prompt(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a", [chat("Hi there", "Hello!")])
    answer, everything = prepare_files(tmp_path, file).report, prepare_files(tmp_path, file, loss="all").report
    assert everything.supervised_tokens == everything.tokens - 1 > answer.supervised_tokens


def test_prepare_keeps_order_of_objects_and_lines(tmp_path: Path) -> None:
    texts = [f"answer {number}" for number in range(700)]  # more than two batches
    random.Random(0).shuffle(texts)
    half = len(texts) // 2
    files = [
        write_rows(tmp_path / name, [{"prompt": "q", "completion": text} for text in part])
        for name, part in (("b", texts[:half]), ("a", texts[half:]))
    ]
    words = tokenizer()
    trained_labels = [
        [value for value in row["labels"] if value != -100] for row in prepare_files(tmp_path, *files).dataset
    ]
    assert [words.decode(row).removesuffix("<|im_end|>") for row in trained_labels] == texts
