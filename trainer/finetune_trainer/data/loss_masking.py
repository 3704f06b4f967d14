"""Which tokens of a row are learnt: one way for every backend, from character ranges of the rendered text.

The range of an answer is found in one of two ways, neither of which knows any particular template:
the template's own `{% generation %}` markers, or, without them, by rendering the conversation a second time with the
answer replaced by a mark. What stands after the mark must end the real rendering too, so the answer ends before it;
what `add_generation_prompt` renders for the turns before must begin it, so the answer starts after it. If either
does not hold, the row is refused: a guessed range would train on the user's words without anybody noticing.

The end of each answer is learnt too, else the model would never stop (`data.endings` says what ends one):

- An answer is learnt through the ending that the chat template writes after it, if this holds a token of the
  vocabulary to stop at. What follows the ending is not learnt: no line break, no start of the next turn.
- Otherwise the EOS token ends the last answer of the row. If only blanks follow the answer, EOS follows them. Any other
  text that follows, such as an ending in ordinary text, is left out and EOS takes its place. Earlier answers of the row
  are learnt without an end. The same holds for `loss: all`: a model that learnt the text before EOS would write it.
- Texts, and prompts with a completion that no template joins, end with EOS, unless they bring a token to stop at.

A row that needs EOS is refused if the tokenizer has none.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from finetune_trainer.contract import Reason
from finetune_trainer.data.chat_template import ANSWER_MARK, ChatTemplate, Messages, Span
from finetune_trainer.data.end_of_turn import (
    EndOfTurn,
    find_end_of_turn,
    get_stop_token_ids,
    get_structural_tokens,
    require_offsets,
)
from finetune_trainer.data.row_types import Chat, PlainText, PromptCompletion, Row, RowError
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
"""The label of a token that is not learnt (torch's own `ignore_index`)."""


@dataclass(frozen=True)
class RenderedConversation:
    """A row as text, with the character ranges that the model is to write, each with its ending.

    `bare` if no template wrote its start; `open_end` if EOS has to follow the text.
    """

    text: str
    answer_spans: tuple[Span, ...]
    is_untemplated: bool = False
    needs_eos: bool = False


@dataclass(frozen=True)
class TokenizedConversation:
    """A row as tokens; `labels[i]` is `input_ids[i]` or `IGNORED`. The last answer begins at `answer`."""

    input_ids: list[int]
    labels: list[int]
    answer_start: int = 0

    @property
    def supervised_tokens(self) -> int:
        """Tokens that are learnt."""
        return len(self.labels) - self.labels.count(IGNORE_INDEX)


@dataclass(frozen=True)
class _TokenOffsets:
    """Where tokens stand is asked of a few of them only: lists of all places cost more than the tokens themselves."""

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
    """Turns rows into `Example`s with one tokenizer.

    `loss` is `completion` (learn the answers and what ends them) or `all` (learn every token but the first, which
    nothing comes before). Raises `MODEL_INVALID` if the tokenizer cannot say where in the text its tokens stand.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, loss: Literal["completion", "all"] = "completion") -> None:
        require_offsets(tokenizer)
        self._tokenizer = tokenizer
        self._supervise_all = loss == "all"
        self._template = ChatTemplate(tokenizer) if tokenizer.chat_template else None
        self._bos_ids = get_bos_ids(tokenizer)

    def render(self, conversation: Row) -> RenderedConversation:
        """The row as text.

        A `Pair` becomes a turn of the user and one of the assistant if the tokenizer has a chat template, since that
        is how an instruct model is asked later; without one its texts are joined as they are.
        Raises `RowError` if the template refuses or rewrites the row, `MODEL_INVALID` for a `Chat` without template
        and for a row that only EOS can end if the tokenizer has none.
        """
        if isinstance(conversation, PlainText):
            return self._render_untemplated(conversation.text, 0)
        if isinstance(conversation, Chat):
            return self._render_chat(conversation.messages)
        if not isinstance(conversation, PromptCompletion):
            raise RowError("has two answers or a judged one; render each conversation")
        if self._template is None:
            return self._render_untemplated(conversation.prompt + conversation.completion, len(conversation.prompt))
        turns = (("user", conversation.prompt), ("assistant", conversation.completion))
        return self._render_chat([{"role": role, "content": content} for role, content in turns])

    def tokenize(self, conversations: Sequence[RenderedConversation]) -> list[TokenizedConversation]:
        """The rows as tokens; a batch at a time, since the tokenizer then uses every core."""
        if not conversations:
            return []
        # verbose=False: rows beyond the model's length are counted by the caller, not warned about here.
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
                "the data has messages but the tokenizer has no chat template; add chat_template.jinja to the model "
                "or use prompt and completion",
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
        """Tokens that end a text, as text."""
        structural_tokens = get_structural_tokens(self._tokenizer)
        return tuple(
            structural_tokens[token_id]
            for token_id in get_stop_token_ids(self._tokenizer)
            if token_id in structural_tokens
        )

    def _extend_to_endings(self, text: str, answer_spans: Sequence[Span]) -> RenderedConversation:
        """The answers with what ends them; the text without what EOS takes the place of."""
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
                "nothing tells the model where an answer ends: the tokenizer has no eos_token, and no chat template "
                "ends the answer with a token of the vocabulary; set eos_token in tokenizer_config.json of the base "
                "model, or model.chatTemplate to a template that ends answers with such a token",
            )

    def _apply_loss_mask(self, conversation: RenderedConversation, tokens: _TokenOffsets) -> TokenizedConversation:
        ids, answer_start = tokens.ids, 0
        labels = self._init_labels(ids)
        for answer_span in conversation.answer_spans:
            answer_start, end = _find_supervised_span(tokens, answer_span)
            labels[answer_start:end] = ids[answer_start:end]
        if conversation.needs_eos:
            ids, labels = [*ids, self._tokenizer.eos_token_id], [*labels, self._tokenizer.eos_token_id]
        if conversation.is_untemplated and ids[: len(self._bos_ids)] != self._bos_ids:
            ids, labels = [*self._bos_ids, *ids], [*self._init_labels(self._bos_ids), *labels]
            answer_start += len(self._bos_ids)
        labels[:1] = [IGNORE_INDEX] * len(labels[:1])  # nothing comes before it to predict it from
        return TokenizedConversation(ids, labels, answer_start)

    def _init_labels(self, ids: list[int]) -> list[int]:
        return list(ids) if self._supervise_all else [IGNORE_INDEX] * len(ids)


def _find_supervised_span(tokens: _TokenOffsets, answer_span: Span) -> Span:
    """The first token of an answer, and the one after its last."""
    indices = range(len(tokens.ids))
    first_index = bisect_right(indices, answer_span[0], key=tokens.get_end)
    if first_index < len(indices) and tokens.text[tokens.get_start(first_index) : answer_span[0]].strip():
        first_index += 1  # it begins in what the model is shown
    return first_index, bisect_left(indices, answer_span[1], lo=first_index, key=tokens.get_start)


def _find_answer_span(template: ChatTemplate, messages: Messages, turn_index: int, text: str) -> Span:
    """Where in `text` stands what the model has to write in this turn."""
    marked_turn = {**messages[turn_index], "content": ANSWER_MARK}
    text_before, found_mark, text_after = template.render(
        [*messages[:turn_index], marked_turn, *messages[turn_index + 1 :]]
    ).partition(ANSWER_MARK)
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
        raise RowError(
            f"the model's chat template does not keep messages[{turn_index}] apart from the others; "
            "mark the assistant's part in it with {% generation %} … {% endgeneration %}"
        )
    return start, end


def _render_prompt(template: ChatTemplate, messages: Messages) -> str | None:
    """What the model is shown when it is to answer; none if the template refuses to ask at this point."""
    if not messages:
        return None
    try:
        return template.render(messages, add_generation_prompt=True)
    except RowError:
        return None


def get_bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a plain text: its BOS token or nothing."""
    ids_without_special = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids_with_special = tokenizer("a")["input_ids"]
    starts_with_bos = (
        tokenizer.bos_token_id is not None
        and ids_with_special[:1] == [tokenizer.bos_token_id] != ids_without_special[:1]
    )
    return [tokenizer.bos_token_id] if starts_with_bos else []


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """What to ask a model with that was tuned on these labels: a user's turn, or plain text without a template."""
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}]
        # A BatchEncoding since transformers 5 whatever return_dict says in older code: ask for it by name.
        return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"])
    prompt_ids = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    bos_ids = get_bos_ids(tokenizer)
    return prompt_ids if prompt_ids[: len(bos_ids)] == bos_ids else [*bos_ids, *prompt_ids]
