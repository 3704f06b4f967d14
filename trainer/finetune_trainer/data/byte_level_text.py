"""Character offsets of the tokens of a byte-level vocabulary, from the lengths of the tokens.

The tokenizers library computes the offsets of every token, which takes a fifth of the time of the tokenization, while
the labels of a row need those at the borders of its answers. A byte-level token has one character for each byte of its
text, so the number of bytes before a token says where it begins.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from finetune_trainer.data.chat_template import Span

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer
    from transformers import PreTrainedTokenizerBase

_SPACE = "\u0120"
"""The space in a byte-level vocabulary."""
_FALLBACK_TOKEN = "<0x41>"
"""A token for one byte, as vocabularies have it that are not byte-level."""
_UNKNOWN_SIZE = 1 << 40
"""Size of a token for unknown bytes, or with the whitespace around it: more than a text has."""
_NEW = -1
"""Size of a token that was not looked up yet."""
_PROBE = "a  b\n\n  c Stra\u00dfe \u65e5\u672c \U0001f600 12 .  "
"""A text with spaces, line breaks and characters of one to four bytes."""


class ByteLevelVocabulary:
    """The lengths of the tokens of one tokenizer. Each is looked up when the token is first used."""

    def __init__(self, backend: Tokenizer, *, trims_spaces: bool = False) -> None:
        self._backend = backend
        self._added_tokens = backend.get_added_tokens_decoder()
        self._sizes = self._init_sizes()
        self._trims_spaces = trims_spaces

    def locate(self, text: str, ids: list[int]) -> ByteLevelText | None:
        """Return the text with the positions of its tokens, or None if the tokens are not all of the text, as those
        of a text that the tokenizer normalizes."""
        is_ascii = text.isascii()
        if not is_ascii and not unicodedata.is_normalized("NFC", text):
            return None
        if self._trims_spaces and text.startswith(" "):
            return None  # it depends on the tokenizer whether the first space is trimmed
        id_array = np.array(ids, np.int32)
        borders = np.zeros(len(ids) + 1, np.int64)
        self._get_sizes(id_array).cumsum(out=borders[1:])
        if borders[-1] != (len(text) if is_ascii else len(text.encode())):
            return None
        return ByteLevelText(text, id_array, borders, self if self._trims_spaces else None)

    def count_spaces(self, token_id: int) -> Span:
        """Return the number of spaces at the start and at the end of a token."""
        token = (self._backend.id_to_token(token_id) or "").replace(_SPACE, " ")
        return len(token) - len(token.lstrip()), len(token) - len(token.rstrip())

    def _init_sizes(self) -> NDArray[np.int64]:
        """Return the number of bytes of each token by its ID, without those that are looked up later."""
        count = max([self._backend.get_vocab_size(), *(id_ + 1 for id_ in self._added_tokens)])
        sizes = np.full(count + 1, _NEW, np.int64)
        sizes[-1] = _UNKNOWN_SIZE  # of IDs in the gaps that some vocabularies have
        sizes[[id_ for id_, token in self._added_tokens.items() if token.lstrip or token.rstrip]] = _UNKNOWN_SIZE
        unknown_id = self._backend.token_to_id(self._backend.model.unk_token or "")
        if unknown_id is not None:
            sizes[unknown_id] = _UNKNOWN_SIZE
        return sizes

    def _get_sizes(self, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """Return the number of bytes of each token."""
        sizes = self._sizes.take(ids, mode="clip")
        if len(sizes) and sizes.min() == _NEW:
            for token_id in ids[sizes == _NEW].tolist():
                token = self._backend.id_to_token(token_id) or ""
                self._sizes[token_id] = len(token.encode()) if token_id in self._added_tokens else len(token)
            sizes = self._sizes.take(ids, mode="clip")
        return sizes


@dataclass(frozen=True)
class ByteLevelText:
    """A text and its tokens."""

    text: str
    ids: NDArray[np.int32]
    borders: NDArray[np.int64]
    """Positions in bytes before the first token, and after each token."""
    trimmed_by: ByteLevelVocabulary | None = None
    """The vocabulary, if the positions of tokens leave out the spaces around them, as with `trim_offsets`."""

    def get_start(self, index: int) -> int:
        """Return the position of the first character of a token."""
        start = self._get_span(index)[0]
        return start if self.text.isascii() else len(self._bytes[:start].decode(errors="ignore"))

    def get_end(self, index: int) -> int:
        """Return the position after the last character of a token."""
        end = self._get_span(index)[1]
        if self.text.isascii():
            return end
        rest = self._bytes[end : end + 3]
        end += next((count for count, byte in enumerate(rest) if byte & 0xC0 != 0x80), len(rest))
        return len(self._bytes[:end].decode())

    def find_end_after(self, position: int) -> int:
        """Return the index of the first token that ends after the position."""
        index = int(self.borders[1:].searchsorted(self._count_bytes(position), "right"))
        while self.trimmed_by and index < len(self.ids) and self.get_end(index) <= position:
            index += 1
        return index

    def find_start_at(self, position: int, first: int) -> int:
        """Return the index of the first token, from `first` on, that begins at the position or after it."""
        index = max(first, int(self.borders[:-1].searchsorted(self._count_bytes(position))))
        while self.trimmed_by and index > first and self.get_start(index - 1) >= position:
            index -= 1
        return index

    def _count_bytes(self, position: int) -> int:
        return position if self.text.isascii() else len(self.text[:position].encode())

    def _get_span(self, index: int) -> Span:
        """Return the positions in bytes."""
        start, end = int(self.borders[index]), int(self.borders[index + 1])
        if self.trimmed_by is None:
            return start, end
        leading, trailing = self.trimmed_by.count_spaces(int(self.ids[index]))
        start = min(start + leading, end)
        return start, max(end - trailing, start)

    @cached_property
    def _bytes(self) -> bytes:
        return self.text.encode()


def find_byte_level_vocabulary(tokenizer: PreTrainedTokenizerBase) -> ByteLevelVocabulary | None:
    """Return the vocabulary of the tokenizer, or None if the lengths of its tokens do not say where they are."""
    from tokenizers.models import BPE

    backend = tokenizer.backend_tokenizer
    if not isinstance(backend.model, BPE) or not _keeps_composed_texts(backend.normalizer):
        return None
    if backend.model.end_of_word_suffix or backend.token_to_id(_FALLBACK_TOKEN) is not None:
        return None  # tokens are longer than their texts
    encoded = tokenizer(_PROBE, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    for trims_spaces in (False, True):
        vocabulary = ByteLevelVocabulary(backend, trims_spaces=trims_spaces)
        located = vocabulary.locate(_PROBE, encoded["input_ids"])
        indices = range(len(encoded["input_ids"]))
        if located and [(located.get_start(i), located.get_end(i)) for i in indices] == encoded["offset_mapping"]:
            return vocabulary
    return None


def _keeps_composed_texts(normalizer: Normalizer | None) -> bool:
    """Return whether a normalizer does not change texts in NFC."""
    from tokenizers.normalizers import NFC, Sequence

    if isinstance(normalizer, Sequence):
        return all(_keeps_composed_texts(normalizer[index]) for index in range(len(normalizer)))
    return normalizer is None or isinstance(normalizer, NFC)
