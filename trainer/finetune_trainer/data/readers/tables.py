"""Readers of CSV and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from finetune_trainer.data.readers.lines import MAX_ROW_BYTES, BinaryStream, find_encoding_error, read_lines
from finetune_trainer.data.row_types import DamagedFileError, RowError

if TYPE_CHECKING:
    from _csv import Reader as _Table

_BATCH_ROWS = 128


def read_csv_rows(stream: BinaryStream) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Yield for each row below the header the number of its first line, and its columns or the error."""
    csv.field_size_limit(MAX_ROW_BYTES)
    line_errors: dict[int, str] = {}
    table = csv.reader(_decode_lines(stream, line_errors), strict=True)
    header = _check_header(_read_header(table, line_errors))
    start_line = table.line_num + 1
    while (cells := _read_cells(table, start_line)) is not None:
        row_errors = [line_errors.pop(line) for line in sorted(line_errors) if line <= table.line_num]
        if row_errors:
            yield start_line, RowError(row_errors[0])
        elif isinstance(cells, RowError):
            yield start_line, cells
        elif any(cells):
            yield start_line, _build_row(header, cells)
        start_line = table.line_num + 1


def _read_header(table: _Table, line_errors: dict[int, str]) -> list[str]:
    cells = _read_cells(table, 1)
    if line_errors or isinstance(cells, RowError):
        raise DamagedFileError(next(iter(line_errors.values()), str(cells)), 1)
    return cells or []


def _read_cells(table: _Table, start_line: int) -> list[str] | RowError | None:
    """Return the cells of the next row, or None at the end. Raises `DamagedFileError` if an error may hide rows."""
    try:
        return next(table, None)
    except csv.Error as error:
        message = f"expected CSV in UTF-8 with commas and double quotes, found: {error}"
        if table.line_num == start_line and "end of data" not in str(error):
            return RowError(message)
        raise DamagedFileError(f"{message}; is a quote missing in this row or one after it?", start_line) from error


def _decode_lines(stream: BinaryStream, line_errors: dict[int, str]) -> Iterator[str]:
    """Yield all lines, also blank ones: they may be in quotes. Encoding errors go to `line_errors` by line number."""
    last_number = 0
    for number, line in read_lines(stream):
        yield from ["\n"] * (number - last_number - 1)
        line_error = str(line) if isinstance(line, RowError) else find_encoding_error(line)
        if line_error:
            line_errors[number] = line_error
        yield "\n" if isinstance(line, RowError) else line.decode(errors="replace")
        last_number = number


def _check_header(names: list[str]) -> list[str]:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DamagedFileError(f"expected each column's name once in the header, found {repeated[0][:40]!r} twice")
    if len(names) == 1 and any(separator in names[0] for separator in ";\t|"):
        raise DamagedFileError(f"expected columns separated by commas, found the header {names[0][:80]!r}")
    return names


def _build_row(header: list[str], cells: list[str]) -> dict[str, Any] | RowError:
    if len(cells) != len(header):
        return RowError(f"expected {len(header)} columns as in the header, found {len(cells)}; is a quote missing?")
    return dict(zip(header, cells, strict=True))


def read_parquet_rows(file: IO[bytes] | BinaryStream) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Yield for each row its number from 1, and its columns. Only a part of a row group is in memory at a time."""
    import pyarrow as pa

    number = 0
    try:
        for batch in _read_batches(file):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise DamagedFileError(
            f"expected a complete Parquet file, found: {str(error)[:200]}; upload it again"
        ) from error


def _read_batches(file: IO[bytes] | BinaryStream) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    # Without buffer_size, pyarrow reads a complete row group, which may be the complete file.
    with parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as table:
        fields = [field for field in table.schema_arrow if not pa.types.is_temporal(field.type)]
        names = _check_header([field.name for field in fields])
        yield from table.iter_batches(batch_size=_BATCH_ROWS, columns=names)
