"""Consecutive turns of one role, and which answers are supervised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.support.trainer.tiny_model import write_rows

from finetune_trainer.contract import DataSource
from finetune_trainer.contract.dataset import Preparation
from finetune_trainer.data.row_reader import RowReader
from finetune_trainer.data.row_types import Chat, Preference, RowError
from finetune_trainer.data.turn_order import arrange_turns
from finetune_trainer.training.methods import METHODS

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
CALL_TURN = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "1"}
MERGED = Preparation(merge_turns=True)
LAST = Preparation(answers="last")


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([USER, USER, ANSWER, ANSWER], [{**USER, "content": "q\n\nq"}, {**ANSWER, "content": "a\n\na"}]),
        ([USER, ANSWER, CALL_TURN, RESULT], [USER, {**ANSWER, "tool_calls": [CALL]}, RESULT]),
        (
            [USER, CALL_TURN, CALL_TURN, RESULT, RESULT],
            [USER, {**CALL_TURN, "tool_calls": [CALL, CALL]}, RESULT, RESULT],
        ),
        (
            [USER, {**ANSWER, "reasoning_content": "r"}, {**ANSWER, "reasoning_content": "s"}],
            [USER, {**ANSWER, "content": "a\n\na", "reasoning_content": "r\n\ns"}],
        ),
    ],
    ids=["texts", "a text and a call", "parallel calls", "reasoning"],
)
def test_merge_turns_joins_turns_of_one_role(turns: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert arrange_turns(Chat(turns), MERGED) == Chat(expected)


def test_merge_turns_unsupervised_turn_makes_the_joined_turn_unsupervised() -> None:
    row = Chat([USER, USER, ANSWER, ANSWER, USER, ANSWER], unsupervised_turns=frozenset({3}))
    merged = arrange_turns(row, MERGED)
    assert isinstance(merged, Chat)
    assert merged.unsupervised_turns == {1}


def test_merge_turns_applies_to_both_answers_of_a_pair() -> None:
    pair = Preference(Chat([USER, USER, ANSWER]), Chat([USER, USER, {**ANSWER, "content": "b"}]))
    joined = {**USER, "content": "q\n\nq"}
    assert arrange_turns(pair, MERGED) == Preference(Chat([joined, ANSWER]), Chat([joined, {**ANSWER, "content": "b"}]))


@pytest.mark.parametrize(
    ("turns", "expected_message"),
    [
        ([USER, CALL_TURN, ANSWER], "tool call in turn 2 without a result before the next text"),
        ([{**USER, "name": "a"}, {**USER, "name": "b"}, ANSWER], "turns from turn 1 with different names"),
    ],
    ids=["an answer after a call", "names"],
)
def test_merge_turns_what_cannot_be_joined_is_refused(turns: list[dict[str, Any]], expected_message: str) -> None:
    with pytest.raises(RowError, match=expected_message):
        arrange_turns(Chat(turns), MERGED)


def test_consecutive_answers_without_merge_turns_name_the_setting() -> None:
    with pytest.raises(RowError, match=r"set dataset.preparation.mergeTurns: true to join them \(turn 3: 'a'\)"):
        arrange_turns(Chat([USER, ANSWER, ANSWER]), Preparation())


def test_answers_last_leaves_earlier_answers_out() -> None:
    row = arrange_turns(Chat([USER, ANSWER, USER, ANSWER, USER, ANSWER, USER]), LAST)
    assert isinstance(row, Chat)
    assert row.unsupervised_turns == {1, 3}


def read(folder: Path, rows: list[dict[str, Any]], preparation: Preparation, method: str = "sft") -> RowReader:
    reader = RowReader(METHODS[method], preparation)
    kept = list(reader.read([(DataSource(uri="s3://data/*"), [write_rows(folder / "rows", rows)])]))
    assert reader.row_count == len(kept) + sum(reader.rejections.counts.values())
    return reader


def test_rows_without_a_supervised_answer_are_counted(tmp_path: Path) -> None:
    ignored = {**ANSWER, "weight": 0}
    rows = [{"messages": turns} for turns in ([USER, ignored], [USER, ANSWER, USER, ignored], [USER, ANSWER])]
    assert read(tmp_path, rows, Preparation()).rejections.counts == {"noSupervisedTokens": 1}
    assert read(tmp_path, rows, LAST).rejections.counts == {"noSupervisedTokens": 2}


def test_pairs_whose_answer_has_weight_0_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "b", "weight": 0}]}]
    assert read(tmp_path, rows, Preparation(), "dpo").rejections.counts == {"noSupervisedTokens": 1}
