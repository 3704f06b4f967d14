"""Exact duplicates, near-duplicates, and groups of rows that must stay in the same split."""

from __future__ import annotations

from array import array
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.contract import Reason
from finetune_trainer.data.deduplication import HashSet, MinHashIndex, RowGroups
from finetune_trainer.data.row_types import Chat, LabeledExample, PlainText, Preference, PromptCompletion, Row
from finetune_trainer.data.splits import choose_validation_rows
from finetune_trainer.errors import TrainerError

LONG = " ".join(f"word{number}" for number in range(60))
SYSTEM = {"role": "system", "content": LONG}


def make_chat(question: str, answer: str) -> Chat:
    return Chat([SYSTEM, {"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def test_hashes_repeated_row_is_known(tmp_path: Path) -> None:
    rows = [PromptCompletion(str(number), "a") for number in range(5000)]  # the table grows several times
    hashes = HashSet(tmp_path)
    assert all(hashes.add(row) for row in rows)
    assert not any(hashes.add(row) for row in rows)
    assert all(row in hashes for row in rows)
    assert PromptCompletion("5000", "a") not in hashes


DIFFERENT = {
    "text moved from prompt to answer": (PromptCompletion("ab", "c"), PromptCompletion("a", "bc")),
    "opposite verdicts": (
        LabeledExample(PromptCompletion("a", "b"), True),
        LabeledExample(PromptCompletion("a", "b"), False),
    ),
    "opposite preferences": (
        Preference(PromptCompletion("a", "b"), PromptCompletion("a", "c")),
        Preference(PromptCompletion("a", "c"), PromptCompletion("a", "b")),
    ),
    "another speaker": (
        Chat([{"role": "user", "content": "a"}]),
        Chat([{"role": "system", "content": "a"}]),
    ),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_hashes_different_rows_are_not_duplicates(one: Row, other: Row, tmp_path: Path) -> None:
    hashes = HashSet(tmp_path)
    assert hashes.add(one)
    assert hashes.add(other)


NEAR = {
    "one word of sixty changed": (PlainText(LONG), PlainText(LONG.replace("word30", "other")), True),
    "case and punctuation": (PlainText(LONG), PlainText(LONG.upper().replace(" ", ", ")), True),
    "half of the words": (PlainText(LONG), PlainText(LONG[: len(LONG) // 2]), False),
    "the same long system prompt": (make_chat("Who was first?", "Ada"), make_chat("What is last?", "Omega"), False),
    "opposite verdicts": (
        LabeledExample(PromptCompletion(LONG, "a"), True),
        LabeledExample(PromptCompletion(LONG, "a"), False),
        False,
    ),
    "Chinese with one sign changed": (PlainText("春眠不觉晓处处闻啼鸟夜来风雨声花落知多少" * 2), None, True),
}


@pytest.mark.parametrize(("one", "other", "alike"), NEAR.values(), ids=NEAR)
def test_near_rows_sharing_most_words_are_alike(one: PlainText, other: Row | None, alike: bool) -> None:
    near = MinHashIndex(0.8)
    near.insert(near.compute_signature(one))
    again = PlainText(one.text[:-1] + "年") if other is None else other
    assert bool(list(near.query(near.compute_signature(again)))) is alike


def test_groups_similar_rows_share_key() -> None:
    groups = RowGroups(MinHashIndex(0.8))
    words = LONG.split()
    for number in range(40):  # each is similar to the next; the first and the last have nothing in common
        groups.add(PlainText(" ".join([*words[number:], *(f"new{index}" for index in range(number))])))
    for number in range(40):
        groups.add(PlainText(f"{number} " + " ".join(f"{word}{number}" for word in words)))
    keys = groups.compute_keys()
    assert all(one == other for one, other in pairwise(keys[:40]))
    assert len(set(keys)) == 41


@pytest.mark.parametrize("near", [MinHashIndex(0.8), None], ids=["few rows", "many rows"])
def test_groups_answers_to_same_prompt_share_key(near: MinHashIndex | None) -> None:
    groups = RowGroups(near)
    groups.add(LabeledExample(PromptCompletion("What now?", "Run along to the lake"), True))
    groups.add(LabeledExample(PromptCompletion("what  NOW", "No idea at all, sorry"), False))
    groups.add(LabeledExample(PromptCompletion("Where to?", "Over the hills"), True))
    one, other, apart = groups.compute_keys()
    assert one == other != apart


@given(st.lists(st.integers(0, 20), min_size=2, max_size=200), st.floats(0.01, 0.5), st.integers(0, 9))
def test_split_takes_complete_groups(keys: list[int], fraction: float, seed: int) -> None:
    if len(set(keys)) < 2:
        return
    chosen = choose_validation_rows(array("Q", keys), fraction, seed).tolist()
    assert chosen == choose_validation_rows(array("Q", keys), fraction, seed).tolist()
    assert 0 < len(chosen) < len(keys)
    assert {keys[row] for row in chosen}.isdisjoint(keys[row] for row in range(len(keys)) if row not in chosen)


def test_split_single_row_groups_give_exact_fraction() -> None:
    keys = array("Q", range(1000))
    assert len(choose_validation_rows(keys, 0.1, 1)) == 100
    assert choose_validation_rows(keys, 0.1, 1).tolist() != choose_validation_rows(keys, 0.1, 2).tolist()


def test_split_single_group_is_refused() -> None:
    with pytest.raises(TrainerError, match="all 3 rows are similar") as caught:
        choose_validation_rows(array("Q", [7, 7, 7]), 0.5, 1)
    assert caught.value.reason is Reason.DATA_INVALID
