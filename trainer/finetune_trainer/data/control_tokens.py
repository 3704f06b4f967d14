"""Control tokens that are typed in the texts of a conversation.

A tokenizer does not distinguish between a control token that the chat template writes and one that is typed in a text:
`<|im_end|>` in a message becomes the same ID. A user's message can then contain a turn of another role, and a model
learns to stop in the middle of an answer (https://github.com/huggingface/transformers/issues/30957).

To encode a typed control token as ordinary text, a mark is inserted after its first character before the conversation
is rendered. The rendered text is cut at the marks, and its pieces are tokenized separately, so that no piece contains
the token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.chat_template import Span
from finetune_trainer.data.end_of_turn import detect_end_of_turn, get_structural_tokens, list_special_token_ids
from finetune_trainer.data.row_texts import Conversation, list_turns
from finetune_trainer.data.row_types import Chat, PlainText, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CUT_MARK = "\uf8d7"
"""A character for private use, which texts of the data do not contain."""
_CUT_PATTERN = re.compile(f"{_CUT_MARK}|" + re.escape(r"\uf8d7"))
"""The mark, also as some templates write it in JSON."""

_REASONING_TAG = re.compile(r"[<\[|]+/?think(ing)?[|\]>]+", re.IGNORECASE)


@dataclass(frozen=True)
class CutText:
    """A text, and the positions between its characters at which no token may cross."""

    text: str
    cuts: tuple[int, ...] = ()

    @property
    def pieces(self) -> list[str]:
        """The parts between the cuts."""
        borders = [0, *self.cuts, len(self.text)]
        return [self.text[start:end] for start, end in pairwise(borders)]


class ControlTokenFinder:
    """Finds the special tokens, and the tokens that end a turn even if they are not flagged as special.

    Other added tokens, such as the HTML tags of Gemma's vocabulary, belong to ordinary texts. So do the tags of
    reasoning, such as `<think>`, even if they are flagged as special: they are how data marks the reasoning.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        control_ids = {*list_special_token_ids(tokenizer), *detect_end_of_turn(tokenizer).token_ids}
        texts = [text for token_id, text in get_structural_tokens(tokenizer).items() if token_id in control_ids]
        texts = [text for text in texts if not _REASONING_TAG.fullmatch(text)]
        # Texts that are not rendered by a chat template contain their control tokens.
        self._pattern = _compile_pattern(texts) if texts and tokenizer.chat_template else None
        self._normalize = _find_normalization(tokenizer, control_ids)

    def find(self, conversation: Conversation) -> str | None:
        """Return the first control token in a text that the chat template renders, or None."""
        if self._pattern is None or isinstance(conversation, PlainText):
            return None
        tools = conversation.tools if isinstance(conversation, Chat) else ()
        for text in (*(text for _, text in list_turns(conversation)), *map(str, tools)):
            if match := self._pattern.search(text) or self._find_normalized(text):
                return match.group()
        return None

    def mark(self, chat: Chat) -> Chat:
        """Return the conversation with a mark in each control token of its texts. Raises `RowError`."""
        messages = [self._mark_object(message) for message in chat.messages]
        return replace(chat, messages=messages, tools=[self._mark_object(tool) for tool in chat.tools])

    def mark_text(self, text: str) -> str:
        """Return the text with a mark in each of its control tokens. Raises `RowError` if that is not possible."""
        if self._pattern is None:
            return text
        if _CUT_PATTERN.search(text):
            raise RowError("has control tokens and the private-use character U+F8D7 in its texts; remove the character")
        while match := self._pattern.search(text):  # what is left of a token may be another one
            if len(match.group()) == 1:
                raise RowError(f"has the control token {match.group()!r}, which cannot be encoded as text; remove it")
            text = self._pattern.sub(lambda found: found.group()[0] + _CUT_MARK + found.group()[1:], text)
        if match := self._find_normalized(text):
            raise RowError(
                f"has a text that the tokenizer changes to the control token {match.group()!r} when it normalizes it; "
                "remove this text, or set dataset.preparation.controlTokens to control"
            )
        return text

    def _find_normalized(self, text: str) -> re.Match[str] | None:
        """Search the text as the tokenizer normalizes it, if it searches such texts for control tokens."""
        if self._normalize is None or self._pattern is None:
            return None
        return self._pattern.search(self._normalize(text))

    def _mark_object(self, value: dict[str, Any]) -> dict[str, Any]:
        """Mark the texts in a JSON object."""
        return {self.mark_text(key): self._mark_value(item) for key, item in value.items()}

    def _mark_value(self, value: object) -> object:
        if isinstance(value, dict):
            return self._mark_object(value)
        if isinstance(value, list):
            return [self._mark_value(item) for item in value]
        return self.mark_text(value) if isinstance(value, str) else value


def _find_normalization(tokenizer: PreTrainedTokenizerBase, control_ids: set[int]) -> Callable[[str], str] | None:
    """Return the function that normalizes a text, or None if control tokens are found in texts as they are.

    Added tokens that are flagged as `normalized` are also found in the normalized text, so that with a normalizer that
    lowercases, `</S>` becomes the token `</s>`.
    """
    added_tokens, normalizer = tokenizer.added_tokens_decoder, tokenizer.backend_tokenizer.normalizer
    is_normalized = any(added_tokens[id_].normalized for id_ in control_ids if id_ in added_tokens)
    return normalizer.normalize_str if is_normalized and normalizer is not None else None


def _compile_pattern(texts: Sequence[str]) -> re.Pattern[str]:
    """Return a pattern that finds each of the texts; of two that begin alike, the longer one.

    The first characters are compared once, not once for each of the hundreds of tokens.
    """
    sorted_texts = sorted(texts, key=lambda text: (text[0], -len(text)))
    groups = groupby(sorted_texts, key=lambda text: text[0])
    return re.compile(
        "|".join(f"{re.escape(first)}(?:{'|'.join(re.escape(text[1:]) for text in group)})" for first, group in groups)
    )


def remove_marks(text: str) -> str:
    """Return the text without the marks of control tokens."""
    return _CUT_PATTERN.sub("", text)


def cut_at_marks(text: str, spans: Sequence[Span] = ()) -> tuple[CutText, list[Span]]:
    """Return the text without marks, cut where they were, and the spans in this text."""
    pieces = _CUT_PATTERN.split(text)
    cuts = tuple(accumulate(map(len, pieces[:-1])))
    shifted_spans = [(len(remove_marks(text[:start])), len(remove_marks(text[:end]))) for start, end in spans]
    return CutText("".join(pieces), cuts), shifted_spans
