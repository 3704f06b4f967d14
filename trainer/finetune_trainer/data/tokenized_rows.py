"""A row's tokens as the columns of its method, held to the limits of length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from finetune_trainer.contract import TrainerConfig
from finetune_trainer.data.loss_masking import IGNORE_INDEX, TokenizedConversation
from finetune_trainer.data.row_types import LabeledExample, Row

COLUMNS_BY_METHOD: Mapping[str, Mapping[str, str]] = {
    "sft": {"input_ids": "ids", "labels": "ids"},
    "dpo": {"prompt_ids": "ids", "chosen_ids": "ids", "rejected_ids": "ids"},
    "kto": {"prompt_ids": "ids", "completion_ids": "ids", "label": "bool"},
}
"""By `training.method`: the columns of its rows, lists of token numbers or true and false."""


_FLUSH_TOKENS = 1 << 17
"""Tokens, or so, that are written at once."""


class TokenizedRowWriter:
    """Rows to an Arrow stream, which `datasets` maps into memory; many rows at a time, column by column."""

    def __init__(self, path: Path, method: str) -> None:
        import pyarrow as pa
        from datasets import Features, List, Value

        column_types = COLUMNS_BY_METHOD[method].items()
        features = Features(
            {
                name: List(Value("int32")) if column_type == "ids" else Value(column_type)
                for name, column_type in column_types
            }
        )
        self._schema = features.arrow_schema
        self._columns: dict[str, list[object]] = {name: [] for name in features}
        self._buffered_tokens = 0
        self._stream = pa.ipc.new_stream(str(path), self._schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None and self._buffered_tokens:
            self._flush()
        self._stream.close()

    def add(self, tokenized_row: TokenizedRow) -> None:
        """The next row."""
        for name, values in (tokenized_row.columns or {}).items():
            self._columns[name].append(values)
        self._buffered_tokens += tokenized_row.tokens
        if self._buffered_tokens > _FLUSH_TOKENS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        arrays = [pa.array(self._columns[field.name], field.type) for field in self._schema]
        self._stream.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._columns = {name: [] for name in self._columns}
        self._buffered_tokens = 0


@dataclass(frozen=True)
class LengthLimits:
    """What the config and the model allow of length."""

    max_tokens: int
    min_tokens: int
    overlength: str
    is_set_by_model: bool = False
    """Whether `most` is the number of the model's positions, which is lower than `model.maxLength`."""

    @classmethod
    def from_config(cls, config: TrainerConfig, max_positions: int | None) -> LengthLimits:
        """The limits of a run with a model of so many positions."""
        preparation, max_length = config.dataset.preparation, config.model.max_length
        max_tokens = max_length if max_positions is None else min(max_length, max_positions)
        return cls(max_tokens, preparation.min_tokens, preparation.overlength, max_tokens < max_length)

    @property
    def explanation(self) -> str:
        """What sets the limit, as the end of a sentence."""
        return (
            f"the base model has positions for {self.max_tokens}"
            if self.is_set_by_model
            else f"model.maxLength is {self.max_tokens}"
        )


@dataclass(frozen=True)
class TokenizedRow:
    """What becomes of a row's tokens: columns, or the reason why it is left out; `length` is the longest sequence's."""

    length: int
    rejection_reason: str | None = None
    columns: Mapping[str, object] | None = None
    tokens: int = 0
    supervised_tokens: int = 0
    is_truncated: bool = False


def build_tokenized_row(
    row: Row, conversations: Sequence[TokenizedConversation], limits: LengthLimits, method: str
) -> TokenizedRow:
    """The row as columns; `examples` are its conversations."""
    length = max(len(conversation.input_ids) for conversation in conversations)
    if length < limits.min_tokens:
        return TokenizedRow(length, "tooShort")
    is_truncated = length > limits.max_tokens
    if is_truncated and limits.overlength != "truncate":
        return TokenizedRow(length, "overlength")
    limited_conversations = (
        [_truncate(example, limits.max_tokens) for example in conversations] if is_truncated else conversations
    )
    built_columns = (
        _build_sft_columns(limited_conversations[0])
        if method == "sft"
        else _build_preference_columns(row, limited_conversations)
    )
    if isinstance(built_columns, str):
        return TokenizedRow(length, built_columns)
    columns, tokens, supervised_tokens = built_columns
    return TokenizedRow(length, None, columns, tokens, supervised_tokens, is_truncated)


_BuiltColumns = tuple[dict[str, object], int, int]
"""Columns, their tokens, and how many of these are learnt."""


def _truncate(conversation: TokenizedConversation, max_tokens: int) -> TokenizedConversation:
    return TokenizedConversation(
        conversation.input_ids[:max_tokens], conversation.labels[:max_tokens], conversation.answer_start
    )


def _build_sft_columns(conversation: TokenizedConversation) -> _BuiltColumns | str:
    supervised_tokens = conversation.supervised_tokens
    if not supervised_tokens:
        return "noSupervisedTokens"
    return (
        {"input_ids": conversation.input_ids, "labels": conversation.labels},
        len(conversation.input_ids),
        supervised_tokens,
    )


def _build_preference_columns(row: Row, conversations: Sequence[TokenizedConversation]) -> _BuiltColumns | str:
    prompt_ids = [conversation.input_ids[: conversation.answer_start] for conversation in conversations]
    answer_ids = [_extract_answer_ids(example) for example in conversations]
    # An answer whose start the cut took is none, even where earlier ones of its conversation are left.
    if not all(answer_ids):
        return "noSupervisedTokens"
    if prompt_ids[0] != prompt_ids[-1]:
        return "promptsDiffer"
    if len(answer_ids) == 2 and answer_ids[0] == answer_ids[1]:
        return "identicalAnswers"
    supervised_tokens = sum(map(len, answer_ids))
    return (
        _name_answer_columns(row, prompt_ids[0], answer_ids),
        len(prompt_ids[0]) + supervised_tokens,
        supervised_tokens,
    )


def _name_answer_columns(row: Row, prompt_ids: list[int], answer_ids: Sequence[list[int]]) -> dict[str, object]:
    if isinstance(row, LabeledExample):
        return {"prompt_ids": prompt_ids, "completion_ids": answer_ids[0], "label": row.desirable}
    return {"prompt_ids": prompt_ids, "chosen_ids": answer_ids[0], "rejected_ids": answer_ids[1]}


def _extract_answer_ids(conversation: TokenizedConversation) -> list[int]:
    """The last answer's tokens, without what the template writes after the end of the turn."""
    supervised_indices = [
        index
        for index, label in enumerate(conversation.labels)
        if label != IGNORE_INDEX and index >= conversation.answer_start
    ]
    return conversation.input_ids[conversation.answer_start : supervised_indices[-1] + 1] if supervised_indices else []
