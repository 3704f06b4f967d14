"""Texts with the terms of a group exchanged for those of another, and which groups a text names.

Words are exchanged, not sentences rewritten: that is right for English and close for the French that `terms.yaml` has.
Swapping twice gives the text back, and a text for which it would not is not swapped: a guess at what `her` means there
was wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from finetune_trainer.data.augment.lexicon import CATEGORIES, OWN, Table, Term, table_of, table_of_own
from finetune_trainer.data.row_texts import mapped, texts
from finetune_trainer.data.rows import Row

__all__ = ["CATEGORIES", "OWN", "groups_named", "swap", "swapped_row", "why_not_terms"]

Terms = Sequence[Sequence[str]]
"""Pairs that the user adds, as `[["nurse", "doctor"]]`: the category `terms`."""


def swap(text: str, category: str, terms: Terms = ()) -> str | None:
    """The text with the category's terms exchanged; `None` where it has none, or cannot be swapped and read well."""
    swapped = _exchanged(text, category, _frozen(terms))
    return None if swapped == text else swapped


def swapped_row(row: Row, category: str, terms: Terms = ()) -> Row | None:
    """A row with each of its texts swapped; `None` where none has a term, or one of them cannot be swapped."""
    own = _frozen(terms)
    found = {text: _exchanged(text, category, own) for text in texts(row)}
    changed = {text: swapped for text, swapped in found.items() if swapped is not None}
    if len(changed) < len(found) or all(text == swapped for text, swapped in changed.items()):
        return None
    return mapped(row, lambda text: changed.get(text, text))


def groups_named(text: str, terms: Terms = ()) -> set[tuple[str, str]]:
    """Category and group of each term in the text: `("gender", "female")`. A user's term is its own group."""
    own = _table(OWN, _frozen(terms))
    return {group for table in (_all(), own) for group in table.groups_in(text)}


def why_not_terms(terms: Terms) -> str | None:
    """Why the user's pairs cannot be exchanged for each other; `None` where they can."""
    seen: set[str] = set()
    for number, pair in enumerate(terms):
        words = [word.strip().casefold() for word in pair]
        if len(words) != 2 or not all(word and word[0].isalnum() and word[-1].isalnum() for word in words):
            return f"evaluation.bias.terms[{number}] has to be two terms, each from a letter to a letter"
        if again := next((word for word in words if word in seen), words[0] if words[0] == words[1] else None):
            return f'evaluation.bias.terms[{number}]: "{again}" stands in two places, so it has no one counterpart'
        seen.update(words)
    return None


def _exchanged(text: str, category: str, terms: tuple[Term, ...]) -> str | None:
    table = _table(category, terms)
    swapped = table.exchanged(text)
    if swapped == text:
        return text
    return None if table.has_unpaired(text) or table.exchanged(swapped) != text else swapped


def _frozen(terms: Terms) -> tuple[Term, ...]:
    return tuple((first, second) for first, second in terms)


@lru_cache(maxsize=32)
def _table(category: str, terms: tuple[Term, ...]) -> Table:
    return table_of_own(terms) if category == OWN else table_of([category])


@lru_cache(maxsize=1)
def _all() -> Table:
    return table_of(CATEGORIES)
