"""Writer of one split: cleans, filters, renders and tokenizes rows, and writes the tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.contract import Preparation
from finetune_trainer.data import tokenized_rows
from finetune_trainer.data.augment.counterfactual import swap_row_terms
from finetune_trainer.data.cleaning import clean_text
from finetune_trainer.data.deduplication import DuplicateFilter, DuplicateIndex, RowGroups
from finetune_trainer.data.item_texts import map_item_texts
from finetune_trainer.data.loss_masking import LossMasker, RenderedConversation, TokenizedConversation
from finetune_trainer.data.pii import list_pii_kinds, redact_pii
from finetune_trainer.data.preparation_report import RowLedger, RowStats
from finetune_trainer.data.rejections import find_rejection_reason
from finetune_trainer.data.rewritten_text import find_removed_text
from finetune_trainer.data.row_archive import ArchivedRow, RowArchiveWriter, build_archived_row, compute_row_digest
from finetune_trainer.data.row_digests import RowDigests
from finetune_trainer.data.row_locations import RowLocations
from finetune_trainer.data.row_reader import ReadRow, RowReader
from finetune_trainer.data.row_schema import RowSchema
from finetune_trainer.data.row_texts import list_conversations, list_texts, map_texts
from finetune_trainer.data.row_types import RewrittenAnswerError, Row, RowError, SourceLocation
from finetune_trainer.data.tokenized_rows import LengthLimits, TokenizedRow

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

_MAX_BATCH_ROWS = 256
_MAX_BATCH_CHARS = 1 << 22
"""Number of characters after which a batch is closed even if it has fewer rows."""
_MAX_BATCHES_IN_FLIGHT = 4
"""Number of batches that are tokenized, each in a thread, while others are read and written. Tokenizers release the
GIL. Their own thread pool is not used: a process that has it cannot be forked later."""


@dataclass(frozen=True)
class PreparationContext:
    """Settings and collaborators that the splits share."""

    preparation: Preparation
    schema: RowSchema
    limits: LengthLimits
    loss_masker: LossMasker
    ledger: RowLedger
    reader: RowReader
    tokenizer: PreTrainedTokenizerBase
    archives_rows: bool = False
    """Whether the texts of the rows are needed after they are tokenized."""


@dataclass
class PendingRow:
    """A cleaned row on its way to the file, with its statistics so far."""

    location: SourceLocation
    row: Row
    stats: dict[str, int] = field(default_factory=dict)
    original: Row | None = None
    """Row from which augmentation made this one, or None for a row of the data."""
    removed_text: str | None = None
    """Words of the row that its rendered text lacks, or None if there are none."""
    digest: str = ""
    """Digest of the row before it was cleaned, if it is recorded."""
    answer_start: int = 0
    """Index of the first token of the last answer, before truncation."""
    control_token: str | None = None
    """A control token that is typed in a text of the row, or None."""
    item: Mapping[str, Any] = field(default_factory=dict)
    """The columns of the data that graders read, cleaned like the row."""


_TokenizingBatch = tuple[list[tuple[PendingRow, int]], Future[list[TokenizedConversation]]]
"""Rows with their numbers of conversations, and the future of all their tokenized conversations."""


def _prefetch_batches(batches: Iterator[_TokenizingBatch]) -> Iterator[_TokenizingBatch]:
    """Yield the batches in order, while the next few are already being tokenized."""
    in_flight: deque[_TokenizingBatch] = deque()
    for batch in batches:
        in_flight.append(batch)
        if len(in_flight) > _MAX_BATCHES_IN_FLIGHT:
            yield in_flight.popleft()
    yield from in_flight


def _archive_row(pending_row: PendingRow) -> ArchivedRow:
    archived = build_archived_row(pending_row.digest, pending_row.row, pending_row.answer_start)
    return replace(archived, item=pending_row.item)


class SplitWriter:
    """Writes the rows of one split that are not rejected, and their counterfactuals if the context asks for them. The
    digests of the rows are recorded in `digests`."""

    def __init__(
        self,
        context: PreparationContext,
        path: Path,
        duplicate_filter: DuplicateFilter,
        row_groups: RowGroups | None = None,
        digests: RowDigests | None = None,
    ) -> None:
        self._context = context
        self._path = path
        self._duplicate_filter = duplicate_filter
        self.row_groups = row_groups
        self.digests = digests
        self.stats = RowStats(path.with_suffix(".facts"))
        self._locations = RowLocations(path.with_suffix(".locations"))

    @property
    def index(self) -> DuplicateIndex:
        """The written rows, to find their duplicates in other splits."""
        return self._duplicate_filter.index

    def write(self, rows: Iterator[ReadRow]) -> None:
        """Write the tokens of all accepted rows to an Arrow stream, which `datasets` memory-maps."""
        with (
            tokenized_rows.TokenizedRowWriter(self._path, self._context.schema.token_columns) as writer,
            RowArchiveWriter(self._archive_path) if self._context.archives_rows else nullcontext() as archive,
            ThreadPoolExecutor(_MAX_BATCHES_IN_FLIGHT) as executor,
            closing(self.stats),
            closing(self._locations),
            closing(self.digests) if self.digests else nullcontext(),
        ):
            for batch in _prefetch_batches(self._submit_batches(rows, executor)):
                for pending_row, tokenized_row in self._collect_accepted_rows(*batch):
                    writer.add(tokenized_row)
                    if archive:
                        archive.add(_archive_row(pending_row))

    def load_dataset(self) -> datasets.Dataset:
        """Return the written rows, memory-mapped."""
        from datasets import Dataset

        # Not from_generator(): it searches a cache of earlier runs, with a pickle of its arguments as the key.
        return Dataset.from_file(str(self._path))

    def locate_rows(self, rows: NDArray[np.int64]) -> list[SourceLocation]:
        """Return the locations in the data of these written rows."""
        return self._locations.load(rows)

    def load_archive(self) -> datasets.Dataset | None:
        """Return the texts of the written rows, memory-mapped, if they are archived."""
        from datasets import Dataset

        return Dataset.from_file(str(self._archive_path)) if self._context.archives_rows else None

    @property
    def _archive_path(self) -> Path:
        return self._path.with_suffix(".texts.arrow")

    def _submit_batches(self, rows: Iterable[ReadRow], executor: Executor) -> Iterator[_TokenizingBatch]:
        pending_rows: list[tuple[PendingRow, list[RenderedConversation]]] = []
        char_count = 0
        for pending_row in self._filter_rows(rows):
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

    def _filter_rows(self, rows: Iterable[ReadRow]) -> Iterator[PendingRow]:
        """Yield each cleaned row that is worth tokenizing, followed by its counterfactuals."""
        for read_row in rows:
            pending_row = self._clean_row(read_row)
            reason = find_rejection_reason(pending_row.row, drops_echoes=self._context.preparation.drop_echoes)
            if not self._reject_for(reason or self._duplicate_filter.find_exact(pending_row.row), pending_row):
                yield pending_row
                yield from self._build_counterfactuals(pending_row)

    def _clean_row(self, read_row: ReadRow) -> PendingRow:
        preparation, stats, row = self._context.preparation, dict[str, int](), read_row.row
        digest = compute_row_digest(row) if self._context.archives_rows or self.digests else ""
        if preparation.normalize_text:
            cleaned_row = map_texts(row, clean_text)
            stats["cleaned"], row = int(cleaned_row != row), cleaned_row
        pii_kinds = list_pii_kinds(list_texts(row))
        stats.update(dict.fromkeys(pii_kinds, 1))
        stats["redacted"] = sum(kind in preparation.redact for kind in pii_kinds)
        if stats["redacted"]:
            row = map_texts(row, lambda text: redact_pii(text, preparation.redact))
        item = map_item_texts(read_row.item, preparation) if read_row.item else {}
        return PendingRow(read_row.location, row, stats, digest=digest, item=item)

    def _build_counterfactuals(self, pending_row: PendingRow) -> Iterator[PendingRow]:
        """Yield the row with the terms of each category swapped, unless the data contains the result."""
        for category in self._context.preparation.counterfactuals:
            counterfactual = swap_row_terms(pending_row.row, category)
            if counterfactual is not None and not self._duplicate_filter.find_exact(counterfactual):
                yield PendingRow(
                    pending_row.location, counterfactual, {**pending_row.stats, "augmented": 1}, pending_row.row
                )

    def _render_row(self, pending_row: PendingRow) -> list[RenderedConversation]:
        conversations = list_conversations(pending_row.row)
        try:
            rendered = [self._context.loss_masker.render(conversation) for conversation in conversations]
        except RowError as error:
            if pending_row.original is None:
                self._reject_unrenderable(pending_row, error)
            return []
        removed_texts = map(find_removed_text, conversations, rendered)
        pending_row.removed_text = next((text for text in removed_texts if text is not None), None)
        control_tokens = (conversation.control_token for conversation in rendered)
        pending_row.control_token = next((token for token in control_tokens if token is not None), None)
        return rendered

    def _reject_unrenderable(self, pending_row: PendingRow, error: RowError) -> None:
        if isinstance(error, RewrittenAnswerError):
            self._context.ledger.record_unusable_row(pending_row.location, pending_row.row, error)
            self._reject_for("rewrittenAnswer", pending_row)
        else:
            self._context.ledger.rejections.reject_invalid(pending_row.location, error)

    def _collect_accepted_rows(
        self, pending_rows: Iterable[tuple[PendingRow, int]], future: Future[list[TokenizedConversation]]
    ) -> Iterator[tuple[PendingRow, TokenizedRow]]:
        conversations = iter(future.result())
        for pending_row, count in pending_rows:
            row_conversations = list(islice(conversations, count))
            pending_row.answer_start = row_conversations[0].answer_start
            tokenized_row = tokenized_rows.build_tokenized_row(
                pending_row.row, row_conversations, self._context.limits, self._context.schema
            )
            self._context.ledger.record_length(pending_row.location, tokenized_row.length)
            if self._accept_row(pending_row, tokenized_row):
                self._record_stats(pending_row, tokenized_row)
                self._record_answers(pending_row, [] if tokenized_row.is_truncated else row_conversations)
                yield pending_row, tokenized_row

    def _accept_row(self, pending_row: PendingRow, tokenized_row: TokenizedRow) -> bool:
        if pending_row.original:
            return tokenized_row.rejection_reason is None  # an augmented row is not a row of the data: not counted
        # Near-duplicates come after the limits: a row that is too long must not displace a shorter near-duplicate.
        reason = tokenized_row.rejection_reason or self._duplicate_filter.find_near(pending_row.row)
        return not self._reject_for(reason, pending_row)

    def _record_stats(self, pending_row: PendingRow, tokenized_row: TokenizedRow) -> None:
        if self.row_groups:
            self.row_groups.add(pending_row.original or pending_row.row)
        counts = {
            "tokens": tokenized_row.tokens,
            "supervised": tokenized_row.supervised_tokens,
            "truncated": int(tokenized_row.is_truncated),
        }
        self.stats.add({**pending_row.stats, **counts})
        self._locations.add(pending_row.location)
        if self.digests:
            self.digests.add(pending_row.digest)

    def _record_answers(self, pending_row: PendingRow, conversations: Sequence[TokenizedConversation]) -> None:
        """Record how a row was rendered, and the ends of its answers: those of truncated rows are not given."""
        if pending_row.original is None:
            ledger = self._context.ledger
            ledger.record_removed_text(pending_row.location, pending_row.row, pending_row.removed_text)
            ledger.control_tokens.add(pending_row.location, pending_row.control_token)
        self._context.ledger.answer_ends.update(
            conversation.end_token_id for conversation in conversations if conversation.end_token_id is not None
        )

    def _reject_for(self, reason: str | None, pending_row: PendingRow) -> bool:
        """Reject the row if there is a reason. Return whether it is rejected."""
        if reason:
            self._context.ledger.rejections.reject(reason, pending_row.location, list_texts(pending_row.row))
        return reason is not None
