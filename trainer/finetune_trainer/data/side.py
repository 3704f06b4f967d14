"""Rows of one side, training or validation: from what was read to a file of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import Preparation
from finetune_trainer.data import columns
from finetune_trainer.data.account import Account, Facts
from finetune_trainer.data.cleaning import clean
from finetune_trainer.data.columns import Encoded, Limits
from finetune_trainer.data.duplicates import Groups, Hashes, Near, signature
from finetune_trainer.data.labels import Labeller, Rendered
from finetune_trainer.data.row_texts import conversations, mapped, texts, why_no_example
from finetune_trainer.data.rows import Place, Reader, Row, RowError
from finetune_trainer.data.sensitive import find, redact

if TYPE_CHECKING:
    import datasets

_BATCH = 256


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
        from datasets.arrow_writer import ArrowWriter

        features = columns.features(self._context.method)
        with ArrowWriter(features=features, path=str(self._path), writer_batch_size=_BATCH) as writer:
            while batch := list(islice(rows, _BATCH)):
                for kept in self._kept(batch):
                    writer.write(dict(kept))
            writer.finalize()
        self.facts.close()

    def dataset(self) -> datasets.Dataset:
        """What was written."""
        from datasets import Dataset

        # Straight from our own file: from_generator would look for an earlier run's in a cache, keyed by a pickle of
        # its arguments.
        return Dataset.from_file(str(self._path))

    def _kept(self, batch: Iterable[tuple[Place, Row]]) -> Iterator[dict[str, object]]:
        candidates = [(each, self._rendered(each)) for each in self._screened(batch)]
        usable = [(each, rendered) for each, rendered in candidates if rendered]
        examples = iter(self._context.labeller.encode([one for _, rendered in usable for one in rendered]))
        for candidate, rendered in usable:
            mine = list(islice(examples, len(rendered)))
            encoded = columns.encode(candidate.row, mine, self._context.limits, self._context.method)
            if self._accepts(candidate, encoded):
                yield dict(encoded.columns or {})

    def _screened(self, batch: Iterable[tuple[Place, Row]]) -> Iterator[_Candidate]:
        for place, row in batch:
            candidate = self._cleaned(place, row)
            if not self._rejects(why_no_example(candidate.row) or self._why_known(candidate.row)):
                yield candidate

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

    def _rejects(self, reason: str | None) -> bool:
        if reason:
            self._context.account.reject(reason)
        return reason is not None

    def _accepts(self, candidate: _Candidate, encoded: Encoded) -> bool:
        self._context.account.measure(candidate.place, encoded.length)
        if self._rejects(encoded.rejected or self._why_near(candidate.row)):
            return False
        if self.groups:
            self.groups.add(candidate.row)
        counts = {"tokens": encoded.tokens, "supervised": encoded.supervised, "truncated": int(encoded.truncated)}
        self.facts.add({**candidate.facts, **counts})
        return True

    def _why_near(self, row: Row) -> str | None:
        """After the tokens: a row that is too long must not stand in the way of a shorter one that is nearly it."""
        if self.known.near is None:
            return None
        mine = signature(row)
        if self._held_out and self._held_out.near and any(True for _ in self._held_out.near.like(mine)):
            return "leaked"
        if any(True for _ in self.known.near.like(mine)):
            return "nearDuplicate"
        self.known.near.add(mine)
        return None
