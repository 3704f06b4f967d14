"""Reader of the rows of all sources: one row at a time, with its format detected and its content checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from finetune_trainer.contract import DataSource
from finetune_trainer.data.formats import detect_format, parse_row, rename_columns
from finetune_trainer.data.readers.files import read_raw_rows
from finetune_trainer.data.row_types import InvalidRows, Row, RowError, SourceFile, SourceLocation


@dataclass
class RowReader:
    """Reads sources in their order; `rows` counts every row, `offenders` those that are wrong.

    For kto a pair of answers is two rows, each judged and counted by itself.
    """

    method: str = "sft"
    row_count: int = 0
    invalid_rows: InvalidRows = field(default_factory=InvalidRows)

    def read(self, sources: Sequence[tuple[DataSource, Sequence[SourceFile]]]) -> Iterator[tuple[SourceLocation, Row]]:
        """The rows that can be used, each with its place. Raises `DATA_INVALID` where an object cannot be read on."""
        for source, files in sources:
            located_rows = (located_row for file in files for located_row in read_raw_rows(file))
            detector = _FormatDetector(source, self.method)
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
    method: str
    detected: dict[str, str] = field(default_factory=dict)

    def parse_row(self, uri: str, row: dict[str, Any] | RowError) -> list[Row]:
        if isinstance(row, RowError):
            raise row
        renamed_row = rename_columns(row, self.source.fields)
        if self.source.format != "auto":
            return parse_row(renamed_row, self.source.format, self.method)
        if uri not in self.detected:
            self.detected[uri] = detect_format(renamed_row, self.method)
        return parse_row(renamed_row, self.detected[uri], self.method)
