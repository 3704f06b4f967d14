"""CSV and Parquet: rows of named columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from finetune_trainer.data.readers.lines import LARGEST_ROW, BinaryStream, encoding_error, lines
from finetune_trainer.data.row_types import DamagedError, RowError

if TYPE_CHECKING:
    from _csv import Reader as _Table

_BATCH = 128


def csv_rows(stream: BinaryStream) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """(number of its first line, row) for each row below the header."""
    csv.field_size_limit(LARGEST_ROW)
    wrong: dict[int, str] = {}
    table = csv.reader(_decoded(stream, wrong), strict=True)
    header = _header(_first(table, wrong))
    start = table.line_num + 1
    while (cells := _cells(table, start)) is not None:
        said = [wrong.pop(line) for line in sorted(wrong) if line <= table.line_num]
        if said:
            yield start, RowError(said[0])
        elif isinstance(cells, RowError):
            yield start, cells
        elif any(cells):
            yield start, _named(header, cells)
        start = table.line_num + 1


def _first(table: _Table, wrong: dict[int, str]) -> list[str]:
    cells = _cells(table, 1)
    if wrong or isinstance(cells, RowError):
        raise DamagedError(next(iter(wrong.values()), str(cells)), 1)
    return cells or []


def _cells(table: _Table, start: int) -> list[str] | RowError | None:
    """The next row's; none after the last. Raises `DamagedError` where rows behind a wrong one may be hidden in it."""
    try:
        return next(table, None)
    except csv.Error as error:
        said = f"expected CSV in UTF-8 with commas and double quotes, found: {error}"
        if table.line_num == start and "end of data" not in str(error):
            return RowError(said)
        raise DamagedError(f"{said}; is a quote missing in this row or one after it?", start) from error


def _decoded(stream: BinaryStream, wrong: dict[int, str]) -> Iterator[str]:
    """Every line, blank ones too: they may stand within quotes, and they are counted. What is no text goes to `wrong`,
    by number."""
    last = 0
    for number, line in lines(stream):
        yield from ["\n"] * (number - last - 1)
        said = str(line) if isinstance(line, RowError) else encoding_error(line)
        if said:
            wrong[number] = said
        yield "\n" if isinstance(line, RowError) else line.decode(errors="replace")
        last = number


def _header(names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DamagedError(f"expected each column's name once in the header, found {twice[0][:40]!r} twice")
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        raise DamagedError(f"expected columns separated by commas, found the header {names[0][:80]!r}")
    return names


def _named(header: list[str], cells: list[str]) -> dict[str, Any] | RowError:
    if len(cells) != len(header):
        return RowError(f"expected {len(header)} columns as in the header, found {len(cells)}; is a quote missing?")
    return dict(zip(header, cells, strict=True))


def parquet_rows(file: IO[bytes] | BinaryStream) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """(number from 1, row); a few rows of a row group are in memory at a time."""
    import pyarrow as pa

    number = 0
    try:
        for batch in _batches(file):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise DamagedError(f"expected a whole Parquet file, found: {str(error)[:200]}; store it again") from error


def _batches(file: IO[bytes] | BinaryStream) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    # Without the buffer of its own, pyarrow would read a whole row group, which may be the whole file.
    with parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as table:
        fields = [field for field in table.schema_arrow if not pa.types.is_temporal(field.type)]
        names = _header([field.name for field in fields])
        yield from table.iter_batches(batch_size=_BATCH, columns=names)
