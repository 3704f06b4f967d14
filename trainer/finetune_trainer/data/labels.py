"""Which tokens of a row are learnt: one way for every backend, from character ranges of the rendered text.

The range of an answer is found in one of two ways, neither of which knows any particular template:
the template's own `{% generation %}` markers, or, without them, by rendering the conversation a second time with the
answer replaced by a mark. What stands after the mark must end the real rendering too, so the answer ends before it;
what `add_generation_prompt` renders for the turns before must begin it, so the answer starts after it. If either
does not hold, the row is refused: a guessed range would train on the user's words without anybody noticing.
The token that ends the turn is learnt with the answer, else the model would never stop.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from finetune_trainer.contract import Reason
from finetune_trainer.data.rows import Chat, Pair, Row, RowError, Text
from finetune_trainer.data.templates import Messages, Range, Template
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is not learnt (torch's own `ignore_index`)."""
_MARK = "answer0f1e2d3c4b5a"


@dataclass(frozen=True)
class Rendered:
    """A row as text, with the character ranges that the model is to write; `bare` if no template wrote its start."""

    text: str
    answers: tuple[Range, ...]
    bare: bool = False


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

    def blank(self, index: int) -> bool:
        return not self.text[slice(*self._place(index))].strip()

    def _place(self, index: int) -> Range:
        return self.encoding.token_to_chars(index) or (0, 0)


class Labeller:
    """Turns rows into `Example`s with one tokenizer.

    `loss` is `completion` (learn the answers and what ends them) or `all` (learn every token but the first, which
    nothing comes before). Raises `MODEL_INVALID` if the tokenizer cannot say where in the text its tokens stand.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, loss: Literal["completion", "all"] = "completion") -> None:
        if not tokenizer.is_fast:
            raise TrainerError(
                Reason.MODEL_INVALID,
                "the tokenizer has no tokenizer.json, so it cannot say where its tokens stand in the text; "
                "convert it with AutoTokenizer.from_pretrained(...).save_pretrained(...) and store the result",
            )
        self._tokenizer = tokenizer
        self._learn_all = loss == "all"
        self._template = Template(tokenizer) if tokenizer.chat_template else None
        self._special = special_ids(tokenizer)
        self._first = first_ids(tokenizer)

    def render(self, row: Row) -> Rendered:
        """The row as text.

        A `Pair` becomes a turn of the user and one of the assistant if the tokenizer has a chat template, since that
        is how an instruct model is asked later; without one its texts are joined as they are.
        Raises `RowError` if the template refuses or rewrites the row, `MODEL_INVALID` for a `Chat` without template.
        """
        if isinstance(row, Text):
            return Rendered(row.text, ((0, len(row.text)),), bare=True)
        if isinstance(row, Chat):
            return self._render_chat(row.messages)
        if not isinstance(row, Pair):
            raise RowError("has two answers or a judged one; render each conversation")
        if self._template is None:
            text = row.prompt + row.completion
            return Rendered(text, ((len(row.prompt), len(text)),), bare=True)
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
        return Rendered(text, tuple((start, end) for start, end in answers))

    def _label(self, row: Rendered, tokens: _Tokens) -> Example:
        ids, open_end, first = tokens.ids, False, 0
        labels = self._learnt_anyway(ids)
        for answer in row.answers:
            first, end, open_end = self._learnt_range(tokens, answer)
            labels[first:end] = ids[first:end]
        if open_end and self._tokenizer.eos_token_id is not None:
            ids, labels = [*ids, self._tokenizer.eos_token_id], [*labels, self._tokenizer.eos_token_id]
        if row.bare and ids[: len(self._first)] != self._first:
            ids, labels = [*self._first, *ids], [*self._learnt_anyway(self._first), *labels]
            first += len(self._first)
        labels[:1] = [IGNORED] * len(labels[:1])  # nothing comes before it to predict it from
        return Example(ids, labels, first)

    def _learnt_anyway(self, ids: list[int]) -> list[int]:
        return list(ids) if self._learn_all else [IGNORED] * len(ids)

    def _learnt_range(self, tokens: _Tokens, answer: Range) -> tuple[int, int, bool]:
        """First token, end, and whether the text ends without a token that ends the turn."""
        every = range(len(tokens.ids))
        first = bisect_right(every, answer[0], key=tokens.end)
        if first < len(every) and tokens.text[tokens.start(first) : answer[0]].strip():
            first += 1  # it begins in what the model is shown
        end = bisect_left(every, answer[1], lo=first, key=tokens.start)
        return first, *self._through_stop(tokens, first, end)

    def _through_stop(self, tokens: _Tokens, first: int, end: int) -> tuple[int, bool]:
        """The end of an answer with the special token that ends its turn, but without a line break after that."""
        last = end
        while last > first and tokens.ids[last - 1] not in self._special and tokens.blank(last - 1):
            last -= 1
        if last > first and tokens.ids[last - 1] in self._special:
            return last, False
        for index in range(end, len(tokens.ids)):
            if tokens.ids[index] in self._special:
                return index + 1, False
            if not tokens.blank(index):
                return end, False
        return len(tokens.ids), True


def _answer_range(template: Template, messages: Messages, turn: int, text: str) -> Range:
    """Where in `text` stands what the model has to write in this turn."""
    marked = {**messages[turn], "content": _MARK}
    before, mark, after = template.render([*messages[:turn], marked, *messages[turn + 1 :]]).partition(_MARK)
    prompt = _prompt_before(template, messages[:turn])
    begin = prompt if prompt is not None and text.startswith(prompt) else before
    start, end = len(begin), len(text) - len(after)
    if not mark or _MARK in after or not text.startswith(begin) or not text.endswith(after) or start > end:
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


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that structure a text and are no part of it."""
    added = (token for token, content in tokenizer.added_tokens_decoder.items() if content.special)
    return frozenset([*added, *tokenizer.all_special_ids])


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


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: what these labels teach, and the tokenizer's EOS."""
    labeller = Labeller(tokenizer)
    example = labeller.encode([labeller.render(Pair("a", "b"))])[0]
    taught = [label for label in example.labels if label in special_ids(tokenizer)][-1:]
    return sorted({*taught, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])})
