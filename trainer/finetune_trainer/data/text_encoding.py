"""Tokenization of texts that are cut where no token may cross, with the character offsets of the tokens."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetune_trainer.data.byte_level_text import ByteLevelText, find_byte_level_vocabulary
from finetune_trainer.data.chat_template import Span
from finetune_trainer.data.control_tokens import CutText
from finetune_trainer.data.row_types import RowError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

_PIECE_PREFIX = "\n"
"""Text before each further piece, whose tokens are dropped. Without it, tokenizers like those of Llama 2 and Mistral
would add a space before the piece, as before any text."""


@dataclass(frozen=True)
class _EncodedPiece:
    encoding: Encoding
    first_token: int
    """Index of its first token in the text."""
    dropped_tokens: int = 0
    """Number of tokens at its start that are not in the text."""
    char_shift: int = 0
    """Difference between the positions of its characters in the text and in the piece."""


@dataclass
class EncodedText:
    """The tokens of a text, with character offsets that are looked up one by one: a list of all offsets costs more than
    the tokenization."""

    text: str
    ids: list[int] = field(default_factory=list)
    _pieces: list[_EncodedPiece] = field(default_factory=list)

    def get_start(self, index: int) -> int:
        """Return the position of the first character of a token."""
        return self._get_span(index)[0]

    def get_end(self, index: int) -> int:
        """Return the position after the last character of a token."""
        return self._get_span(index)[1]

    def find_end_after(self, position: int) -> int:
        """Return the index of the first token that ends after the position."""
        return bisect_right(range(len(self.ids)), position, key=self.get_end)

    def find_start_at(self, position: int, first: int) -> int:
        """Return the index of the first token, from `first` on, that begins at the position or after it."""
        return bisect_left(range(len(self.ids)), position, lo=first, key=self.get_start)

    def add_piece(self, ids: list[int], encoding: Encoding, start: int) -> None:
        """Append the tokens of the piece that begins at `start`. Raises `RowError` if a token crosses the cut."""
        dropped_tokens, char_shift = 0, 0
        if self._pieces:
            dropped_tokens, char_shift = _count_prefix_tokens(encoding, len(ids)), start - len(_PIECE_PREFIX)
        self._pieces.append(_EncodedPiece(encoding, len(self.ids), dropped_tokens, char_shift))
        self.ids = [*self.ids, *ids[dropped_tokens:]] if self.ids else ids

    def _get_span(self, index: int) -> Span:
        piece = self._pieces[-1]
        if index < piece.first_token:
            piece = self._pieces[bisect_right(self._pieces, index, key=lambda each: each.first_token) - 1]
        start, end = piece.encoding.token_to_chars(index - piece.first_token + piece.dropped_tokens) or (0, 0)
        return start + piece.char_shift, end + piece.char_shift


TokenizedText = EncodedText | ByteLevelText
"""A text with its tokens and their character offsets."""


class TextEncoder:
    """Tokenizes many texts with one tokenizer, and computes only those offsets of tokens that are asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = find_byte_level_vocabulary(tokenizer)

    def encode(self, texts: Sequence[CutText]) -> list[TokenizedText]:
        """Tokenize texts without adding special tokens. Raises `RowError` as `encode_texts` does."""
        located = list(self._locate_tokens(texts))
        rest = [text for text, found in zip(texts, located, strict=True) if found is None]
        encoded_rest = iter(encode_texts(self._tokenizer, rest) if rest else ())
        return [found or next(encoded_rest) for found in located]

    def _locate_tokens(self, texts: Sequence[CutText]) -> Iterator[ByteLevelText | None]:
        """Yield each text with its tokens, or None if its offsets do not follow from the lengths of the tokens."""
        if self._vocabulary is None:
            yield from (None for _ in texts)
            return
        whole_texts = [text.text for text in texts if not text.cuts]
        # Unlike encode_batch(), it computes no offsets.
        encodings = self._tokenizer.backend_tokenizer.encode_batch_fast(whole_texts, add_special_tokens=False)
        remaining = iter(encodings)
        for text in texts:
            yield None if text.cuts else self._vocabulary.locate(text.text, next(remaining).ids)


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[CutText]) -> list[EncodedText]:
    """Tokenize texts without adding special tokens. A batch allows the tokenizer to use all cores.

    Raises `RowError` if the tokenizer puts a token across a cut.
    """
    pieces = [
        piece if number == 0 else _PIECE_PREFIX + piece for text in texts for number, piece in enumerate(text.pieces)
    ]
    # verbose=False: the caller counts the rows that are too long, so no warning is needed.
    encoded = tokenizer(
        pieces, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    encoded_pieces = zip(encoded["input_ids"], encoded.encodings, strict=True)
    encoded_texts = []
    for text in texts:
        encoded_text = EncodedText(text.text)
        for start in (0, *text.cuts):
            encoded_text.add_piece(*next(encoded_pieces), start)
        encoded_texts.append(encoded_text)
    return encoded_texts


def _count_prefix_tokens(encoding: Encoding, token_count: int) -> int:
    """Return the number of tokens of the text before a piece. Raises `RowError` if one is also part of the piece."""
    for index in range(token_count):
        start, end = encoding.token_to_chars(index) or (0, 0)
        if start >= len(_PIECE_PREFIX):
            return index
        if end > len(_PIECE_PREFIX):
            break
    raise RowError(
        "has control tokens in its texts that the tokenizer cannot encode as text; remove them, or set "
        "dataset.preparation.controlTokens to control"
    )
