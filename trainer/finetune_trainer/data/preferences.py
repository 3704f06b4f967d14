"""Rows whose answers somebody judged: pairs of a better and a worse one, or single ones marked good or bad."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from finetune_trainer.data.conversations import (
    Turn,
    column,
    ends_with_answer,
    filled,
    names,
    optional_text,
    shown,
    text,
    turns,
)
from finetune_trainer.data.row_types import Chat, Judged, Pair, Preference, RowError

_PROMPTS = ("prompt", "messages", "conversations")
_LABELS = {"true": True, "1": True, "false": False, "0": False}


def parse_preference(row: Mapping[str, Any]) -> Preference:
    """A pair of answers to one prompt. Raises `RowError`.

    The prompt is text or turns. An answer is text, a turn, turns that go on from the prompt, or the whole
    conversation, in which case no prompt is needed.
    """
    chosen, rejected = (_conversation(row, name) for name in ("chosen", "rejected"))
    if _prompt_of(chosen) != _prompt_of(rejected):
        raise RowError("expected 'chosen' and 'rejected' to differ in the last answer only, found different prompts")
    return Preference(chosen, rejected)


def parse_judged(row: Mapping[str, Any]) -> Sequence[Judged]:
    """An answer and its label; of a pair of answers, both. Raises `RowError`."""
    if "chosen" in row and "rejected" in row:
        pair = parse_preference(row)
        return [Judged(pair.chosen, good=True), Judged(pair.rejected, good=False)]
    if "label" not in row:
        found = names(row)
        raise RowError(f"expected 'prompt', 'completion' and 'label', or 'chosen' and 'rejected'; found {found}")
    return [Judged(_judged_row(row), _label(row["label"]))]


def _judged_row(row: Mapping[str, Any]) -> Chat | Pair:
    if "completion" in row:
        return _conversation(row, "completion")
    name = next((each for each in _PROMPTS[1:] if each in row), "completion")
    return Chat(ends_with_answer(name, turns(name, column(row, name))))


def _label(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _LABELS:
        return _LABELS[value.strip().lower()]
    raise RowError(f"expected 'label' to be true, false, 1 or 0, found {shown(value)}")


def _conversation(row: Mapping[str, Any], name: str) -> Chat | Pair:
    """The prompt and the answer that stands in `name`."""
    answer = column(row, name)
    source = next((each for each in _PROMPTS if row.get(each) is not None), None)
    if isinstance(answer, str):
        return _answered_by_text(row, source, name, filled(f"'{name}'", answer))
    following = ends_with_answer(name, turns(name, [answer] if isinstance(answer, dict) else answer))
    if following[0]["role"] != "assistant":
        return Chat(following)
    if source is None:
        raise RowError(f"expected 'prompt', or '{name}' to be a whole conversation; found {names(row)}")
    return Chat(_checked_order(name, [*_opening(row, source), *following]))


def _answered_by_text(row: Mapping[str, Any], source: str | None, name: str, answer: str) -> Chat | Pair:
    if source is None:
        raise RowError(f"expected 'prompt' beside '{name}', found {names(row)}")
    if isinstance(row[source], str) and not optional_text(row, "system"):
        return Pair(text(f"'{source}'", row[source]), answer)
    opening = _opening(row, source)
    return Chat(_checked_order(name, [*opening, {"role": "assistant", "content": answer}]))


def _opening(row: Mapping[str, Any], source: str) -> list[Turn]:
    """The turns before the answer."""
    prompt = row[source]
    if isinstance(prompt, str):
        found = [{"role": "user", "content": filled(f"'{source}'", prompt, "what the user says")}]
    else:
        found = turns(source, prompt)
    system = optional_text(row, "system")
    return [{"role": "system", "content": system}, *found] if system and found[0]["role"] != "system" else found


def _checked_order(name: str, conversation: list[Turn]) -> list[Turn]:
    for before, after in pairwise(conversation):
        if before["role"] == after["role"] == "assistant":
            raise RowError(f"expected '{name}' to follow a turn of another, found the assistant's again")
    return conversation


def _prompt_of(row: Chat | Pair) -> object:
    return row.prompt if isinstance(row, Pair) else row.messages[:-1]
