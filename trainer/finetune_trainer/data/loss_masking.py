"""Loss masking: rendering and tokenization of rows, with labels for the tokens that the loss is computed on.

All backends use these labels. The span of an answer in the rendered text is found in one of two ways, which work with
any template: from the template's own `{% generation %}` markers, or by rendering the conversation a second time with
the answer replaced by a placeholder. The text after the placeholder must also end the real rendering, so the answer
ends before it; the text that `add_generation_prompt` renders for the turns before must begin the real rendering, so
the answer starts after it. Otherwise the row is rejected: a guessed span would silently train on the user's text.

The loss includes the end of each answer, so that the model learns to stop (see `data.end_of_turn`):

- The labels of an answer include the ending that the chat template writes after it, if the ending has a token of the
  vocabulary to stop at. They do not include what follows: no line break, no start of the next turn.
- Otherwise the EOS token ends the last answer of the row. If only whitespace follows the answer, EOS follows the
  whitespace. Any other text that follows, such as an ending in ordinary text, is replaced by EOS. Earlier answers of
  the row have no end in the labels. This also applies to `loss: all`, because a model that learns the text before EOS
  generates it.
- Plain texts, and prompts with a completion without a template, end with EOS, unless they contain a token to stop at.

A row that needs EOS raises `MODEL_INVALID` if the tokenizer has no EOS token.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Literal

from finetune_trainer.contract import Reason
from finetune_trainer.data.chat_template import (
    ANSWER_MARK,
    ChatTemplate,
    Messages,
    Span,
    build_date_variables,
)
from finetune_trainer.data.end_of_turn import (
    EndOfTurn,
    find_end_of_turn,
    get_stop_token_ids,
    get_structural_tokens,
    require_offsets,
)
from finetune_trainer.data.row_types import Chat, PlainText, PromptCompletion, RewrittenAnswerError, Row, RowError
from finetune_trainer.data.word_comparison import describe_removed_words, has_words
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""Label of a token that the loss ignores (default `ignore_index` of `torch.nn.CrossEntropyLoss`)."""


@dataclass(frozen=True)
class RenderedConversation:
    """A conversation as text, with the spans of the answers."""

    text: str
    answer_spans: tuple[Span, ...]
    """Characters of each answer with its ending."""
    is_untemplated: bool = False
    """Whether the text was not rendered by a chat template, so that BOS has to be added."""
    needs_eos: bool = False
    """Whether EOS has to be added after the text."""


@dataclass(frozen=True)
class TokenizedConversation:
    """A conversation as tokens, with a label for each token."""

    input_ids: list[int]
    """Token ids, in shape (tokens,)."""
    labels: list[int]
    """`input_ids[i]` or `IGNORE_INDEX` for each token, in shape (tokens,). Not shifted: the model shifts them."""
    answer_start: int = 0
    """Index of the first token of the last answer."""
    end_token_id: int | None = None
    """Last token of the last answer, or None without an answer. Unlike the last label, it is the same for all values of
    `loss`."""

    @property
    def supervised_tokens(self) -> int:
        """Number of tokens that the loss is computed on."""
        return len(self.labels) - self.labels.count(IGNORE_INDEX)


@dataclass(frozen=True)
class _TokenOffsets:
    """Character offsets of tokens, looked up one by one: a list of all offsets costs more than the tokenization."""

    text: str
    ids: list[int]
    encoding: Encoding

    def get_start(self, index: int) -> int:
        return self._get_span(index)[0]

    def get_end(self, index: int) -> int:
        return self._get_span(index)[1]

    def _get_span(self, index: int) -> Span:
        return self.encoding.token_to_chars(index) or (0, 0)


class LossMasker:
    """Renders and tokenizes conversations with one tokenizer, and masks the tokens that the loss ignores.

    `loss` is `completion` (answers and their endings) or `all` (every token but the first, which no token precedes).
    The chat template writes `template_date` as the current date, or today's date if that is None.
    Raises `MODEL_INVALID` if the tokenizer does not provide the character offsets of its tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        loss: Literal["completion", "all"] = "completion",
        template_date: date | None = None,
    ) -> None:
        require_offsets(tokenizer)
        self._tokenizer = tokenizer
        self._supervise_all = loss == "all"
        self._template = ChatTemplate(tokenizer, template_date) if tokenizer.chat_template else None
        self._bos_ids = get_bos_ids(tokenizer)

    def render(self, conversation: Row) -> RenderedConversation:
        """Return the conversation as text.

        A `PromptCompletion` becomes a user turn and an assistant turn if the tokenizer has a chat template, because
        an instruct model is prompted that way later. Without a template its texts are concatenated.
        Raises `RowError` if the template rejects the conversation, or rewrites an answer so that its text cannot be
        found (`RewrittenAnswerError`). Raises `MODEL_INVALID` for a `Chat` if
        there is no template, and for a conversation that needs EOS if the tokenizer has no EOS token.
        """
        if isinstance(conversation, PlainText):
            return self._render_untemplated(conversation.text, 0)
        if isinstance(conversation, Chat):
            return self._render_chat(conversation.messages)
        if not isinstance(conversation, PromptCompletion):
            raise RowError("has several answers or a label; render each of its conversations")
        if self._template is None:
            return self._render_untemplated(conversation.prompt + conversation.completion, len(conversation.prompt))
        turns = (("user", conversation.prompt), ("assistant", conversation.completion))
        return self._render_chat([{"role": role, "content": content} for role, content in turns])

    def tokenize(self, conversations: Sequence[RenderedConversation]) -> list[TokenizedConversation]:
        """Tokenize a batch of conversations. A batch allows the tokenizer to use all cores."""
        if not conversations:
            return []
        # verbose=False: the caller counts the rows that are too long, so no warning is needed.
        encodings = self._tokenizer(
            [conversation.text for conversation in conversations],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [
            self._apply_loss_mask(row, _TokenOffsets(row.text, ids, encoding))
            for row, ids, encoding in zip(conversations, encodings["input_ids"], encodings.encodings, strict=True)
        ]

    def _render_chat(self, messages: Messages) -> RenderedConversation:
        template = self._template
        if template is None:
            raise TrainerError(
                Reason.MODEL_INVALID,
                "the data has messages, but the tokenizer has no chat template; add chat_template.jinja to the model "
                "or use rows with prompt and completion",
            )
        if template.has_generation_tags:
            text, answer_spans = template.render_with_spans(messages)
        else:
            text = template.render(messages)
            answer_turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
            answer_spans = [_find_answer_span(template, messages, index, text) for index in answer_turns]
        return self._extend_to_endings(text, answer_spans)

    @cached_property
    def _end_of_turn(self) -> EndOfTurn:
        return find_end_of_turn(self._template, self._tokenizer) if self._template else EndOfTurn()

    @cached_property
    def _stop_texts(self) -> tuple[str, ...]:
        """Texts of the tokens that end an answer."""
        structural_tokens = get_structural_tokens(self._tokenizer)
        return tuple(
            structural_tokens[token_id]
            for token_id in get_stop_token_ids(self._tokenizer)
            if token_id in structural_tokens
        )

    def _extend_to_endings(self, text: str, answer_spans: Sequence[Span]) -> RenderedConversation:
        """Extend the span of each answer by its ending, and cut off the text that EOS replaces."""
        ends = [self._end_of_turn.find_end(text, answer_span) for answer_span in answer_spans]
        spans = [(start, ending_end or end) for (start, end), ending_end in zip(answer_spans, ends, strict=True)]
        if not spans or ends[-1] is not None:
            return RenderedConversation(text, tuple(spans))
        self._require_eos()
        start, end = spans[-1]
        if text[end:].strip():
            text = text[:end]
        return RenderedConversation(text, (*spans[:-1], (start, len(text))), needs_eos=True)

    def _render_untemplated(self, text: str, answer_start: int) -> RenderedConversation:
        stripped_text = text.rstrip()
        if len(stripped_text) > answer_start and stripped_text.endswith(self._stop_texts):
            return RenderedConversation(text, ((answer_start, len(stripped_text)),), is_untemplated=True)
        self._require_eos()
        return RenderedConversation(text, ((answer_start, len(text)),), is_untemplated=True, needs_eos=True)

    def _require_eos(self) -> None:
        if self._tokenizer.eos_token_id is None:
            raise TrainerError(
                Reason.MODEL_INVALID,
                "the model cannot learn where an answer ends: the tokenizer has no eos_token, and no chat template "
                "ends answers with a token of the vocabulary; set eos_token in tokenizer_config.json of the base "
                "model, or set model.chatTemplate to a template that ends answers with such a token",
            )

    def _apply_loss_mask(self, conversation: RenderedConversation, tokens: _TokenOffsets) -> TokenizedConversation:
        ids, answer_start, answer_end = tokens.ids, 0, 0
        labels = self._init_labels(ids)
        for answer_span in conversation.answer_spans:
            answer_start, answer_end = _find_supervised_span(tokens, answer_span)
            labels[answer_start:answer_end] = ids[answer_start:answer_end]
        end_token_id = ids[answer_end - 1] if answer_end > answer_start else None
        if conversation.needs_eos:
            end_token_id = self._tokenizer.eos_token_id
            ids, labels = [*ids, end_token_id], [*labels, end_token_id]
        if conversation.is_untemplated and ids[: len(self._bos_ids)] != self._bos_ids:
            ids, labels = [*self._bos_ids, *ids], [*self._init_labels(self._bos_ids), *labels]
            answer_start += len(self._bos_ids)
        labels[:1] = [IGNORE_INDEX] * len(labels[:1])  # no token precedes the first one, so it cannot be predicted
        return TokenizedConversation(ids, labels, answer_start, end_token_id)

    def _init_labels(self, ids: list[int]) -> list[int]:
        return list(ids) if self._supervise_all else [IGNORE_INDEX] * len(ids)


def _find_supervised_span(tokens: _TokenOffsets, answer_span: Span) -> Span:
    """Return the token indices of an answer: start, and exclusive end."""
    indices = range(len(tokens.ids))
    first_index = bisect_right(indices, answer_span[0], key=tokens.get_end)
    if first_index < len(indices) and tokens.text[tokens.get_start(first_index) : answer_span[0]].strip():
        first_index += 1  # the token begins in the prompt
    return first_index, bisect_left(indices, answer_span[1], lo=first_index, key=tokens.get_start)


def _find_answer_span(template: ChatTemplate, messages: Messages, turn_index: int, text: str) -> Span:
    """Return the span in `text` that the model has to generate in this turn. Raises `RowError` if it is not clear."""
    answer = messages[turn_index]["content"]
    marked_turn = {**messages[turn_index], "content": ANSWER_MARK}
    marked_text = template.render([*messages[:turn_index], marked_turn, *messages[turn_index + 1 :]])
    text_before, found_mark, text_after = marked_text.partition(ANSWER_MARK)
    prompt = _render_prompt(template, messages[:turn_index])
    answer_prefix = prompt if prompt is not None and text.startswith(prompt) else text_before
    start, end = len(answer_prefix), len(text) - len(text_after)
    if (
        not found_mark
        or ANSWER_MARK in text_after
        or not text.startswith(answer_prefix)
        or not text.endswith(text_after)
        or start > end
    ):
        answer_start = start if text.startswith(answer_prefix) else 0
        _check_answer_words(answer, text[answer_start : len(text) - _count_common_end(text, marked_text)])
        raise RowError(
            f"the model's chat template does not separate messages[{turn_index}] from the other messages; "
            "mark the assistant's text in the template with {% generation %} … {% endgeneration %}"
        )
    return start, end


def _count_common_end(text: str, marked_text: str) -> int:
    """Return the number of characters at the end of both texts that are certainly not part of the answer."""
    if text == marked_text:
        return len(text)  # the template renders neither the answer nor the placeholder
    pairs = zip(reversed(text), reversed(marked_text), strict=False)
    common_chars = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return max(0, common_chars - len(ANSWER_MARK))  # the answer may end like the placeholder


def _check_answer_words(answer: str, text: str) -> None:
    """Raise `RewrittenAnswerError` if the text lacks words of the answer."""
    if not has_words(answer, text):
        raise RewrittenAnswerError(describe_removed_words(answer, text), is_unrendered=not text)


def _render_prompt(template: ChatTemplate, messages: Messages) -> str | None:
    """Return the prompt for an answer after these messages, or None if the template does not allow an answer there."""
    if not messages:
        return None
    try:
        return template.render(messages, add_generation_prompt=True)
    except RowError:
        return None


def get_bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the tokenizer puts before a text: its BOS token, or none."""
    ids_without_special = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids_with_special = tokenizer("a")["input_ids"]
    starts_with_bos = (
        tokenizer.bos_token_id is not None
        and ids_with_special[:1] == [tokenizer.bos_token_id] != ids_without_special[:1]
    )
    return [tokenizer.bos_token_id] if starts_with_bos else []


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, template_date: date | None = None) -> list[int]:
    """Tokenize a prompt as in training: as a user turn, or as plain text if there is no chat template.

    The chat template writes `template_date` as the current date, or today's date if that is None.
    """
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}]
        # transformers 5 returns a BatchEncoding by default; return_dict=True gives one in all versions.
        encoded = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=True, **build_date_variables(template_date)
        )
        return list(encoded["input_ids"])
    prompt_ids = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    bos_ids = get_bos_ids(tokenizer)
    return prompt_ids if prompt_ids[: len(bos_ids)] == bos_ids else [*bos_ids, *prompt_ids]
