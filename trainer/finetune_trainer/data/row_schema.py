"""The part of a training method that data preparation needs: which rows it reads and how it stores their tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from finetune_trainer.data.loss_masking import TokenizedConversation
    from finetune_trainer.data.row_columns import RowColumns
    from finetune_trainer.data.row_types import Row


@dataclass(frozen=True)
class TokenColumns:
    """The columns of one tokenized row, with its number of tokens and how many of them are supervised."""

    values: Mapping[str, object]
    tokens: int
    supervised_tokens: int


class RowSchema(ABC):
    """The rows of a training method. The methods are in `training.methods`."""

    token_columns: Mapping[str, str]
    """The columns of a tokenized row: `ids` for a list of token IDs, else the name of an Arrow type."""

    @abstractmethod
    def detect_format(self, row: Mapping[str, Any]) -> str:
        """Return the format of a row, by its columns. Raises `RowError`."""

    @abstractmethod
    def parse_row(self, row: RowColumns, row_format: str) -> Sequence[Row]:
        """Return the training rows that a row of the data contains. Raises `RowError`."""

    @abstractmethod
    def build_columns(self, row: Row, conversations: Sequence[TokenizedConversation]) -> TokenColumns | str:
        """Return the columns of a row, from its tokenized conversations, or the reason why the row is rejected."""


@dataclass(frozen=True)
class RowEncoding:
    """How rows become tokens."""

    tokenizer: PreTrainedTokenizerBase
    schema: RowSchema
    max_positions: int | None = None
    """The number of positions of the base model, if it is limited. No row is longer."""
    template_date: date | None = None
    """Date that the chat template writes as the current one. None: it writes today's date, or none."""
