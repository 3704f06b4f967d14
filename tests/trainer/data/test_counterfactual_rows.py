"""Counterfactual rows in data preparation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.data_preparation import build_config, prepare_rows, prompt_completion
from tests.support.trainer.tiny_model import CHATML, TRAINING_TIMEOUT, tokenizer

from finetune_trainer.data.preparation import PreparedData

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_TIMEOUT)]


class TestCounterfactuals:
    ROWS = (
        prompt_completion("Who is the doctor?", "He is."),
        prompt_completion("What is it?", "A lamp."),
        prompt_completion("Is he old?", "Yes, old."),
    )

    def prepare(
        self, folder: Path, rows: Sequence[Any], validation: dict[str, float] | None = None, **preparation: Any
    ) -> PreparedData:
        preparation_config = {"counterfactuals": ["gender", "age"], **preparation}
        return prepare_rows(
            folder,
            rows,
            build_config(preparation=preparation_config, **({"validation": validation} if validation else {})),
        )

    def decode_rows(self, prepared: PreparedData) -> list[str]:
        words = tokenizer(CHATML)
        return [words.decode(row["input_ids"], skip_special_tokens=True) for row in prepared.dataset]

    def test_counterfactuals_each_category_adds_row(self, tmp_path: Path) -> None:
        prepared = self.prepare(tmp_path, self.ROWS)
        assert (prepared.report.rows, prepared.report.kept, prepared.report.augmented) == (3, 3, 3)
        decoded = "\n".join(self.decode_rows(prepared))
        assert all(text in decoded for text in ("She is.", "Is she old?", "Is he young?", "Yes, young."))
        assert prepared.report.supervised_tokens == sum(
            label != -100 for row in prepared.dataset for label in row["labels"]
        )

    def test_counterfactuals_existing_row_is_not_added(self, tmp_path: Path) -> None:
        rows = [prompt_completion("Who?", "She is."), prompt_completion("Who?", "He is.")]
        prepared = self.prepare(tmp_path, rows)
        assert (prepared.report.kept, prepared.report.augmented, prepared.report.rejected) == (1, 1, {"duplicate": 1})
        assert sorted(self.decode_rows(prepared)) == sorted(set(self.decode_rows(prepared)))

    def test_counterfactuals_validation_rows_have_none(self, tmp_path: Path) -> None:
        rows = [prompt_completion(f"Who is number {n}, he or another?", f"He is {n}.") for n in range(20)]
        prepared = self.prepare(tmp_path, rows, validation={"fraction": 0.25}, deduplicate="near")
        assert prepared.validation
        assert (
            prepared.report.kept + prepared.report.validation + sum(prepared.report.rejected.values())
            == prepared.report.rows
        )
        assert len(prepared.dataset) == prepared.report.kept + prepared.report.augmented
        words = tokenizer(CHATML)
        held_out = [words.decode(row["input_ids"], skip_special_tokens=True) for row in prepared.validation]
        assert len(held_out) == prepared.report.validation
        assert all("He is" in text for text in held_out)
        training_texts = self.decode_rows(prepared)
        assert not [
            text for text in held_out if text.replace("he or", "she or").replace("He is", "She is") in training_texts
        ]

    def test_counterfactuals_overlong_is_not_counted_rejected(self, tmp_path: Path) -> None:
        prepared = prepare_rows(
            tmp_path,
            [prompt_completion("Who?", "He. " * 6)],
            build_config(max_length=50, preparation={"counterfactuals": ["gender"]}),
        )
        assert (prepared.report.kept, prepared.report.rejected) == (1, {})

    def test_counterfactuals_of_row_that_the_template_rejects_are_not_counted(self, tmp_path: Path) -> None:
        template = "{% if 'doctor' in messages[0].content %}{{ raise_exception('no') }}{% endif %}" + CHATML
        settings = build_config(preparation={"counterfactuals": ["gender"], "maxInvalidFraction": 0.5})
        report = prepare_rows(tmp_path, self.ROWS, settings, template=template).report
        assert (report.rows, report.kept, report.augmented, report.rejected) == (3, 2, 1, {"invalid": 1})
