"""What a row of data can be, where it stands, and what is said of rows that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

_MAX_EXAMPLES = 5
"""Wrong rows that the error names; all are counted."""
_MAX_EXAMPLE_CHARS = 280


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
class PromptCompletion:
    """A prompt and what is to follow it."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class PlainText:
    """Plain text, all of which is learnt."""

    text: str


@dataclass(frozen=True)
class Preference:
    """Two ways on from one prompt, each with the prompt: the better and the worse."""

    chosen: Chat | PromptCompletion
    rejected: Chat | PromptCompletion


@dataclass(frozen=True)
class LabeledExample:
    """A row whose answer somebody called good or bad."""

    row: Chat | PromptCompletion
    desirable: bool


Row = Chat | PromptCompletion | PlainText | Preference | LabeledExample
"""What a row can hold; which of them, `training.method` and the source's format say."""


@dataclass(frozen=True)
class SourceLocation:
    """Where a row stands."""

    uri: str
    line: int
    unit: str = "line"
    """`row` where a file has no lines that anybody would count: Parquet, JSON arrays."""

    def __str__(self) -> str:
        return f"{self.uri} {self.unit} {self.line}"


class RowError(ValueError):
    """One row cannot be used; says what was expected."""


class DamagedFileError(Exception):
    """A file cannot be read any further; says why, and the line if that is not the one after the last row."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@dataclass
class InvalidRows:
    """Rows that cannot be used: the first few by place, all by number."""

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, location: SourceLocation, error: RowError) -> None:
        """Note one row."""
        self.count += 1
        if len(self.examples) < _MAX_EXAMPLES:
            self.examples.append(_shorten(f"{location}: {error}"))

    def raise_if_any(self, row_count: int) -> None:
        """`DATA_INVALID`, naming the first few of them, unless there are none among `rows` rows."""
        if not self.count:
            return
        suffix = f"\n… and {self.count - len(self.examples)} more" if self.count > len(self.examples) else ""
        listing = "\n".join(self.examples)
        raise TrainerError(Reason.DATA_INVALID, f"{self.count} of {row_count} rows cannot be used:\n{listing}{suffix}")


def _shorten(text: str) -> str:
    if len(text) <= _MAX_EXAMPLE_CHARS:
        return text
    half = _MAX_EXAMPLE_CHARS // 2
    return f"{text[:half]} … {text[-half:]}"
