"""Counts the rows that have something in common, and keeps the first one as an example for the report."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.data.pii import PII_KINDS, redact_pii
from finetune_trainer.data.row_types import SourceLocation
from finetune_trainer.formatting import format_share

_MAX_EXAMPLE_CHARS = 120


@dataclass
class RowCounter:
    """Number of rows that were examined, of those that were found, and an example of these."""

    count: int = 0
    """Number of rows that were found."""
    rows: int = 0
    """Number of rows that were examined: those of training and validation, without augmented ones."""
    where: str = ""
    """Object and line of the example."""
    example: str = ""
    """The text of the example that was found, without personal data."""

    def add(self, location: SourceLocation, found_text: str | None) -> None:
        """Count a row. `found_text` is what was found in it, or None."""
        self.rows += 1
        if found_text is None:
            return
        self.count += 1
        if self.count == 1:
            self.where, self.example = str(location), redact_pii(found_text, PII_KINDS)[:_MAX_EXAMPLE_CHARS]

    @property
    def share(self) -> str:
        """The count of all rows, for a message: `3 of 200 rows (1.5 %)`."""
        return f"{self.count} of {self.rows} rows ({format_share(self.count, self.rows)})"
