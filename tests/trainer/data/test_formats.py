"""Parsing of rows in each format, and errors for invalid rows."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.data.formats import rename_columns
from finetune_trainer.data.row_types import Chat, LabeledExample, PlainText, Preference, PromptCompletion, Row, RowError
from finetune_trainer.training.methods import METHODS

USER = {"role": "user", "content": "q"}
GOOD = {"role": "assistant", "content": "good"}
BAD = {"role": "assistant", "content": "bad"}
SYSTEM = {"role": "system", "content": "s"}
PREFERENCE = Preference(Chat([USER, GOOD]), Chat([USER, BAD]))

VALID_ROWS: dict[str, tuple[str, dict[str, Any], list[Row]]] = {
    "messages": ("sft", {"messages": [USER, GOOD]}, [Chat([USER, GOOD])]),
    "a tool's turn": (
        "sft",
        {"messages": [USER, {"role": "tool", "content": ""}, GOOD]},
        [Chat([USER, {"role": "tool", "content": ""}, GOOD])],
    ),
    "sharegpt": (
        "sft",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}]},
        [Chat([USER, GOOD])],
    ),
    "sharegpt with system": (
        "sft",
        {"system": "s", "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "good"}]},
        [Chat([SYSTEM, USER, GOOD])],
    ),
    "alpaca": ("sft", {"instruction": "i", "input": "", "output": "o"}, [PromptCompletion("i", "o")]),
    "alpaca with input": ("sft", {"instruction": "i", "input": "x", "output": "o"}, [PromptCompletion("i\n\nx", "o")]),
    "alpaca with an additional text column": (
        "sft",
        {"instruction": "i", "output": "o", "text": "all"},
        [PromptCompletion("i", "o")],
    ),
    "alpaca with system": (
        "sft",
        {"instruction": "q", "input": None, "output": "good", "system": "s"},
        [Chat([SYSTEM, USER, GOOD])],
    ),
    "pair": ("sft", {"prompt": "q", "completion": "a"}, [PromptCompletion("q", "a")]),
    "text": ("sft", {"text": "t"}, [PlainText("t")]),
    "preference of texts": (
        "dpo",
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        [Preference(PromptCompletion("q", "good"), PromptCompletion("q", "bad"))],
    ),
    "preference of turns after text": ("dpo", {"prompt": "q", "chosen": [GOOD], "rejected": [BAD]}, [PREFERENCE]),
    "preference of one turn each": ("dpo", {"prompt": [USER], "chosen": GOOD, "rejected": BAD}, [PREFERENCE]),
    "preference of texts after turns": ("dpo", {"prompt": [USER], "chosen": "good", "rejected": "bad"}, [PREFERENCE]),
    "preference of conversations": ("dpo", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [PREFERENCE]),
    "preference with repeated prompt": (
        "dpo",
        {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        [PREFERENCE],
    ),
    "preference in sharegpt": (
        "dpo",
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        [PREFERENCE],
    ),
    "preference with system": (
        "dpo",
        {"system": "s", "prompt": "q", "chosen": "good", "rejected": "bad"},
        [Preference(Chat([SYSTEM, USER, GOOD]), Chat([SYSTEM, USER, BAD]))],
    ),
    "judged true": (
        "kto",
        {"prompt": "q", "completion": "a", "label": True},
        [LabeledExample(PromptCompletion("q", "a"), desirable=True)],
    ),
    "judged 0": (
        "kto",
        {"prompt": "q", "completion": "a", "label": 0},
        [LabeledExample(PromptCompletion("q", "a"), desirable=False)],
    ),
    "judged 'False'": (
        "kto",
        {"prompt": "q", "completion": "a", "label": "False"},
        [LabeledExample(PromptCompletion("q", "a"), desirable=False)],
    ),
    "judged turns": (
        "kto",
        {"prompt": [USER], "completion": [GOOD], "label": "1"},
        [LabeledExample(Chat([USER, GOOD]), desirable=True)],
    ),
    "judged conversation": (
        "kto",
        {"messages": [USER, BAD], "label": False},
        [LabeledExample(Chat([USER, BAD]), desirable=False)],
    ),
    "pair of answers for kto": (
        "kto",
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        [LabeledExample(Chat([USER, GOOD]), desirable=True), LabeledExample(Chat([USER, BAD]), desirable=False)],
    ),
}

INVALID_ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "answers twice": (
        "sft",
        {"messages": [USER, GOOD, BAD]},
        "messages[2]: two consecutive assistant turns; merge them",
    ),
    "null content": ("sft", {"messages": [{"role": "user", "content": None}, GOOD]}, "to be text, found nothing"),
    "user is silent": (
        "sft",
        {"messages": [{"role": "user", "content": " "}, GOOD]},
        "messages[0].content to be a message",
    ),
    "unknown sharegpt role": ("sft", {"conversations": [{"from": "bing", "value": "x"}]}, "[0].from to be one of"),
    "messages is null": ("sft", {"messages": None}, "to be a list of turns, found nothing"),
    "alpaca without instruction": ("sft", {"instruction": " ", "output": "o"}, "to be an instruction, found it empty"),
    "alpaca input is a list": ("sft", {"instruction": "i", "input": [1], "output": "o"}, "'input' to be text"),
    "blank text": ("sft", {"text": " "}, "expected 'text' to be text, found it empty"),
    "two formats": ("sft", {"messages": [USER, GOOD], "conversations": []}, "has both 'messages' and 'conversations'"),
    "preference for sft": ("sft", {"prompt": "q", "chosen": "a", "rejected": "b"}, "need training.method dpo or kto"),
    "messages for dpo": ("dpo", {"messages": [USER, GOOD]}, "expected 'chosen', found 'messages'"),
    "no rejected": ("dpo", {"prompt": "q", "chosen": "a"}, "expected 'rejected'"),
    "no prompt": ("dpo", {"chosen": "a", "rejected": "b"}, "expected 'prompt' in addition to 'chosen'"),
    "no prompt before turns": ("dpo", {"chosen": [GOOD], "rejected": [BAD]}, "'chosen' to be a complete conversation"),
    "other prompts": (
        "dpo",
        {"chosen": [USER, GOOD], "rejected": [{"role": "user", "content": "r"}, BAD]},
        "differ only in the last answer",
    ),
    "chosen ends with the user": (
        "dpo",
        {"chosen": [USER], "rejected": [USER, BAD]},
        "'chosen' to end with an assistant turn, found a turn of user",
    ),
    "prompt ends with an answer": (
        "dpo",
        {"prompt": [USER, GOOD], "chosen": "a", "rejected": "b"},
        "'chosen': two consecutive assistant turns",
    ),
    "empty rejected": ("dpo", {"prompt": "q", "chosen": "a", "rejected": ""}, "'rejected' to be an answer"),
    "rejected is null": ("dpo", {"prompt": "q", "chosen": "a", "rejected": None}, "'rejected' to be a list of turns"),
    "label is 2": ("kto", {"prompt": "q", "completion": "a", "label": 2}, "true, false, 1 or 0, found a number"),
    "label is null": ("kto", {"prompt": "q", "completion": "a", "label": None}, "found nothing"),
    "label is a word": ("kto", {"prompt": "q", "completion": "a", "label": "good"}, "found 'good'"),
    "no label": ("kto", {"prompt": "q", "completion": "a"}, "expected 'prompt', 'completion' and 'label'"),
}


def parse_row(row: dict[str, Any], method: str) -> list[Row]:
    schema = METHODS[method]
    return list(schema.parse_row(row, schema.detect_format(row)))


@pytest.mark.parametrize(("method", "row", "expected_rows"), VALID_ROWS.values(), ids=VALID_ROWS)
def test_parse_row_each_format_gives_expected_rows(method: str, row: dict[str, Any], expected_rows: list[Row]) -> None:
    assert parse_row(row, method) == expected_rows


@pytest.mark.parametrize(("method", "row", "expected_message"), INVALID_ROWS.values(), ids=INVALID_ROWS)
def test_parse_row_invalid_names_expectation(method: str, row: dict[str, Any], expected_message: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(row, method)
    assert expected_message in str(caught.value)


def test_renamed_columns_may_swap_names() -> None:
    row = {"completion": "q", "prompt": "a", "id": 1}
    assert rename_columns(row, {"prompt": "completion", "completion": "prompt"}) == {
        "prompt": "q",
        "completion": "a",
        "id": 1,
    }


def test_renamed_missing_column_is_refused() -> None:
    with pytest.raises(RowError, match=r"expected the column 'question' \(fields: prompt\), found 'q', 'completion'"):
        rename_columns({"q": "a", "completion": "b"}, {"prompt": "question"})


def test_renamed_optional_column_may_be_absent() -> None:
    assert rename_columns({"instruction": "a"}, {"input": "context"}) == {"instruction": "a"}


_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["user", "assistant"])
_KEYS = st.sampled_from(["messages", "conversations", "prompt", "completion", "chosen", "rejected", "label", "text"])
_TURNS = st.lists(st.dictionaries(st.sampled_from(["role", "content", "from", "value", "x"]), _LEAVES), max_size=3)
_TYPES = (Chat, PromptCompletion, PlainText, Preference, LabeledExample)


@settings(max_examples=200)
@given(st.dictionaries(_KEYS, _LEAVES | _TURNS, max_size=4), st.sampled_from(["sft", "dpo", "kto"]))
def test_parse_row_any_content_is_read_or_refused(row: dict[str, Any], method: str) -> None:
    parsed: list[Row] = []
    with suppress(RowError):
        parsed = parse_row(row, method)
        assert parsed
    assert all(isinstance(item, _TYPES) for item in parsed)
