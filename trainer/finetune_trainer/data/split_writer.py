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
from finetune_trainer.data.augment.counterfactual import swapped_row
from finetune_trainer.data.cleaning import clean
from finetune_trainer.data.deduplication import Groups, Hashes, Near
from finetune_trainer.data.loss_masking import Example, Labeller, Rendered
from finetune_trainer.data.pii import find, redact
from finetune_trainer.data.preparation_report import Account, Facts
from finetune_trainer.data.row_texts import conversations, mapped, texts, why_no_example
from finetune_trainer.data.rows import Place, Reader, Row, RowError
from finetune_trainer.data.tokenized_rows import Encoded, Limits

if TYPE_CHECKING:
    import datasets

_BATCH = 256
_BATCH_CHARS = 1 << 22
"""A batch of long rows is written earlier."""
_AHEAD = 4
"""Batches that the tokenizer works on, each in a thread, while others are read and written; it lets go of Python's
lock. Not in threads of its own: a process that has those cannot be forked later."""


@dataclass(frozen=True)
class Known:
    """Rows of a side, to tell whether another is one of them."""

    exact: Hashes
    near: Near | None
    remembers: bool = True


@dataclass(frozen=True)
class Context:
    """What both sides share."""

    preparation: Preparation
    method: str
    limits: Limits
    labeller: Labeller
    account: Account
    reader: Reader


@dataclass
class _Candidate:
    """A row on its way, and what was found out about it."""

    place: Place
    row: Row
    facts: dict[str, int] = field(default_factory=dict)
    origin: Row | None = None
    """The row that this one was made from, if it was."""


_Batch = tuple[list[tuple[_Candidate, int]], Future[list[Example]]]
"""Rows with the number of their conversations, and these as tokens, soon."""


def _ahead(batches: Iterator[_Batch]) -> Iterator[_Batch]:
    """The batches in their order, each after some more have been begun."""
    begun: deque[_Batch] = deque()
    for batch in batches:
        begun.append(batch)
        if len(begun) > _AHEAD:
            yield begun.popleft()
    yield from begun


class Side:
    """Writes one side; rows that `held_out` has are left out as leaked."""

    def __init__(self, context: Context, path: Path, known: Known, held_out: Known | None = None) -> None:
        self._context = context
        self._path = path
        self._held_out = held_out
        self.known = known
        self.groups: Groups | None = None
        self.facts = Facts(path.with_suffix(".facts"))

    def write(self, rows: Iterator[tuple[Place, Row]]) -> None:
        """All rows that are kept to an Arrow stream, which `datasets` maps into memory."""
        with tokenized_rows.Writer(self._path, self._context.method) as writer, ThreadPoolExecutor(_AHEAD) as beside:
            for batch in _ahead(self._batches(rows, beside)):
                for kept in self._kept(*batch):
                    writer.add(kept)
        self.facts.close()

    def dataset(self) -> datasets.Dataset:
        """What was written."""
        from datasets import Dataset

        # Straight from our own file: from_generator would look for an earlier run's in a cache, keyed by a pickle of
        # its arguments.
        return Dataset.from_file(str(self._path))

    def _batches(self, rows: Iterable[tuple[Place, Row]], beside: Executor) -> Iterator[_Batch]:
        waiting: list[tuple[_Candidate, list[Rendered]]] = []
        size = 0
        for candidate in self._screened(rows):
            if rendered := self._rendered(candidate):
                waiting.append((candidate, rendered))
                size += sum(len(each.text) for each in rendered)
            if len(waiting) == _BATCH or size > _BATCH_CHARS:
                yield self._batch(waiting, beside)
                waiting, size = [], 0
        yield self._batch(waiting, beside)

    def _batch(self, waiting: Sequence[tuple[_Candidate, list[Rendered]]], beside: Executor) -> _Batch:
        texts = [each for _, rendered in waiting for each in rendered]
        counted = [(candidate, len(rendered)) for candidate, rendered in waiting]
        return counted, beside.submit(self._context.labeller.encode, texts)

    def _kept(self, candidates: Iterable[tuple[_Candidate, int]], encoding: Future[list[Example]]) -> Iterator[Encoded]:
        examples = iter(encoding.result())
        for candidate, count in candidates:
            mine = list(islice(examples, count))
            encoded = tokenized_rows.encode(candidate.row, mine, self._context.limits, self._context.method)
            if self._accepts(candidate, encoded):
                yield encoded

    def _screened(self, rows: Iterable[tuple[Place, Row]]) -> Iterator[_Candidate]:
        for place, row in rows:
            candidate = self._cleaned(place, row)
            if not self._rejects(candidate, why_no_example(candidate.row) or self._why_known(candidate.row)):
                yield candidate
                if self._held_out:
                    yield from self._counterfactuals(candidate)

    def _counterfactuals(self, candidate: _Candidate) -> Iterator[_Candidate]:
        """The row with the terms of each category exchanged; none that is there already."""
        for category in self._context.preparation.counterfactuals:
            made = swapped_row(candidate.row, category)
            if made is not None and not self._why_known(made):
                yield _Candidate(candidate.place, made, {**candidate.facts, "augmented": 1}, candidate.row)

    def _cleaned(self, place: Place, row: Row) -> _Candidate:
        preparation, facts = self._context.preparation, dict[str, int]()
        if preparation.normalize_text:
            cleaned = mapped(row, clean)
            facts["cleaned"], row = int(cleaned != row), cleaned
        found = [place.kind for text in texts(row) for place in find(text)]
        facts.update(dict.fromkeys(found, 1))
        facts["redacted"] = sum(kind in preparation.redact for kind in found)
        if facts["redacted"]:
            row = mapped(row, lambda text: redact(text, preparation.redact))
        return _Candidate(place, row, facts)

    def _why_known(self, row: Row) -> str | None:
        if self._held_out and row in self._held_out.exact:
            return "leaked"
        new = self.known.exact.add(row) if self.known.remembers else True
        return None if new or self._context.preparation.deduplicate == "none" else "duplicate"

    def _rendered(self, candidate: _Candidate) -> list[Rendered]:
        try:
            return [self._context.labeller.render(each) for each in conversations(candidate.row)]
        except RowError as why:
            self._context.reader.offenders.add(candidate.place, why)
            return []

    def _rejects(self, candidate: _Candidate, reason: str | None) -> bool:
        if reason:
            self._context.account.reject(reason, candidate.place, texts(candidate.row))
        return reason is not None

    def _accepts(self, candidate: _Candidate, encoded: Encoded) -> bool:
        self._context.account.measure(candidate.place, encoded.length)
        if candidate.origin and encoded.rejected:
            return False  # not one of the data's rows, so none is left out
        if not candidate.origin and self._rejects(candidate, encoded.rejected or self._why_near(candidate.row)):
            return False
        if self.groups:
            self.groups.add(candidate.origin or candidate.row)
        counts = {"tokens": encoded.tokens, "supervised": encoded.supervised, "truncated": int(encoded.truncated)}
        self.facts.add({**candidate.facts, **counts})
        return True

    def _why_near(self, row: Row) -> str | None:
        """After the tokens: a row that is too long must not stand in the way of a shorter one that is nearly it."""
        if self.known.near is None:
            return None
        mine = self.known.near.signature(row)
        if self._held_out and self._held_out.near and any(True for _ in self._held_out.near.like(mine)):
            return "leaked"
        if any(True for _ in self.known.near.like(mine)):
            return "nearDuplicate"
        self.known.near.add(mine)
        return None
