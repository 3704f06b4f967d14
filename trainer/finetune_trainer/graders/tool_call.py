"""Compares the tool calls of an answer with those of the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_trainer.contract import ToolCall
from finetune_trainer.graders.base import AnswerGrader, DataProblem, GradedAnswer
from finetune_trainer.graders.templates import load_json


@dataclass(frozen=True)
class Call:
    """A tool call."""

    name: str
    arguments: Mapping[str, Any]


class ToolCallGrader(AnswerGrader):
    """Scores the fraction of calls that are equal, of the calls in the answer or in the data, whichever are more."""

    def __init__(self, _: str, settings: ToolCall) -> None:
        self._arguments = settings.arguments

    def score(self, answer: GradedAnswer) -> float:
        if answer.reference is None:
            raise DataProblem("the row has no answer of the data")
        calls, expected = list(parse_calls(answer.text)), list(parse_calls(answer.reference))
        count = max(len(calls), len(expected))
        return self._count_matches(calls, expected) / count if count else 1.0

    def _count_matches(self, calls: list[Call], expected: list[Call]) -> int:
        """Return the number of calls that are expected, each once. A call with fewer choices does not come first, so
        this is a lower bound if `subset` lets a call match several."""
        remaining = list(expected)
        for call in calls:
            match = next((each for each in remaining if self._is_equal(call, each)), None)
            if match:
                remaining.remove(match)
        return len(expected) - len(remaining)

    def _is_equal(self, call: Call, expected: Call) -> bool:
        if call.name != expected.name:
            return False
        if self._arguments == "subset":
            return all(
                name in call.arguments and call.arguments[name] == value for name, value in expected.arguments.items()
            )
        return self._arguments == "ignored" or call.arguments == expected.arguments


def parse_calls(text: str) -> Iterator[Call]:
    """Yield the calls in an answer: its lines in the form of `data.answer_text.format_call`."""
    for line in text.splitlines():
        call = _parse_call(line)
        if call:
            yield call


def _parse_call(line: str) -> Call | None:
    if not line.startswith('{"name": '):
        return None
    try:
        value = load_json(line)
    except ValueError:
        return None
    if not isinstance(value, dict) or value.keys() != {"name", "arguments"}:
        return None
    name, arguments = value["name"], value["arguments"]
    return Call(name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None
