"""Readers of JSON objects: one per line, or the elements of one array. Ambiguous JSON is rejected."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import orjson

from finetune_trainer.data.readers.file_types import HEAD_BYTES
from finetune_trainer.data.readers.lines import (
    MAX_ROW_BYTES,
    UTF8_BOM,
    BinaryStream,
    find_encoding_error,
    read_lines,
)
from finetune_trainer.data.row_types import DamagedFileError, RowError

_CHUNK_BYTES = 1 << 16
_TOKEN_PATTERN = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)|[\[\]{},]', re.DOTALL)
"""Tokens that matter to find the end of an array element: brackets, commas, complete strings."""
_TYPE_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    type(None): "nothing",
    bytes: "bytes",
}
_WRAPPER = re.compile(
    rb'\s*\{\s*"(data|rows|examples|instances|items|records|samples|dataset|train|test|validation)"\s*:'
    rb'\s*\[\s*\{\s*"(?!(?:role|content|from|value)")'
)
"""Start of an object that has the rows in a list, not turns."""
_PANDAS_TABLE = re.compile(
    rb'\s*\{\s*"(?:[^"\\]*"\s*:\s*\{\s*"0"\s*:|0"\s*:\s*\{|columns"\s*:\s*\[\s*"|schema"\s*:\s*\{\s*"fields")'
)
"""Start of what `DataFrame.to_json` writes, unless `orient="records"`."""
_ARRAY_HINT = "; is the file one JSON array? Write one object per line, or name the file .json"
_LINES_HINT = "; is the object spread over several lines? Write one object per line"
_PARSE_ERROR_HINTS = ((b"[", _ARRAY_HINT), (b"]", _ARRAY_HINT), (b"{", _LINES_HINT), (b"}", _LINES_HINT))
_PATTERN_HINTS = (
    (re.compile(rb"NaN|Infinity"), "; JSON has no NaN or Infinity"),
    (
        re.compile(rb"\},\s*\Z"),
        "; remove the comma at the end of the line, or name the file .json if it is one array",
    ),
    (re.compile(rb"\A\s*(?://|#)"), "; JSON has no comments: remove the line"),
    (re.compile(rb"\A\s*\{\s*'"), "; JSON has double quotes: write the rows with json.dumps"),
    (re.compile(rb"\A\s*\{.*\}\s*\{", re.DOTALL), "; write one object per line"),
    (re.compile(rb"\A\s*[^{\[\s]"), "; write one object per line, or name a table .csv or .tsv"),
)
"""What may be wrong with a line that matches."""
_LONE_BRACKET = re.compile(rb"\s*[\[{]\s*\n")
"""Start of a file whose first line is only a bracket."""
_ERROR_POSITION = re.compile(r": line \d+ column \d+ \(char (\d+)\)")


def read_json_lines(stream: BinaryStream) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Yield for each line that is not blank its number from 1, and the object or the error.

    Raises `DamagedFileError` if the objects are spread over lines, so that no line is a row.
    """
    may_be_spread = _LONE_BRACKET.match(stream.peek(HEAD_BYTES))
    rows = _parse_lines(stream)
    first_rows = list(islice(rows, 2 if may_be_spread else 0))
    errors = [(number, row) for number, row in first_rows if isinstance(row, RowError)]
    if len(errors) == 2:
        number, error = errors[0]
        raise DamagedFileError(str(error), number) from error
    yield from chain(first_rows, rows)


def _parse_lines(stream: BinaryStream) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    for number, line in read_lines(stream):
        try:
            yield number, parse_line(line)
        except RowError as error:
            yield number, error


def parse_line(line: bytes | RowError) -> dict[str, Any]:
    """Parse the JSON object on one line. Raises `RowError`."""
    if isinstance(line, RowError):
        raise line
    row = parse_json(line)
    if not isinstance(row, dict):
        hint = _ARRAY_HINT if isinstance(row, list) and row and isinstance(row[0], dict) else ""
        raise RowError(f"expected a JSON object, found {describe_type(row)}{hint}")
    return row


def parse_json(text: bytes) -> object:
    """Parse JSON in UTF-8, also after a byte order mark, which files have that were joined. Raises `RowError`."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if text.startswith(UTF8_BOM):
            return parse_json(text.removeprefix(UTF8_BOM))
        raise RowError(_describe_parse_error(text, str(error))) from error
    if _may_repeat_keys(text, value):
        _check_keys_unique(text)
    return value


def _describe_parse_error(line: bytes, error: str) -> str:
    encoding_problem = find_encoding_error(line)
    if encoding_problem:
        return encoding_problem
    if "depth limit" in error:
        return "expected a JSON object, found one that is nested too deeply"
    if "surrogate" in error:  # JSON can contain half of a surrogate pair ("\ud83d"); tokenizers crash on it
        return f"expected text, found half a surrogate pair ({error})"
    if not line.strip():
        return "expected a JSON object, found nothing; is there a comma too many before it, or after the last one?"
    detail = _ERROR_POSITION.sub(lambda match: f" at character {int(match[1]) + 1}", error)
    return f"expected a JSON object, found something else ({detail}){_find_hint(line)}"


def _find_hint(line: bytes) -> str:
    """Return the end of a message that says what may be wrong with a line, or an empty text."""
    matching_hints = (hint for pattern, hint in _PATTERN_HINTS if pattern.search(line))
    return dict(_PARSE_ERROR_HINTS).get(line.strip()) or next(matching_hints, "")


def _may_repeat_keys(line: bytes, row: object) -> bool:
    """Return whether an object may have a key twice. Counting colons is much faster than a parser that checks keys."""
    return line.count(b'":') + line.count(b'" :') - line.count(b'\\":') > sum(map(len, _walk_objects(row)))


def _walk_objects(row: object) -> Iterator[dict[str, Any]]:
    """Yield the row and all nested objects."""
    pending = [row]
    while pending:  # no recursion, because the data decides the depth
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _check_keys_unique(line: bytes) -> None:
    try:
        json.loads(line, object_pairs_hook=_build_unique_dict)
    except RecursionError as error:
        raise RowError("expected a JSON object, found one that is nested too deeply") from error


def _build_unique_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object. Raises `RowError` for a repeated key, because parsers disagree on which value counts."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise RowError(f"expected each key once, found {key[:40]!r} twice")
        result[key] = value
    return result


def is_json_array(stream: BinaryStream) -> bool:
    """Return whether a `.json` file is an array. Many contain JSON Lines, which begin with an object.

    Raises `DamagedFileError` if the file is one object with all rows, as some exports are.
    """
    head = stream.peek(1 << 12)
    wrapper = _WRAPPER.match(head)
    if wrapper:
        name = wrapper[1].decode()
        raise DamagedFileError(f"expected an array of rows, found it below the key {name!r}; write only the array")
    if _PANDAS_TABLE.match(head):
        raise DamagedFileError(
            "expected an array of rows, found a table as pandas writes it; use to_json(orient='records')"
        )
    return head.lstrip().startswith(b"[")


def read_json_array(stream: BinaryStream) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """Yield for each element of the array in the file its number from 1, and the object or the error."""
    for number, element in enumerate(_read_elements(stream), start=1):
        try:
            yield number, parse_line(element)
        except RowError as error:
            yield number, error


def _read_elements(stream: BinaryStream) -> Iterator[bytes]:
    """Yield the text of each element of the array that begins here, valid or not."""
    buffer, start, is_first = stream.read(_CHUNK_BYTES).lstrip()[1:], 0, True
    while True:
        end = _find_element_end(buffer, start)
        if end is None:
            buffer, start = _extend_buffer(stream, buffer[start:]), 0
            continue
        is_last = buffer[end : end + 1] == b"]"
        element = _check_row_size(buffer[start:end])
        if not (is_first and is_last and not element.strip()):
            yield element
        if is_last:
            return _check_nothing_follows(stream, buffer[end + 1 :])
        start, is_first = end + 1, False


def _find_element_end(buffer: bytes, start: int) -> int | None:
    """Return the position of the comma or bracket that ends the element, or None if the buffer does not contain it."""
    depth = 0
    for match in _TOKEN_PATTERN.finditer(buffer, start):
        token = match[0]
        if not depth and token in (b",", b"]"):
            return match.start()
        if token in (b"{", b"["):
            depth += 1
        elif token in (b"}", b"]"):
            depth -= 1
        elif token[:1] == b'"' and not match[1]:
            return None  # the string continues after the buffer
    return None


def _extend_buffer(stream: BinaryStream, buffer: bytes) -> bytes:
    # Double the buffer, because it is searched again from its start.
    chunk = stream.read(max(_CHUNK_BYTES, len(_check_row_size(buffer))))
    if not chunk:
        raise DamagedFileError(
            "the array ends in or after this row: the file is truncated, or a quote or bracket is missing here; upload "
            "it again, or as JSON Lines, where an invalid row does not hide the rows after it"
        )
    return buffer + chunk


def _check_row_size(row: bytes) -> bytes:
    if len(row) > MAX_ROW_BYTES:
        raise DamagedFileError(f"the row is larger than {MAX_ROW_BYTES >> 20} MiB; remove it")
    return row


def _check_nothing_follows(stream: BinaryStream, trailing: bytes) -> None:
    while not trailing.strip():
        trailing = stream.read(_CHUNK_BYTES)
        if not trailing:
            return
    raise DamagedFileError(
        f"expected nothing after the array, found {trailing.strip()[:20]!r}; is there a bracket too many before it?"
    )


def describe_type(value: object) -> str:
    """Return the type of a value for an error message, in terms of JSON."""
    return (
        "an empty list"
        if value == []
        else _TYPE_NAMES.get(dict if isinstance(value, dict) else type(value), "a number")
    )
