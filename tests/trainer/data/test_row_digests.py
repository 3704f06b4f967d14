"""Digests of the validation rows: the same in every run that holds out the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.data_preparation import build_config, prepare_rows, prompt_completion
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT

from finetune_trainer.data.preparation import PreparedData
from finetune_trainer.data.row_archive import compute_row_digest
from finetune_trainer.data.row_digests import compute_set_digest, iterate_digests
from finetune_trainer.data.row_types import PromptCompletion
from finetune_trainer.errors import TrainerError

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]

ROWS = [prompt_completion(f"Is {name} at home?", f"He is {name}.") for name in ("Ada", "Bob", "Cy", "Dee", "Eve")]
HELD_OUT = [prompt_completion("Who is out?", "Gil."), prompt_completion("Who\u200b is in?", "Mail a@b.example")]
SOURCES = {"sources": [{"uri": "s3://data/val.jsonl"}]}


def list_row_digests(rows: list[dict[str, str]]) -> list[str]:
    return [compute_row_digest(PromptCompletion(row["prompt"], row["completion"])) for row in rows]


def list_validation_digests(prepared: PreparedData) -> list[str]:
    assert prepared.validation_digests is not None
    return list(iterate_digests(prepared.validation_digests))


def prepare_held_out(folder: Path, held_out: list[dict[str, str]], **dataset: Any) -> PreparedData:
    return prepare_rows(folder, ROWS, build_config(validation=SOURCES, **dataset), held_out)


def test_validation_digests_of_sources_are_those_of_the_rows_as_the_data_has_them(tmp_path: Path) -> None:
    prepared = prepare_held_out(tmp_path, [*HELD_OUT, HELD_OUT[0]], preparation={"redact": ["email"]})
    assert list_validation_digests(prepared) == list_row_digests(HELD_OUT)


def test_validation_digests_of_fraction_match_the_rows_that_are_held_out(tmp_path: Path) -> None:
    preparation = {"counterfactuals": ["gender"]}
    prepared = prepare_rows(tmp_path, ROWS, build_config(preparation=preparation, validation={"fraction": 0.4}))
    assert prepared.validation is not None
    by_tokens = {tuple(row["input_ids"]): row for row in prepared.validation}
    assert len(by_tokens) == len(list_validation_digests(prepared)) == 2
    held_out = [
        row
        for row, digest in zip(ROWS, list_row_digests(ROWS), strict=True)
        if digest in list_validation_digests(prepared)
    ]
    again = prepare_held_out(tmp_path / "again", held_out)
    assert again.validation is not None
    assert {tuple(row["input_ids"]) for row in again.validation} == by_tokens.keys()
    assert again.report.rejected == {"leaked": 2}, "the rows that are held out are never trained on"


def test_validation_digests_without_validation_are_absent(tmp_path: Path) -> None:
    assert prepare_rows(tmp_path, ROWS, build_config()).validation_digests is None


def test_set_digest_depends_on_the_rows_alone(tmp_path: Path) -> None:
    first, reversed_rows, fewer = (
        prepare_held_out(tmp_path / name, rows).validation_digests
        for name, rows in (("a", HELD_OUT), ("b", HELD_OUT[::-1]), ("c", HELD_OUT[:1]))
    )
    assert first is not None
    assert reversed_rows is not None
    assert fewer is not None
    assert compute_set_digest(first) == compute_set_digest(reversed_rows)
    assert compute_set_digest(first) != compute_set_digest(fewer)


def test_validation_row_in_training_data_is_dropped_whatever_is_deduplicated(tmp_path: Path) -> None:
    for mode in ("none", "exact", "near"):
        prepared = prepare_held_out(tmp_path / mode, ROWS[:2], preparation={"deduplicate": mode})
        assert (prepared.report.rejected, prepared.report.kept) == ({"leaked": 2}, 3), mode


QUESTION, ANSWER = "What is the capital of France, my friend?", "It is Paris, the city of light and love, on the Seine."
TURNS = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}]
SAME_ROWS: dict[str, dict[str, Any]] = {
    "messages": {"messages": TURNS},
    "turns": {"prompt": TURNS[:1], "completion": TURNS[1:]},
    "alpaca": {"instruction": QUESTION, "input": "", "output": ANSWER},
    "sharegpt": {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
    "invisible characters": prompt_completion(QUESTION + "\u200b", ANSWER),
}
SIMILAR_ROWS: dict[str, dict[str, Any]] = {
    "case": prompt_completion(QUESTION.upper(), ANSWER),
    "spaces": prompt_completion(f" {QUESTION}", ANSWER.replace(" ", "  ")),
    "system prompt": {"messages": [{"role": "system", "content": "You are kind."}, *TURNS]},
    "name": {"messages": [{**TURNS[0], "name": "Ada"}, TURNS[1]]},
}


def prepare_copy(folder: Path, row: dict[str, Any], mode: str) -> PreparedData:
    """Prepare a single training row with a validation row that says the same."""
    settings = build_config(validation=SOURCES, preparation={"deduplicate": mode})
    return prepare_rows(folder, [row], settings, [prompt_completion(QUESTION, ANSWER)])


@pytest.mark.parametrize("row", SAME_ROWS.values(), ids=SAME_ROWS)
def test_validation_row_in_another_format_is_not_trained_on(tmp_path: Path, row: dict[str, Any]) -> None:
    for mode in ("none", "exact", "near"):
        with pytest.raises(TrainerError, match="1 leaked"):
            prepare_copy(tmp_path / mode, row, mode)


@pytest.mark.parametrize("row", SIMILAR_ROWS.values(), ids=SIMILAR_ROWS)
def test_row_that_resembles_a_validation_row_is_dropped_as_a_near_duplicate(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    with pytest.raises(TrainerError, match="1 leaked"):
        prepare_copy(tmp_path / "near", row, "near")
    assert prepare_copy(tmp_path / "exact", row, "exact").report.kept == 1
