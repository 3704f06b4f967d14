"""Assignment of rows to folds: each row is in one fold, groups stay together, and folds have similar sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.trainer.tiny_model import TRAINING_TIMEOUT, config, tokenizer, write_rows

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.data import preparation
from finetune_trainer.data.folds import Folds, assign_folds
from finetune_trainer.data.preparation import DataFiles, PreparedData
from finetune_trainer.data.row_schema import RowEncoding
from finetune_trainer.errors import TrainerError
from finetune_trainer.training.methods import get_method


def make_folds(keys: Sequence[int], count: int, seed: int = 1, augmented: Sequence[bool] | None = None) -> Folds:
    flags = np.array(augmented or [False] * len(keys), dtype=np.bool_)
    return assign_folds(np.array(keys, dtype=np.uint64), flags, count, seed)


KEYS = st.lists(st.integers(0, 30), min_size=2, max_size=200)


@given(KEYS, st.integers(2, 10), st.integers(0, 9))
def test_folds_cover_each_row_once_with_complete_groups(keys: list[int], count: int, seed: int) -> None:
    if len(set(keys)) < count:
        return
    folds = make_folds(keys, count, seed)
    held_out_rows = [folds.select_held_out_rows(part).tolist() for part in range(count)]
    assert sorted(row for part in held_out_rows for row in part) == list(range(len(keys)))
    for part in range(count):
        assert sorted([*held_out_rows[part], *folds.select_training_rows(part).tolist()]) == list(range(len(keys)))
        assert {keys[row] for row in held_out_rows[part]}.isdisjoint(
            keys[row] for row in folds.select_training_rows(part)
        )
    sizes = [len(part) for part in held_out_rows]
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) <= max(Counter(keys).values())
    assert (make_folds(keys, count, seed).row_folds == folds.row_folds).all()


def test_folds_single_row_groups_give_equal_parts() -> None:
    folds, other = make_folds(range(103), 10), make_folds(range(103), 10, seed=2)
    assert sorted(Counter(folds.row_folds.tolist()).values()) == [10] * 7 + [11] * 3
    assert (folds.row_folds != other.row_folds).any()
    assert folds.digest == make_folds(range(103), 10).digest != other.digest


def test_folds_augmented_rows_follow_source_unmeasured() -> None:
    folds = make_folds([1, 1, 2, 2, 3], 3, augmented=[False, True, True, False, False])
    assert sorted(row for part in range(3) for row in folds.select_held_out_rows(part)) == [0, 3, 4]
    assert sorted(len(folds.select_training_rows(part)) for part in range(3)) == [3, 3, 4]


TOO_FEW = {
    "fewer groups than parts": ([1, 1, 2, 2, 2], None, 3, "folds is 3, but the 5 training rows form only 2 groups"),
    "what can be done": ([1, 1, 2, 2, 2], None, 3, "lower it to 2 or less, or add rows"),
    "one group": ([7, 7, 7], None, 2, "only 1 group of rows that .* remove it, or add rows"),
    "a group of augmented rows only": ([1, 2, 3], [False, False, True], 3, "the 2 training rows form only 2 groups"),
}


@pytest.mark.parametrize(("keys", "augmented", "count", "expected_message"), TOO_FEW.values(), ids=TOO_FEW)
def test_folds_too_few_groups_are_refused(
    keys: list[int], augmented: list[bool] | None, count: int, expected_message: str
) -> None:
    with pytest.raises(
        TrainerError, match=r"training\.crossValidation\.folds.*" + expected_message.removeprefix("folds")
    ) as caught:
        make_folds(keys, count, augmented=augmented)
    assert caught.value.reason is Reason.DATA_INVALID


def prepare_folds(folder: Path, rows: Sequence[Any], count: int, **dataset: Any) -> PreparedData:
    content = config({"crossValidation": {"folds": count}}, 300).to_json()
    content["dataset"].update(dataset)
    prepared_config = TrainerConfig.model_validate(content)
    files = DataFiles([(prepared_config.dataset.sources[0], [write_rows(folder / "rows", rows)])], "sha256:0")
    return preparation.prepare_dataset(
        prepared_config, files, RowEncoding(tokenizer(), get_method(prepared_config)), folder / "work"
    )


WORDS = [f"{who} {does} {what}" for who in ("Ada", "Bob", "Eve") for does in ("saw", "ate") for what in ("fish", "it")]
LONG = " ".join(f"word{number}" for number in range(40))


@pytest.mark.training
@pytest.mark.timeout(TRAINING_TIMEOUT)
class TestPreparedFolds:
    """Folds that data preparation assigns to the rows it reads."""

    def test_folds_similar_rows_share_part(self, tmp_path: Path) -> None:
        near = [{"prompt": "Say", "completion": f"{LONG} {end}"} for end in ("one", "two", "three")]
        rows = [*near, *({"prompt": f"What of {word}?", "completion": word} for word in WORDS)]
        folds = prepare_folds(tmp_path, rows, 4).folds
        assert folds
        assert len(set(folds.row_folds[:3].tolist())) == 1
        assert len(folds.row_folds) == len(rows)

    def test_folds_other_division_changes_digest(self, tmp_path: Path) -> None:
        rows = [{"prompt": f"What of {word}?", "completion": word} for word in WORDS]
        two, again, three = (prepare_folds(tmp_path, rows, count).digest for count in (2, 2, 3))
        assert two == again != three

    def test_folds_exclude_validation_rows(self, tmp_path: Path) -> None:
        rows = [{"prompt": f"What of {word}?", "completion": word} for word in WORDS]
        prepared = prepare_folds(tmp_path, rows, 3, validation={"fraction": 0.25})
        assert prepared.folds
        assert prepared.validation is not None
        held_out = {tuple(row["input_ids"]) for row in prepared.validation}
        held_out_rows = []
        for part in range(3):
            fold = prepared.exclude_fold(part)
            assert fold.held_out_fold is not None
            texts = [{tuple(row["input_ids"]) for row in side} for side in (fold.dataset, fold.held_out_fold)]
            assert len(texts[0]) + len(texts[1]) == prepared.report.kept == 9
            assert texts[0].isdisjoint(texts[1])
            assert held_out.isdisjoint(texts[0] | texts[1])
            held_out_rows += [row["input_ids"] for row in fold.held_out_fold]
        assert sorted(held_out_rows) == sorted(prepared.dataset["input_ids"])

    def test_folds_counterfactuals_follow_their_row(self, tmp_path: Path) -> None:
        rows = [{"prompt": f"Who is the {job}?", "completion": "She is."} for job in ("nurse", "pilot", "cook")]
        prepared = prepare_folds(tmp_path, rows, 3, preparation={"counterfactuals": ["gender"]})
        assert (prepared.report.kept, prepared.report.augmented) == (3, 3)
        for part in range(3):
            fold = prepared.exclude_fold(part)
            assert fold.held_out_fold is not None
            assert (len(fold.dataset), len(fold.held_out_fold)) == (4, 1)

    def test_folds_single_group_is_refused_before_training(self, tmp_path: Path) -> None:
        rows = [{"prompt": "Say", "completion": f"{LONG} {end}"} for end in ("one", "two", "three")]
        with pytest.raises(TrainerError, match="the 3 training rows form only 1 group"):
            prepare_folds(tmp_path, rows, 2)
