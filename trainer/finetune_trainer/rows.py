"""Rows of JSONL objects: read line by line, told apart, checked. Needs no torch and holds one row at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from finetune_trainer.contract import DataSource, Reason
from finetune_trainer.errors import TrainerError

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Who may speak in a conversation."""
_EXAMPLES = 5
"""Wrong rows that the error names; all are counted."""
_EXAMPLE_CHARS = 280


class SourceFile(Protocol):
    """What is read of an `InputFile`: an object and its copy on disk."""

    @property
    def uri(self) -> str:
        """`s3://bucket/key`."""

    @property
    def path(self) -> Path:
        """The copy."""


@dataclass(frozen=True)
class Chat:
    """A conversation: `role` and `content` of each turn."""

    messages: list[dict[str, str]]


@dataclass(frozen=True)
class Pair:
    """A prompt and what is to follow it."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """Plain text, all of which is learnt."""

    text: str


@dataclass(frozen=True)
class Preference:
    """Two ways on from one prompt, each with the prompt: the better and the worse."""

    chosen: Chat | Pair
    rejected: Chat | Pair


@dataclass(frozen=True)
class Judged:
    """A row whose answer somebody called good or bad."""

    row: Chat | Pair
    good: bool


Row = Chat | Pair | Text | Preference | Judged
"""What a row can hold; which of them, `training.method` and the source's format say."""


@dataclass(frozen=True)
class Place:
    """Where a row stands."""

    uri: str
    line: int

    def __str__(self) -> str:
        return f"{self.uri} line {self.line}"


class RowError(ValueError):
    """One row cannot be used; says what was expected."""


@dataclass
class Offenders:
    """Rows that cannot be used: the first few by place, all by number."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, place: Place, why: RowError) -> None:
        """Note one row."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(_shortened(f"{place}: {why}"))

    def raise_if_any(self, rows: int) -> None:
        """`DATA_INVALID`, naming the first few of them, unless there are none among `rows` rows."""
        if not self.count:
            return
        more = f"\n… and {self.count - len(self.examples)} more" if self.count > len(self.examples) else ""
        found = "\n".join(self.examples)
        raise TrainerError(Reason.DATA_INVALID, f"{self.count} of {rows} rows cannot be used:\n{found}{more}")


def _shortened(text: str) -> str:
    if len(text) <= _EXAMPLE_CHARS:
        return text
    half = _EXAMPLE_CHARS // 2
    return f"{text[:half]} … {text[-half:]}"


@dataclass
class Reader:
    """Reads sources in their order; `rows` counts every line that is not blank, `offenders` those that are wrong."""

    method: str = "sft"
    rows: int = 0
    offenders: Offenders = field(default_factory=Offenders)

    def read(self, sources: Sequence[tuple[DataSource, Sequence[SourceFile]]]) -> Iterator[tuple[Place, Chat | Pair]]:
        """The rows that can be used, each with its place."""
        for source, files in sources:
            lines = ((file, line, text) for file in files for line, text in _lines(file.path))
            yield from self._rows(source, islice(lines, source.limit))

    def _rows(
        self, source: DataSource, lines: Iterator[tuple[SourceFile, int, bytes]]
    ) -> Iterator[tuple[Place, Chat | Pair]]:
        formats: dict[str, str] = {}
        for file, line, text in lines:
            self.rows += 1
            place = Place(file.uri, line)
            try:
                row = parse_line(text)
                if file.uri not in formats:
                    formats[file.uri] = source.format if source.format != "auto" else detect_format(row)
                parsed = PARSERS[formats[file.uri]](row)
            except RowError as why:
                self.offenders.add(place, why)
            else:
                yield place, parsed


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes) of each line that is not blank; a byte order mark at the start is no part of it."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield number, text


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object on one line. Raises `RowError`."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(f"expected UTF-8, found byte 0x{line[error.start]:02x} at position {error.start}") from error
    except RecursionError as error:
        raise RowError("expected a JSON object, found one that is nested too deeply") from error
    except ValueError as error:
        hint = "; is the file one JSON array? Write one object per line" if line.strip() in (b"[", b"]") else ""
        raise RowError(f"expected a JSON object, found something else ({error}){hint}") from error
    if not isinstance(row, dict):
        raise RowError(f"expected a JSON object, found {_kind(row)}")
    return row


def detect_format(row: Mapping[str, Any]) -> str:
    """The format that a row's keys tell. Raises `RowError`."""
    chat, pair = "messages" in row, "prompt" in row and "completion" in row
    if chat and pair:
        raise RowError("has both 'messages' and 'prompt'/'completion'; say which by the source's format")
    if chat or pair:
        return "messages" if chat else "promptCompletion"
    raise RowError(f"expected 'messages', or 'prompt' and 'completion'; found {_names(row)}")


def _parse_messages(row: Mapping[str, Any]) -> Chat:
    messages = _column(row, "messages")
    if not isinstance(messages, list) or not messages:
        raise RowError(f"expected 'messages' to be a list of turns, found {_kind(messages)}")
    turns = [_parse_turn(f"messages[{index}]", turn) for index, turn in enumerate(messages)]
    if all(turn["role"] != "assistant" for turn in turns):
        raise RowError("expected a turn of the assistant in 'messages', found none")
    return Chat(turns)


def _parse_turn(name: str, turn: object) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise RowError(f"expected {name} to be an object with role and content, found {_kind(turn)}")
    role = turn.get("role")
    if role not in ROLES:
        raise RowError(f"expected {name}.role to be one of {', '.join(ROLES)}, found {_shown(role)}")
    unread = sorted(key for key, value in turn.items() if key not in ("role", "content") and value is not None)
    if unread:
        raise RowError(f"expected {name} to have role and content, found also {', '.join(map(_shown, unread[:5]))}")
    content = _text(f"{name}.content", turn.get("content"))
    if role == "assistant":
        _answer(f"{name}.content", content)
    return {"role": role, "content": content}


def _parse_pair(row: Mapping[str, Any]) -> Pair:
    prompt = _text("'prompt'", _column(row, "prompt"))
    return Pair(prompt, _answer("'completion'", _text("'completion'", _column(row, "completion"))))


PARSERS: Mapping[str, Callable[[Mapping[str, Any]], Chat | Pair]] = {
    "messages": _parse_messages,
    "promptCompletion": _parse_pair,
}
"""By format: row to `Chat` or `Pair`; other columns are not looked at. They raise `RowError`."""


def _column(row: Mapping[str, Any], name: str) -> object:
    if name not in row:
        raise RowError(f"expected '{name}', found {_names(row)}")
    return row[name]


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise RowError(f"expected {name} to be text, found {_kind(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character ("\ud83d"); tokenizers crash on it
        raise RowError(f"expected {name} to be text, found half a surrogate pair at {error.start}") from error
    return value


def _answer(name: str, text: str) -> str:
    if not text.strip():
        raise RowError(f"expected {name} to be an answer, found it empty")
    return text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return "an empty list" if value == [] else names.get(type(value), "a number")


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(map(_shown, list(row)[:8])) or "no keys"


def _shown(value: object) -> str:
    return repr(value[:40]) if isinstance(value, str) else _kind(value)
