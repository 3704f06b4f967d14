"""Search for words of a conversation that its rendered text lacks.

A chat template may change the texts that it renders: templates of reasoning models remove `<think>…</think>` from
answers (DeepSeek-R1, and Qwen3 in all turns but the last), others convert to lower case, or write no system or tool
turns. The model then learns other answers than those of the data. Whitespace that changes is not such a change, nor is
text that the template adds, such as an empty think block.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from finetune_trainer.data.chat_template import Span
from finetune_trainer.data.loss_masking import RenderedConversation
from finetune_trainer.data.pii import PII_KINDS, redact_pii
from finetune_trainer.data.row_texts import Conversation, Turn, list_turns
from finetune_trainer.data.row_types import SourceLocation
from finetune_trainer.formatting import format_share

_WORD_PATTERN = re.compile(r"</?[^<>\s]+>|\w+|[^\w\s]")
"""A tag or special token, a word, or a punctuation mark."""
_MAX_PROMPT_CHARS = 64
"""Characters before an answer that may contain its start, such as the `<think>` of a generation prompt."""
_MAX_COMPARED_WORDS = 1000
_MAX_EXAMPLE_CHARS = 120


@dataclass(frozen=True)
class RewrittenRows:
    """The rows with words that the chat template removes or rewrites."""

    count: int = 0
    rows: int = 0
    """Number of rows that were compared: those of training and validation, without augmented ones."""
    where: str = ""
    """Object and line of an example."""
    removed: str = ""
    """Words of the example that its rendered text lacks, without personal data."""

    @property
    def summary(self) -> str:
        """The count and the example as the start of a sentence."""
        return (
            f"{self.count} of {self.rows} rows ({format_share(self.count, self.rows)}): the chat template removes or "
            f'rewrites words of the data, such as "{self.removed}" in {self.where}'
        )


class RewrittenRowCounter:
    """Counts the rows that the chat template rewrites, and keeps the first one as an example."""

    def __init__(self) -> None:
        self._rows = self._count = 0
        self._where = self._removed = ""

    def add(self, location: SourceLocation, removed: str | None) -> None:
        """Count a row. `removed` is what its rendered text lacks, or None."""
        self._rows += 1
        if removed is None:
            return
        self._count += 1
        if self._count == 1:
            self._where, self._removed = str(location), redact_pii(removed, PII_KINDS)[:_MAX_EXAMPLE_CHARS]

    def get_result(self) -> RewrittenRows:
        """Return the counts and the example."""
        return RewrittenRows(self._count, self._rows, self._where, self._removed)


def find_removed_text(conversation: Conversation, rendered: RenderedConversation) -> str | None:
    """Return the first words of the conversation that its rendered text lacks, or None if there are none.

    The words of an answer must be in the supervised text, in their order. The words of another turn before the last
    answer must be anywhere in the text.
    """
    if rendered.is_untemplated:
        return None  # the text is that of the row
    turns = list_turns(conversation)
    while turns and turns[-1][0] != "assistant":
        turns.pop()
    for (_, content), span in zip(turns, _list_spans(turns, rendered), strict=True):
        start, end = span or (0, len(rendered.text))
        if content.strip() in rendered.text[start:end]:
            continue
        if not (_is_answer_contained(content, rendered.text, span) if span else _is_contained(content, rendered.text)):
            return _describe_removed_words(content, rendered.text[start:end])
    return None


def _list_spans(turns: Sequence[Turn], rendered: RenderedConversation) -> list[Span | None]:
    """Return the supervised span of each answer, or None for other turns, and for all turns if the template marks more
    or fewer spans than answers."""
    if [role for role, _ in turns].count("assistant") != len(rendered.answer_spans):
        return [None] * len(turns)
    spans = iter(rendered.answer_spans)
    return [next(spans) if role == "assistant" else None for role, _ in turns]


def _is_answer_contained(answer: str, text: str, span: Span) -> bool:
    """Return whether the answer is in its span, or begins at the end of the prompt."""
    start, end = span
    prompt = _remove_whitespace(text[max(0, start - _MAX_PROMPT_CHARS) : start])
    context = prompt + _remove_whitespace(text[start:end])
    squeezed_answer = _remove_whitespace(answer)
    position = context.rfind(squeezed_answer)
    if position >= 0 and position + len(squeezed_answer) > len(prompt):
        return True
    return _has_words_in_order(answer, text[start:end])


def _is_contained(content: str, text: str) -> bool:
    """Return whether the text contains the words of a turn, possibly in a JSON string as many templates write tools."""
    json_content = json.dumps(content, ensure_ascii=False)[1:-1]
    return (
        _remove_whitespace(content) in _remove_whitespace(text)
        or json_content in text
        or _has_words_in_order(content, text)
    )


def _has_words_in_order(content: str, text: str) -> bool:
    words = iter(_WORD_PATTERN.findall(text))
    return all(word in words for word in _WORD_PATTERN.findall(content))


def _remove_whitespace(text: str) -> str:
    return "".join(text.split())


def _describe_removed_words(content: str, text: str) -> str:
    """Return the first consecutive words of the content that the text lacks."""
    matches = list(_WORD_PATTERN.finditer(content))[:_MAX_COMPARED_WORDS]
    words = _WORD_PATTERN.findall(text)[:_MAX_COMPARED_WORDS]
    operations = SequenceMatcher(None, [match.group() for match in matches], words, autojunk=False).get_opcodes()
    for operation, start, end, _, _ in operations:
        if operation in ("delete", "replace"):
            return " ".join(content[matches[start].start() : matches[end - 1].end()].split())
    return " ".join(content.split())
