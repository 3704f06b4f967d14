"""Parsing of preference data: pairs of a chosen and a rejected answer, or single answers with a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from finetune_trainer.data.conversations import (
    format_keys,
    format_value,
    get_optional_text,
    parse_turns,
    require_column,
    require_final_answer,
    require_nonblank_text,
    require_text,
)
from finetune_trainer.data.row_types import Chat, LabeledExample, Message, Preference, PromptCompletion, RowError

_PROMPT_COLUMNS = ("prompt", "messages", "conversations")
_LABEL_VALUES = {"true": True, "1": True, "false": False, "0": False}


def parse_preference(row: Mapping[str, Any]) -> Preference:
    """Parse a pair of answers to one prompt. Raises `RowError`.

    The prompt is text or a list of turns. An answer is text, one turn, turns that follow the prompt, or the complete
    conversation, in which case no prompt column is needed.
    """
    chosen, rejected = (_parse_conversation(row, column_name) for column_name in ("chosen", "rejected"))
    if _get_prompt(chosen) != _get_prompt(rejected):
        raise RowError("expected 'chosen' and 'rejected' to differ only in the last answer, found different prompts")
    return Preference(chosen, rejected)


def parse_labeled_examples(row: Mapping[str, Any]) -> Sequence[LabeledExample]:
    """Parse an answer with its label, or both answers of a pair. Raises `RowError`."""
    if "chosen" in row and "rejected" in row:
        preference = parse_preference(row)
        return [LabeledExample(preference.chosen, desirable=True), LabeledExample(preference.rejected, desirable=False)]
    if "label" not in row:
        keys = format_keys(row)
        raise RowError(f"expected 'prompt', 'completion' and 'label', or 'chosen' and 'rejected'; found {keys}")
    return [LabeledExample(_parse_labeled_row(row), _parse_label(row["label"]))]


def _parse_labeled_row(row: Mapping[str, Any]) -> Chat | PromptCompletion:
    if "completion" in row:
        return _parse_conversation(row, "completion")
    answer_column = next((column_name for column_name in _PROMPT_COLUMNS[1:] if column_name in row), "completion")
    return Chat(require_final_answer(answer_column, parse_turns(answer_column, require_column(row, answer_column))))


def _parse_label(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _LABEL_VALUES:
        return _LABEL_VALUES[value.strip().lower()]
    raise RowError(f"expected 'label' to be true, false, 1 or 0, found {format_value(value)}")


def _parse_conversation(row: Mapping[str, Any], answer_column: str) -> Chat | PromptCompletion:
    """Return the prompt with the answer in the column `answer_column`."""
    answer = require_column(row, answer_column)
    prompt_column = next((column_name for column_name in _PROMPT_COLUMNS if row.get(column_name) is not None), None)
    if isinstance(answer, str):
        return _build_text_conversation(
            row, prompt_column, answer_column, require_nonblank_text(f"'{answer_column}'", answer)
        )
    answer_turns = require_final_answer(
        answer_column, parse_turns(answer_column, [answer] if isinstance(answer, dict) else answer)
    )
    if answer_turns[0]["role"] != "assistant":
        return Chat(answer_turns)
    if prompt_column is None:
        raise RowError(
            f"expected 'prompt', or '{answer_column}' to be a complete conversation; found {format_keys(row)}"
        )
    return Chat(_check_turn_order(answer_column, [*_parse_prompt_turns(row, prompt_column), *answer_turns]))


def _build_text_conversation(
    row: Mapping[str, Any], prompt_column: str | None, answer_column: str, answer: str
) -> Chat | PromptCompletion:
    if prompt_column is None:
        raise RowError(f"expected 'prompt' in addition to '{answer_column}', found {format_keys(row)}")
    if isinstance(row[prompt_column], str) and not get_optional_text(row, "system"):
        return PromptCompletion(require_text(f"'{prompt_column}'", row[prompt_column]), answer)
    prompt_turns = _parse_prompt_turns(row, prompt_column)
    return Chat(_check_turn_order(answer_column, [*prompt_turns, {"role": "assistant", "content": answer}]))


def _parse_prompt_turns(row: Mapping[str, Any], prompt_column: str) -> list[Message]:
    """Return the turns before the answer."""
    prompt = row[prompt_column]
    if isinstance(prompt, str):
        prompt_turns = [
            {"role": "user", "content": require_nonblank_text(f"'{prompt_column}'", prompt, "a message of the user")}
        ]
    else:
        prompt_turns = parse_turns(prompt_column, prompt)
    system = get_optional_text(row, "system")
    return (
        [{"role": "system", "content": system}, *prompt_turns]
        if system and prompt_turns[0]["role"] != "system"
        else prompt_turns
    )


def _check_turn_order(answer_column: str, conversation: list[Message]) -> list[Message]:
    for previous_turn, next_turn in pairwise(conversation):
        if previous_turn["role"] == next_turn["role"] == "assistant":
            raise RowError(f"'{answer_column}': two consecutive assistant turns; merge them")
    return conversation


def _get_prompt(row: Chat | PromptCompletion) -> object:
    return row.prompt if isinstance(row, PromptCompletion) else row.messages[:-1]
