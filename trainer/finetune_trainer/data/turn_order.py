"""Turns of whole rows after parsing: consecutive turns of one role, and which answers are supervised."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from finetune_trainer.contract.dataset import Preparation
from finetune_trainer.data.conversations import ignore_answers
from finetune_trainer.data.row_columns import format_value
from finetune_trainer.data.row_types import (
    Chat,
    LabeledExample,
    Message,
    PlainText,
    Preference,
    PromptCompletion,
    Row,
    RowError,
)

_SINGLE_KEYS = ("name", "tool_call_id")


def arrange_turns(row: Row, preparation: Preparation) -> Row:
    """Return the row with `mergeTurns` and `answers` applied. Raises `RowError` for consecutive answers."""
    if isinstance(row, PromptCompletion | PlainText):
        return row
    if isinstance(row, Preference):
        return Preference(*(_check_order(each, preparation) for each in (row.chosen, row.rejected)))
    if isinstance(row, LabeledExample):
        return replace(row, row=_check_order(row.row, preparation))
    conversation = _merge_turns(row) if preparation.merge_turns else _require_order(row)
    return _supervise_last_answer(conversation) if preparation.answers == "last" else conversation


def has_supervised_answer(row: Row) -> bool:
    """Return whether the loss is computed on an answer: in pairs and labeled examples, on the last one."""
    if isinstance(row, Preference):
        return all(map(_is_last_turn_supervised, (row.chosen, row.rejected)))
    if isinstance(row, LabeledExample):
        return _is_last_turn_supervised(row.row)
    if not isinstance(row, Chat) or not row.unsupervised_turns:
        return True
    return any(
        message["role"] == "assistant" and index not in row.unsupervised_turns
        for index, message in enumerate(row.messages)
    )


def _is_last_turn_supervised(row: Chat | PromptCompletion) -> bool:
    return not isinstance(row, Chat) or len(row.messages) - 1 not in row.unsupervised_turns


def _check_order(row: Chat | PromptCompletion, preparation: Preparation) -> Chat | PromptCompletion:
    if isinstance(row, PromptCompletion):
        return row
    return _merge_turns(row) if preparation.merge_turns else _require_order(row)


def _require_order(conversation: Chat) -> Chat:
    for number, (previous, turn) in enumerate(pairwise(conversation.messages), start=2):
        if previous["role"] == turn["role"] == "assistant":
            raise RowError(
                f"has two consecutive assistant turns; set dataset.preparation.mergeTurns: true to join them (turn "
                f"{number}: {format_value(turn['content'])})"
            )
    return conversation


def _merge_turns(conversation: Chat) -> Chat:
    """Join consecutive turns of one role. Results of tools stay apart, because each belongs to its own call."""
    messages: list[Message] = []
    unsupervised: set[int] = set()
    for index, turn in enumerate(conversation.messages):
        if messages and turn["role"] != "tool" and messages[-1]["role"] == turn["role"]:
            messages[-1] = _join_turns(messages[-1], turn, len(messages))
        else:
            messages.append(turn)
        if index in conversation.unsupervised_turns:
            unsupervised.add(len(messages) - 1)
    return replace(conversation, messages=messages, unsupervised_turns=frozenset(unsupervised))


def _join_turns(first: Message, second: Message, number: int) -> Message:
    if "tool_calls" in first and (second["content"] or "reasoning_content" in second):
        raise RowError(
            f"has a tool call in turn {number} without a result before the next text of the assistant, so the turns "
            "cannot be joined; add the turn of role tool"
        )
    if any(first.get(key) != second.get(key) for key in _SINGLE_KEYS):
        raise RowError(f"has consecutive turns from turn {number} with different names, which cannot be joined")
    joined = {**first, "content": _join_texts(first["content"], second["content"])}
    if reasoning := _join_texts(first.get("reasoning_content", ""), second.get("reasoning_content", "")):
        joined["reasoning_content"] = reasoning
    if calls := [*first.get("tool_calls", ()), *second.get("tool_calls", ())]:
        joined["tool_calls"] = calls
    return joined


def _join_texts(first: str, second: str) -> str:
    return "\n\n".join(text for text in (first, second) if text)


def _supervise_last_answer(conversation: Chat) -> Chat:
    """Leave all answers but the last one out of the loss, and that one too if its weight is 0."""
    last = max(index for index, message in enumerate(conversation.messages) if message["role"] == "assistant")
    ignored = ignore_answers(conversation).unsupervised_turns - {last}
    return replace(conversation, unsupervised_turns=ignored | (conversation.unsupervised_turns & {last}))
