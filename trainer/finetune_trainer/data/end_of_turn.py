"""How a chat template ends an answer, read once per template from a conversation that ends with one.

What the template renders after the last answer is its ending. A token of the ending structures the text if the
vocabulary has it whole: a special token, or an added token that is not flagged as special, as many vocabularies have
ChatML's `<|im_end|>`. A model learns to write such tokens, and a server stops at them by their id. Ordinary text
(`[/END]`, `### End`, or `<|im_end|>` spelled out by a vocabulary that lacks it) stops no server, so it counts as no
ending.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.data.chat_template import MARK, Messages, Template
from finetune_trainer.data.row_types import RowError
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USER = {"role": "user", "content": "question"}
_ANSWER = {"role": "assistant", "content": MARK}
_PROBES: tuple[Messages, ...] = ([_USER, _ANSWER], [{"role": "system", "content": "instruction"}, _USER, _ANSWER])


@dataclass(frozen=True)
class Ending:
    """What ends an answer; empty if the template ends it with ordinary text, with blanks or not at all.

    `texts` are the ending up to each of its structural tokens, the longest first: a template may write less of it
    within a conversation than at the end, as Phi-3's does. `ids` are these tokens. `stop` is the one to stop at: the
    last of those that directly follow each other first, as in Command-R's `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`.
    """

    texts: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    stop: int | None = None

    def end_after(self, text: str, answer: tuple[int, int]) -> int | None:
        """Where the ending of this answer ends; none if it does not stand there. The answer may hold a part of it."""
        start, end = answer
        for ending in self.texts:
            at = text.rfind(ending, start, end + len(ending))
            ended = at + len(ending)
            if at >= 0 and not text[ended:end].strip():
                return ended
        return None


@dataclass(frozen=True)
class _Token:
    id: int
    start: int
    end: int
    structural: bool


def require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `MODEL_INVALID` if the tokenizer cannot say where in the text its tokens stand."""
    if not tokenizer.is_fast:
        raise TrainerError(
            Reason.MODEL_INVALID,
            "the tokenizer has no tokenizer.json, so it cannot say where its tokens stand in the text; "
            "convert it with AutoTokenizer.from_pretrained(...).save_pretrained(...) and store the result",
        )


def find_ending(template: Template, tokenizer: PreTrainedTokenizerBase) -> Ending:
    """The ending that the template writes. Raises `RowError` if it refuses a question and an answer, and as
    `require_offsets`."""
    require_offsets(tokenizer)
    text = _render_probe(template)
    if MARK not in text:  # the template rewrites answers; rows are refused for that
        return Ending()
    start = text.rindex(MARK) + len(MARK)
    tokens = _leading(_tokens(text, start, tokenizer), tokenizer.eos_token_id)
    ends = [token.end for token in tokens]
    return Ending(
        texts=tuple(text[start:end] for end in reversed(ends)),
        ids=tuple(token.id for token in tokens),
        stop=_stop(tokens),
    )


def ending_of(tokenizer: PreTrainedTokenizerBase) -> Ending:
    """The ending of the tokenizer's chat template; an empty one without a template, or if it cannot be found."""
    if not tokenizer.chat_template:
        return Ending()
    try:
        return find_ending(Template(tokenizer), tokenizer)
    except RowError:
        return Ending()


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the one that the chat template's answers end with, then the tokenizer's EOS."""
    ids = (ending_of(tokenizer).stop, tokenizer.eos_token_id)
    return list(dict.fromkeys(each for each in ids if each is not None))


def eos_token_to_publish(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The EOS token of a tokenizer for models that were trained with this one: what ends their answers.

    It is the tokenizer's own if answers end with that too. It also stays if the chat template writes `eos_token`:
    with another one the template would render other texts than those that were trained on.
    """
    ending = ending_of(tokenizer)
    own: str | None = tokenizer.eos_token
    if ending.stop is None or tokenizer.eos_token_id in ending.ids or "eos_token" in tokenizer.get_chat_template():
        return own
    return str(tokenizer.convert_ids_to_tokens(ending.stop))


def structural_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Special and added tokens by id, without blank ones."""
    special = {id_: str(tokenizer.convert_ids_to_tokens(id_)) for id_ in tokenizer.all_special_ids}
    added = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items()}
    return {id_: text.strip() for id_, text in {**special, **added}.items() if text.strip()}


def _render_probe(template: Template) -> str:
    refusals = []
    for messages in _PROBES:
        try:
            return template.render(messages)
        except RowError as error:
            refusals.append(error)
    raise refusals[0]


def _tokens(text: str, start: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[_Token]:
    """The tokens of `text` from `start` on, blanks around and between them left out."""
    structural: Mapping[int, str] = structural_tokens(tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for id_, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        begin, end = max(begin, start), max(end, start)
        piece = text[begin:end]
        if piece.strip():
            # An unknown token is special too, but it stands for ordinary text.
            yield _Token(id_, begin, begin + len(piece.rstrip()), piece.strip() == structural.get(id_))


def _leading(tokens: Iterator[_Token], eos: int | None) -> list[_Token]:
    """The structural tokens up to EOS or to the first ordinary text after one of them."""
    found: list[_Token] = []
    for token in tokens:
        if token.structural:
            found.append(token)
        if found and (not token.structural or token.id == eos):
            break
    return found


def _stop(tokens: list[_Token]) -> int | None:
    last = None
    for token in tokens:
        if last and token.start != last.end:
            break
        last = token
    return last.id if last else None
