"""Reader of the rows of all sources: one row at a time, with its format detected and its content checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from finetune_trainer.contract import DataSource
from finetune_trainer.contract.dataset import Preparation
from finetune_trainer.data.readers.files import read_raw_rows
from finetune_trainer.data.rejections import Rejections
from finetune_trainer.data.row_columns import list_unused_columns, rename_columns
from finetune_trainer.data.row_schema import RowSchema
from finetune_trainer.data.row_texts import list_texts
from finetune_trainer.data.row_types import Row, RowError, SourceFile, SourceLocation
from finetune_trainer.data.turn_order import arrange_turns, has_supervised_answer

_MAX_UNUSED_COLUMNS = 64
"""Maximum number of unused columns that are counted by name. The rest is counted as `_OTHER_COLUMNS`."""
_OTHER_COLUMNS = "(other columns)"
_MAX_NAME_CHARS = 64


@dataclass(frozen=True)
class ReadRow:
    """A valid row with its location."""

    location: SourceLocation
    row: Row
    item: Mapping[str, Any] = field(default_factory=dict)
    """The columns of the data that graders read, by their name in the data. A column that the row lacks is absent."""


@dataclass
class RowReader:
    """Reads the rows of sources in order, and rejects those that are invalid.

    With method `kto`, a pair of answers is two rows, which are checked and counted separately.
    """

    schema: RowSchema
    preparation: Preparation = field(default_factory=Preparation)
    item_fields: Sequence[str] = ()
    """Names of the columns of the data that graders read."""
    row_count: int = 0
    """Number of rows read so far, rejected ones included."""
    rejections: Rejections = field(default_factory=Rejections)
    _unused_columns: Counter[str] = field(default_factory=Counter)

    @property
    def unused_columns(self) -> dict[str, int]:
        """Number of valid rows by the name of a filled column that their format does not use, sorted by name."""
        return dict(sorted(self._unused_columns.items()))

    def read(self, sources: Sequence[tuple[DataSource, Sequence[SourceFile]]]) -> Iterator[ReadRow]:
        """Yield each valid row. Raises `DATA_INVALID` if a file is damaged."""
        for source, files in sources:
            located_rows = (located_row for file in files for located_row in read_raw_rows(file))
            parser = _RowParser(source, self.schema, self.preparation, self.item_fields)
            for location, row in islice(located_rows, source.limit):
                yield from self._parse_row(parser, location, row)

    def _parse_row(
        self, parser: _RowParser, location: SourceLocation, row: dict[str, Any] | RowError
    ) -> Iterator[ReadRow]:
        self.row_count += 1
        try:
            parsed_rows, unused_columns = parser.parse_row(location.uri, row)
        except RowError as error:
            self.rejections.reject_invalid(location, error)
            return
        self.row_count += len(parsed_rows) - 1
        item = {} if isinstance(row, RowError) else {name: row[name] for name in self.item_fields if name in row}
        for name in unused_columns:
            self._count_unused_column(name[:_MAX_NAME_CHARS])
        for parsed_row in parsed_rows:
            if has_supervised_answer(parsed_row):
                yield ReadRow(location, parsed_row, item)
            else:
                self.rejections.reject("noSupervisedTokens", location, list_texts(parsed_row))

    def _count_unused_column(self, name: str) -> None:
        is_counted = name in self._unused_columns or len(self._unused_columns) < _MAX_UNUSED_COLUMNS
        self._unused_columns[name if is_counted else _OTHER_COLUMNS] += 1


@dataclass
class _RowParser:
    """Parser of a source's rows, whose format is set by the source or detected from the first row of each object."""

    source: DataSource
    schema: RowSchema
    preparation: Preparation
    item_fields: Sequence[str] = ()
    detected: dict[str, str] = field(default_factory=dict)
    """Detected format by the URI of the object."""

    def parse_row(self, uri: str, row: dict[str, Any] | RowError) -> tuple[list[Row], list[str]]:
        """Return the rows that a row of the data contains, and the names of its unused columns. Raises `RowError`."""
        if isinstance(row, RowError):
            raise row
        columns = rename_columns(row, self.source.fields, self.item_fields)
        row_format: str = self.source.format
        is_detected = row_format == "auto"
        if is_detected:
            row_format = self.detected.get(uri) or self.schema.detect_format(columns.values)
            self.detected[uri] = row_format
        parsed_rows = self.schema.parse_row(columns, row_format)
        texts = (text for parsed_row in parsed_rows for text in list_texts(parsed_row))
        unused_columns = list_unused_columns(columns, row_format, texts, is_detected=is_detected)
        return [arrange_turns(parsed_row, self.preparation) for parsed_row in parsed_rows], unused_columns
