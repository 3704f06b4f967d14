"""Every row accounted for: what was left out and why, and what is to be said of those that were kept."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.contract import DatasetReport, Reason, TrainerConfig
from finetune_trainer.data.pii import KINDS, redact
from finetune_trainer.data.rows import Offenders, Place, Reader, RowError
from finetune_trainer.data.tokenized_rows import Limits
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.evaluation import Bar, Example

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FACTS = ("tokens", "supervised", "cleaned", "truncated", "redacted", "augmented", *KINDS)
"""What is noted of a row that is kept."""
_NAMED = 5
_BARS = 30
_SHOWN = 3
"""Rows of each reason that the report shows."""
_SHOWN_CHARS = 500


class Facts:
    """Numbers of each kept row, in a file: which rows are set aside for validation is known only after the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")
        self.rows = 0

    def add(self, facts: Mapping[str, int]) -> None:
        """The next row's; what is not given is 0."""
        self.rows += 1
        array("I", [facts.get(name, 0) for name in FACTS]).tofile(self._file)

    def totals(self, without: NDArray[np.int64]) -> dict[str, int]:
        """Sums over all rows but some, and how many `rows` those are."""
        import numpy as np

        table = self._table()
        sums = table.sum(axis=0, dtype=np.int64)
        for part in np.array_split(without, len(without) // 65536 + 1):
            sums -= table[part].sum(axis=0, dtype=np.int64)
        return {"rows": self.rows - len(without), **dict(zip(FACTS, sums.tolist(), strict=True))}

    def augmented(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these rows were made from others."""
        made: NDArray[np.bool_] = self._table()[:, FACTS.index("augmented")][rows] > 0
        return made

    def lengths(self) -> list[Bar]:
        """How many rows have so many tokens, in bars of like width."""
        import numpy as np

        tokens = self._table()[:, FACTS.index("tokens")]
        if not len(tokens):
            return []
        shortest, longest = int(tokens.min()), int(tokens.max())
        edges = np.unique(np.linspace(shortest, longest + 1, _BARS + 1).astype(int))
        counts, _ = np.histogram(tokens, bins=edges)
        return [
            Bar(start=int(start), end=int(end), rows=int(count))
            for start, end, count in zip(edges, edges[1:], counts, strict=False)
        ]

    def close(self) -> None:
        """No more rows come."""
        self._file.close()

    def _table(self) -> NDArray[np.uint32]:
        import numpy as np

        if not self.rows:
            return np.empty((0, len(FACTS)), dtype=np.uint32)
        return np.memmap(self._path, dtype=np.uint32, mode="r", shape=(self.rows, len(FACTS)))


class Account:
    """Counts rows that are left out, and says what became of all."""

    def __init__(self, config: TrainerConfig, objects: Sequence[str], limits: Limits) -> None:
        self._objects = objects
        self._limits = limits
        self._preparation = config.dataset.preparation
        self._rejected: Counter[str] = Counter()
        self._examples: list[Example] = []
        self._overlong = Offenders()
        self._longest = 0

    def reject(self, reason: str, place: Place, content: Sequence[str]) -> None:
        """One row with these texts is left out."""
        self._rejected[reason] += 1
        if self._rejected[reason] <= _SHOWN:
            text = redact("\n".join(content), KINDS)  # it is published
            self._examples.append(Example(reason=reason, where=str(place), text=text[:_SHOWN_CHARS]))

    def examples(self, reader: Reader) -> list[Example]:
        """A few of the rows that were left out, for each reason."""
        invalid = [Example(reason="invalid", where=each, text="") for each in reader.offenders.examples[:_SHOWN]]
        return [*invalid, *self._examples]

    def measure(self, place: Place, length: int) -> None:
        """A row has so many tokens, whether it is kept or not."""
        self._longest = max(self._longest, length)
        if length > self._limits.most and self._limits.overlength == "fail":
            self._overlong.add(place, RowError(f"has {length} tokens, {self._limits.reason}"))

    def check(self, reader: Reader) -> None:
        """Raises `DATA_INVALID` if more rows than allowed are wrong, or one is too long that must not be."""
        if reader.offenders.count > self._preparation.max_invalid_fraction * reader.rows:
            reader.offenders.raise_if_any(reader.rows)
        self._overlong.raise_if_any(reader.rows)
        if reader.offenders.count:
            self._rejected["invalid"] = reader.offenders.count

    def _check_kept(self, rows: int, kept: int, validation: int) -> None:
        """Raises `DATASET_EMPTY` if nothing is left to train on; a row that is not accounted for is a bug."""
        if not kept:
            raise TrainerError(Reason.DATASET_EMPTY, self._empty_message(rows, validation))
        left_out = self._rejected.total()
        if rows != kept + validation + left_out:
            raise TrainerError(
                Reason.INTERNAL_ERROR,
                f"{rows} rows were read but {kept} kept, {validation} set aside for validation and {left_out} left "
                "out; please report this",
            )

    def _empty_message(self, rows: int, validation: int) -> str:
        if not rows:
            more = f" and {len(self._objects) - _NAMED} more" if len(self._objects) > _NAMED else ""
            return f"the data's objects hold no row: {', '.join(self._objects[:_NAMED])}{more}"
        parts = [f"{count} {reason}" for reason, count in sorted(self._rejected.items())]
        found = ", ".join([*parts, *([f"{validation} set aside for validation"] if validation else [])])
        return (
            f"none of {rows} rows can be trained on: {found}; the longest has {self._longest} tokens, "
            f"{self._limits.reason}"
        )

    def report(self, rows: int, validation: int, totals: Mapping[str, int], digest: str) -> DatasetReport:
        """The account, which must balance; `totals` are of the rows trained on. Raises `DATASET_EMPTY`."""
        kept = totals["rows"] - totals["augmented"]
        self._check_kept(rows, kept, validation)
        return DatasetReport(
            rows=rows,
            kept=kept,
            augmented=totals["augmented"],
            validation=validation,
            rejected=dict(sorted(self._rejected.items())),
            cleaned=totals["cleaned"],
            truncated=totals["truncated"],
            sensitive={kind: totals[kind] for kind in sorted(KINDS) if totals[kind]},
            redacted=totals["redacted"],
            tokens=totals["tokens"],
            supervised_tokens=totals["supervised"],
            digest=digest,
        )
