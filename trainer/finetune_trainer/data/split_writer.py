"""Rows of one side, training or validation: from what was read to a file of tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import Preparation
from finetune_trainer.data import tokenized_rows
from finetune_trainer.data.augment.counterfactual import swap_row_terms
from finetune_trainer.data.cleaning import clean_text
from finetune_trainer.data.deduplication import HashSet, MinHashIndex, RowGroups
from finetune_trainer.data.loss_masking import LossMasker, RenderedConversation, TokenizedConversation
from finetune_trainer.data.pii import find_pii, redact_pii
from finetune_trainer.data.preparation_report import RowLedger, RowStats
from finetune_trainer.data.row_schema import RowSchema
from finetune_trainer.data.row_texts import find_rejection_reason, list_conversations, list_texts, map_texts
from finetune_trainer.data.rows import Row, RowError, RowReader, SourceLocation
from finetune_trainer.data.tokenized_rows import LengthLimits, TokenizedRow

if TYPE_CHECKING:
    import datasets

_MAX_BATCH_ROWS = 256
_MAX_BATCH_CHARS = 1 << 22
"""A batch of long rows is written earlier."""
_MAX_BATCHES_IN_FLIGHT = 4
"""Batches that the tokenizer works on, each in a thread, while others are read and written; it lets go of Python's
lock. Not in threads of its own: a process that has those cannot be forked later."""


@dataclass(frozen=True)
class DuplicateIndex:
    """Rows of a side, to tell whether another is one of them."""

    exact: HashSet
    near: MinHashIndex | None
    tracks_exact: bool = True


@dataclass(frozen=True)
class PreparationContext:
    """What both sides share."""

    preparation: Preparation
    schema: RowSchema
    limits: LengthLimits
    loss_masker: LossMasker
    ledger: RowLedger
    reader: RowReader


@dataclass
class PendingRow:
    """A row on its way, and what was found out about it."""

    location: SourceLocation
    row: Row
    stats: dict[str, int] = field(default_factory=dict)
    original: Row | None = None
    """The row that this one was made from, if it was."""


_TokenizingBatch = tuple[list[tuple[PendingRow, int]], Future[list[TokenizedConversation]]]
"""Rows with the number of their conversations, and these as tokens, soon."""


def _prefetch_batches(batches: Iterator[_TokenizingBatch]) -> Iterator[_TokenizingBatch]:
    """The batches in their order, each after some more have been begun."""
    in_flight: deque[_TokenizingBatch] = deque()
    for batch in batches:
        in_flight.append(batch)
        if len(in_flight) > _MAX_BATCHES_IN_FLIGHT:
            yield in_flight.popleft()
    yield from in_flight


class SplitWriter:
    """Writes one side; rows that `held_out` has are left out as leaked."""

    def __init__(
        self,
        context: PreparationContext,
        path: Path,
        duplicate_index: DuplicateIndex,
        held_out_index: DuplicateIndex | None = None,
    ) -> None:
        self._context = context
        self._path = path
        self._held_out_index = held_out_index
        self.duplicate_index = duplicate_index
        self.row_groups: RowGroups | None = None
        self.stats = RowStats(path.with_suffix(".facts"))

    def write(self, rows: Iterator[tuple[SourceLocation, Row]]) -> None:
        """All rows that are kept to an Arrow stream, which `datasets` maps into memory."""
        with (
            tokenized_rows.TokenizedRowWriter(self._path, self._context.schema.token_columns) as writer,
            ThreadPoolExecutor(_MAX_BATCHES_IN_FLIGHT) as executor,
        ):
            for batch in _prefetch_batches(self._submit_batches(rows, executor)):
                for tokenized_row in self._collect_accepted_rows(*batch):
                    writer.add(tokenized_row)
        self.stats.close()

    def load_dataset(self) -> datasets.Dataset:
        """What was written."""
        from datasets import Dataset

        # Straight from our own file: from_generator would look for an earlier run's in a cache, keyed by a pickle of
        # its arguments.
        return Dataset.from_file(str(self._path))

    def _submit_batches(
        self, rows: Iterable[tuple[SourceLocation, Row]], executor: Executor
    ) -> Iterator[_TokenizingBatch]:
        pending_rows: list[tuple[PendingRow, list[RenderedConversation]]] = []
        char_count = 0
        for pending_row in self._screen_rows(rows):
            if rendered := self._render_row(pending_row):
                pending_rows.append((pending_row, rendered))
                char_count += sum(len(conversation.text) for conversation in rendered)
            if len(pending_rows) == _MAX_BATCH_ROWS or char_count > _MAX_BATCH_CHARS:
                yield self._submit_batch(pending_rows, executor)
                pending_rows, char_count = [], 0
        yield self._submit_batch(pending_rows, executor)

    def _submit_batch(
        self, pending_rows: Sequence[tuple[PendingRow, list[RenderedConversation]]], executor: Executor
    ) -> _TokenizingBatch:
        conversations = [conversation for _, rendered in pending_rows for conversation in rendered]
        rows_with_counts = [(pending_row, len(rendered)) for pending_row, rendered in pending_rows]
        return rows_with_counts, executor.submit(self._context.loss_masker.tokenize, conversations)

    def _collect_accepted_rows(
        self, pending_rows: Iterable[tuple[PendingRow, int]], future: Future[list[TokenizedConversation]]
    ) -> Iterator[TokenizedRow]:
        conversations = iter(future.result())
        for pending_row, count in pending_rows:
            row_conversations = list(islice(conversations, count))
            tokenized_row = tokenized_rows.build_tokenized_row(
                pending_row.row, row_conversations, self._context.limits, self._context.schema
            )
            if self._accept_row(pending_row, tokenized_row):
                yield tokenized_row

    def _screen_rows(self, rows: Iterable[tuple[SourceLocation, Row]]) -> Iterator[PendingRow]:
        for location, row in rows:
            pending_row = self._clean_row(location, row)
            if not self._record_rejection(
                pending_row, find_rejection_reason(pending_row.row) or self._check_exact_duplicate(pending_row.row)
            ):
                yield pending_row
                if self._held_out_index:
                    yield from self._build_counterfactuals(pending_row)

    def _build_counterfactuals(self, pending_row: PendingRow) -> Iterator[PendingRow]:
        """The row with the terms of each category exchanged; none that is there already."""
        for category in self._context.preparation.counterfactuals:
            counterfactual = swap_row_terms(pending_row.row, category)
            if counterfactual is not None and not self._check_exact_duplicate(counterfactual):
                yield PendingRow(
                    pending_row.location, counterfactual, {**pending_row.stats, "augmented": 1}, pending_row.row
                )

    def _clean_row(self, location: SourceLocation, row: Row) -> PendingRow:
        preparation, stats = self._context.preparation, dict[str, int]()
        if preparation.normalize_text:
            cleaned_row = map_texts(row, clean_text)
            stats["cleaned"], row = int(cleaned_row != row), cleaned_row
        pii_kinds = [span.kind for text in list_texts(row) for span in find_pii(text)]
        stats.update(dict.fromkeys(pii_kinds, 1))
        stats["redacted"] = sum(kind in preparation.redact for kind in pii_kinds)
        if stats["redacted"]:
            row = map_texts(row, lambda text: redact_pii(text, preparation.redact))
        return PendingRow(location, row, stats)

    def _check_exact_duplicate(self, row: Row) -> str | None:
        if self._held_out_index and row in self._held_out_index.exact:
            return "leaked"
        is_new = self.duplicate_index.exact.add(row) if self.duplicate_index.tracks_exact else True
        return None if is_new or self._context.preparation.deduplicate == "none" else "duplicate"

    def _render_row(self, pending_row: PendingRow) -> list[RenderedConversation]:
        try:
            return [
                self._context.loss_masker.render(conversation) for conversation in list_conversations(pending_row.row)
            ]
        except RowError as error:
            self._context.reader.invalid_rows.add(pending_row.location, error)
            return []

    def _record_rejection(self, pending_row: PendingRow, reason: str | None) -> bool:
        if reason:
            self._context.ledger.reject(reason, pending_row.location, list_texts(pending_row.row))
        return reason is not None

    def _accept_row(self, pending_row: PendingRow, tokenized_row: TokenizedRow) -> bool:
        self._context.ledger.record_length(pending_row.location, tokenized_row.length)
        if pending_row.original and tokenized_row.rejection_reason:
            return False  # not one of the data's rows, so none is left out
        if not pending_row.original and self._record_rejection(
            pending_row, tokenized_row.rejection_reason or self._check_near_duplicate(pending_row.row)
        ):
            return False
        if self.row_groups:
            self.row_groups.add(pending_row.original or pending_row.row)
        counts = {
            "tokens": tokenized_row.tokens,
            "supervised": tokenized_row.supervised_tokens,
            "truncated": int(tokenized_row.is_truncated),
        }
        self.stats.add({**pending_row.stats, **counts})
        return True

    def _check_near_duplicate(self, row: Row) -> str | None:
        """After the tokens: a row that is too long must not stand in the way of a shorter one that is nearly it."""
        if self.duplicate_index.near is None:
            return None
        signature = self.duplicate_index.near.compute_signature(row)
        if (
            self._held_out_index
            and self._held_out_index.near
            and any(True for _ in self._held_out_index.near.query(signature))
        ):
            return "leaked"
        if any(True for _ in self.duplicate_index.near.query(signature)):
            return "nearDuplicate"
        self.duplicate_index.near.insert(signature)
        return None
