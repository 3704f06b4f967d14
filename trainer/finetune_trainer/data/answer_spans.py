"""Search for the answers in a rendered conversation, for chat templates without `{% generation %}` markers.

The conversation is rendered a second time with each answer replaced by a placeholder. What the template writes between
the placeholders must also be in the real rendering, in the same order: the answers are between. An answer starts after
the text that `add_generation_prompt` renders, which is known from the prompt of the last answer. The number of
renderings does not depend on the number of turns.

If the pieces are not found, or in several places, or if an answer follows another one, each answer is searched for
separately: the conversation is rendered with only this answer replaced, and the prompt before it. If that fails too,
the row is rejected: a guessed span would silently train on the user's text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, takewhile

from finetune_trainer.data.chat_template import ANSWER_MARK, ChatTemplate, Messages, Span
from finetune_trainer.data.control_tokens import remove_marks
from finetune_trainer.data.row_types import Message, RewrittenAnswerError, RowError, ToolDefinition
from finetune_trainer.data.template_messages import remove_reasoning
from finetune_trainer.data.template_skeleton import TemplateSkeletons
from finetune_trainer.data.word_comparison import describe_removed_words, find_value, has_words

_MARK_PATTERN = re.compile(ANSWER_MARK + r"(\d{6})")
_FIRST_MARK = f"{ANSWER_MARK}000000"
_MARK_CHARS = len(_FIRST_MARK)
_MAX_PREFIX_CHARS = 256
"""Characters that a template may write between its generation prompt and an answer, such as an empty think block."""


@dataclass(frozen=True)
class ChatRendering:
    """A conversation and its rendered text."""

    template: ChatTemplate
    messages: Messages
    """The turns in the form that the template reads."""
    tools: Sequence[ToolDefinition]
    text: str
    call_endings: Sequence[str] = ()
    """What ends a turn that calls tools, see `data.end_of_turn`."""
    call_prefix: str = ""
    """What the template writes between a prompt and the name of the first function that is called, if it is known."""
    skeletons: TemplateSkeletons | None = None
    """Skeletons of the template, if they fit this conversation."""

    @cached_property
    def answer_turns(self) -> list[int]:
        """Indices of the turns of the assistant."""
        return [index for index, message in enumerate(self.messages) if message["role"] == "assistant"]

    @property
    def has_calls(self) -> bool:
        """Whether a turn calls tools."""
        return any("tool_calls" in message for message in self.messages)

    @property
    def has_extras(self) -> bool:
        """Whether a turn has reasoning, tool calls or the result of one."""
        return any(len(message) > 2 for message in self.messages)

    @property
    def has_questions(self) -> bool:
        """Whether each answer follows a turn of the user or a result of a tool, or begins the conversation."""
        return all(turn == 0 or self.messages[turn - 1]["role"] in ("user", "tool") for turn in self.answer_turns)

    def render(self, messages: Messages, *, add_generation_prompt: bool = False) -> str:
        """Render other turns in the place of these. Raises `RowError`."""
        if self.skeletons:
            text = self.skeletons.render(messages, add_generation_prompt=add_generation_prompt)
            if text is not None:
                return text
        return self.template.render(messages, self.tools, add_generation_prompt=add_generation_prompt)

    def render_prompt(self, turn: int) -> str | None:
        """Return the prompt for the answer of this turn, or None if the template does not allow an answer there."""
        if turn == 0:
            return None
        try:
            return self.render(self.messages[:turn], add_generation_prompt=True)
        except RowError:
            return None


def find_answer_spans(chat: ChatRendering) -> list[Span]:
    """Return the span of each answer in the text: what the model has to generate in this turn, without its ending.

    Raises `RowError` if a span is not clear.
    """
    if len(chat.answer_turns) > 1 and chat.has_questions:
        for build_placeholder in (_build_text_placeholder, _build_call_placeholder)[: 1 + chat.has_calls]:
            if spans := _align_answers(chat, build_placeholder):
                return spans
    return [_find_answer_span(chat, turn) for turn in chat.answer_turns]


def check_tool_results(chat: ChatRendering, spans: Sequence[Span]) -> None:
    """Raise `RowError` if the result of a tool is a part of the answer before it, which is trained on."""
    turn = _find_included_result(chat, spans) if len(spans) == len(chat.answer_turns) else None
    if turn is not None:
        raise RowError(
            f"the model's chat template writes messages[{turn}], the result of a tool, into the answer before it, so "
            "that it would be trained on; set model.chatTemplate to a template that separates them"
        )


def _find_included_result(chat: ChatRendering, spans: Sequence[Span]) -> int | None:
    """Return the index of a tool's result that is a part of the answer before it, or None."""
    next_turns = [*chat.answer_turns[1:], len(chat.messages)]
    next_starts = [*(start for start, _ in spans[1:]), len(chat.text)]
    for turn, span, next_turn, next_start in zip(chat.answer_turns, spans, next_turns, next_starts, strict=True):
        for index in range(turn + 1, next_turn):
            message = chat.messages[index]
            is_result = message["role"] == "tool" and message["content"].strip()
            if is_result and _is_only_in(span, message["content"], chat.text, (span[1], next_start)):
                return index
    return None


def _is_only_in(span: Span, content: str, text: str, other_span: Span) -> bool:
    return find_value(content, text, other_span) < 0 and find_value(content, text, span) >= 0


_PlaceholderBuilder = Callable[[Message, str], Message]


def _build_text_placeholder(message: Message, mark: str) -> Message:
    others = {key: value for key, value in remove_reasoning(message).items() if key != "tool_calls"}
    return {**others, "content": mark}


def _build_call_placeholder(message: Message, mark: str) -> Message:
    """Keep the calls of a turn without their arguments: some templates need a call before the result of a tool."""
    if "tool_calls" not in message:
        return _build_text_placeholder(message, mark)
    calls = []
    for call in message["tool_calls"]:
        is_text = isinstance(call["function"]["arguments"], str)
        arguments = json.dumps({mark: mark}) if is_text else {mark: mark}
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return {**remove_reasoning(message), "content": message["content"] and "", "tool_calls": calls}


def _has_call_placeholder(chat: ChatRendering, turn: int, build_placeholder: _PlaceholderBuilder) -> bool:
    return build_placeholder is _build_call_placeholder and "tool_calls" in chat.messages[turn]


# --- All answers at once ---


@dataclass(frozen=True)
class _AnswerHeader:
    """What the template writes before the last answer."""

    prompt: str
    """All text before the answer, with the generation prompt."""
    generation_prompt: str
    prefix: str
    """What follows the generation prompt before the answer in a conversation, such as an empty think block."""
    can_differ: bool
    """Whether a template may write other turns of the prompt in another way: some drop the reasoning of all turns but
    those after the last question, or the reasoning before a call once the answer is there."""

    def is_end_of_prompt(self, text: str, start: int, full_start: int) -> bool:
        """Return whether the last answer starts there. `full_start` is the start of its content."""
        if text.startswith(self.prompt):
            return start == len(self.prompt)
        if self.can_differ and self.generation_prompt and text.endswith(self.generation_prompt, 0, start):
            return True
        return start == full_start


@dataclass(frozen=True)
class _Piece:
    """A part of the text between two answers."""

    text: str
    """The part up to the start of the second answer."""
    full_text: str
    """The part up to the placeholder."""
    optional_text: str = ""
    """The rest of the generation prompt, which belongs to the prompt if the answer begins with it."""


def _align_answers(chat: ChatRendering, build_placeholder: _PlaceholderBuilder) -> list[Span] | None:
    """Return the spans of all answers, or None if they are not clear."""
    texts = _render_pieces(chat, build_placeholder)
    header = _find_header(chat, texts[-2]) if texts else None
    if texts is None or header is None:
        return None
    pieces = []
    for turn, text in zip(chat.answer_turns, texts[:-1], strict=True):
        if _has_call_placeholder(chat, turn, build_placeholder):
            piece = _cut_call_piece(text, header, chat, turn)
        else:
            piece = _cut_piece(text, header, turn)
        if piece is None:
            return None
        pieces.append(piece)
    return _locate_answers(chat.text, pieces, texts[-1], header)


def _render_pieces(chat: ChatRendering, build_placeholder: _PlaceholderBuilder) -> list[str] | None:
    """Return what the template writes before, between and after the placeholders of the answers."""
    messages = list(chat.messages)
    for number, turn in enumerate(chat.answer_turns):
        messages[turn] = build_placeholder(messages[turn], f"{ANSWER_MARK}{number:06d}")
    try:
        pieces = _split_at_marks(chat.render(messages), len(chat.answer_turns), build_placeholder)
    except RowError:
        return None
    for number, turn in enumerate(chat.answer_turns):
        if pieces and _has_call_placeholder(chat, turn, build_placeholder):
            ending = _cut_to_call_ending(chat, pieces[number + 1])
            pieces = None if ending is None else [*pieces[: number + 1], ending, *pieces[number + 2 :]]
    return pieces


def _split_at_marks(marked_text: str, count: int, build_placeholder: _PlaceholderBuilder) -> list[str] | None:
    """Return the text before, between and after the marks 0 to `count - 1`, or None if they are not in this order."""
    if count == 1 and marked_text.count(ANSWER_MARK) == marked_text.count(_FIRST_MARK) == 1:  # most rows
        return marked_text.split(_FIRST_MARK)
    matches = list(_MARK_PATTERN.finditer(marked_text))
    numbers = [int(match[1]) for match in matches]
    is_repeated = len(numbers) > count and build_placeholder is _build_text_placeholder
    if is_repeated or numbers != sorted(numbers) or set(numbers) != set(range(count)):
        return None
    spans: dict[int, Span] = {}
    for number, match in zip(numbers, matches, strict=True):  # each argument of a call contains the mark
        spans[number] = (spans.get(number, match.span())[0], match.end())
    borders = [0, *chain.from_iterable(spans.values()), len(marked_text)]
    return [marked_text[start:end] for start, end in zip(borders[::2], borders[1::2], strict=True)]


def _cut_to_call_ending(chat: ChatRendering, text: str) -> str | None:
    """Return the text after the arguments of a call from the ending of its turn on, or None if it has no ending."""
    starts = [text.find(ending) for ending in chat.call_endings if ending in text]
    return text[min(starts) :] if starts else None


def _find_header(chat: ChatRendering, text_before: str) -> _AnswerHeader | None:
    """Return what precedes the last answer. `text_before` is the text between it and the answer before."""
    turn = chat.answer_turns[-1]
    prompt = chat.render_prompt(turn)
    if prompt is None:
        return None
    try:
        conversation = chat.render(chat.messages[:turn])
    except RowError:
        return None
    generation_prompt = prompt[_count_common_start(conversation, prompt) :]
    for prefix_chars in range(min(_MAX_PREFIX_CHARS, len(text_before))):
        end = len(text_before) - prefix_chars
        if text_before.endswith(generation_prompt, 0, end) and prompt.endswith(text_before[:end]):
            return _AnswerHeader(prompt, generation_prompt, text_before[end:], chat.has_extras)
    return _AnswerHeader(prompt, generation_prompt, "", chat.has_extras)


def _count_common_start(text: str, other_text: str) -> int:
    if other_text.startswith(text):
        return len(text)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, other_text, strict=False)))


def _cut_call_piece(text: str, header: _AnswerHeader, chat: ChatRendering, turn: int) -> _Piece | None:
    """Cut what the template writes before the arguments of a call, or return None if it is not clear."""
    if header.generation_prompt:
        start = text.rfind(header.generation_prompt) + len(header.generation_prompt)
        is_clear = header.generation_prompt in text
    else:
        start = text.rfind(chat.call_prefix + chat.messages[turn]["tool_calls"][0]["function"]["name"])
        is_clear = bool(chat.call_prefix) and start >= 0
    return _Piece(text[:start], text) if is_clear else None


def _cut_piece(text: str, header: _AnswerHeader, turn: int) -> _Piece | None:
    """Cut what the template writes before an answer at the end of the prompt, or return None if it is not clear."""
    generation_prompt = header.generation_prompt
    if turn == 0:
        return _Piece(text, text)  # there is no prompt
    for prefix in (header.prefix, ""):
        if text.endswith(generation_prompt + prefix):
            return _Piece(text[: len(text) - len(prefix)], text)
    if generation_prompt in text:
        return None
    written_chars = next(
        size for size in range(len(generation_prompt), -1, -1) if text.endswith(generation_prompt[:size])
    )
    return _Piece(text, text, generation_prompt[written_chars:])


def _locate_answers(text: str, pieces: Sequence[_Piece], text_after: str, header: _AnswerHeader) -> list[Span] | None:
    """Return the spans between the pieces, or None if a piece is not found or is found in several places."""
    first_end, last_start = len(pieces[0].text), len(text) - len(text_after)
    if not text.startswith(pieces[0].text) or not text.endswith(text_after) or first_end > last_start:
        return None
    starts = _find_pieces([piece.text for piece in pieces[1:]], text, (first_end, last_start))
    if starts is None:
        return None
    piece_starts, answer_ends = [0, *starts], [*starts, last_start]
    spans = []
    for piece, piece_start, answer_end in zip(pieces, piece_starts, answer_ends, strict=True):
        answer_start = piece_start + len(piece.text)
        if text.startswith(piece.optional_text, answer_start):
            answer_start += len(piece.optional_text)
        spans.append((answer_start, answer_end))
    last_full_end = piece_starts[-1] + len(pieces[-1].full_text)
    is_clear = header.is_end_of_prompt(text, spans[-1][0], last_full_end) and all(start <= end for start, end in spans)
    return spans if is_clear else None


def _find_pieces(pieces: Sequence[str], text: str, span: Span) -> list[int] | None:
    """Return the only positions of the pieces, in this order and within the span, or None if there are several."""
    position, limit = span
    first_starts, last_starts = [], []
    for piece in pieces:
        position = text.find(piece, position, span[1])
        if position < 0:
            return None
        first_starts.append(position)
        position += len(piece)
    for piece in reversed(pieces):
        limit = text.rfind(piece, span[0], limit)
        last_starts.append(limit)
    return first_starts if first_starts == last_starts[::-1] else None


# --- One answer ---


def _find_answer_span(chat: ChatRendering, turn: int) -> Span:
    """Return the span of the answer of this turn. Raises `RowError` if it is not clear."""
    if "tool_calls" in chat.messages[turn]:
        try:
            return _find_span_of_placeholder(chat, turn, _build_text_placeholder)
        except RowError:
            return _find_span_of_placeholder(chat, turn, _build_call_placeholder)
    return _find_span_of_placeholder(chat, turn, _build_text_placeholder)


def _find_span_of_placeholder(chat: ChatRendering, turn: int, build_placeholder: _PlaceholderBuilder) -> Span:
    text, messages = chat.text, list(chat.messages)
    messages[turn] = build_placeholder(messages[turn], f"{ANSWER_MARK}000000")
    marked_text = chat.render(messages)
    pieces = _split_at_marks(marked_text, 1, build_placeholder)
    if pieces and _has_call_placeholder(chat, turn, build_placeholder):
        ending = _cut_to_call_ending(chat, pieces[1])
        pieces = None if ending is None else [pieces[0], ending]
    prompt = chat.render_prompt(turn)
    text_before, text_after = pieces or ["", ""]
    answer_prefix = prompt if prompt is not None and text.startswith(prompt) else text_before
    start, end = len(answer_prefix), len(text) - len(text_after)
    is_start_found = text.startswith(answer_prefix)
    is_prefix_clear = answer_prefix == prompt or not _has_call_placeholder(chat, turn, build_placeholder)
    if pieces is None or not is_start_found or not is_prefix_clear or not text.endswith(text_after) or start > end:
        end = len(text) - _count_common_end(text, marked_text)
        _check_answer_words(chat.messages[turn], text[start if is_start_found else 0 : end])
        raise RowError(
            f"the model's chat template does not separate messages[{turn}] from the other messages; "
            "mark the assistant's text in the template with {% generation %} … {% endgeneration %}, or set "
            "model.chatTemplateName to a template of TRL that has these marks"
        )
    return start, end


def _count_common_end(text: str, marked_text: str) -> int:
    """Return the number of characters at the end of both texts that are certainly not part of the answer."""
    if text == marked_text:
        return len(text)  # the template renders neither the answer nor the placeholder
    pairs = zip(reversed(text), reversed(marked_text), strict=False)
    common_chars = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return max(0, common_chars - _MARK_CHARS)  # the answer may end like the placeholder


def _check_answer_words(message: Message, text: str) -> None:
    """Raise `RewrittenAnswerError` if the text lacks words of the answer."""
    answer = message["content"] or ""
    if not has_words(answer, text):
        removed_words = remove_marks(describe_removed_words(answer, text))
        raise RewrittenAnswerError(removed_words, is_unrendered=not text)
