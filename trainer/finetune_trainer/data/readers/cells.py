"""Values of the cells of a CSV file, which are texts: conversations in JSON, and missing values of pandas."""

from __future__ import annotations

import re

from finetune_trainer.data.readers.json_rows import parse_json
from finetune_trainer.data.row_types import RowError

_MISSING_VALUES = ("nan", "<NA>", "\\N")
"""Texts that pandas (`astype(str)`) and SQL databases write for missing values. `NaN`, `NA`, `None` and `null` are
kept: they may be answers."""
_SPECIAL_STARTS = "[n<\\ \t\n"
"""First characters of the cells that are not kept as they are."""
_START_OF_TURNS = re.compile(r"""\s*\[\s*\{\s*(["'])(?:role|content|from|value)\1\s*:""")


def parse_cells(cells: list[str]) -> list[object]:
    """Return the values of the cells: lists of turns for texts that are such lists in JSON, empty for missing values.

    Other JSON stays text, because answers may be JSON. Raises `RowError` for turns in the notation of Python, which
    pandas writes for columns of lists, and for damaged ones.
    """
    return [_parse_cell(cell) if cell[:1] in _SPECIAL_STARTS else cell for cell in cells]


def _parse_cell(cell: str) -> object:
    if cell in _MISSING_VALUES:
        return ""
    start = _START_OF_TURNS.match(cell)
    if start is None:
        return cell
    if start[1] == "'":
        raise RowError(
            "expected a list of turns as JSON, found the notation of Python, as pandas writes lists; apply json.dumps "
            "to the column before to_csv, or use to_json(orient='records', lines=True) or to_parquet"
        )
    value = _parse_turns(cell)
    return value if isinstance(value, list) and all(map(_is_turn, value)) else cell


def _parse_turns(cell: str) -> object:
    try:
        return parse_json(cell.encode())
    except RowError as error:
        raise RowError(f"a list of turns: {error}") from error


def _is_turn(value: object) -> bool:
    return isinstance(value, dict) and (
        ("role" in value and ("content" in value or "tool_calls" in value)) or ("from" in value and "value" in value)
    )
