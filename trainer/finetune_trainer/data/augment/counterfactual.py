"""Texts with the terms of a group exchanged for those of another, and which groups a text names.

Words are exchanged, not sentences rewritten: that is right for English and close for the French that `terms.yaml` has.
Swapping twice gives the text back, and a text for which it would not is not swapped: a guess at what `her` means there
was wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from finetune_trainer.data.augment.lexicon import (
    CATEGORIES,
    USER_CATEGORY,
    Lexicon,
    WordPair,
    build_lexicon,
    build_user_lexicon,
)
from finetune_trainer.data.row_texts import list_texts, map_texts
from finetune_trainer.data.row_types import Row

__all__ = ["CATEGORIES", "USER_CATEGORY", "explain_invalid_terms", "find_named_groups", "swap_row_terms", "swap_terms"]

UserTerms = Sequence[Sequence[str]]
"""Pairs that the user adds, as `[["nurse", "doctor"]]`: the category `terms`."""


def swap_terms(text: str, category: str, terms: UserTerms = ()) -> str | None:
    """The text with the category's terms exchanged; `None` where it has none, or cannot be swapped and read well."""
    swapped = _swap_text(text, category, _freeze_terms(terms))
    return None if swapped == text else swapped


def swap_row_terms(row: Row, category: str, terms: UserTerms = ()) -> Row | None:
    """A row with each of its texts swapped; `None` where none has a term, or one of them cannot be swapped."""
    user_terms = _freeze_terms(terms)
    swapped_by_text = {text: _swap_text(text, category, user_terms) for text in list_texts(row)}
    replacements = {text: swapped for text, swapped in swapped_by_text.items() if swapped is not None}
    if len(replacements) < len(swapped_by_text) or all(text == swapped for text, swapped in replacements.items()):
        return None
    return map_texts(row, lambda text: replacements.get(text, text))


def find_named_groups(text: str, terms: UserTerms = ()) -> set[tuple[str, str]]:
    """Category and group of each term in the text: `("gender", "female")`. A user's term is its own group."""
    user_lexicon = _get_lexicon(USER_CATEGORY, _freeze_terms(terms))
    return {group for lexicon in (_get_full_lexicon(), user_lexicon) for group in lexicon.find_groups(text)}


def explain_invalid_terms(terms: UserTerms) -> str | None:
    """Why the user's pairs cannot be exchanged for each other; `None` where they can."""
    used_words: set[str] = set()
    for number, pair in enumerate(terms):
        words = [word.strip().casefold() for word in pair]
        if len(words) != 2 or not all(word and word[0].isalnum() and word[-1].isalnum() for word in words):
            return f"evaluation.bias.terms[{number}] has to be two terms, each from a letter to a letter"
        if repeated_word := next(
            (word for word in words if word in used_words), words[0] if words[0] == words[1] else None
        ):
            return (
                f'evaluation.bias.terms[{number}]: "{repeated_word}" stands in two places, so it has no one counterpart'
            )
        used_words.update(words)
    return None


def _swap_text(text: str, category: str, terms: tuple[WordPair, ...]) -> str | None:
    lexicon = _get_lexicon(category, terms)
    swapped = lexicon.swap_terms(text)
    if swapped == text:
        return text
    return None if lexicon.has_unpaired(text) or lexicon.swap_terms(swapped) != text else swapped


def _freeze_terms(terms: UserTerms) -> tuple[WordPair, ...]:
    return tuple((first, second) for first, second in terms)


@lru_cache(maxsize=32)
def _get_lexicon(category: str, terms: tuple[WordPair, ...]) -> Lexicon:
    return build_user_lexicon(terms) if category == USER_CATEGORY else build_lexicon([category])


@lru_cache(maxsize=1)
def _get_full_lexicon() -> Lexicon:
    return build_lexicon(CATEGORIES)
