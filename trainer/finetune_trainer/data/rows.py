"""Rows of all sources: read one at a time, told apart, checked. Needs no torch. The front door of the reading."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from finetune_trainer.contract import DataSource
from finetune_trainer.data.conversations import ROLES
from finetune_trainer.data.formats import detect_format, parse, renamed
from finetune_trainer.data.readers.files import raw_rows
from finetune_trainer.data.row_types import (
    Chat,
    Judged,
    Offenders,
    Pair,
    Place,
    Preference,
    Row,
    RowError,
    SourceFile,
    Text,
)

__all__ = [
    "ROLES",
    "Chat",
    "Judged",
    "Offenders",
    "Pair",
    "Place",
    "Preference",
    "Reader",
    "Row",
    "RowError",
    "SourceFile",
    "Text",
]


@dataclass
class Reader:
    """Reads sources in their order; `rows` counts every row, `offenders` those that are wrong.

    For kto a pair of answers is two rows, each judged and counted by itself.
    """

    method: str = "sft"
    rows: int = 0
    offenders: Offenders = field(default_factory=Offenders)

    def read(self, sources: Sequence[tuple[DataSource, Sequence[SourceFile]]]) -> Iterator[tuple[Place, Row]]:
        """The rows that can be used, each with its place. Raises `DATA_INVALID` where an object cannot be read on."""
        for source, files in sources:
            found = (each for file in files for each in raw_rows(file))
            formats = _Formats(source, self.method)
            for place, row in islice(found, source.limit):
                yield from self._parsed(formats, place, row)

    def _parsed(self, formats: _Formats, place: Place, row: dict[str, Any] | RowError) -> Iterator[tuple[Place, Row]]:
        self.rows += 1
        try:
            parsed = formats.parse(place.uri, row)
        except RowError as why:
            self.offenders.add(place, why)
            return
        self.rows += len(parsed) - 1
        yield from ((place, each) for each in parsed)


@dataclass
class _Formats:
    """The format of a source's objects: stated, or told by each object's first row that tells it."""

    source: DataSource
    method: str
    told: dict[str, str] = field(default_factory=dict)

    def parse(self, uri: str, row: dict[str, Any] | RowError) -> list[Row]:
        if isinstance(row, RowError):
            raise row
        known = renamed(row, self.source.fields)
        if self.source.format != "auto":
            return parse(known, self.source.format, self.method)
        if uri not in self.told:
            self.told[uri] = detect_format(known, self.method)
        return parse(known, self.told[uri], self.method)
