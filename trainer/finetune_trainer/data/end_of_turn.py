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
from finetune_trainer.data.chat_template import ANSWER_MARK, ChatTemplate, Messages
from finetune_trainer.data.row_types import RowError
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
    """What ends an answer; empty if the template ends it with ordinary text, with blanks or not at all.

    `texts` are the ending up to each of its structural tokens, the longest first: a template may write less of it
    within a conversation than at the end, as Phi-3's does. `ids` are these tokens. `stop` is the one to stop at: the
    last of those that directly follow each other first, as in Command-R's `<|END_RESPONSE|><|END_OF_TURN_TOKEN|>`.
    """

    texts: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    stop_token_id: int | None = None

    def find_end(self, text: str, answer_span: tuple[int, int]) -> int | None:
        """Where the ending of this answer ends; none if it does not stand there. The answer may hold a part of it."""
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
    """Raise `MODEL_INVALID` if the tokenizer cannot say where in the text its tokens stand."""
    if not tokenizer.is_fast:
        raise TrainerError(
            Reason.MODEL_INVALID,
            "the tokenizer has no tokenizer.json, so it cannot say where its tokens stand in the text; "
            "convert it with AutoTokenizer.from_pretrained(...).save_pretrained(...) and store the result",
        )


def find_end_of_turn(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase) -> EndOfTurn:
    """The ending that the template writes. Raises `RowError` if it refuses a question and an answer, and as
    `require_offsets`."""
    require_offsets(tokenizer)
    text = _render_probe(template)
    if ANSWER_MARK not in text:  # the template rewrites answers; rows are refused for that
        return EndOfTurn()
    start = text.rindex(ANSWER_MARK) + len(ANSWER_MARK)
    tokens = _take_structural_tokens(_tokenize_ending(text, start, tokenizer), tokenizer.eos_token_id)
    ends = [token.end for token in tokens]
    return EndOfTurn(
        texts=tuple(text[start:end] for end in reversed(ends)),
        token_ids=tuple(token.id for token in tokens),
        stop_token_id=_find_stop_token_id(tokens),
    )


def detect_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> EndOfTurn:
    """The ending of the tokenizer's chat template; an empty one without a template, or if it cannot be found."""
    if not tokenizer.chat_template:
        return EndOfTurn()
    try:
        return find_end_of_turn(ChatTemplate(tokenizer), tokenizer)
    except RowError:
        return EndOfTurn()


def get_stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end an answer: the one that the chat template's answers end with, then the tokenizer's EOS."""
    token_ids = (detect_end_of_turn(tokenizer).stop_token_id, tokenizer.eos_token_id)
    return list(dict.fromkeys(token_id for token_id in token_ids if token_id is not None))


def choose_published_eos_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The EOS token of a tokenizer for models that were trained with this one: what ends their answers.

    It is the tokenizer's own if answers end with that too. It also stays if the chat template writes `eos_token`:
    with another one the template would render other texts than those that were trained on.
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
    """Special and added tokens by id, without blank ones."""
    special = {id_: str(tokenizer.convert_ids_to_tokens(id_)) for id_ in tokenizer.all_special_ids}
    added = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items()}
    return {id_: text.strip() for id_, text in {**special, **added}.items() if text.strip()}


def _render_probe(template: ChatTemplate) -> str:
    errors = []
    for messages in _PROBE_CONVERSATIONS:
        try:
            return template.render(messages)
        except RowError as error:
            errors.append(error)
    raise errors[0]


def _tokenize_ending(text: str, start: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[_Token]:
    """The tokens of `text` from `start` on, blanks around and between them left out."""
    structural: Mapping[int, str] = get_structural_tokens(tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for id_, (begin, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        begin, end = max(begin, start), max(end, start)
        piece = text[begin:end]
        if piece.strip():
            # An unknown token is special too, but it stands for ordinary text.
            yield _Token(id_, begin, begin + len(piece.rstrip()), piece.strip() == structural.get(id_))


def _take_structural_tokens(tokens: Iterator[_Token], eos: int | None) -> list[_Token]:
    """The structural tokens up to EOS or to the first ordinary text after one of them."""
    structural_tokens: list[_Token] = []
    for token in tokens:
        if token.is_structural:
            structural_tokens.append(token)
        if structural_tokens and (not token.is_structural or token.id == eos):
            break
    return structural_tokens


def _find_stop_token_id(tokens: list[_Token]) -> int | None:
    last = None
    for token in tokens:
        if last and token.start != last.end:
            break
        last = token
    return last.id if last else None
