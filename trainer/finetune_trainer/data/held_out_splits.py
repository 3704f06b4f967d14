"""Splits with sources of their own that are not trained on: the test rows and the validation rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import DataSource, Reason
from finetune_trainer.data.deduplication import DuplicateFilter, DuplicateIndex, HashSet, MinHashIndex
from finetune_trainer.data.row_digests import RowDigests
from finetune_trainer.data.row_types import SourceFile
from finetune_trainer.data.split_writer import PreparationContext, SplitWriter
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    import datasets

    from finetune_trainer.data.row_digests import DigestTable

TEST, VALIDATION = "test", "validation"
_FIELDS = {TEST: "evaluation.test.sources", VALIDATION: "dataset.validation.sources"}
"""Field of the config that has the sources of a split."""


@dataclass(frozen=True)
class DuplicateSearch:
    """Creates the indexes in which the rows of each split are found again."""

    context: PreparationContext
    folder: Path
    """Folder for the files of the indexes."""
    boilerplate: frozenset[int] | None
    """Shingles that comparisons ignore."""

    def create_filter(self, held_out: Sequence[DuplicateIndex], *, is_held_out: bool = False) -> DuplicateFilter:
        """Return a filter with an empty index for one split. `held_out` are the splits that it must not repeat. The
        rows of a held-out split are indexed even if duplicates within a split are kept."""
        preparation = self.context.preparation
        rejects_duplicates = preparation.deduplicate != "none"
        exact = HashSet(self.folder) if rejects_duplicates or is_held_out else None
        needs_near = preparation.deduplicate == "near"
        near = MinHashIndex(preparation.near_threshold, self.boilerplate or frozenset()) if needs_near else None
        return DuplicateFilter(DuplicateIndex(exact, near), rejects_duplicates, held_out)


@dataclass
class HeldOutSplits:
    """Writes the held-out splits one after the other. A row of an earlier split is `leaked` in a later one."""

    search: DuplicateSearch
    work_dir: Path
    _writers: dict[str, SplitWriter] = field(default_factory=dict)

    @property
    def indexes(self) -> list[DuplicateIndex]:
        """The rows of the splits that are written, by split."""
        return [writer.index for writer in self._writers.values()]

    def write(self, name: str, sources: Sequence[tuple[DataSource, Sequence[SourceFile]]]) -> None:
        """Write the rows of a split, which are not augmented. Without sources, there is no such split."""
        if not sources:
            return
        context = self.search.context
        unaugmented = context.preparation.model_copy(update={"counterfactuals": []})
        row_filter = self.search.create_filter(self.indexes, is_held_out=True)
        digests = RowDigests(self.work_dir / f"{name}.digests") if name == VALIDATION else None
        path = self.work_dir / f"{name}.arrow"
        writer = SplitWriter(replace(context, preparation=unaugmented), path, row_filter, digests=digests)
        writer.write(context.reader.read(sources))
        self._writers[name] = writer

    def count_rows(self, name: str) -> int | None:
        """Return the number of rows of a split, or None if it has no sources."""
        return self._writers[name].stats.row_count if name in self._writers else None

    def load_dataset(self, name: str) -> datasets.Dataset | None:
        """Return the rows of a split, or None if it has no sources. Raises `DATASET_EMPTY` if all were rejected."""
        if name not in self._writers:
            return None
        if not self.count_rows(name):
            message = f"{_FIELDS[name]}: all of their rows were rejected; see the rejected rows in the report"
            raise TrainerError(Reason.DATASET_EMPTY, message)
        return self._writers[name].load_dataset()

    def load_digests(self, name: str) -> DigestTable | None:
        """Return the digests of the rows of a split, or None if they are not recorded or there is no such split."""
        digests = self._writers[name].digests if name in self._writers else None
        return digests.load() if digests else None

    def load_archive(self, name: str) -> datasets.Dataset | None:
        """Return the texts of the rows of a split, if they are archived, or None if it has no sources."""
        return self._writers[name].load_archive() if name in self._writers else None
