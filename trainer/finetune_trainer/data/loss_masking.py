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
from finetune_trainer.data.chat_template import MARK, Messages, Range, Template
from finetune_trainer.data.end_of_turn import Ending, find_ending, require_offsets, stop_ids, structural_tokens
from finetune_trainer.data.rows import Chat, Pair, Row, RowError, Text
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is not learnt (torch's own `ignore_index`)."""


@dataclass(frozen=True)
class Rendered:
    """A row as text, with the character ranges that the model is to write, each with its ending.

    `bare` if no template wrote its start; `open_end` if EOS has to follow the text.
    """

    text: str
    answers: tuple[Range, ...]
    bare: bool = False
    open_end: bool = False


@dataclass(frozen=True)
class Example:
    """A row as tokens; `labels[i]` is `input_ids[i]` or `IGNORED`. The last answer begins at `answer`."""

    input_ids: list[int]
    labels: list[int]
    answer: int = 0

    @property
    def supervised(self) -> int:
        """Tokens that are learnt."""
        return len(self.labels) - self.labels.count(IGNORED)


@dataclass(frozen=True)
class _Tokens:
    """Where tokens stand is asked of a few of them only: lists of all places cost more than the tokens themselves."""

    text: str
    ids: list[int]
    encoding: Encoding

    def start(self, index: int) -> int:
        return self._place(index)[0]

    def end(self, index: int) -> int:
        return self._place(index)[1]

    def _place(self, index: int) -> Range:
        return self.encoding.token_to_chars(index) or (0, 0)


class Labeller:
    """Turns rows into `Example`s with one tokenizer.

    `loss` is `completion` (learn the answers and what ends them) or `all` (learn every token but the first, which
    nothing comes before). Raises `MODEL_INVALID` if the tokenizer cannot say where in the text its tokens stand.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, loss: Literal["completion", "all"] = "completion") -> None:
        require_offsets(tokenizer)
        self._tokenizer = tokenizer
        self._learn_all = loss == "all"
        self._template = Template(tokenizer) if tokenizer.chat_template else None
        self._first = first_ids(tokenizer)

    def render(self, row: Row) -> Rendered:
        """The row as text.

        A `Pair` becomes a turn of the user and one of the assistant if the tokenizer has a chat template, since that
        is how an instruct model is asked later; without one its texts are joined as they are.
        Raises `RowError` if the template refuses or rewrites the row, `MODEL_INVALID` for a `Chat` without template
        and for a row that only EOS can end if the tokenizer has none.
        """
        if isinstance(row, Text):
            return self._render_bare(row.text, 0)
        if isinstance(row, Chat):
            return self._render_chat(row.messages)
        if not isinstance(row, Pair):
            raise RowError("has two answers or a judged one; render each conversation")
        if self._template is None:
            return self._render_bare(row.prompt + row.completion, len(row.prompt))
        turns = (("user", row.prompt), ("assistant", row.completion))
        return self._render_chat([{"role": role, "content": content} for role, content in turns])

    def encode(self, batch: Sequence[Rendered]) -> list[Example]:
        """The rows as tokens; a batch at a time, since the tokenizer then uses every core."""
        if not batch:
            return []
        # verbose=False: rows beyond the model's length are counted by the caller, not warned about here.
        encoded = self._tokenizer(
            [row.text for row in batch],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [
            self._label(row, _Tokens(row.text, ids, encoding))
            for row, ids, encoding in zip(batch, encoded["input_ids"], encoded.encodings, strict=True)
        ]

    def _render_chat(self, messages: Messages) -> Rendered:
        template = self._template
        if template is None:
            raise TrainerError(
                Reason.MODEL_INVALID,
                "the data has messages but the tokenizer has no chat template; add chat_template.jinja to the model "
                "or use prompt and completion",
            )
        if template.marks:
            text, answers = template.marked(messages)
        else:
            text = template.render(messages)
            turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
            answers = [_answer_range(template, messages, index, text) for index in turns]
        return self._ended(text, answers)

    @cached_property
    def _ending(self) -> Ending:
        return find_ending(self._template, self._tokenizer) if self._template else Ending()

    @cached_property
    def _stops(self) -> tuple[str, ...]:
        """Tokens that end a text, as text."""
        structural = structural_tokens(self._tokenizer)
        return tuple(structural[each] for each in stop_ids(self._tokenizer) if each in structural)

    def _ended(self, text: str, answers: Sequence[Range]) -> Rendered:
        """The answers with what ends them; the text without what EOS takes the place of."""
        ends = [self._ending.end_after(text, answer) for answer in answers]
        ranges = [(start, stop or end) for (start, end), stop in zip(answers, ends, strict=True)]
        if not ranges or ends[-1] is not None:
            return Rendered(text, tuple(ranges))
        self._require_eos()
        start, end = ranges[-1]
        if text[end:].strip():
            text = text[:end]
        return Rendered(text, (*ranges[:-1], (start, len(text))), open_end=True)

    def _render_bare(self, text: str, start: int) -> Rendered:
        ended = text.rstrip()
        if len(ended) > start and ended.endswith(self._stops):
            return Rendered(text, ((start, len(ended)),), bare=True)
        self._require_eos()
        return Rendered(text, ((start, len(text)),), bare=True, open_end=True)

    def _require_eos(self) -> None:
        if self._tokenizer.eos_token_id is None:
            raise TrainerError(
                Reason.MODEL_INVALID,
                "nothing tells the model where an answer ends: the tokenizer has no eos_token, and no chat template "
                "ends the answer with a token of the vocabulary; set eos_token in tokenizer_config.json of the base "
                "model, or model.chatTemplate to a template that ends answers with such a token",
            )

    def _label(self, row: Rendered, tokens: _Tokens) -> Example:
        ids, first = tokens.ids, 0
        labels = self._learnt_anyway(ids)
        for answer in row.answers:
            first, end = _learnt_range(tokens, answer)
            labels[first:end] = ids[first:end]
        if row.open_end:
            ids, labels = [*ids, self._tokenizer.eos_token_id], [*labels, self._tokenizer.eos_token_id]
        if row.bare and ids[: len(self._first)] != self._first:
            ids, labels = [*self._first, *ids], [*self._learnt_anyway(self._first), *labels]
            first += len(self._first)
        labels[:1] = [IGNORED] * len(labels[:1])  # nothing comes before it to predict it from
        return Example(ids, labels, first)

    def _learnt_anyway(self, ids: list[int]) -> list[int]:
        return list(ids) if self._learn_all else [IGNORED] * len(ids)


def _learnt_range(tokens: _Tokens, answer: Range) -> Range:
    """The first token of an answer, and the one after its last."""
    every = range(len(tokens.ids))
    first = bisect_right(every, answer[0], key=tokens.end)
    if first < len(every) and tokens.text[tokens.start(first) : answer[0]].strip():
        first += 1  # it begins in what the model is shown
    return first, bisect_left(every, answer[1], lo=first, key=tokens.start)


def _answer_range(template: Template, messages: Messages, turn: int, text: str) -> Range:
    """Where in `text` stands what the model has to write in this turn."""
    marked = {**messages[turn], "content": MARK}
    before, mark, after = template.render([*messages[:turn], marked, *messages[turn + 1 :]]).partition(MARK)
    prompt = _prompt_before(template, messages[:turn])
    begin = prompt if prompt is not None and text.startswith(prompt) else before
    start, end = len(begin), len(text) - len(after)
    if not mark or MARK in after or not text.startswith(begin) or not text.endswith(after) or start > end:
        raise RowError(
            f"the model's chat template does not keep messages[{turn}] apart from the others; "
            "mark the assistant's part in it with {% generation %} … {% endgeneration %}"
        )
    return start, end


def _prompt_before(template: Template, messages: Messages) -> str | None:
    """What the model is shown when it is to answer; none if the template refuses to ask at this point."""
    if not messages:
        return None
    try:
        return template.render(messages, prompt=True)
    except RowError:
        return None


def first_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a plain text: its BOS token or nothing."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    starts_with_bos = tokenizer.bos_token_id is not None and full[:1] == [tokenizer.bos_token_id] != plain[:1]
    return [tokenizer.bos_token_id] if starts_with_bos else []


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """What to ask a model with that was tuned on these labels: a user's turn, or plain text without a template."""
    if tokenizer.chat_template:
        turns = [{"role": "user", "content": prompt}]
        # A BatchEncoding since transformers 5 whatever return_dict says in older code: ask for it by name.
        return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"])
    plain = list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    first = first_ids(tokenizer)
    return plain if plain[: len(first)] == first else [*first, *plain]
