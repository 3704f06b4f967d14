"""Rows divided for cross-validation: every row in one part, what belongs together in one, all parts alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.trainer.tiny_model import TRAINING_SECONDS, config, tokenizer, write_rows

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.data import preparation
from finetune_trainer.data.folds import Folds, assign_folds
from finetune_trainer.data.preparation import DataFiles, PreparedData
from finetune_trainer.errors import TrainerError


def folds(keys: Sequence[int], count: int, seed: int = 1, made: Sequence[bool] | None = None) -> Folds:
    flags = np.array(made or [False] * len(keys), dtype=np.bool_)
    return assign_folds(np.array(keys, dtype=np.uint64), flags, count, seed)


KEYS = st.lists(st.integers(0, 30), min_size=2, max_size=200)


@given(KEYS, st.integers(2, 10), st.integers(0, 9))
def test_every_row_is_left_out_once_and_groups_are_whole(keys: list[int], count: int, seed: int) -> None:
    if len(set(keys)) < count:
        return
    found = folds(keys, count, seed)
    left_out = [found.select_held_out_rows(part).tolist() for part in range(count)]
    assert sorted(row for part in left_out for row in part) == list(range(len(keys)))
    for part in range(count):
        assert sorted([*left_out[part], *found.select_training_rows(part).tolist()]) == list(range(len(keys)))
        assert {keys[row] for row in left_out[part]}.isdisjoint(keys[row] for row in found.select_training_rows(part))
    sizes = [len(part) for part in left_out]
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) <= max(Counter(keys).values())
    assert (folds(keys, count, seed).row_folds == found.row_folds).all()


def test_groups_of_one_row_make_parts_that_differ_by_one_at_most_by_the_seed() -> None:
    found, other = folds(range(103), 10), folds(range(103), 10, seed=2)
    assert sorted(Counter(found.row_folds.tolist()).values()) == [10] * 7 + [11] * 3
    assert (found.row_folds != other.row_folds).any()
    assert found.digest == folds(range(103), 10).digest != other.digest


def test_rows_that_were_made_from_others_go_with_them_and_are_not_measured_on() -> None:
    found = folds([1, 1, 2, 2, 3], 3, made=[False, True, True, False, False])
    assert sorted(row for part in range(3) for row in found.select_held_out_rows(part)) == [0, 3, 4]
    assert sorted(len(found.select_training_rows(part)) for part in range(3)) == [3, 3, 4]


TOO_FEW = {
    "fewer groups than parts": ([1, 1, 2, 2, 2], None, 3, "folds is 3, but the 5 rows to train on are only 2 groups"),
    "what can be done": ([1, 1, 2, 2, 2], None, 3, "lower it to 2 or less, or add rows"),
    "one group": ([7, 7, 7], None, 2, "only 1 group of rows that .* remove it, or add rows"),
    "a group of made rows alone": ([1, 2, 3], [False, False, True], 3, "the 2 rows to train on are only 2 groups"),
}


@pytest.mark.parametrize(("keys", "made", "count", "said"), TOO_FEW.values(), ids=TOO_FEW)
def test_too_few_groups_are_refused(keys: list[int], made: list[bool] | None, count: int, said: str) -> None:
    with pytest.raises(
        TrainerError, match=r"training\.crossValidation\.folds.*" + said.removeprefix("folds")
    ) as caught:
        folds(keys, count, made=made)
    assert caught.value.reason is Reason.DATA_INVALID


def prepared(folder: Path, rows: Sequence[Any], count: int, **dataset: Any) -> PreparedData:
    made = config({"crossValidation": {"folds": count}}, 300).to_json()
    made["dataset"].update(dataset)
    asked = TrainerConfig.model_validate(made)
    files = DataFiles([(asked.dataset.sources[0], [write_rows(folder / "rows", rows)])], "sha256:0")
    return preparation.prepare_dataset(asked, files, tokenizer(), folder / "work")


WORDS = [f"{who} {does} {what}" for who in ("Ada", "Bob", "Eve") for does in ("saw", "ate") for what in ("fish", "it")]
LONG = " ".join(f"word{number}" for number in range(40))


@pytest.mark.training
@pytest.mark.timeout(TRAINING_SECONDS)
class TestPreparation:
    """Of rows as they are read."""

    def test_rows_that_resemble_each_other_are_left_out_together(self, tmp_path: Path) -> None:
        near = [{"prompt": "Say", "completion": f"{LONG} {end}"} for end in ("one", "two", "three")]
        rows = [*near, *({"prompt": f"What of {each}?", "completion": each} for each in WORDS)]
        found = prepared(tmp_path, rows, 4).folds
        assert found
        assert len(set(found.row_folds[:3].tolist())) == 1
        assert len(found.row_folds) == len(rows)

    def test_rows_divided_otherwise_are_other_data_to_a_checkpoint(self, tmp_path: Path) -> None:
        rows = [{"prompt": f"What of {each}?", "completion": each} for each in WORDS]
        two, again, three = (prepared(tmp_path, rows, count).digest for count in (2, 2, 3))
        assert two == again != three

    def test_rows_set_aside_for_validation_are_in_no_part(self, tmp_path: Path) -> None:
        rows = [{"prompt": f"What of {each}?", "completion": each} for each in WORDS]
        made = prepared(tmp_path, rows, 3, validation={"fraction": 0.25})
        assert made.folds
        assert made.validation is not None
        held_out = {tuple(row["input_ids"]) for row in made.validation}
        seen = []
        for part in range(3):
            fold = made.exclude_fold(part)
            assert fold.held_out_fold is not None
            texts = [{tuple(row["input_ids"]) for row in side} for side in (fold.dataset, fold.held_out_fold)]
            assert len(texts[0]) + len(texts[1]) == made.report.kept == 9
            assert texts[0].isdisjoint(texts[1])
            assert held_out.isdisjoint(texts[0] | texts[1])
            seen += [row["input_ids"] for row in fold.held_out_fold]
        assert sorted(seen) == sorted(made.dataset["input_ids"])

    def test_counterfactuals_are_trained_on_only_with_the_row_that_they_were_made_from(self, tmp_path: Path) -> None:
        rows = [{"prompt": f"Who is the {job}?", "completion": "She is."} for job in ("nurse", "pilot", "cook")]
        made = prepared(tmp_path, rows, 3, preparation={"counterfactuals": ["gender"]})
        assert (made.report.kept, made.report.augmented) == (3, 3)
        for part in range(3):
            fold = made.exclude_fold(part)
            assert fold.held_out_fold is not None
            assert (len(fold.dataset), len(fold.held_out_fold)) == (4, 1)

    def test_too_few_kinds_of_rows_are_refused_before_training(self, tmp_path: Path) -> None:
        rows = [{"prompt": "Say", "completion": f"{LONG} {end}"} for end in ("one", "two", "three")]
        with pytest.raises(TrainerError, match="the 3 rows to train on are only 1 group"):
            prepared(tmp_path, rows, 2)
