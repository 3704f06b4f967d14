"""Tokenized rows: length limits, the columns of the training method, and the Arrow file that they are written to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from finetune_trainer.contract import Reason, TrainerConfig
from finetune_trainer.data.loss_masking import TokenizedConversation
from finetune_trainer.data.row_schema import RowSchema
from finetune_trainer.data.row_types import Row
from finetune_trainer.errors import TrainerError

_FLUSH_TOKENS = 1 << 17
"""Approximate number of tokens per record batch."""


class TokenizedRowWriter:
    """Writes rows to an Arrow stream, which `datasets` can map into memory, in batches of many rows."""

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        import pyarrow as pa
        from datasets import Features, List, Value

        features = Features(
            {
                name: List(Value("int32")) if column_type == "ids" else Value(column_type)
                for name, column_type in columns.items()
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
        """Append a row."""
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
    """The minimum and maximum length of a row, in tokens, and what happens to longer rows."""

    max_tokens: int
    min_tokens: int
    overlength: str
    is_set_by_model: bool = False
    """Whether `max_tokens` is the number of the model's positions, which is lower than `model.maxLength`."""

    @classmethod
    def from_config(cls, config: TrainerConfig, max_positions: int | None) -> LengthLimits:
        """Return the limits of a run whose model has `max_positions` positions. Methods that generate answers need room
        for them. Raises `CONFIG_INVALID` if there is none for a prompt."""
        preparation, max_length = config.dataset.preparation, config.model.max_length
        max_tokens = max_length if max_positions is None else min(max_length, max_positions)
        is_set_by_model = max_tokens < max_length
        if config.training.is_policy_method:
            max_tokens -= config.training.effective_rollout.max_new_tokens
        if max_tokens < 1:
            message = "training.rollout.maxNewTokens leaves no token of model.maxLength for a prompt; lower it"
            raise TrainerError(Reason.CONFIG_INVALID, message)
        return cls(max_tokens, preparation.min_tokens, preparation.overlength, is_set_by_model)

    @property
    def explanation(self) -> str:
        """Say what sets the limit, as the end of a sentence."""
        return (
            f"the base model has positions for {self.max_tokens}"
            if self.is_set_by_model
            else f"model.maxLength is {self.max_tokens}"
        )


@dataclass(frozen=True)
class TokenizedRow:
    """A row in tokens: its columns, or the reason why it is rejected."""

    length: int
    """Tokens of the longest sequence of the row, before truncation."""
    rejection_reason: str | None = None
    columns: Mapping[str, object] | None = None
    tokens: int = 0
    supervised_tokens: int = 0
    is_truncated: bool = False


def build_tokenized_row(
    row: Row, conversations: Sequence[TokenizedConversation], limits: LengthLimits, schema: RowSchema
) -> TokenizedRow:
    """Return the row in the columns of `schema`; `conversations` are the tokenized conversations of the row."""
    length = max(len(conversation.id_array) for conversation in conversations)
    if length < limits.min_tokens:
        return TokenizedRow(length, "tooShort")
    is_truncated = length > limits.max_tokens
    if is_truncated and limits.overlength != "truncate":
        return TokenizedRow(length, "overlength")
    if is_truncated:
        conversations = [conversation.truncate(limits.max_tokens) for conversation in conversations]
    columns = schema.build_columns(row, conversations)
    if isinstance(columns, str):
        return TokenizedRow(length, columns)
    return TokenizedRow(length, None, columns.values, columns.tokens, columns.supervised_tokens, is_truncated)
