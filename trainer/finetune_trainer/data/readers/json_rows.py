"""JSON objects: one per line, or the elements of one array. What two readers may read differently is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import orjson

from finetune_trainer.data.readers.lines import LARGEST_ROW, BinaryStream, encoding_error, lines
from finetune_trainer.data.row_types import DamagedError, RowError

_CHUNK = 1 << 16
_MARKS = re.compile(rb'"(?:[^"\\]++|\\.)*+("?)|[\[\]{},]', re.DOTALL)
"""What an element of an array ends with or hides its end in: brackets, commas, whole texts."""
_KINDS: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    type(None): "nothing",
    bytes: "bytes",
}
_HINTS = (
    (b"[", "; is the file one JSON array? Write one object per line, or name the file .json"),
    (b"]", "; is the file one JSON array? Write one object per line, or name the file .json"),
    (b"{", "; is the object spread over several lines? Write one object per line"),
    (b"}", "; is the object spread over several lines? Write one object per line"),
)


def json_lines(stream: BinaryStream) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """(number, object or what is wrong) of each line that is not blank."""
    for number, line in lines(stream):
        try:
            yield number, parse_line(line)
        except RowError as why:
            yield number, why


def parse_line(line: bytes | RowError) -> dict[str, Any]:
    """The JSON object on one line. Raises `RowError`."""
    if isinstance(line, RowError):
        raise line
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise RowError(_why(line, str(error))) from error
    if _may_repeat_keys(line, row):
        _refuse_repeated_keys(line)
    return _object(row)


def _why(line: bytes, error: str) -> str:
    wrong = encoding_error(line)
    if wrong:
        return wrong
    if "depth limit" in error:
        return "expected a JSON object, found one that is nested too deeply"
    if "surrogate" in error:  # JSON can spell half a character ("\ud83d"); tokenizers crash on it
        return f"expected text, found half a surrogate pair ({error})"
    hint = dict(_HINTS).get(line.strip(), "")
    if b"NaN" in line or b"Infinity" in line:
        hint = "; JSON has no NaN or Infinity"
    return f"expected a JSON object, found something else ({error}){hint}"


def _may_repeat_keys(line: bytes, row: object) -> bool:
    """Counting is far cheaper than the parser that sees repeated keys, and seldom wrong."""
    return line.count(b'":') + line.count(b'" :') - line.count(b'\\":') > sum(map(len, _objects(row)))


def _objects(row: object) -> Iterator[dict[str, Any]]:
    """The row and all objects in it."""
    rest = [row]
    while rest:  # no recursion: the depth is the data's
        value = rest.pop()
        if isinstance(value, dict):
            yield value
            rest.extend(value.values())
        elif isinstance(value, list):
            rest.extend(value)


def _refuse_repeated_keys(line: bytes) -> None:
    try:
        json.loads(line, object_pairs_hook=_unique)
    except RecursionError as error:
        raise RowError("expected a JSON object, found one that is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Readers disagree on which of two equal keys counts, so neither does."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise RowError(f"expected each key once, found {key[:40]!r} twice")
        found[key] = value
    return found


def json_array(stream: BinaryStream) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """(number from 1, object or what is wrong) of each element of the file's one array."""
    for number, element in enumerate(_elements(stream), start=1):
        try:
            yield number, parse_line(element)
        except RowError as why:
            yield number, why


def _elements(stream: BinaryStream) -> Iterator[bytes]:
    """What stands between the commas of an array that begins here, valid or not."""
    buffer, start, first = stream.read(_CHUNK).lstrip()[1:], 0, True
    while True:
        end = _end(buffer, start)
        if end is None:
            buffer, start = _longer(stream, buffer[start:]), 0
            continue
        last = buffer[end : end + 1] == b"]"
        element = _held(buffer[start:end])
        if not (first and last and not element.strip()):
            yield element
        if last:
            return _check_nothing_follows(stream, buffer[end + 1 :])
        start, first = end + 1, False


def _end(buffer: bytes, start: int) -> int | None:
    """Where the comma or bracket stands that ends an element; none if that is further on."""
    depth = 0
    for match in _MARKS.finditer(buffer, start):
        mark = match[0]
        if not depth and mark in (b",", b"]"):
            return match.start()
        if mark in (b"{", b"["):
            depth += 1
        elif mark in (b"}", b"]"):
            depth -= 1
        elif mark[:1] == b'"' and not match[1]:
            return None  # the text goes on
    return None


def _longer(stream: BinaryStream, buffer: bytes) -> bytes:
    # As much again: what is there is looked through once more.
    more = stream.read(max(_CHUNK, len(_held(buffer))))
    if not more:
        raise DamagedError(
            "the array ends in or after this row: the file was cut off, or a quote or bracket is missing here; store "
            "it again, or as JSON lines, where one wrong row does not hide the others"
        )
    return buffer + more


def _held(row: bytes) -> bytes:
    if len(row) > LARGEST_ROW:
        raise DamagedError(f"the row is larger than {LARGEST_ROW >> 20} MiB; leave it out")
    return row


def _check_nothing_follows(stream: BinaryStream, rest: bytes) -> None:
    while not rest.strip():
        rest = stream.read(_CHUNK)
        if not rest:
            return
    raise DamagedError(f"expected nothing after the array, found {rest.strip()[:20]!r}; is a bracket before it wrong?")


def _object(row: object) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise RowError(f"expected a JSON object, found {kind(row)}")
    return row


def kind(value: object) -> str:
    """A value's type in the words of JSON."""
    return "an empty list" if value == [] else _KINDS.get(dict if isinstance(value, dict) else type(value), "a number")
