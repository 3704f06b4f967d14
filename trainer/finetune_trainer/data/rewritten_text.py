"""Search for words of a conversation that its rendered text lacks.

A chat template may change the texts that it renders: templates of reasoning models remove `<think>…</think>` from
answers (DeepSeek-R1, and Qwen3 in all turns but the last), others convert to lower case, or write no system or tool
turns, no reasoning, or no tools. The model then learns other answers than those of the data. Whitespace that changes is
not such a change, nor is text that the template adds, such as an empty think block, nor the notation of a tool call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from finetune_trainer.data.chat_template import Span
from finetune_trainer.data.loss_masking import RenderedConversation
from finetune_trainer.data.row_counter import RowCounter
from finetune_trainer.data.row_texts import Conversation
from finetune_trainer.data.row_types import Chat, RewrittenAnswerError, SourceLocation, ToolDefinition
from finetune_trainer.data.turn_parts import TurnParts, list_definition_parts, list_turn_parts
from finetune_trainer.data.word_comparison import (
    describe_removed_words,
    find_value,
    has_words,
    is_contained,
    remove_whitespace,
)

_MAX_PROMPT_CHARS = 64
"""Characters before an answer that may contain its start, such as the `<think>` of a generation prompt."""
_MOVED_ROLES = ("system", "developer")
"""Roles of the turns that some templates write elsewhere, such as Mistral's: in the last user turn."""


@dataclass
class RewrittenRows(RowCounter):
    """The rows with words that the chat template removes or rewrites. `example` is words that a text lacks."""

    unrendered: int = 0
    """Number of rows whose rendered text does not depend on the answers."""

    def add_unusable(self, location: SourceLocation, error: RewrittenAnswerError) -> None:
        """Count a row whose rewritten answer cannot be found in the rendered text, so that it is not trained."""
        self.add(location, error.removed_text)
        self.unrendered += error.is_unrendered

    @property
    def summary(self) -> str:
        """The count and the example as the start of a sentence."""
        return self.format_summary(self.problem)

    @property
    def problem(self) -> str:
        """What the chat template does, from its words."""
        is_unrendered = self.unrendered == self.count
        return "renders no text of the answers" if is_unrendered else "removes or rewrites words of the data"

    def format_summary(self, problem: str) -> str:
        """Return the count, what the chat template does, and the example as the start of a sentence."""
        return f'{self.share}: the chat template {problem}, such as "{self.example}" in {self.where}'


def find_removed_text(conversation: Conversation, rendered: RenderedConversation) -> str | None:
    """Return the first words of the conversation that its rendered text lacks, or None if there are none.

    The words of an answer must be in the supervised text, and those of another turn between the answers around it, in
    the order of the turns. A system turn may also be elsewhere between the answers. Turns after the last answer are not
    compared. If the template marks more or fewer spans than answers, only the order is compared. The definitions of
    tools must be outside of the answers.
    """
    if rendered.is_untemplated:
        return None  # the text is that of the row
    turns = list_turn_parts(conversation)
    while turns and turns[-1].role != "assistant":
        turns.pop()
    search = _TurnSearch(rendered, _list_spans(turns, rendered))
    tools = conversation.tools if isinstance(conversation, Chat) else []
    removed_definition = _find_removed_definition(tools, search.join_other_texts()) if tools else None
    return removed_definition or search.find_removed_text(turns)


def _find_removed_definition(tools: Sequence[ToolDefinition], text: str) -> str | None:
    for part in list_definition_parts(tools):
        if find_value(part, text, (0, len(text))) < 0:
            return describe_removed_words(part, text)
    return None


def _list_spans(turns: Sequence[TurnParts], rendered: RenderedConversation) -> list[Span]:
    """Return the part of the text that each turn must be in."""
    if [turn.role for turn in turns].count("assistant") != len(rendered.answer_spans):
        return [(0, len(rendered.text))] * len(turns)
    return list(_generate_spans(turns, rendered))


def _generate_spans(turns: Sequence[TurnParts], rendered: RenderedConversation) -> Iterator[Span]:
    answer_spans = iter(rendered.answer_spans)
    previous_end, answer_span = 0, next(answer_spans)
    for turn in turns:
        if turn.role == "assistant":
            yield answer_span
            previous_end, answer_span = answer_span[1], next(answer_spans, answer_span)
        else:
            yield previous_end, answer_span[0]


@dataclass
class _TurnSearch:
    """Searches for the turns of a conversation in its rendered text, from the last to the first: what a template
    writes before a turn, such as a system turn, may contain the words of this turn too."""

    rendered: RenderedConversation
    spans: Sequence[Span]
    """The part of the text that each turn must be in."""
    found_spans: list[Span] = field(default_factory=list)
    """Spans of the texts that were found literally, from the last to the first."""

    def find_removed_text(self, turns: Sequence[TurnParts]) -> str | None:
        missing_texts = [self._find_missing_text(turns[index], index) for index in range(len(turns) - 1, -1, -1)]
        for index, missing_text in enumerate(reversed(missing_texts)):
            if missing_text is None:
                continue
            if turns[index].role not in _MOVED_ROLES or not is_contained(missing_text, self.join_other_texts()):
                start, end = self.spans[index]
                return describe_removed_words(missing_text, self.rendered.text[start:end])
        return None

    def join_other_texts(self) -> str:
        """Return the text without the answers and without the texts that were found."""
        pieces, position = [], 0
        for start, end in sorted([*self.found_spans, *self.rendered.answer_spans]):
            pieces.append(self.rendered.text[position:start])
            position = max(position, end)
        return "\n".join([*pieces, self.rendered.text[position:]])

    def _find_missing_text(self, turn: TurnParts, index: int) -> str | None:
        """Return a text of the turn that is not in its span and before the texts that were found, or None."""
        start, end = self.spans[index]
        end = min(end, self.found_spans[-1][0]) if self.found_spans else end
        for call in reversed(turn.calls):
            positions = [find_value(value, self.rendered.text, (start, end)) for value in call]
            if -1 in positions:
                return call[positions.index(-1)]
            end = min(positions)
        for text in (turn.content, turn.reasoning):
            if not self._find_text(turn.role, text, (start, end)):
                return text
            end = min(end, self.found_spans[-1][0]) if self.found_spans else end
        return None

    def _find_text(self, role: str, content: str, span: Span) -> bool:
        text, (start, end) = self.rendered.text, span
        stripped_content = content.strip()
        position = text.rfind(stripped_content, start, end)
        if position >= 0:
            self.found_spans.append((position, position + len(stripped_content)))
            return True
        if role == "assistant":
            return _is_answer_contained(content, text, (start, end))
        return is_contained(content, text[start:end])


def _is_answer_contained(answer: str, text: str, span: Span) -> bool:
    """Return whether the answer is in its span, or begins at the end of the prompt."""
    start, end = span
    prompt = remove_whitespace(text[max(0, start - _MAX_PROMPT_CHARS) : start])
    context = prompt + remove_whitespace(text[start:end])
    squeezed_answer = remove_whitespace(answer)
    position = context.rfind(squeezed_answer)
    if position >= 0 and position + len(squeezed_answer) > len(prompt):
        return True
    return has_words(answer, text[start:end])
