"""Rows of `evaluation.test` are neither trained on nor used for validation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.data_preparation import build_config, prepare_rows, prompt_completion
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, tokenizer

from finetune_trainer.contract import Reason
from finetune_trainer.data.preparation import PreparedData
from finetune_trainer.errors import TrainerError

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]
WORDS = " ".join(f"word{number}" for number in range(20))
TEST = [prompt_completion(f"Test question {number}?", f"Answer {number}") for number in range(3)]
VALIDATION = [prompt_completion(f"Validation question {number}?", f"Answer {number}") for number in range(4)]
TRAINING = [prompt_completion(f"Question {number}?", f"Answer {number}") for number in range(20)]


def decode_prompts(rows: Iterable[Any]) -> list[str]:
    return [tokenizer().decode(row["input_ids"]) for row in rows]


def count_rows(prepared: PreparedData) -> tuple[int, int, int | None, dict[str, int]]:
    report = prepared.report
    assert report.rows == report.kept + report.validation + (report.test or 0) + sum(report.rejected.values())
    return report.kept, report.validation, report.test, report.rejected


@pytest.mark.parametrize("deduplicate", ["none", "exact", "near"])
def test_prepare_rows_that_are_also_test_rows_are_leaked(tmp_path: Path, deduplicate: str) -> None:
    settings = build_config(preparation={"deduplicate": deduplicate})
    prepared = prepare_rows(
        tmp_path, [*TRAINING, *TEST[:2], VALIDATION[0]], settings, [*VALIDATION, TEST[2]], test_rows=TEST
    )
    assert count_rows(prepared) == (20, 4, 3, {"leaked": 4})
    assert prepared.test is not None
    assert len(prepared.test) == 3
    others = decode_prompts([*prepared.dataset, *(prepared.validation or [])])
    assert not set(decode_prompts(prepared.test)) & set(others)


def test_prepare_fraction_holds_out_no_test_rows(tmp_path: Path) -> None:
    settings = build_config(validation={"fraction": 0.25})
    prepared = prepare_rows(tmp_path, [*TRAINING, *TEST], settings, test_rows=TEST)
    assert count_rows(prepared) == (15, 5, 3, {"leaked": 3})


def test_prepare_near_duplicates_of_test_rows_are_leaked(tmp_path: Path) -> None:
    settings = build_config(preparation={"deduplicate": "near"})
    rows = [*TRAINING, prompt_completion("about the words", WORDS + " and end")]
    prepared = prepare_rows(tmp_path, rows, settings, test_rows=[prompt_completion("about the words", WORDS + " end")])
    assert count_rows(prepared) == (20, 0, 1, {"leaked": 1})


def test_prepare_test_rows_are_cleaned_and_not_augmented(tmp_path: Path) -> None:
    settings = build_config(preparation={"counterfactuals": ["gender"]})
    rows = [prompt_completion("Who is she?", "She is a\u200b friend.")]
    prepared = prepare_rows(tmp_path, TRAINING, settings, test_rows=rows)
    assert count_rows(prepared) == (20, 0, 1, {})
    assert prepared.report.augmented == 0
    assert ["She is a friend." in text for text in decode_prompts(prepared.test or [])] == [True]


def test_prepare_same_rows_for_training_and_test_names_the_leak(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="none of 6 rows can be trained on: 3 leaked, 3 held out for the") as caught:
        prepare_rows(tmp_path, TEST, build_config(), test_rows=TEST)
    assert caught.value.reason == Reason.DATASET_EMPTY


def test_prepare_no_test_row_left_names_the_sources(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match=r"evaluation\.test\.sources: all of their rows were rejected") as caught:
        prepare_rows(tmp_path, TRAINING, build_config(), test_rows=[prompt_completion("What?", "\u200b")])
    assert caught.value.reason == Reason.DATASET_EMPTY


def test_prepare_without_test_reports_no_test_rows(tmp_path: Path) -> None:
    report = prepare_rows(tmp_path, TRAINING, build_config()).report
    assert "test" not in report.to_json()
