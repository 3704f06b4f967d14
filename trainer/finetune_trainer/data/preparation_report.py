"""The dataset report: it accounts for every row that was read, and sums up the rows that are trained on."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import DatasetReport, Reason, TrainerConfig
from finetune_trainer.data.pii import PII_KINDS
from finetune_trainer.data.rejections import Rejections, RowErrors
from finetune_trainer.data.rewritten_text import RewrittenRows
from finetune_trainer.data.row_counter import RowCounter
from finetune_trainer.data.row_types import RewrittenAnswerError, Row, RowError, SourceLocation
from finetune_trainer.data.template_remedies import describe_problem, describe_remedy
from finetune_trainer.data.tokenized_rows import LengthLimits
from finetune_trainer.errors import TrainerError
from finetune_trainer.formatting import format_share
from finetune_trainer.records.evaluation import LengthBin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

STAT_NAMES = ("tokens", "supervised", "cleaned", "truncated", "redacted", "augmented", *PII_KINDS)
"""Statistics that are recorded for each kept row."""
_MAX_NAMED_OBJECTS = 5
_HISTOGRAM_BARS = 30


class RowStats:
    """Statistics of each kept row, in a file of 4 bytes each.

    They are kept by row, because the rows of the validation split are known only after the last row.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self.row_count = 0

    def add(self, stats: Mapping[str, int]) -> None:
        """Add the statistics of the next row. A statistic that is not given is 0."""
        self.row_count += 1
        array("I", [stats.get(name, 0) for name in STAT_NAMES]).tofile(self._file)

    def compute_totals(self, excluded_rows: NDArray[np.int64]) -> dict[str, int]:
        """Return the sum of each statistic over all rows but the excluded ones, and the number of these `rows`."""
        import numpy as np

        table = self._load_table()
        sums = table.sum(axis=0, dtype=np.int64)
        for chunk in np.array_split(excluded_rows, len(excluded_rows) // 65536 + 1):
            sums -= table[chunk].sum(axis=0, dtype=np.int64)
        return {"rows": self.row_count - len(excluded_rows), **dict(zip(STAT_NAMES, sums.tolist(), strict=True))}

    def is_augmented(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return for each of the rows whether augmentation made it. Shape of both arrays: (rows,)."""
        mask: NDArray[np.bool_] = self._load_table()[:, STAT_NAMES.index("augmented")][rows] > 0
        return mask

    def compute_length_histogram(self) -> list[LengthBin]:
        """Return the number of rows by length in tokens, in bins of equal width."""
        import numpy as np

        tokens = self._load_table()[:, STAT_NAMES.index("tokens")]
        if not len(tokens):
            return []
        shortest, longest = int(tokens.min()), int(tokens.max())
        edges = np.unique(np.linspace(shortest, longest + 1, _HISTOGRAM_BARS + 1).astype(int))
        counts, _ = np.histogram(tokens, bins=edges)
        return [
            LengthBin(start=int(start), end=int(end), rows=int(count))
            for start, end, count in zip(edges, edges[1:], counts, strict=False)
        ]

    def close(self) -> None:
        """Close the file after the last row, so that the statistics can be read."""
        self._file.close()

    def _load_table(self) -> NDArray[np.uint32]:
        """Return the statistics, memory-mapped, in shape (rows, statistics)."""
        import numpy as np

        if not self.row_count:
            return np.empty((0, len(STAT_NAMES)), dtype=np.uint32)
        return np.memmap(self._path, dtype=np.uint32, mode="r", shape=(self.row_count, len(STAT_NAMES)))


@dataclass(frozen=True)
class HeldOutCounts:
    """Numbers of rows that are read but not trained on."""

    validation: int
    test: int | None = None
    """None without test data."""

    @property
    def total(self) -> int:
        """Number of all these rows."""
        return self.validation + (self.test or 0)

    def describe(self) -> list[str]:
        """Return a clause for each split that has rows."""
        clauses = ((self.validation, "held out for validation"), (self.test, "held out for the test"))
        return [f"{count} {purpose}" for count, purpose in clauses if count]


class RowLedger:
    """Accounts for every row: the rows read are the kept, the validation, the test and the rejected rows."""

    def __init__(
        self, config: TrainerConfig, object_uris: Sequence[str], limits: LengthLimits, rejections: Rejections
    ) -> None:
        self.rejections = rejections
        self.rewritten_rows = RewrittenRows()
        self._rewritten_row: Row | None = None
        """The first row that the chat template rewrites."""
        self.control_tokens = RowCounter()
        """Rows with the text of a control token, which is the `example`."""
        self.answer_ends: Counter[int] = Counter()
        """Number of answers by the token that ends them, without answers of truncated rows."""
        self._object_uris = object_uris
        self._limits = limits
        self._max_invalid_fraction = config.dataset.preparation.max_invalid_fraction
        self._max_rewritten_fraction = config.dataset.preparation.max_rewritten_fraction
        self._overlong_rows = RowErrors()
        self._max_length = 0

    def record_length(self, location: SourceLocation, length: int) -> None:
        """Record the length of a row in tokens, whether the row is kept or not."""
        self._max_length = max(self._max_length, length)
        if length > self._limits.max_tokens and self._limits.overlength == "fail":
            self._overlong_rows.add(location, RowError(f"has {length} tokens, {self._limits.explanation}"))

    def check_invalid_rows(self, row_count: int) -> None:
        """Raise `DATA_INVALID` if too many rows are invalid, or if any is too long and `overlength` is `fail`."""
        if self.rejections.invalid.count > self._max_invalid_fraction * row_count:
            self.rejections.invalid.raise_if_any(row_count)
        self._overlong_rows.raise_if_any(row_count)

    def record_removed_text(self, location: SourceLocation, row: Row, removed_text: str | None) -> None:
        """Record the words of a row that its rendered text lacks, or None if there are none."""
        self.rewritten_rows.add(location, removed_text)
        if removed_text is not None:
            self._rewritten_row = self._rewritten_row or row

    def record_unusable_row(self, location: SourceLocation, row: Row, error: RewrittenAnswerError) -> None:
        """Record a row whose rewritten answer cannot be found in the rendered text."""
        self.rewritten_rows.add_unusable(location, error)
        self._rewritten_row = self._rewritten_row or row

    def check_rewritten_rows(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `MODEL_UNSUPPORTED` if the chat template rewrites too many of the rows."""
        rewritten = self.rewritten_rows
        if self._rewritten_row is None or rewritten.count <= self._max_rewritten_fraction * rewritten.rows:
            return
        problem = describe_problem(self._rewritten_row, tokenizer) or rewritten.problem
        raise TrainerError(
            Reason.MODEL_UNSUPPORTED,
            f"{rewritten.format_summary(problem)}; at most {format_share(self._max_rewritten_fraction, 1)} may be "
            f"rewritten; {describe_remedy(self._rewritten_row, tokenizer)}, remove these words from the data, or raise "
            "dataset.preparation.maxRewrittenFraction",
        )

    def build_report(
        self, row_count: int, held_out: HeldOutCounts, totals: Mapping[str, int], digest: str
    ) -> DatasetReport:
        """Return the report. `totals` are the sums over the rows that are trained on. Raises `DATASET_EMPTY`."""
        kept_count = totals["rows"] - totals["augmented"]
        self._check_balance(row_count, kept_count, held_out)
        return DatasetReport(
            rows=row_count,
            kept=kept_count,
            augmented=totals["augmented"],
            validation=held_out.validation,
            test=held_out.test,
            rejected=self.rejections.counts,
            cleaned=totals["cleaned"],
            truncated=totals["truncated"],
            sensitive={kind: totals[kind] for kind in sorted(PII_KINDS) if totals[kind]},
            redacted=totals["redacted"],
            control_tokens=self.control_tokens.count,
            tokens=totals["tokens"],
            supervised_tokens=totals["supervised"],
            digest=digest,
        )

    def _check_balance(self, row_count: int, kept_count: int, held_out: HeldOutCounts) -> None:
        """Raise `DATASET_EMPTY` if no row is left to train on, `INTERNAL_ERROR` if a row is not accounted for."""
        if not kept_count:
            raise TrainerError(Reason.DATASET_EMPTY, self._format_empty_message(row_count, held_out))
        rejected_count = sum(self.rejections.counts.values())
        if row_count != kept_count + held_out.total + rejected_count:
            raise TrainerError(
                Reason.INTERNAL_ERROR,
                f"{row_count} rows were read, but {kept_count} were kept, {held_out.total} held out and "
                f"{rejected_count} rejected, which does not add up; please report this",
            )

    def _format_empty_message(self, row_count: int, held_out: HeldOutCounts) -> str:
        if not row_count:
            hidden_count = len(self._object_uris) - _MAX_NAMED_OBJECTS
            suffix = f" and {hidden_count} more" if hidden_count > 0 else ""
            return f"the data objects contain no rows: {', '.join(self._object_uris[:_MAX_NAMED_OBJECTS])}{suffix}"
        parts = [f"{count} {reason}" for reason, count in self.rejections.counts.items()]
        summary = ", ".join([*parts, *held_out.describe()])
        return (
            f"none of {row_count} rows can be trained on: {summary}; the longest row has {self._max_length} tokens, "
            f"{self._limits.explanation}"
        )
