"""Reader of CSV files, also as Excel and pandas write them."""

from __future__ import annotations

import csv
import logging
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.readers.cells import parse_cells
from finetune_trainer.data.readers.lines import MAX_ROW_BYTES, BinaryStream, find_encoding_error, read_lines
from finetune_trainer.data.row_types import DamagedFileError, RowError
from finetune_trainer.formatting import pluralize

if TYPE_CHECKING:
    from _csv import Reader as _Table

log = logging.getLogger(__name__)

_EXCEL_SEPARATOR_LINE = re.compile(r'"?sep=([,;\t|])"?[,;\t|]*')
"""First line that names the separator for Excel."""
_QUOTED_TEXT = re.compile(r'"(?:[^"]|"")*"')
_JSON_OBJECT = re.compile(r'\s*\{\s*"')
_OTHER_SEPARATORS = ";\t|"
_AROUND_NAMES = string.whitespace + "\u00a0\u200b\ufeff"
"""Characters that are removed at the start and end of names: blanks and byte order marks, which nobody sees."""
_UNNAMED = "unnamed column "
"""Start of the name of a column without a name, such as the index of pandas. The number of the column follows."""


@dataclass(frozen=True)
class _Dialect:
    """How the cells of a row are separated."""

    separator: str = ","
    skips_blanks: bool = False
    """Whether each separator is followed by a blank that is not a part of the cell."""


def read_csv_rows(
    stream: BinaryStream, *, prefers_tabs: bool = False
) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Yield for each row below the header the number of its first line, and its columns or the error.

    The separator is the one of the header: with `prefers_tabs` a tab, if the header has one. A column without a name is
    called `unnamed column N`, and is left out of rows in which it is empty. Raises `DamagedFileError` if the header is
    wrong or other rows cannot be read.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    line_errors: dict[int, str] = {}
    dialect, lines = _detect_dialect(_decode_lines(stream, line_errors), prefers_tabs=prefers_tabs)
    table = csv.reader(lines, strict=True, delimiter=dialect.separator, skipinitialspace=dialect.skips_blanks)
    header = _read_header(table, line_errors)
    unnamed = [name for name in header if name.startswith(_UNNAMED)]
    start_line = table.line_num + 1
    while (cells := _read_cells(table, start_line)) is not None:
        if line_errors:
            cells = _pop_line_error(line_errors, table.line_num) or cells
        if isinstance(cells, RowError):
            yield start_line, cells
        elif any(cells):
            yield start_line, _build_row(header, unnamed, cells)
        start_line = table.line_num + 1


def _detect_dialect(lines: Iterator[str], *, prefers_tabs: bool) -> tuple[_Dialect, Iterator[str]]:
    """Return the dialect of the header, and the lines with a blank one in place of the separator line of Excel."""
    blank_lines = list[str]()
    for line in lines:
        separator_line = _EXCEL_SEPARATOR_LINE.fullmatch(line.strip("\r\n "))
        if separator_line:
            return _Dialect(separator_line[1]), chain([*blank_lines, "\n"], lines)
        if line.strip():
            has_tabs = prefers_tabs and "\t" in line
            return _Dialect("\t") if has_tabs else _sniff_dialect(line), chain([*blank_lines, line], lines)
        blank_lines.append(line)
    return _Dialect(), iter(())


def _sniff_dialect(header: str) -> _Dialect:
    if _JSON_OBJECT.match(header):
        raise DamagedFileError("expected the header of a CSV file, found a JSON object; name the file .jsonl", 1)
    unquoted = _QUOTED_TEXT.sub("", header)
    found = "".join(separator for separator in _OTHER_SEPARATORS if separator in unquoted)
    if "," in unquoted or not found:
        skips_blanks = ", " in unquoted and unquoted.count(", ") == unquoted.count(",")
        return _Dialect(skips_blanks=skips_blanks)
    if len(found) > 1:
        raise DamagedFileError(f"expected columns separated by commas, found the header {header.strip()[:80]!r}", 1)
    log.info("a CSV file has columns separated by %r, not by commas", found)
    return _Dialect(found)


def _read_header(table: _Table, line_errors: dict[int, str]) -> list[str]:
    """Return the names of the columns. Blank lines before the header are skipped."""
    cells: list[str] | RowError | None = []
    while cells == []:
        cells = _read_cells(table, 1)
    if line_errors or isinstance(cells, RowError):
        raise DamagedFileError(next(iter(line_errors.values()), str(cells)), 1)
    names = [cell.strip(_AROUND_NAMES) or f"{_UNNAMED}{number}" for number, cell in enumerate(cells or [], start=1)]
    check_names_unique(names)
    return names


def _read_cells(table: _Table, start_line: int) -> list[str] | RowError | None:
    """Return the cells of the next row, or None at the end. Raises `DamagedFileError` if an error may hide rows."""
    try:
        return next(table, None)
    except csv.Error as error:
        message = f"expected CSV in UTF-8 with commas and double quotes, found {_describe_error(str(error))}"
        if table.line_num == start_line and "end of data" not in str(error):
            return RowError(message)
        raise DamagedFileError(f"{message}; is a quote missing in this row or one after it?", start_line) from error


def _describe_error(error: str) -> str:
    if "new-line character" in error:
        return "a carriage return in a cell without quotes"
    hint = '; is a quote within a cell written once, or as \\"? Write it twice' if "expected after" in error else ""
    return f"an error: {error}{hint}"


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


def _pop_line_error(line_errors: dict[int, str], last_line: int) -> RowError | None:
    """Remove the errors of the lines up to this one, and return the first."""
    row_errors = [line_errors.pop(line) for line in sorted(line_errors) if line <= last_line]
    return RowError(row_errors[0]) if row_errors else None


def check_names_unique(names: list[str]) -> None:
    """Raise `DamagedFileError` if two columns have the same name."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DamagedFileError(f"expected each column's name once in the header, found {repeated[0][:40]!r} twice")


def _build_row(header: list[str], unnamed: list[str], cells: list[str]) -> dict[str, Any] | RowError:
    if len(cells) != len(header):
        cells = _fit_cells(header, cells)
    if len(cells) != len(header):
        expected = pluralize(len(header), "column")
        hint = _explain_cell_count(header, cells)
        return RowError(f"expected {expected} as in the header, found {len(cells)}; {hint}")
    try:
        values = parse_cells(cells)
    except RowError as error:
        return error
    row = dict(zip(header, values, strict=True))
    for name in unnamed:
        if not row[name]:
            del row[name]
    return row


def _explain_cell_count(header: list[str], cells: list[str]) -> str:
    """Return what may be wrong with a row whose number of cells differs from that of the header."""
    if len(header) == 1:
        return f"is the first line, {header[0][:40]!r}, the header? Put cells with commas in quotes"
    if any(separator in name for name in header for separator in _OTHER_SEPARATORS):
        return "are the columns separated by commas? Put names with commas in quotes"
    if any(cell.endswith("\\") for cell in cells[:-1]):
        return "is a backslash written before a separator? Put the cell in quotes instead"
    if len(cells) == len(header) + 1:
        return "is a quote missing, or the name of a column of row names, as R writes them (row.names = FALSE)?"
    return "is a quote missing?"


def _fit_cells(header: list[str], cells: list[str]) -> list[str]:
    """Add or remove empty cells at the end of a row, as far as the columns have no name."""
    while len(cells) > len(header) and not cells[-1]:
        cells = cells[:-1]
    missing = header[len(cells) :]
    return cells + [""] * len(missing) if all(name.startswith(_UNNAMED) for name in missing) else cells
