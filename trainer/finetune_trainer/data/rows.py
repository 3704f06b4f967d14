"""Rows of all sources: read one at a time, told apart, checked. Needs no torch. The front door of the reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from finetune_trainer.contract import DataSource
from finetune_trainer.data.conversations import ROLES
from finetune_trainer.data.formats import rename_columns
from finetune_trainer.data.readers.files import read_raw_rows
from finetune_trainer.data.row_schema import RowSchema
from finetune_trainer.data.row_types import (
    Chat,
    InvalidRows,
    LabeledExample,
    PlainText,
    Preference,
    PromptCompletion,
    Row,
    RowError,
    SourceFile,
    SourceLocation,
)

__all__ = [
    "ROLES",
    "Chat",
    "InvalidRows",
    "LabeledExample",
    "PlainText",
    "Preference",
    "PromptCompletion",
    "Row",
    "RowError",
    "RowReader",
    "SourceFile",
    "SourceLocation",
]


@dataclass
class RowReader:
    """Reads sources in their order; `rows` counts every row, `offenders` those that are wrong.

    For kto a pair of answers is two rows, each judged and counted by itself.
    """

    schema: RowSchema
    row_count: int = 0
    invalid_rows: InvalidRows = field(default_factory=InvalidRows)

    def read(self, sources: Sequence[tuple[DataSource, Sequence[SourceFile]]]) -> Iterator[tuple[SourceLocation, Row]]:
        """The rows that can be used, each with its place. Raises `DATA_INVALID` where an object cannot be read on."""
        for source, files in sources:
            located_rows = (located_row for file in files for located_row in read_raw_rows(file))
            detector = _FormatDetector(source, self.schema)
            for location, row in islice(located_rows, source.limit):
                yield from self._parse_row(detector, location, row)

    def _parse_row(
        self, detector: _FormatDetector, location: SourceLocation, row: dict[str, Any] | RowError
    ) -> Iterator[tuple[SourceLocation, Row]]:
        self.row_count += 1
        try:
            parsed_rows = detector.parse_row(location.uri, row)
        except RowError as error:
            self.invalid_rows.add(location, error)
            return
        self.row_count += len(parsed_rows) - 1
        yield from ((location, parsed_row) for parsed_row in parsed_rows)


@dataclass
class _FormatDetector:
    """The format of a source's objects: stated, or told by each object's first row that tells it."""

    source: DataSource
    schema: RowSchema
    detected: dict[str, str] = field(default_factory=dict)

    def parse_row(self, uri: str, row: dict[str, Any] | RowError) -> Sequence[Row]:
        if isinstance(row, RowError):
            raise row
        renamed_row = rename_columns(row, self.source.fields)
        if self.source.format != "auto":
            return self.schema.parse_row(renamed_row, self.source.format)
        if uri not in self.detected:
            self.detected[uri] = self.schema.detect_format(renamed_row)
        return self.schema.parse_row(renamed_row, self.detected[uri])
