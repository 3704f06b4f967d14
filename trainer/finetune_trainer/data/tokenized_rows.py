"""A row's tokens as the columns of its method, held to the limits of length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.data.loss_masking import IGNORED, Example
from finetune_trainer.data.rows import Judged, Row

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "sft": {"input_ids": "ids", "labels": "ids"},
    "dpo": {"prompt_ids": "ids", "chosen_ids": "ids", "rejected_ids": "ids"},
    "kto": {"prompt_ids": "ids", "completion_ids": "ids", "label": "bool"},
}
"""By `training.method`: the columns of its rows, lists of token numbers or true and false."""


_WRITTEN = 1 << 17
"""Tokens, or so, that are written at once."""


class Writer:
    """Rows to an Arrow stream, which `datasets` maps into memory; many rows at a time, column by column."""

    def __init__(self, path: Path, method: str) -> None:
        import pyarrow as pa
        from datasets import Features, List, Value

        kinds = COLUMNS[method].items()
        features = Features({name: List(Value("int32")) if kind == "ids" else Value(kind) for name, kind in kinds})
        self._schema = features.arrow_schema
        self._columns: dict[str, list[object]] = {name: [] for name in features}
        self._waiting = 0
        self._stream = pa.ipc.new_stream(str(path), self._schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._waiting:
            self._flush()
        self._stream.close()

    def add(self, encoded: Encoded) -> None:
        """The next row."""
        for name, values in (encoded.columns or {}).items():
            self._columns[name].append(values)
        self._waiting += encoded.tokens
        if self._waiting > _WRITTEN:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        arrays = [pa.array(self._columns[field.name], field.type) for field in self._schema]
        self._stream.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._columns = {name: [] for name in self._columns}
        self._waiting = 0


@dataclass(frozen=True)
class Limits:
    """What the config and the model allow of length."""

    most: int
    least: int
    overlength: str
    by_model: bool = False
    """Whether `most` is the number of the model's positions, which is lower than `model.maxLength`."""

    @classmethod
    def of(cls, config: TrainerConfig, positions: int | None) -> Limits:
        """The limits of a run with a model of so many positions."""
        preparation, asked = config.dataset.preparation, config.model.max_length
        most = asked if positions is None else min(asked, positions)
        return cls(most, preparation.min_tokens, preparation.overlength, most < asked)

    @property
    def reason(self) -> str:
        """What sets the limit, as the end of a sentence."""
        return f"the base model has positions for {self.most}" if self.by_model else f"model.maxLength is {self.most}"


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
    if isinstance(made, str):
        return Encoded(length, made)
    columns, tokens, supervised = made
    return Encoded(length, None, columns, tokens, supervised, truncated)


_Made = tuple[dict[str, object], int, int]
"""Columns, their tokens, and how many of these are learnt."""


def _cut(example: Example, most: int) -> Example:
    return Example(example.input_ids[:most], example.labels[:most], example.answer)


def _instruction(example: Example) -> _Made | str:
    supervised = example.supervised
    if not supervised:
        return "noSupervisedTokens"
    return {"input_ids": example.input_ids, "labels": example.labels}, len(example.input_ids), supervised


def _preference(row: Row, examples: Sequence[Example]) -> _Made | str:
    prompts = [example.input_ids[: example.answer] for example in examples]
    answers = [_answer(example) for example in examples]
    # An answer whose start the cut took is none, even where earlier ones of its conversation are left.
    if not all(answers):
        return "noSupervisedTokens"
    if prompts[0] != prompts[-1]:
        return "promptsDiffer"
    if len(answers) == 2 and answers[0] == answers[1]:
        return "identicalAnswers"
    supervised = sum(map(len, answers))
    return _named(row, prompts[0], answers), len(prompts[0]) + supervised, supervised


def _named(row: Row, prompt: list[int], answers: Sequence[list[int]]) -> dict[str, object]:
    if isinstance(row, Judged):
        return {"prompt_ids": prompt, "completion_ids": answers[0], "label": row.good}
    return {"prompt_ids": prompt, "chosen_ids": answers[0], "rejected_ids": answers[1]}


def _answer(example: Example) -> list[int]:
    """The last answer's tokens, without what the template writes after the end of the turn."""
    learnt = [index for index, label in enumerate(example.labels) if label != IGNORED and index >= example.answer]
    return example.input_ids[example.answer : learnt[-1] + 1] if learnt else []
