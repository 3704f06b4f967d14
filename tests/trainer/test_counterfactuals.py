"""Rows that are made of others by exchanging whom they speak of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.trainer.preparations import configured, pair, run
from tests.trainer.tiny_model import CHATML, TRAINING_SECONDS, tokenizer

from finetune_trainer.data.preparation import PreparedData

pytestmark = [pytest.mark.training, pytest.mark.timeout(TRAINING_SECONDS)]


class TestCounterfactuals:
    ROWS = (pair("Who is the doctor?", "He is."), pair("What is it?", "A lamp."), pair("Is he old?", "Yes, old."))

    def prepared(
        self, folder: Path, rows: Sequence[Any], validation: dict[str, float] | None = None, **preparation: Any
    ) -> PreparedData:
        asked = {"counterfactuals": ["gender", "age"], **preparation}
        return run(folder, rows, configured(preparation=asked, **({"validation": validation} if validation else {})))

    def texts(self, prepared: PreparedData) -> list[str]:
        words = tokenizer(CHATML)
        return [words.decode(row["input_ids"], skip_special_tokens=True) for row in prepared.dataset]

    def test_each_row_is_there_with_each_category_exchanged(self, tmp_path: Path) -> None:
        made = self.prepared(tmp_path, self.ROWS)
        assert (made.report.rows, made.report.kept, made.report.augmented) == (3, 3, 3)
        said = "\n".join(self.texts(made))
        assert all(text in said for text in ("She is.", "Is she old?", "Is he young?", "Yes, young."))
        assert made.report.supervised_tokens == sum(label != -100 for row in made.dataset for label in row["labels"])

    def test_a_row_that_is_there_already_is_not_made(self, tmp_path: Path) -> None:
        rows = [pair("Who?", "She is."), pair("Who?", "He is.")]
        made = self.prepared(tmp_path, rows)
        assert (made.report.kept, made.report.augmented, made.report.rejected) == (1, 1, {"duplicate": 1})
        assert sorted(self.texts(made)) == sorted(set(self.texts(made)))

    def test_validation_rows_are_the_datas_own_and_their_counterparts_are_not_learnt(self, tmp_path: Path) -> None:
        rows = [pair(f"Who is number {n}, he or another?", f"He is {n}.") for n in range(20)]
        made = self.prepared(tmp_path, rows, validation={"fraction": 0.25}, deduplicate="near")
        assert made.validation
        assert made.report.kept + made.report.validation + sum(made.report.rejected.values()) == made.report.rows
        assert len(made.dataset) == made.report.kept + made.report.augmented
        words = tokenizer(CHATML)
        held_out = [words.decode(row["input_ids"], skip_special_tokens=True) for row in made.validation]
        assert len(held_out) == made.report.validation
        assert all("He is" in text for text in held_out)
        learnt = self.texts(made)
        assert not [text for text in held_out if text.replace("he or", "she or").replace("He is", "She is") in learnt]

    def test_one_that_became_too_long_is_no_row_that_is_left_out(self, tmp_path: Path) -> None:
        made = run(
            tmp_path, [pair("Who?", "He. " * 6)], configured(max_length=50, preparation={"counterfactuals": ["gender"]})
        )
        assert (made.report.kept, made.report.rejected) == (1, {})
