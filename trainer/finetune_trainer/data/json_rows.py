"""JSON objects: one per line, or the elements of one array. What two readers may read differently is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

import ijson
import orjson

from finetune_trainer.data.lines import LARGEST_ROW, BinaryStream, encoding_error, lines
from finetune_trainer.data.row_types import DamagedError, RowError

_CHUNK = 1 << 12
"""Bytes given to ijson at once; few, so that little nesting can hide between two looks."""
_DEEPEST = 1000
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
    found = _Keyed()
    for key, value in pairs:
        found[key] = value
    return found.checked()


class _Keyed(dict[str, Any]):
    """Readers disagree on which of two equal keys counts, so neither does.

    Noted here and raised later, since ijson's C code does not expect an error.
    """

    repeated: str | None = None

    def __setitem__(self, key: str, value: object) -> None:
        if key in self:
            self.repeated = key
        super().__setitem__(key, value)

    def checked(self) -> dict[str, Any]:
        if self.repeated is not None:
            raise RowError(f"expected each key once, found {self.repeated[:40]!r} twice")
        return self


class _Metered:
    """Ends the reading of an element that is too large to hold."""

    def __init__(self, stream: IO[bytes] | BinaryStream) -> None:
        self._stream = stream
        self.left, self.open = LARGEST_ROW, 0

    def next_row(self) -> None:
        self.left, self.open = LARGEST_ROW, 0

    def read(self, size: int) -> bytes:
        chunk = self._stream.read(min(size, _CHUNK))
        self.left -= len(chunk)
        if self.left < -_CHUNK:
            raise DamagedError(f"the row is larger than {LARGEST_ROW >> 20} MiB; leave it out")
        self.open += sum(map(chunk.count, (b"[", b"{"))) - sum(map(chunk.count, (b"]", b"}")))
        if self.open > _DEEPEST:  # or so many brackets in a text; ijson's C code would crash on real ones
            raise DamagedError(f"the row has more than {_DEEPEST} brackets open; leave it out")
        return chunk


def json_array(stream: BinaryStream) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    """(number from 1, object or what is wrong) of each element of the file's one array."""
    metered = _Metered(stream)
    found = ijson.items(metered, "item", buf_size=_CHUNK, map_type=_Keyed, use_float=True)
    try:
        for number, row in enumerate(found, start=1):
            metered.next_row()
            yield number, _element(row)
    except (ijson.JSONError, ValueError) as error:  # ValueError: a number of 5000 digits
        raise DamagedError(f"expected a JSON array of objects, found something else ({_first_line(error)})") from error


def _element(row: object) -> dict[str, Any] | RowError:
    try:
        for each in _objects(row):
            if isinstance(each, _Keyed):
                each.checked()
        return _object(row)
    except RowError as why:
        return why


def _first_line(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    return text.strip().partition("\n")[0][:200]


def _object(row: object) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise RowError(f"expected a JSON object, found {kind(row)}")
    return row


def kind(value: object) -> str:
    """A value's type in the words of JSON."""
    return "an empty list" if value == [] else _KINDS.get(dict if isinstance(value, dict) else type(value), "a number")
