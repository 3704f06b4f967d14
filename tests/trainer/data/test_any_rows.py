"""Rows of any content are read or refused with a typed error."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.contract.dataset import Preparation
from finetune_trainer.data.row_columns import RowColumns, list_unused_columns
from finetune_trainer.data.row_texts import list_texts, serialize_canonical
from finetune_trainer.data.row_types import Row, RowError
from finetune_trainer.data.turn_order import arrange_turns, has_supervised_answer
from finetune_trainer.training.methods import METHODS

_LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(["[]", "{}"])
_ROLES = st.sampled_from(["system", "user", "assistant", "tool", "function_call"])
_FUNCTIONS = st.fixed_dictionaries({}, optional={"name": st.just("f") | _LEAVES, "arguments": _LEAVES | st.just({})})
_CALLS = st.fixed_dictionaries({}, optional={"function": _FUNCTIONS, "id": _LEAVES, "type": _LEAVES}) | _FUNCTIONS
_TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": _ROLES, "content": st.just("text") | _LEAVES | st.lists(_LEAVES, max_size=2)},
        optional={
            "tool_calls": st.lists(_CALLS, max_size=2),
            "function_call": _FUNCTIONS,
            "weight": st.sampled_from([0, 1, None, "1"]),
            "reasoning": _LEAVES,
            "x": _LEAVES,
        },
    ),
    max_size=4,
)
_VALUES = {
    **dict.fromkeys(("messages", "conversations", "prompt", "completion", "chosen", "rejected"), _LEAVES | _TURNS),
    **dict.fromkeys(("instruction", "output", "system", "text", "label", "history", "id"), _LEAVES),
    **dict.fromkeys(("preferred_output", "non_preferred_output"), _TURNS),
    "input": _LEAVES | st.fixed_dictionaries({"messages": _TURNS}),
    "tools": _LEAVES | st.lists(_FUNCTIONS | st.fixed_dictionaries({"function": _FUNCTIONS}), max_size=2),
}
_ROWS = st.fixed_dictionaries({}, optional=_VALUES)


def parse(row: dict[str, Any], method: str, preparation: Preparation) -> list[Row]:
    schema, columns = METHODS[method], RowColumns(row)
    row_format = schema.detect_format(row)
    parsed_rows = schema.parse_row(columns, row_format)
    list_unused_columns(columns, row_format, [text for each in parsed_rows for text in list_texts(each)])
    return [arrange_turns(each, preparation) for each in parsed_rows]


@pytest.mark.parametrize("preparation", [Preparation(), Preparation(merge_turns=True, answers="last")], ids=str)
@settings(max_examples=300)
@given(row=_ROWS, method=st.sampled_from(["sft", "dpo", "kto"]))
def test_parse_row_any_content_is_read_or_refused(preparation: Preparation, row: dict[str, Any], method: str) -> None:
    with suppress(RowError):
        parsed_rows = parse(row, method, preparation)
        assert parsed_rows
        for parsed_row in parsed_rows:
            assert serialize_canonical(parsed_row)
            assert isinstance(has_supervised_answer(parsed_row), bool)
