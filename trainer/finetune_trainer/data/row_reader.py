"""Reader of the rows of all sources: one row at a time, with its format detected and its content checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from finetune_trainer.contract import DataSource
from finetune_trainer.data.formats import reject_media, rename_columns
from finetune_trainer.data.readers.files import read_raw_rows
from finetune_trainer.data.rejections import Rejections
from finetune_trainer.data.row_schema import RowSchema
from finetune_trainer.data.row_types import Row, RowError, SourceFile, SourceLocation


@dataclass
class RowReader:
    """Reads the rows of sources in order, and rejects those that are invalid.

    With method `kto`, a pair of answers is two rows, which are checked and counted separately.
    """

    schema: RowSchema
    row_count: int = 0
    """Number of rows read so far, rejected ones included."""
    rejections: Rejections = field(default_factory=Rejections)

    def read(self, sources: Sequence[tuple[DataSource, Sequence[SourceFile]]]) -> Iterator[tuple[SourceLocation, Row]]:
        """Yield each valid row with its location. Raises `DATA_INVALID` if a file is damaged."""
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
            self.rejections.reject_invalid(location, error)
            return
        self.row_count += len(parsed_rows) - 1
        yield from ((location, parsed_row) for parsed_row in parsed_rows)


@dataclass
class _FormatDetector:
    """Format of a source's objects: set by the source, or detected from the first row of each object that has one."""

    source: DataSource
    schema: RowSchema
    detected: dict[str, str] = field(default_factory=dict)
    """Detected format by the URI of the object."""

    def parse_row(self, uri: str, row: dict[str, Any] | RowError) -> Sequence[Row]:
        if isinstance(row, RowError):
            raise row
        renamed_row = rename_columns(row, self.source.fields)
        reject_media(renamed_row)
        if self.source.format != "auto":
            return self.schema.parse_row(renamed_row, self.source.format)
        if uri not in self.detected:
            self.detected[uri] = self.schema.detect_format(renamed_row)
        return self.schema.parse_row(renamed_row, self.detected[uri])
