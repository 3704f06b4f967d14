"""Counterfactual texts: the terms for one group of people are swapped for those of another group.

Words are swapped, sentences are not rewritten. That is correct for English, and nearly correct for the French terms in
`lexicon.yaml`. Swapping twice must give the original text. If it does not, the meaning of an ambiguous word such as
`her` was guessed wrongly, and the text is not swapped.
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
"""Pairs of terms from the config, such as `[["nurse", "doctor"]]`. Their category is `terms`."""


def swap_terms(text: str, category: str, terms: UserTerms = ()) -> str | None:
    """Swap the terms of a category in a text. Return None if the text has none or cannot be swapped correctly."""
    swapped = _swap_text(text, category, _freeze_terms(terms))
    return None if swapped == text else swapped


def swap_row_terms(row: Row, category: str, terms: UserTerms = ()) -> Row | None:
    """Swap the terms in all texts of a row. Return None if no text has a term, or if one cannot be swapped."""
    user_terms = _freeze_terms(terms)
    swapped_by_text = {text: _swap_text(text, category, user_terms) for text in list_texts(row)}
    replacements = {text: swapped for text, swapped in swapped_by_text.items() if swapped is not None}
    if len(replacements) < len(swapped_by_text) or all(text == swapped for text, swapped in replacements.items()):
        return None
    return map_texts(row, lambda text: replacements.get(text, text))


def find_named_groups(text: str, terms: UserTerms = ()) -> set[tuple[str, str]]:
    """Return category and group of each term in the text: `("gender", "female")`. A user's term is its own group."""
    user_lexicon = _get_lexicon(USER_CATEGORY, _freeze_terms(terms))
    return {group for lexicon in (_get_full_lexicon(), user_lexicon) for group in lexicon.find_groups(text)}


def explain_invalid_terms(terms: UserTerms) -> str | None:
    """Return why the user's pairs cannot be swapped, or None if they can."""
    used_words: set[str] = set()
    for number, pair in enumerate(terms):
        words = [word.strip().casefold() for word in pair]
        if len(words) != 2 or not all(word and word[0].isalnum() and word[-1].isalnum() for word in words):
            return f"evaluation.bias.terms[{number}] must be two terms that begin and end with a letter or digit"
        if repeated_word := next(
            (word for word in words if word in used_words), words[0] if words[0] == words[1] else None
        ):
            return f'evaluation.bias.terms[{number}]: "{repeated_word}" occurs twice, so its counterpart is not clear'
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
