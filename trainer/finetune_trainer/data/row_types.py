"""Types of rows, their location in the data, and the errors for rows and files that cannot be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class SourceFile(Protocol):
    """An input object and its local copy: the part of `InputFile` that the readers need."""

    @property
    def uri(self) -> str:
        """URI of the object: `s3://bucket/key`."""

    @property
    def path(self) -> Path:
        """Path of the local copy."""


Message = dict[str, Any]
"""A turn in the form that chat templates read.

`role` and `content` are texts; `content` is empty for a turn that only calls tools. Optional keys, which are absent if
they are empty: `reasoning_content` (text of the assistant's reasoning), `tool_calls` (a list of `{"type": "function",
"id": …, "function": {"name": …, "arguments": {…}}}`, with the arguments as an object), `tool_call_id` and `name`.
"""
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys of the reasoning in data and in chat templates. Rows have the first one after parsing."""
ToolDefinition = dict[str, Any]
"""Definition of a function that the model may call: `{"type": "function", "function": {"name": …, …}}`."""


NO_ANSWER = "[no answer]"
"""Takes the place of the answer in rows for methods that generate answers, if the data has none. It is never trained
on."""


@dataclass(frozen=True)
class Chat:
    """A conversation as a list of turns."""

    messages: list[Message]
    tools: list[ToolDefinition] = field(default_factory=list)
    """Definitions of the tools that the assistant may call. They are a part of the prompt."""
    unsupervised_turns: frozenset[int] = frozenset()
    """Indices of the turns of the assistant that the loss is not computed on, as those with `weight: 0`."""


@dataclass(frozen=True)
class PromptCompletion:
    """A prompt and its completion."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class PlainText:
    """Plain text. The loss is computed on all of it."""

    text: str


@dataclass(frozen=True)
class Preference:
    """A preferred and a rejected answer to the same prompt, each with the prompt."""

    chosen: Chat | PromptCompletion
    rejected: Chat | PromptCompletion


@dataclass(frozen=True)
class LabeledExample:
    """A prompt with an answer that is labeled as desirable or undesirable."""

    row: Chat | PromptCompletion
    desirable: bool


Row = Chat | PromptCompletion | PlainText | Preference | LabeledExample
"""Any row. `training.method` and the format of the source decide which type a row has."""


@dataclass(frozen=True)
class SourceLocation:
    """Location of a row in the data."""

    uri: str
    line: int
    unit: str = "line"
    """Unit of `line`: `row` for files without lines (Parquet, JSON arrays)."""

    def __str__(self) -> str:
        return f"{self.uri} {self.unit} {self.line}"


class RowError(ValueError):
    """Raised for an invalid row. The message says what was expected and what was found."""


class TemplateRejectionError(RowError):
    """Raised for a conversation that the chat template cannot render."""


class RewrittenAnswerError(RowError):
    """Raised for a conversation with an answer that the chat template rewrites, so that it cannot be found."""

    def __init__(self, removed_text: str, *, is_unrendered: bool) -> None:
        super().__init__(f'the chat template removes or rewrites words of an answer: "{removed_text}"')
        self.removed_text = removed_text
        """Words of the answer that the rendered text lacks."""
        self.is_unrendered = is_unrendered
        """Whether the rendered text does not depend on the answer."""


class DamagedFileError(Exception):
    """Raised if the rest of a file cannot be read. `line` is the line of the damage if it is not the next row's."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line
