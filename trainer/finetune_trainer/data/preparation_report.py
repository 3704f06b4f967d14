"""Every row accounted for: what was left out and why, and what is to be said of those that were kept."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import DatasetReport, Reason, TrainerConfig
from finetune_trainer.data.pii import PII_KINDS, redact_pii
from finetune_trainer.data.row_reader import RowReader
from finetune_trainer.data.row_types import InvalidRows, RowError, SourceLocation
from finetune_trainer.data.tokenized_rows import LengthLimits
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.evaluation import LengthBin, RejectedRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STAT_NAMES = ("tokens", "supervised", "cleaned", "truncated", "redacted", "augmented", *PII_KINDS)
"""What is noted of a row that is kept."""
_MAX_NAMED_OBJECTS = 5
_HISTOGRAM_BARS = 30
_EXAMPLES_PER_REASON = 3
"""Rows of each reason that the report shows."""
_MAX_EXAMPLE_CHARS = 500


class RowStats:
    """Numbers of each kept row, in a file: which rows are set aside for validation is known only after the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self.row_count = 0

    def add(self, stats: Mapping[str, int]) -> None:
        """The next row's; what is not given is 0."""
        self.row_count += 1
        array("I", [stats.get(name, 0) for name in STAT_NAMES]).tofile(self._file)

    def compute_totals(self, excluded_rows: NDArray[np.int64]) -> dict[str, int]:
        """Sums over all rows but some, and how many `rows` those are."""
        import numpy as np

        table = self._load_table()
        sums = table.sum(axis=0, dtype=np.int64)
        for chunk in np.array_split(excluded_rows, len(excluded_rows) // 65536 + 1):
            sums -= table[chunk].sum(axis=0, dtype=np.int64)
        return {"rows": self.row_count - len(excluded_rows), **dict(zip(STAT_NAMES, sums.tolist(), strict=True))}

    def is_augmented(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these rows were made from others."""
        mask: NDArray[np.bool_] = self._load_table()[:, STAT_NAMES.index("augmented")][rows] > 0
        return mask

    def compute_length_histogram(self) -> list[LengthBin]:
        """How many rows have so many tokens, in bars of like width."""
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
        """No more rows come."""
        self._file.close()

    def _load_table(self) -> NDArray[np.uint32]:
        import numpy as np

        if not self.row_count:
            return np.empty((0, len(STAT_NAMES)), dtype=np.uint32)
        return np.memmap(self._path, dtype=np.uint32, mode="r", shape=(self.row_count, len(STAT_NAMES)))


class RowLedger:
    """Counts rows that are left out, and says what became of all."""

    def __init__(self, config: TrainerConfig, object_uris: Sequence[str], limits: LengthLimits) -> None:
        self._object_uris = object_uris
        self._limits = limits
        self._preparation = config.dataset.preparation
        self._rejected_counts: Counter[str] = Counter()
        self._examples: list[RejectedRow] = []
        self._overlong_rows = InvalidRows()
        self._max_length = 0

    def reject(self, reason: str, location: SourceLocation, texts: Sequence[str]) -> None:
        """One row with these texts is left out."""
        self._rejected_counts[reason] += 1
        if self._rejected_counts[reason] <= _EXAMPLES_PER_REASON:
            text = redact_pii("\n".join(texts), PII_KINDS)  # it is published
            self._examples.append(RejectedRow(reason=reason, where=str(location), text=text[:_MAX_EXAMPLE_CHARS]))

    def collect_rejected_examples(self, reader: RowReader) -> list[RejectedRow]:
        """A few of the rows that were left out, for each reason."""
        invalid = [
            RejectedRow(reason="invalid", where=row_message, text="")
            for row_message in reader.invalid_rows.examples[:_EXAMPLES_PER_REASON]
        ]
        return [*invalid, *self._examples]

    def record_length(self, location: SourceLocation, length: int) -> None:
        """A row has so many tokens, whether it is kept or not."""
        self._max_length = max(self._max_length, length)
        if length > self._limits.max_tokens and self._limits.overlength == "fail":
            self._overlong_rows.add(location, RowError(f"has {length} tokens, {self._limits.explanation}"))

    def check_invalid_rows(self, reader: RowReader) -> None:
        """Raises `DATA_INVALID` if more rows than allowed are wrong, or one is too long that must not be."""
        if reader.invalid_rows.count > self._preparation.max_invalid_fraction * reader.row_count:
            reader.invalid_rows.raise_if_any(reader.row_count)
        self._overlong_rows.raise_if_any(reader.row_count)
        if reader.invalid_rows.count:
            self._rejected_counts["invalid"] = reader.invalid_rows.count

    def _check_balance(self, row_count: int, kept_count: int, validation_count: int) -> None:
        """Raises `DATASET_EMPTY` if nothing is left to train on; a row that is not accounted for is a bug."""
        if not kept_count:
            raise TrainerError(Reason.DATASET_EMPTY, self._format_empty_message(row_count, validation_count))
        rejected_count = self._rejected_counts.total()
        if row_count != kept_count + validation_count + rejected_count:
            raise TrainerError(
                Reason.INTERNAL_ERROR,
                f"{row_count} rows were read but {kept_count} kept, {validation_count} set aside for validation "
                f"and {rejected_count} left "
                "out; please report this",
            )

    def _format_empty_message(self, row_count: int, validation_count: int) -> str:
        if not row_count:
            suffix = (
                f" and {len(self._object_uris) - _MAX_NAMED_OBJECTS} more"
                if len(self._object_uris) > _MAX_NAMED_OBJECTS
                else ""
            )
            return f"the data's objects hold no row: {', '.join(self._object_uris[:_MAX_NAMED_OBJECTS])}{suffix}"
        parts = [f"{count} {reason}" for reason, count in sorted(self._rejected_counts.items())]
        summary = ", ".join([*parts, *([f"{validation_count} set aside for validation"] if validation_count else [])])
        return (
            f"none of {row_count} rows can be trained on: {summary}; the longest has {self._max_length} tokens, "
            f"{self._limits.explanation}"
        )

    def build_report(
        self, row_count: int, validation_count: int, totals: Mapping[str, int], digest: str
    ) -> DatasetReport:
        """The account, which must balance; `totals` are of the rows trained on. Raises `DATASET_EMPTY`."""
        kept_count = totals["rows"] - totals["augmented"]
        self._check_balance(row_count, kept_count, validation_count)
        return DatasetReport(
            rows=row_count,
            kept=kept_count,
            augmented=totals["augmented"],
            validation=validation_count,
            rejected=dict(sorted(self._rejected_counts.items())),
            cleaned=totals["cleaned"],
            truncated=totals["truncated"],
            sensitive={kind: totals[kind] for kind in sorted(PII_KINDS) if totals[kind]},
            redacted=totals["redacted"],
            tokens=totals["tokens"],
            supervised_tokens=totals["supervised"],
            digest=digest,
        )
