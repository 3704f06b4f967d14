"""A row's tokens as the columns of its method, held to the limits of length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.data.labels import IGNORED, Example
from finetune_trainer.data.rows import Judged, Row

if TYPE_CHECKING:
    import datasets

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "sft": {"input_ids": "ids", "labels": "ids"},
    "dpo": {"prompt_ids": "ids", "chosen_ids": "ids", "rejected_ids": "ids"},
    "kto": {"prompt_ids": "ids", "completion_ids": "ids", "label": "bool"},
}
"""By `training.method`: the columns of its rows, lists of token numbers or true and false."""


def features(method: str) -> datasets.Features:
    """The columns as `datasets` declares them."""
    from datasets import Features, List, Value

    return Features({name: List(Value("int32")) if kind == "ids" else Value(kind) for name, kind in _of(method)})


def _of(method: str) -> list[tuple[str, str]]:
    return list(COLUMNS[method].items())


@dataclass(frozen=True)
class Limits:
    """What the config says of length."""

    most: int
    least: int
    overlength: str

    @classmethod
    def of(cls, config: TrainerConfig) -> Limits:
        """The limits of a run."""
        preparation = config.dataset.preparation
        return cls(config.model.max_length, preparation.min_tokens, preparation.overlength)


@dataclass(frozen=True)
class Encoded:
    """What becomes of a row's tokens: columns, or the reason why it is left out; `length` is the longest sequence's."""

    length: int
    rejected: str | None = None
    columns: Mapping[str, object] | None = None
    tokens: int = 0
    supervised: int = 0
    truncated: bool = False


def encode(row: Row, examples: Sequence[Example], limits: Limits, method: str) -> Encoded:
    """The row as columns; `examples` are its conversations."""
    length = max(len(example.input_ids) for example in examples)
    if length < limits.least:
        return Encoded(length, "tooShort")
    truncated = length > limits.most
    if truncated and limits.overlength != "truncate":
        return Encoded(length, "overlength")
    cut = [_cut(example, limits.most) for example in examples] if truncated else examples
    made = _instruction(cut[0]) if method == "sft" else _preference(row, cut)
    return replace(made, length=length, truncated=truncated)


def _cut(example: Example, most: int) -> Example:
    return Example(example.input_ids[:most], example.labels[:most], example.answer)


def _instruction(example: Example) -> Encoded:
    supervised = example.supervised
    if not supervised:
        return Encoded(0, "noSupervisedTokens")
    columns = {"input_ids": example.input_ids, "labels": example.labels}
    return Encoded(0, None, columns, len(example.input_ids), supervised)


def _preference(row: Row, examples: Sequence[Example]) -> Encoded:
    prompts = [example.input_ids[: example.answer] for example in examples]
    answers = [_answer(example) for example in examples]
    # An answer whose start the cut took is none, even where earlier ones of its conversation are left.
    if not all(answers):
        return Encoded(0, "noSupervisedTokens")
    if prompts[0] != prompts[-1]:
        return Encoded(0, "promptsDiffer")
    supervised = sum(map(len, answers))
    made = Encoded(0, None, _named(row, prompts[0], answers), len(prompts[0]) + supervised, supervised)
    same = len(answers) == 2 and answers[0] == answers[1]
    return Encoded(0, "identicalAnswers") if same else made


def _named(row: Row, prompt: list[int], answers: Sequence[list[int]]) -> dict[str, object]:
    if isinstance(row, Judged):
        return {"prompt_ids": prompt, "completion_ids": answers[0], "label": row.good}
    return {"prompt_ids": prompt, "chosen_ids": answers[0], "rejected_ids": answers[1]}


def _answer(example: Example) -> list[int]:
    """The last answer's tokens, without what the template writes after the end of the turn."""
    learnt = [index for index, label in enumerate(example.labels) if label != IGNORED and index >= example.answer]
    return example.input_ids[example.answer : learnt[-1] + 1] if learnt else []
