"""Detection of how a chat template ends an answer, from a probe conversation that ends with an answer.

The text that the template renders after the last answer is its ending. A token of the ending is structural if it is one
token of the vocabulary: a special token, or an added token that is not flagged as special, as ChatML's `<|im_end|>` is
in many vocabularies. A model learns to generate such tokens, and servers stop at their ids. Ordinary text (`[/END]`,
`### End`, or `<|im_end|>` as several tokens of a vocabulary that lacks it) stops no server, so it is not an ending.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import dropwhile
from typing import TYPE_CHECKING

from finetune_trainer.contract import Reason
from finetune_trainer.data.chat_template import ANSWER_MARK, ChatTemplate, Messages
from finetune_trainer.data.row_types import RowError
from finetune_trainer.data.template_messages import MessageAdapter
from finetune_trainer.errors import TrainerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE_USER_TURN = {"role": "user", "content": "question"}
_PROBE_ASSISTANT_TURN = {"role": "assistant", "content": ANSWER_MARK}
_PROBE_CONVERSATIONS: tuple[Messages, ...] = (
    [_PROBE_USER_TURN, _PROBE_ASSISTANT_TURN],
    [{"role": "system", "content": "instruction"}, _PROBE_USER_TURN, _PROBE_ASSISTANT_TURN],
)


@dataclass(frozen=True)
class EndOfTurn:
    """Ending of an answer. It is empty if answers end with ordinary text, with whitespace or not at all."""

    texts: tuple[str, ...] = ()
    """The ending up to each of its structural tokens, longest first: some templates, such as Phi-3's, write less of it
    within a conversation than at the end."""
    token_ids: tuple[int, ...] = ()
    """The structural tokens."""
    stop_token_id: int | None = None
    """Token to stop at: the last of the first adjacent structural tokens, as in Command-R's
    `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`."""

    def find_end(self, text: str, answer_span: tuple[int, int]) -> int | None:
        """Return the end of the ending that follows the answer, or None. The span may already include a part of it."""
        start, end = answer_span
        for ending in self.texts:
            position = text.rfind(ending, start, end + len(ending))
            ending_end = position + len(ending)
            if position >= 0 and not text[ending_end:end].strip():
                return ending_end
        return None


@dataclass(frozen=True)
class _Token:
    id: int
    start: int
    end: int
    is_structural: bool


def require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `MODEL_INVALID` if the tokenizer does not provide the character offsets of its tokens."""
    if not tokenizer.is_fast:
        raise TrainerError(
            Reason.MODEL_INVALID,
            "the tokenizer has no tokenizer.json, which is needed for the character offsets of its tokens; "
            "convert it with AutoTokenizer.from_pretrained(...).save_pretrained(...) and upload the result",
        )


def find_end_of_turn(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> EndOfTurn:
    """Return the ending that the template writes.

    Raises `RowError` if the template rejects a conversation of a question and an answer, and `MODEL_INVALID` if the
    tokenizer has no offsets.
    """
    require_offsets(tokenizer)
    text = _render_probe(template)
    if ANSWER_MARK not in text:  # the template rewrites answers, for which rows are rejected later
        return EndOfTurn()
    start = text.rindex(ANSWER_MARK) + len(ANSWER_MARK)
    tokens = _take_structural_tokens(_tokenize_ending(text, start, tokenizer), tokenizer.eos_token_id)
    ends = [token.end for token in tokens]
    return EndOfTurn(
        texts=tuple(text[start:end] for end in reversed(ends)),
        token_ids=tuple(token.id for token in tokens),
        stop_token_id=_find_stop_token_id(tokens),
    )


def find_end_of_call(
    template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, stop_ids: Collection[int]
) -> EndOfTurn:
    """Return the ending that the template writes after a turn that calls tools, such as gpt-oss' `<|call|>`.

    It consists of special tokens and those of `stop_ids`. It is empty if the template writes no calls.
    """
    try:
        text = MessageAdapter(template).render_call_probe()
    except RowError:
        return EndOfTurn()
    if ANSWER_MARK not in text:
        return EndOfTurn()
    control_ids = {*list_special_token_ids(tokenizer), *stop_ids}
    tokens = _tokenize_ending(text, text.rindex(ANSWER_MARK) + len(ANSWER_MARK), tokenizer)
    ending = list(_take_adjacent_tokens(dropwhile(lambda token: token.id not in control_ids, tokens)))
    if not ending:
        return EndOfTurn()
    return EndOfTurn(
        texts=tuple(text[ending[0].start : token.end] for token in reversed(ending)),
        token_ids=tuple(token.id for token in ending),
        stop_token_id=ending[-1].id,
    )


def detect_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> EndOfTurn:
    """Return the ending of the tokenizer's chat template, or an empty one if there is none."""
    if not tokenizer.chat_template:
        return EndOfTurn()
    try:
        return find_end_of_turn(ChatTemplate(tokenizer), tokenizer)
    except RowError:
        return EndOfTurn()


def get_stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end an answer: the stop token of the chat template, then the tokenizer's EOS token."""
    token_ids = (detect_end_of_turn(tokenizer).stop_token_id, tokenizer.eos_token_id)
    return list(dict.fromkeys(token_id for token_id in token_ids if token_id is not None))


def choose_published_eos_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the EOS token to publish with a model that was trained with this tokenizer: what ends its answers.

    The tokenizer's own EOS token is kept if answers also end with it, or if the chat template uses `eos_token`: with
    another EOS token the template would render texts that differ from the training data.
    """
    end_of_turn = detect_end_of_turn(tokenizer)
    eos_token: str | None = tokenizer.eos_token
    if (
        end_of_turn.stop_token_id is None
        or tokenizer.eos_token_id in end_of_turn.token_ids
        or "eos_token" in tokenizer.get_chat_template()
    ):
        return eos_token
    return str(tokenizer.convert_ids_to_tokens(end_of_turn.stop_token_id))


def get_structural_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Return the special and the added tokens by id, without those that are only whitespace."""
    special = {id_: str(tokenizer.convert_ids_to_tokens(id_)) for id_ in tokenizer.all_special_ids}
    added = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items()}
    return {id_: text.strip() for id_, text in {**special, **added}.items() if text.strip()}


def list_special_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that are flagged as special."""
    added_ids = [token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special]
    return list(dict.fromkeys([*tokenizer.all_special_ids, *added_ids]))


def _render_probe(template: ChatTemplate) -> str:
    errors = []
    for messages in _PROBE_CONVERSATIONS:
        try:
            return template.render(messages)
        except RowError as error:
            errors.append(error)
    raise errors[0]


def _tokenize_ending(text: str, start: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[_Token]:
    """Yield the tokens of `text` from `start` on, without whitespace around and between them."""
    structural: Mapping[int, str] = get_structural_tokens(tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for id_, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        begin, end = max(begin, start), max(end, start)
        piece = text[begin:end]
        if piece.strip():
            # The unknown token is special too, but it represents ordinary text.
            yield _Token(id_, begin, begin + len(piece.rstrip()), piece.strip() == structural.get(id_))


def _take_structural_tokens(tokens: Iterator[_Token], eos: int | None) -> list[_Token]:
    """Return the structural tokens up to EOS, or up to the first ordinary text after one of them."""
    structural_tokens: list[_Token] = []
    for token in tokens:
        if token.is_structural:
            structural_tokens.append(token)
        if structural_tokens and (not token.is_structural or token.id == eos):
            break
    return structural_tokens


def _take_adjacent_tokens(tokens: Iterable[_Token]) -> Iterator[_Token]:
    """Yield the structural tokens up to the first that does not follow the one before."""
    end = None
    for token in tokens:
        if not token.is_structural or end not in (None, token.start):
            return
        yield token
        end = token.end


def _find_stop_token_id(tokens: list[_Token]) -> int | None:
    last = None
    for token in tokens:
        if last and token.start != last.end:
            break
        last = token
    return last.id if last else None
