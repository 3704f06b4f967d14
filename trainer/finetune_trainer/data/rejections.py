"""Rejected rows: their number by reason, and a few examples of each reason.

`Rejections` is the only place to which a rejection is reported. The reasons and the modules that decide them:

- `rewrittenAnswer`: `loss_masking`, if the chat template rewrites an answer so that it cannot be found
- `invalid`: syntax in `readers`, columns and content in the modules that `row_reader` uses, rendering in `loss_masking`
- `emptyAnswer`, `identicalAnswers`, `echo`: `find_rejection_reason`; for answers with equal tokens also
  `training.methods`
- `duplicate`, `nearDuplicate`, `leaked`: `deduplication.DuplicateFilter`
- `tooShort`, `overlength`: `tokenized_rows`
- `noSupervisedTokens`: `row_reader`, if all answers have `weight: 0`; `build_columns` of the methods
- `promptsDiffer`: `build_columns` of the methods in `training.methods`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from finetune_trainer.contract import Reason
from finetune_trainer.data.pii import PII_KINDS, redact_pii
from finetune_trainer.data.row_texts import Turn, list_conversations, list_turns
from finetune_trainer.data.row_types import Row, RowError, SourceLocation, TemplateRejectionError
from finetune_trainer.errors import TrainerError
from finetune_trainer.records.evaluation import RejectedRow

_MAX_MESSAGES = 5
"""Maximum number of invalid rows that an error names. All are counted."""
_MAX_MESSAGE_CHARS = 340
_TEMPLATE_HINT = (
    "The chat template rejects all of them for the same reason; dataset.preparation.mergeTurns joins consecutive turns "
    "of one role, and model.chatTemplateName or model.chatTemplate can replace the template by one that has system "
    "turns or turns of tools, or for messages whose content is text."
)
_EXAMPLES_PER_REASON = 3
"""Number of rejected rows that the report shows for each reason."""
_MAX_EXAMPLE_CHARS = 500


def find_rejection_reason(row: Row, *, drops_echoes: bool = False) -> str | None:
    """Return the reason to reject a row that the model cannot learn from, whatever its length, otherwise None.

    Rows whose answer repeats the message before it are rejected only if `drops_echoes`: data for proofreading or
    translation has them for texts that need no change.
    """
    conversations = [list_turns(conversation) for conversation in list_conversations(row)]
    if any(role == "assistant" and not content.strip() for turns in conversations for role, content in turns):
        return "emptyAnswer"
    if len(conversations) == 2 and conversations[0] == conversations[1]:
        return "identicalAnswers"
    return "echo" if drops_echoes and any(map(_echoes_prompt, conversations)) else None


def _echoes_prompt(turns: list[Turn]) -> bool:
    return len(turns) > 1 and turns[-1][0] == "assistant" and turns[-1][1].strip() == turns[-2][1].strip()


@dataclass
class RowErrors:
    """Errors of rows: the number of all, and the messages of the first few."""

    count: int = 0
    messages: list[str] = field(default_factory=list)
    _common_cause: str | None = None
    """The error of the chat template that all rows have in common, or an empty text if there is none."""

    def add(self, location: SourceLocation, error: RowError) -> None:
        """Record the error of one row."""
        self.count += 1
        cause = str(error) if isinstance(error, TemplateRejectionError) else ""
        self._common_cause = cause if self._common_cause in (None, cause) else ""
        if len(self.messages) < _MAX_MESSAGES:
            self.messages.append(_shorten(f"{location}: {error}"))

    def raise_if_any(self, row_count: int) -> None:
        """Raise `DATA_INVALID` with the first messages if any of the `row_count` rows has an error."""
        if not self.count:
            return
        suffix = f"\n… and {self.count - len(self.messages)} more" if self.count > len(self.messages) else ""
        if self._common_cause and self.count > 1:
            suffix += f"\n{_TEMPLATE_HINT}"
        listing = "\n".join(self.messages)
        raise TrainerError(Reason.DATA_INVALID, f"{self.count} of {row_count} rows cannot be used:\n{listing}{suffix}")


class RowsRejectedError(TrainerError):
    """An error of the data preparation, with the rows that were rejected before it."""

    def __init__(self, reason: Reason, message: str, rejections: Rejections) -> None:
        super().__init__(reason, message)
        self.counts = rejections.counts
        self.examples = rejections.examples


class Rejections:
    """Counts rejected rows by reason and keeps examples of each reason."""

    def __init__(self) -> None:
        self.invalid = RowErrors()
        self._counts: Counter[str] = Counter()
        self._examples: list[RejectedRow] = []

    def reject(self, reason: str, location: SourceLocation, texts: Sequence[str]) -> None:
        """Record that a row with these texts is rejected."""
        self._counts[reason] += 1
        if self._counts[reason] <= _EXAMPLES_PER_REASON:
            text = redact_pii("\n".join(texts), PII_KINDS)  # examples are published
            self._examples.append(RejectedRow(reason=reason, where=str(location), text=text[:_MAX_EXAMPLE_CHARS]))

    def reject_invalid(self, location: SourceLocation, error: RowError) -> None:
        """Record that a row is rejected as `invalid`, with the error that says why."""
        self.invalid.add(location, error)

    @contextmanager
    def add_to_errors(self) -> Iterator[None]:
        """Add the rejected rows to an error that ends the block."""
        try:
            yield
        except TrainerError as error:
            raise RowsRejectedError(error.reason, error.message, self) from error

    @property
    def counts(self) -> dict[str, int]:
        """Number of rejected rows by reason, sorted by reason."""
        invalid = {"invalid": self.invalid.count} if self.invalid.count else {}
        return dict(sorted({**self._counts, **invalid}.items()))

    @property
    def examples(self) -> list[RejectedRow]:
        """A few rejected rows for each reason. An invalid row has no text: its message contains its location."""
        messages = self.invalid.messages[:_EXAMPLES_PER_REASON]
        return [*(RejectedRow(reason="invalid", where=message, text="") for message in messages), *self._examples]


def _shorten(text: str) -> str:
    if len(text) <= _MAX_MESSAGE_CHARS:
        return text
    # The end has the remedy, and the start the location.
    start = _MAX_MESSAGE_CHARS // 3
    return f"{text[:start]} … {text[start - _MAX_MESSAGE_CHARS :]}"
