"""Lexicon of terms for groups of people, with their counterparts. The terms are in `lexicon.yaml`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import resources

from pydantic import Field

from finetune_trainer.contract import Model

CATEGORIES = ("gender", "age", "race", "religion")
USER_CATEGORY = "terms"
"""Category of the pairs of terms from the config."""
WordPair = tuple[str, str]
TermGroup = tuple[str, str]
"""Category and group."""
_WORD_PATTERN = re.compile(r"\w+")
_NEXT_WORD_PATTERN = re.compile(r"[ \t]+([^\W\d_]+(?:-\w+)*)")
_TAKES_AN_PATTERN = re.compile(r"[aio]|e(?!u)|u(?!ni)", re.IGNORECASE)
"""Beginnings of words that take `an`, except words such as European and unicorn."""
_AMBIGUOUS_PRONOUNS = {"her": ("his", "him"), "his": ("her", "hers")}
"""Counterparts of a pronoun: before a noun, and elsewhere."""


class _LexiconBlock(Model):
    """Terms of two groups."""

    groups: tuple[str, str]
    pairs: list[WordPair]
    names: list[WordPair] = Field(default=[])
    unpaired: dict[str, list[str]] = Field(default={})
    kept: list[str] = Field(default=[])


class _LexiconFile(Model):
    """Content of `lexicon.yaml`."""

    categories: dict[str, list[_LexiconBlock]]
    begin_no_noun: frozenset[str]


@dataclass
class Lexicon:
    """Counterparts and groups of terms. It contains each term in all variants of upper and lower case."""

    counterparts: dict[str, str] = field(default_factory=dict)
    ambiguous_terms: dict[str, WordPair] = field(default_factory=dict)
    groups_by_term: dict[str, set[TermGroup]] = field(default_factory=dict)
    unpaired_terms: set[str] = field(default_factory=set)
    neutral_phrases: set[str] = field(default_factory=set)

    def swap_terms(self, text: str) -> str:
        """Replace each term in the text by its counterpart."""
        parts, position = [], 0
        for start, end in self._find_spans(text):
            parts += [text[position:start], self._find_counterpart(text, start, end)]
            position = end
        return "".join([*parts, text[position:]])

    def has_unpaired(self, text: str) -> bool:
        """Return whether the text has a term without a counterpart, which would contradict the swapped terms."""
        return any(text[start:end] in self.unpaired_terms for start, end in self._find_spans(text))

    def find_groups(self, text: str) -> Iterator[TermGroup]:
        """Yield category and group of each term in the text."""
        for start, end in self._find_spans(text):
            yield from self.groups_by_term.get(text[start:end], ())

    @cached_property
    def _phrases_by_first_word(self) -> dict[str, list[str]]:
        """Terms of several words by their first word, longest first."""
        phrases: dict[str, list[str]] = {}
        for term in sorted({*self.counterparts, *self.unpaired_terms, *self.neutral_phrases}, key=len, reverse=True):
            first_word = _WORD_PATTERN.match(term)
            if first_word and first_word.group() != term:
                phrases.setdefault(first_word.group(), []).append(term)
        return phrases

    def _find_spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Yield start and end of each word, and of each phrase that is a term."""
        # One lookup per word. A regular expression with a thousand alternatives would take milliseconds per row.
        position = 0
        for match in _WORD_PATTERN.finditer(text):
            if match.start() >= position:
                position = self._find_term_end(text, match)
                yield match.start(), position

    def _find_term_end(self, text: str, first_word: re.Match[str]) -> int:
        for phrase in self._phrases_by_first_word.get(first_word.group(), ()):
            end = first_word.start() + len(phrase)
            if text.startswith(phrase, first_word.start()) and not _WORD_PATTERN.match(text, end):
                return end
        return first_word.end()

    def _find_counterpart(self, text: str, start: int, end: int) -> str:
        term = text[start:end]
        if term not in self.ambiguous_terms:
            return self.counterparts.get(term, term)
        next_word = _NEXT_WORD_PATTERN.match(text, end)
        before_noun, elsewhere = self.ambiguous_terms[term]
        return (
            before_noun
            if next_word and next_word.group(1).lower() not in _load_lexicon_file().begin_no_noun
            else elsewhere
        )


def build_lexicon(categories: Sequence[str]) -> Lexicon:
    """Build the lexicon of some of `CATEGORIES`."""
    lexicon = Lexicon()
    for category in categories:
        for block in _load_lexicon_file().categories[category]:
            _add_block(lexicon, category, block)
        if category == "gender":
            _add_ambiguous_pronouns(lexicon)
    return lexicon


def build_user_lexicon(terms: Sequence[WordPair]) -> Lexicon:
    """Build the lexicon of the pairs from the config. Each term is its own group."""
    lexicon = Lexicon()
    for first, second in terms:
        groups = ((USER_CATEGORY, first), (USER_CATEGORY, second))
        _add_pair(lexicon, (first, second), groups, is_name=False)
    return lexicon


def _add_block(lexicon: Lexicon, category: str, block: _LexiconBlock) -> None:
    groups = ((category, block.groups[0]), (category, block.groups[1]))
    for pair in block.pairs:
        _add_pair(lexicon, pair, groups, is_name=False)
    for pair in block.names:
        _add_pair(lexicon, pair, groups, is_name=True)
    for group, terms in block.unpaired.items():
        spellings = {spelling for term in terms for spelling, _ in _list_case_variants((term, term), is_name=False)}
        lexicon.unpaired_terms |= spellings
        for each in spellings:
            lexicon.groups_by_term.setdefault(each, set()).add((category, group))
    lexicon.neutral_phrases.update(
        each for phrase in block.kept for each, _ in _list_case_variants((phrase, phrase), is_name=False)
    )


def _add_pair(lexicon: Lexicon, pair: WordPair, groups: tuple[TermGroup, TermGroup], is_name: bool) -> None:
    for first, second in [*_list_case_variants(_add_articles(pair), is_name), *_list_case_variants(pair, is_name)]:
        # The first of two terms with the same spelling wins, such as `Polish` and `polish` in the user's pairs.
        if first not in lexicon.counterparts and second not in lexicon.counterparts:
            lexicon.counterparts |= {first: second, second: first}
        lexicon.groups_by_term.setdefault(first, set()).add(groups[0])
        lexicon.groups_by_term.setdefault(second, set()).add(groups[1])


def _add_ambiguous_pronouns(lexicon: Lexicon) -> None:
    for word, group, other_group in (("her", "female", "male"), ("his", "male", "female")):
        before_noun, elsewhere = (
            _list_case_variants((word, replacement), is_name=False) for replacement in _AMBIGUOUS_PRONOUNS[word]
        )
        for (spelling, first), (_, second) in zip(before_noun, elsewhere, strict=True):
            lexicon.ambiguous_terms[spelling] = (first, second)
            # `him` and `hers` are not ambiguous.
            lexicon.counterparts[second] = spelling
            lexicon.groups_by_term |= {spelling: {("gender", group)}, second: {("gender", other_group)}}


def _list_case_variants(pair: WordPair, is_name: bool) -> list[WordPair]:
    """Return the pair as given, in lower case, with the first letter or each word capitalized, and in upper case."""
    transforms: list[Callable[[str], str]] = (
        [str.upper] if is_name else [str.lower, _capitalize, _capitalize_words, str.upper]
    )
    return [pair, *((transform(pair[0]), transform(pair[1])) for transform in transforms)]


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def _capitalize_words(text: str) -> str:
    return " ".join(map(_capitalize, text.split(" ")))


def _add_articles(pair: WordPair) -> WordPair:
    """Return both terms with their article if one takes `a` and the other `an`, otherwise unchanged."""
    first_takes_an, second_takes_an = (bool(_TAKES_AN_PATTERN.match(term)) for term in pair)
    if first_takes_an == second_takes_an:
        return pair
    return (f"{'an' if first_takes_an else 'a'} {pair[0]}", f"{'an' if second_takes_an else 'a'} {pair[1]}")


@lru_cache(maxsize=1)
def _load_lexicon_file() -> _LexiconFile:
    from ruamel.yaml import YAML

    text = resources.files(__package__).joinpath("lexicon.yaml").read_text("utf-8")
    return _LexiconFile(**YAML(typ="safe").load(text))
