"""Loss masking: rendering and tokenization of rows, with labels for the tokens that the loss is computed on.

All backends use these labels. The span of an answer in the rendered text is found in one of two ways, which work with
any template: from the template's own `{% generation %}` markers, or by rendering the conversation a second time with
placeholders (see `data.answer_spans`). An answer is all that the model has to generate in a turn: its reasoning, its
text and its tool calls. Definitions and results of tools are a part of the prompt.

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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from finetune_trainer.contract import Reason
from finetune_trainer.data.answer_spans import ChatRendering, check_tool_results, find_answer_spans
from finetune_trainer.data.chat_template import ChatTemplate, Span, build_date_variables
from finetune_trainer.data.control_tokens import ControlTokenFinder, CutText, cut_at_marks
from finetune_trainer.data.end_of_turn import (
    EndOfTurn,
    find_end_of_call,
    find_end_of_turn,
    get_stop_token_ids,
    get_structural_tokens,
    require_offsets,
)
from finetune_trainer.data.row_types import Chat, PlainText, PromptCompletion, Row, RowError
from finetune_trainer.data.template_messages import MessageAdapter
from finetune_trainer.data.template_skeleton import TemplateSkeletons
from finetune_trainer.data.text_encoding import TextEncoder, TokenizedText, encode_texts
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from numpy.typing import NDArray
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
    unsupervised_answers: frozenset[int] = frozenset()
    """Indices in `answer_spans` of the answers that the loss is not computed on."""
    cuts: tuple[int, ...] = ()
    """Positions in the text that no token may cross, so that typed control tokens are encoded as text."""
    control_token: str | None = None
    """A control token that is typed in a text of the conversation, or None."""


@dataclass(frozen=True, eq=False)
class TokenizedConversation:
    """A conversation as tokens, with a label for each token."""

    id_array: NDArray[np.int32]
    """Token ids, in shape (tokens,)."""
    label_array: NDArray[np.int32]
    """`id_array[i]` or `IGNORE_INDEX` for each token, in shape (tokens,). Not shifted: the model shifts them."""
    answer_start: int = 0
    """Index of the first token of the last answer."""
    end_token_id: int | None = None
    """Last token of the last answer, or None without a supervised answer. Unlike the last label, it is the same for all
    values of `loss`."""

    @property
    def input_ids(self) -> list[int]:
        """`id_array` as a list."""
        return list(self.id_array.tolist())

    @property
    def labels(self) -> list[int]:
        """`label_array` as a list."""
        return list(self.label_array.tolist())

    @cached_property
    def supervised_tokens(self) -> int:
        """Number of tokens that the loss is computed on."""
        return int(np.count_nonzero(self.label_array != IGNORE_INDEX))

    def truncate(self, max_tokens: int) -> TokenizedConversation:
        """Return the first tokens of the conversation, whose last answer may lack its end."""
        return TokenizedConversation(self.id_array[:max_tokens], self.label_array[:max_tokens], self.answer_start)


@dataclass(frozen=True)
class _Answer:
    """An answer in a rendered text."""

    span: Span
    is_supervised: bool = True
    has_calls: bool = False


class LossMasker:
    """Renders and tokenizes conversations with one tokenizer, and masks the tokens that the loss ignores.

    `loss` is `completion` (answers and their endings) or `all` (every token but the first, which no token precedes).
    Neither includes the answers in `Chat.unsupervised_turns`. `control_tokens` is `text` if control tokens that are
    typed in the texts of a chat are encoded as ordinary text, or `control` if they become control tokens. The chat
    template writes `template_date` as the current date, or today's date if that is None.
    Raises `MODEL_INVALID` if the tokenizer does not provide the character offsets of its tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        loss: Literal["completion", "all"] = "completion",
        template_date: date | None = None,
        control_tokens: Literal["text", "control"] = "text",
    ) -> None:
        require_offsets(tokenizer)
        self._tokenizer = tokenizer
        self._supervise_all = loss == "all"
        self._encodes_control_tokens_as_text = control_tokens == "text"
        self._template = ChatTemplate(tokenizer, template_date) if tokenizer.chat_template else None
        self._control_token_finder = ControlTokenFinder(tokenizer)
        self._bos_ids = get_bos_ids(tokenizer)
        self._encoder = TextEncoder(tokenizer)

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
            return self._render_chat(conversation)
        if not isinstance(conversation, PromptCompletion):
            raise RowError("has several answers or a label; render each of its conversations")
        if self._template is None:
            return self._render_untemplated(conversation.prompt + conversation.completion, len(conversation.prompt))
        turns = (("user", conversation.prompt), ("assistant", conversation.completion))
        return self._render_chat(Chat([{"role": role, "content": content} for role, content in turns]))

    def tokenize(self, conversations: Sequence[RenderedConversation]) -> list[TokenizedConversation]:
        """Tokenize a batch of conversations. A batch allows the tokenizer to use all cores."""
        if not conversations:
            return []
        texts = [CutText(conversation.text, conversation.cuts) for conversation in conversations]
        encoded_texts = self._encoder.encode(texts)
        return [self._apply_loss_mask(*pair) for pair in zip(conversations, encoded_texts, strict=True)]

    def _render_chat(self, chat: Chat) -> RenderedConversation:
        control_token = self._control_token_finder.find(chat)
        if control_token is None:
            return self._render_turns(chat)
        if not self._encodes_control_tokens_as_text:
            return replace(self._render_turns(chat), control_token=control_token)
        rendered = self._render_turns(self._control_token_finder.mark(chat))
        cut_text, answer_spans = cut_at_marks(rendered.text, rendered.answer_spans)
        encode_texts(self._tokenizer, [cut_text])  # raises RowError here: all rows are tokenized together later
        return replace(
            rendered,
            text=cut_text.text,
            answer_spans=tuple(answer_spans),
            cuts=cut_text.cuts,
            control_token=control_token,
        )

    def _render_turns(self, chat: Chat) -> RenderedConversation:
        template = self._require_template()
        messages = self._message_adapter.adapt(chat.messages)
        if template.has_generation_tags:
            text, spans = template.render_with_spans(messages, chat.tools)
            check_tool_results(ChatRendering(template, messages, chat.tools, text), spans)
        else:
            text = template.render(messages, chat.tools)
            spans = self._find_answer_spans(ChatRendering(template, messages, chat.tools, text))
        return self._extend_to_endings(text, _find_answers(chat, spans, text))

    def _find_answer_spans(self, rendering: ChatRendering) -> list[Span]:
        """Return the spans of the answers in a conversation whose template does not mark them. Raises `RowError`."""
        if not rendering.tools and self._skeletons.fits(rendering.messages, rendering.text):
            spans = self._skeletons.locate_answers(rendering.messages, rendering.text)
            if spans is not None:
                return spans
            rendering = replace(rendering, skeletons=self._skeletons)
        elif rendering.has_calls:
            rendering = replace(rendering, call_endings=self._end_of_call.texts, call_prefix=self._call_prefix)
        spans = find_answer_spans(rendering)
        check_tool_results(rendering, spans)
        return spans

    def _require_template(self) -> ChatTemplate:
        if self._template is None:
            raise TrainerError(
                Reason.MODEL_INVALID,
                "the data has messages, but the tokenizer has no chat template; add chat_template.jinja to the model "
                "or use rows with prompt and completion",
            )
        return self._template

    @cached_property
    def _call_prefix(self) -> str:
        return self._message_adapter.find_call_prefix()

    @cached_property
    def _skeletons(self) -> TemplateSkeletons:
        return TemplateSkeletons(self._require_template())

    @cached_property
    def _message_adapter(self) -> MessageAdapter:
        return MessageAdapter(self._require_template())

    @cached_property
    def _end_of_turn(self) -> EndOfTurn:
        return find_end_of_turn(self._template, self._tokenizer) if self._template else EndOfTurn()

    @cached_property
    def _end_of_call(self) -> EndOfTurn:
        if self._template is None:
            return EndOfTurn()
        return find_end_of_call(self._template, self._tokenizer, self._end_of_turn.token_ids)

    @cached_property
    def _stop_texts(self) -> tuple[str, ...]:
        """Texts of the tokens that end an answer."""
        structural_tokens = get_structural_tokens(self._tokenizer)
        return tuple(
            structural_tokens[token_id]
            for token_id in get_stop_token_ids(self._tokenizer)
            if token_id in structural_tokens
        )

    def _extend_to_endings(self, text: str, answers: Sequence[_Answer]) -> RenderedConversation:
        """Extend the span of each answer by its ending, and cut off the text that EOS replaces."""
        ends = [self._find_end(text, answer) for answer in answers]
        spans = [(answer.span[0], end or answer.span[1]) for answer, end in zip(answers, ends, strict=True)]
        unsupervised = frozenset(index for index, answer in enumerate(answers) if not answer.is_supervised)
        if not spans or ends[-1] is not None:
            return RenderedConversation(text, tuple(spans), unsupervised_answers=unsupervised)
        self._require_eos()
        start, end = spans[-1]
        if text[end:].strip():
            text = text[:end]
        spans[-1] = (start, len(text))
        return RenderedConversation(text, tuple(spans), needs_eos=True, unsupervised_answers=unsupervised)

    def _find_end(self, text: str, answer: _Answer) -> int | None:
        """Return the end of the ending that follows the answer, or None if it has none."""
        end = self._end_of_turn.find_end(text, answer.span)
        return self._end_of_call.find_end(text, answer.span) if end is None and answer.has_calls else end

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

    def _apply_loss_mask(self, conversation: RenderedConversation, tokens: TokenizedText) -> TokenizedConversation:
        ids, answer_start, answer_end, is_supervised = np.asarray(tokens.ids, np.int32), 0, 0, True
        labels = self._init_labels(ids)
        for index, answer_span in enumerate(conversation.answer_spans):
            answer_start, answer_end = _find_supervised_span(tokens, answer_span)
            is_supervised = index not in conversation.unsupervised_answers
            labels[answer_start:answer_end] = ids[answer_start:answer_end] if is_supervised else IGNORE_INDEX
        end_token_id = int(ids[answer_end - 1]) if answer_end > answer_start else None
        if conversation.needs_eos:
            end_token_id = self._tokenizer.eos_token_id
            ids = _join([ids, [end_token_id]])
            labels = _join([labels, [end_token_id if is_supervised else IGNORE_INDEX]])
        if conversation.is_untemplated and ids[: len(self._bos_ids)].tolist() != self._bos_ids:
            bos_ids = np.array(self._bos_ids, np.int32)
            ids, labels = _join([bos_ids, ids]), _join([self._init_labels(bos_ids), labels])
            answer_start += len(bos_ids)
        labels[:1] = IGNORE_INDEX  # no token precedes the first one, so it cannot be predicted
        return TokenizedConversation(ids, labels, answer_start, end_token_id if is_supervised else None)

    def _init_labels(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        return ids.copy() if self._supervise_all else np.full(len(ids), IGNORE_INDEX, np.int32)


def _join(parts: Sequence[NDArray[np.int32] | list[int]]) -> NDArray[np.int32]:
    return np.concatenate(parts, dtype=np.int32)


def _find_answers(chat: Chat, spans: Sequence[Span], text: str) -> list[_Answer]:
    """Return the answers with these spans. Raises `RowError` if it is not clear which of them are unsupervised."""
    turns = [index for index, message in enumerate(chat.messages) if message["role"] == "assistant"]
    numbers = list(range(len(spans))) if len(spans) == len(turns) else _number_separate_texts(spans, text)
    if len(set(numbers)) == len(turns):
        return [
            _Answer(span, turns[number] not in chat.unsupervised_turns, "tool_calls" in chat.messages[turns[number]])
            for number, span in zip(numbers, spans, strict=True)
        ]
    if chat.unsupervised_turns:
        raise RowError(
            f"has answers that are not to be trained on, but the chat template marks {len(spans)} texts for "
            f"{len(turns)} answers; use a template that marks each answer once"
        )
    return [_Answer(span) for span in spans]


def _number_separate_texts(spans: Sequence[Span], text: str) -> list[int]:
    """Number the spans so that those with only whitespace between them, as the ending of Phi-3, have one number."""
    gaps = (text[end:start].strip() for (_, end), (start, _) in pairwise(spans))
    return list(accumulate((int(bool(gap)) for gap in gaps), initial=0))[: len(spans)]


def _find_supervised_span(tokens: TokenizedText, answer_span: Span) -> Span:
    """Return the token indices of an answer: start, and exclusive end."""
    first_index = tokens.find_end_after(answer_span[0])
    if first_index < len(tokens.ids) and tokens.text[tokens.get_start(first_index) : answer_span[0]].strip():
        first_index += 1  # the token begins in the prompt
    return first_index, tokens.find_start_at(answer_span[1], first_index)


def get_bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that the tokenizer puts before a text: its BOS token, or none."""
    ids_without_special = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids_with_special = tokenizer("a")["input_ids"]
    starts_with_bos = (
        tokenizer.bos_token_id is not None
        and ids_with_special[:1] == [tokenizer.bos_token_id] != ids_without_special[:1]
    )
    return [tokenizer.bos_token_id] if starts_with_bos else []


def encode_turns(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]], template_date: date | None = None
) -> list[int]:
    """Tokenize turns with `role` and `content`, followed by the beginning of an answer. Errors as `encode_prompt`."""
    finder = ControlTokenFinder(tokenizer)
    text = tokenizer.apply_chat_template(
        [{**turn, "content": finder.mark_text(turn["content"])} for turn in turns],
        add_generation_prompt=True,
        tokenize=False,
        **build_date_variables(template_date),
    )
    return encode_texts(tokenizer, [cut_at_marks(text)[0]])[0].ids


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, template_date: date | None = None) -> list[int]:
    """Tokenize a prompt as in training: as a user turn, or as plain text if there is no chat template.

    The chat template writes `template_date` as the current date, or today's date if that is None. Control tokens that
    are typed in the prompt of a user turn are encoded as ordinary text. Raises `RowError` if that is not possible, and
    the errors of the chat template (see `template_errors`) if it rejects the prompt.
    """
    if tokenizer.chat_template:
        return encode_turns(tokenizer, [{"role": "user", "content": prompt}], template_date)
    prompt_ids = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    bos_ids = get_bos_ids(tokenizer)
    return prompt_ids if prompt_ids[: len(bos_ids)] == bos_ids else [*bos_ids, *prompt_ids]
