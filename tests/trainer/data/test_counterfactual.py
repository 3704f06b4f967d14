"""Swaps of the terms for groups of people in texts, and their inverse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data.augment.counterfactual import (
    CATEGORIES,
    USER_CATEGORY,
    explain_invalid_terms,
    find_named_groups,
    swap_row_terms,
    swap_terms,
)
from finetune_trainer.data.augment.lexicon import build_lexicon, build_user_lexicon
from finetune_trainer.data.row_types import Chat, PlainText, Preference, PromptCompletion, Row

TERMS = [["nurse", "engineer"], ["data scientist", "clerk"], ["EU citizen", "migrant"]]

SWAPPED = {
    "a pronoun": ("gender", "he said that she left", "she said that he left"),
    "each case": ("gender", "HE, He, he", "SHE, She, she"),
    "her before a noun": ("gender", "she lost her new book", "he lost his new book"),
    "her at the end": ("gender", "they saw her.", "they saw him."),
    "her before a preposition": ("gender", "they gave it to her in March", "they gave it to him in March"),
    "her before a compound": ("gender", "her up-to-date notes", "his up-to-date notes"),
    "his before a noun": ("gender", "His answer was his own", "Her answer was her own"),
    "his at the end": ("gender", "the choice is his", "the choice is hers"),
    "hers": ("gender", "HERS is better", "HIS is better"),
    "him": ("gender", "ask him and help him", "ask her and help her"),
    "next to punctuation": ("gender", "(father), mother's; son/daughter", "(mother), father's; daughter/son"),
    "a name": ("gender", "John met Mary", "Mary met John"),
    "a noun phrase of French": ("gender", "Il voit la femme et s'il veut", "Elle voit l'homme et si elle veut"),
    "impersonal French stays": ("gender", "il y a ce qu'il faut, dit-il", "il y a ce qu'il faut, dit-elle"),
    "an article": ("age", "A young man met an older one", "An old man met a younger one"),
    "an age is no group": ("age", "The old man is 5 years old", "The young man is 5 years old"),
    "people, not colours": ("race", "the black man in a black coat", "the white man in a black coat"),
    "the article of European": (
        "race",
        "an African American and European Americans",
        "a European American and African Americans",
    ),
    "a faith": ("religion", "MUSLIMS and a Christian priest", "CHRISTIANS and a Muslim imam"),
    "the user's terms": (
        USER_CATEGORY,
        "A nurse, an engineer; two data scientists",
        "An engineer, a nurse; two data scientists",
    ),
    "the user's phrase": (USER_CATEGORY, "Data scientist or clerk? DATA SCIENTIST", "Clerk or data scientist? CLERK"),
}


@pytest.mark.parametrize(("category", "text", "swapped"), SWAPPED.values(), ids=SWAPPED)
def test_swap_exchanges_terms_both_ways(category: str, text: str, swapped: str) -> None:
    assert swap_terms(text, category, TERMS) == swapped
    assert swap_terms(swapped, category, TERMS) == text


NOT_SWAPPED = {
    "no term": ("gender", "The train is late."),
    "part of a word": ("gender", "Theme, shell, Manchester, mankind"),
    "a mixed case": ("gender", "hE"),
    "a verb that looks like a name": ("gender", "mary john"),
    "a term without counterpart": ("gender", "Mrs Smith said she knew"),
    "French without article": ("gender", "cette femme dit qu'elle sait"),
    "him before a noun": ("gender", "they call him father"),
    "part of a phrase": ("race", "a black manor"),
    "another category": ("age", "he and she"),
    "no terms of one's own": (USER_CATEGORY, "he and she"),
    "a letter that only looks like s": ("gender", "\u017fhe"),
}


@pytest.mark.parametrize(("category", "text"), NOT_SWAPPED.values(), ids=NOT_SWAPPED)
def test_swap_text_without_terms_is_none(category: str, text: str) -> None:
    assert swap_terms(text, category) is None


@pytest.mark.parametrize("category", CATEGORIES)
def test_lexicon_term_has_single_counterpart(category: str) -> None:
    table = build_lexicon([category])
    wrong = {
        a: b for a, b in table.counterparts.items() if a not in table.ambiguous_terms and b not in table.ambiguous_terms
    }
    assert {a: b for a, b in wrong.items() if wrong.get(b) != a} == {}
    assert not table.unpaired_terms & {*table.counterparts, *table.ambiguous_terms}
    assert not table.neutral_phrases & {*table.counterparts, *table.ambiguous_terms}


WORDS = sorted(
    {*build_lexicon(CATEGORIES).counterparts, *build_lexicon(CATEGORIES).neutral_phrases, "her", "his", "Mrs"}
)
texts = st.lists(
    st.one_of(
        st.sampled_from(WORDS), st.sampled_from(["a", "an", "the", "book", "to", "old", "é"]), st.text(max_size=5)
    ),
    max_size=12,
).flatmap(lambda words: st.sampled_from([" ", ", ", "-", "\n", "'"]).map(lambda space: space.join(words)))


@given(texts, st.sampled_from([*CATEGORIES, USER_CATEGORY]))
def test_swap_twice_restores_text(text: str, category: str) -> None:
    swapped = swap_terms(text, category, TERMS)
    if swapped is not None:
        assert swapped != text
        assert swap_terms(swapped, category, TERMS) == text


NAMED = {
    "both": ("He and his sister", {("gender", "male"), ("gender", "female")}),
    "without counterpart": ("Mrs Smith", {("gender", "female")}),
    "her": ("tell HER", {("gender", "female")}),
    "hers": ("it is hers", {("gender", "female")}),
    "a name": ("Lakisha knows Brian", {("race", "black"), ("gender", "male")}),
    "an age is no group": ("She is 5 years old", {("gender", "female")}),
    "with an article": ("an old Muslim", {("age", "old"), ("religion", "muslim")}),
    "the user's": ("Nurses: one nurse", {(USER_CATEGORY, "nurse")}),
    "French": ("Une femme; il y a; elles", {("gender", "female")}),
    "no term": ("The train is late.", set()),
}


@pytest.mark.parametrize(("text", "groups"), NAMED.values(), ids=NAMED)
def test_groups_named_in_text_are_found(text: str, groups: set[tuple[str, str]]) -> None:
    assert find_named_groups(text, TERMS) == groups


ROWS: dict[str, tuple[Row, Row | None]] = {
    "all texts": (PromptCompletion("Where is he?", "He left."), PromptCompletion("Where is she?", "She left.")),
    "a text without terms": (PromptCompletion("Where?", "He left."), PromptCompletion("Where?", "She left.")),
    "none": (PlainText("The train."), None),
    "one that cannot be swapped": (PromptCompletion("Where is Mrs Hill, he asked", "He left."), None),
    "a conversation": (
        Chat([{"role": "user", "content": "her"}, {"role": "assistant", "content": "ok"}]),
        Chat([{"role": "user", "content": "him"}, {"role": "assistant", "content": "ok"}]),
    ),
    "a preference": (
        Preference(PromptCompletion("he", "yes"), PromptCompletion("he", "she")),
        Preference(PromptCompletion("she", "yes"), PromptCompletion("she", "he")),
    ),
}


@pytest.mark.parametrize(("row", "swapped"), ROWS.values(), ids=ROWS)
def test_swapped_row_swaps_all_texts(row: Row, swapped: Row | None) -> None:
    assert swap_row_terms(row, "gender") == swapped


REFUSED = {
    "three terms": ([["a", "b", "c"]], "terms[0] must be two terms"),
    "nothing": ([["nurse", " "]], "terms[0] must be two terms"),
    "a sign": ([["nurse", "c++"]], "terms[0] must be two terms"),
    "the same twice": ([["nurse", "Nurse"]], '"nurse" occurs twice'),
    "in two pairs": ([["nurse", "clerk"], ["Clerk", "doctor"]], 'terms[1]: "clerk" occurs twice'),
}


@pytest.mark.parametrize(("terms", "expected_reason"), REFUSED.values(), ids=REFUSED)
def test_terms_invalid_give_reason(terms: list[list[str]], expected_reason: str) -> None:
    reason = explain_invalid_terms(terms)
    assert reason is not None
    assert expected_reason in reason


def test_terms_valid_are_accepted() -> None:
    assert explain_invalid_terms(TERMS) is None
    assert explain_invalid_terms([]) is None


def test_terms_of_different_case_swap_both_ways() -> None:
    table = build_user_lexicon([("nurse", "Doctor")])
    assert {table.counterparts[word] for word in ("NURSE", "DOCTOR")} == {"NURSE", "DOCTOR"}
    assert all(table.counterparts[table.counterparts[word]] == word for word in table.counterparts)
