"""Parsing of preference data: pairs of a chosen and a rejected answer, or single answers with a label."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_trainer.data.conversation_columns import (
    add_context,
    build_answered_row,
    is_turns_text,
    parse_answer,
    parse_prompt,
)
from finetune_trainer.data.conversations import parse_turns, require_final_answer, require_nonblank_text
from finetune_trainer.data.field_suggestions import complete_fields, has_question, suggest_fields
from finetune_trainer.data.row_columns import PAIR_COLUMNS, RowColumns, format_keys, format_value
from finetune_trainer.data.row_types import Chat, LabeledExample, Preference, PromptCompletion, RowError
from finetune_trainer.data.text_pairs import split_text_pair

_PROMPT_COLUMNS = ("input.messages", "prompt", "messages", "conversations", "instruction")
_LABEL_VALUES = {"true": True, "1": True, "false": False, "0": False}


def parse_preference(row: RowColumns) -> Preference:
    """Parse a pair of answers to one prompt. Raises `RowError`.

    The prompt is text or a list of turns. An answer is text, one turn, turns that follow the prompt, or the complete
    conversation, in which case no prompt column is needed. Two texts without a prompt column begin with the prompt.
    """
    row.expand("input")
    columns = _find_pair_columns(row) or PAIR_COLUMNS[0]
    for name in columns:
        if name not in row.values:
            raise RowError(f"expected '{name}', found {format_keys(row.values)}{_describe_pair_cure(row)}")
    if _find_prompt_column(row) is None and all(_is_text(row.values[name]) for name in columns):
        return _parse_text_pair(row, columns)
    chosen, rejected = (_parse_conversation(row, name) for name in columns)
    if _get_prompt(chosen) != _get_prompt(rejected):
        raise RowError(
            f"expected '{columns[0]}' and '{columns[1]}' to differ only in the last answer, found different prompts"
        )
    return Preference(chosen, rejected)


def _describe_pair_cure(row: RowColumns) -> str:
    suggestion = suggest_fields(row.values, ("prompt", *PAIR_COLUMNS[0]), PAIR_COLUMNS[0])
    return suggestion or complete_fields(row.values, PAIR_COLUMNS[0])


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not is_turns_text(value)


def _find_pair_columns(row: RowColumns) -> tuple[str, str] | None:
    """Return the columns of the answers. They may be empty, or one of them may be missing."""
    return next(
        (pair for has in (row.has, row.values.__contains__) for pair in PAIR_COLUMNS if any(map(has, pair))), None
    )


def _find_prompt_column(row: RowColumns) -> str | None:
    """Return the column of the prompt. It may be an empty text."""
    filled_column = next((name for name in _PROMPT_COLUMNS if row.has(name)), None)
    return "prompt" if filled_column is None and row.values.get("prompt") == "" else filled_column


def _parse_text_pair(row: RowColumns, columns: tuple[str, str]) -> Preference:
    if has_question([name for name in row.values if row.has(name)]):
        raise _missing_prompt(row, columns[0])
    texts = [require_nonblank_text(f"'{name}'", row.require(name)) for name in columns]
    pair = split_text_pair(texts[0], texts[1])
    chosen, rejected = (build_answered_row(row, pair.prompt, answer) for answer in (pair.chosen, pair.rejected))
    return Preference(chosen, rejected)


def _missing_prompt(row: RowColumns, answer_column: str) -> RowError:
    keys = format_keys(row.values)
    return RowError(
        f"expected 'prompt' in addition to '{answer_column}', found {keys}{suggest_fields(row.values, ('prompt',))}"
    )


def parse_labeled_examples(row: RowColumns) -> Sequence[LabeledExample]:
    """Parse an answer with its label, or both answers of a pair. Raises `RowError`."""
    if any(all(name in row.values for name in pair) and any(map(row.has, pair)) for pair in PAIR_COLUMNS):
        preference = parse_preference(row)
        return [LabeledExample(preference.chosen, desirable=True), LabeledExample(preference.rejected, desirable=False)]
    if "label" not in row.values:
        fields = ("prompt", "completion", "label")
        suggestion = suggest_fields(row.values, fields, ("label",)) or complete_fields(row.values, fields)
        raise RowError(
            "expected 'prompt', 'completion' and 'label', or 'chosen' and 'rejected'; "
            f"found {format_keys(row.values)}{suggestion}"
        )
    return [LabeledExample(_parse_labeled_row(row), _parse_label(row.require("label")))]


def _parse_labeled_row(row: RowColumns) -> Chat | PromptCompletion:
    if row.has("instruction") and row.has("output"):
        answer = require_nonblank_text("'output'", row.require("output"))
        return build_answered_row(row, parse_prompt(row, "instruction"), answer)
    if "completion" in row.values:
        return _parse_conversation(row, "completion")
    column = next((name for name in ("messages", "conversations") if row.has(name)), "completion")
    return add_context(row, require_final_answer(column, parse_turns(row, column, row.require(column))))


def _parse_label(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _LABEL_VALUES:
        return _LABEL_VALUES[value.strip().lower()]
    found = str(value) if isinstance(value, int | float) else format_value(value)
    raise RowError(
        f"expected 'label' to be true, false, 1 or 0, found {found}; replace the label of good answers by true and "
        "that of bad answers by false"
    )


def _parse_conversation(row: RowColumns, answer_column: str) -> Chat | PromptCompletion:
    """Return the prompt with the answer in the column `answer_column`."""
    answer = parse_answer(row, answer_column)
    if isinstance(answer, Chat) and require_final_answer(answer_column, answer).messages[0]["role"] != "assistant":
        return add_context(row, answer)
    prompt_column = _find_prompt_column(row)
    if prompt_column is not None:
        prompt = parse_prompt(row, prompt_column)
        if isinstance(prompt, Chat) and prompt.messages[-1]["role"] == "assistant":
            raise RowError(
                f"expected '{prompt_column}' to end before the answer in '{answer_column}', found a turn of assistant "
                "at its end"
            )
        return build_answered_row(row, prompt, answer)
    if isinstance(answer, str):
        raise _missing_prompt(row, answer_column)
    raise RowError(
        f"expected 'prompt', or '{answer_column}' to be a complete conversation; found {format_keys(row.values)}"
        f"{suggest_fields(row.values, ('prompt',))}"
    )


def _get_prompt(row: Chat | PromptCompletion) -> object:
    return row.prompt if isinstance(row, PromptCompletion) else row.messages[:-1]
