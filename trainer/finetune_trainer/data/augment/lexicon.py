"""Terms that name a group of people, as a table that finds and exchanges them; the words are in `lexicon.yaml`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib import resources

from pydantic import Field

from finetune_trainer.contract import Model

CATEGORIES = ("gender", "age", "race", "religion")
OWN = "terms"
"""The category of the user's own pairs."""
Term = tuple[str, str]
Group = tuple[str, str]
"""Category and group."""
_WORD = re.compile(r"\w+")
_NEXT_WORD = re.compile(r"[ \t]+([^\W\d_]+(?:-\w+)*)")
_AN = re.compile(r"[aio]|e(?!u)|u(?!ni)", re.IGNORECASE)
"""Beginnings that ask for `an`; but a European, a unicorn."""
_AMBIGUOUS = {"her": ("his", "him"), "his": ("her", "hers")}
"""What stands in for them before a noun, and elsewhere."""


class _Block(Model):
    """Two groups and their words."""

    groups: tuple[str, str]
    pairs: list[Term]
    names: list[Term] = Field(default=[])
    unpaired: dict[str, list[str]] = Field(default={})
    kept: list[str] = Field(default=[])


class _File(Model):
    """`lexicon.yaml`."""

    categories: dict[str, list[_Block]]
    begin_no_noun: frozenset[str]


@dataclass
class Table:
    """What stands in for each term, and the groups it names; terms as they are written, in each case they may have."""

    counterparts: dict[str, str] = field(default_factory=dict)
    ambiguous: dict[str, Term] = field(default_factory=dict)
    groups: dict[str, set[Group]] = field(default_factory=dict)
    unpaired: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)

    def exchanged(self, text: str) -> str:
        """The text with each term's counterpart in its place."""
        parts, done = [], 0
        for start, end in self._found(text):
            parts += [text[done:start], self._counterpart(text, start, end)]
            done = end
        return "".join([*parts, text[done:]])

    def has_unpaired(self, text: str) -> bool:
        """Whether a term has to stay that contradicts the others once they are exchanged."""
        return any(text[start:end] in self.unpaired for start, end in self._found(text))

    def groups_in(self, text: str) -> Iterator[Group]:
        """Category and group of each term."""
        for start, end in self._found(text):
            yield from self.groups.get(text[start:end], ())

    @cached_property
    def _phrases(self) -> dict[str, list[str]]:
        """Terms of more than a word by their first word, the longest first."""
        found: dict[str, list[str]] = {}
        for term in sorted({*self.counterparts, *self.unpaired, *self.kept}, key=len, reverse=True):
            first = _WORD.match(term)
            if first and first.group() != term:
                found.setdefault(first.group(), []).append(term)
        return found

    def _found(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of each word, and of each phrase that is a term."""
        # A look-up for each word: an alternation of a thousand terms would take milliseconds for a row.
        done = 0
        for match in _WORD.finditer(text):
            if match.start() >= done:
                done = self._end(text, match)
                yield match.start(), done

    def _end(self, text: str, first: re.Match[str]) -> int:
        for phrase in self._phrases.get(first.group(), ()):
            end = first.start() + len(phrase)
            if text.startswith(phrase, first.start()) and not _WORD.match(text, end):
                return end
        return first.end()

    def _counterpart(self, text: str, start: int, end: int) -> str:
        found = text[start:end]
        if found not in self.ambiguous:
            return self.counterparts.get(found, found)
        after = _NEXT_WORD.match(text, end)
        before_noun, elsewhere = self.ambiguous[found]
        return before_noun if after and after.group(1).lower() not in _file().begin_no_noun else elsewhere


def table_of(categories: Sequence[str]) -> Table:
    """The table of some of `CATEGORIES`."""
    table = Table()
    for category in categories:
        for block in _file().categories[category]:
            _add_block(table, category, block)
        if category == "gender":
            _add_ambiguous(table)
    return table


def table_of_own(terms: Sequence[Term]) -> Table:
    """The table of the user's pairs, each term a group of its own."""
    table = Table()
    for first, second in terms:
        groups = ((OWN, first), (OWN, second))
        _add_pair(table, (first, second), groups, name=False)
    return table


def _add_block(table: Table, category: str, block: _Block) -> None:
    groups = ((category, block.groups[0]), (category, block.groups[1]))
    for pair in block.pairs:
        _add_pair(table, pair, groups, name=False)
    for pair in block.names:
        _add_pair(table, pair, groups, name=True)
    for group, terms in block.unpaired.items():
        written = {each for term in terms for each, _ in _cases((term, term), name=False)}
        table.unpaired |= written
        for each in written:
            table.groups.setdefault(each, set()).add((category, group))
    table.kept.update(each for phrase in block.kept for each, _ in _cases((phrase, phrase), name=False))


def _add_pair(table: Table, pair: Term, groups: tuple[Group, Group], name: bool) -> None:
    for first, second in [*_cases(_with_article(pair), name), *_cases(pair, name)]:
        # The first of two that are written alike: `Polish` and `polish` of the user's own pairs.
        if first not in table.counterparts and second not in table.counterparts:
            table.counterparts |= {first: second, second: first}
        table.groups.setdefault(first, set()).add(groups[0])
        table.groups.setdefault(second, set()).add(groups[1])


def _add_ambiguous(table: Table) -> None:
    for word, group, other in (("her", "female", "male"), ("his", "male", "female")):
        before_noun, elsewhere = (_cases((word, each), name=False) for each in _AMBIGUOUS[word])
        for (written, first), (_, second) in zip(before_noun, elsewhere, strict=True):
            table.ambiguous[written] = (first, second)
            # him and hers mean one thing each.
            table.counterparts[second] = written
            table.groups |= {written: {("gender", group)}, second: {("gender", other)}}


def _cases(pair: Term, name: bool) -> list[Term]:
    """The pair as it is given, in lower case, with one capital, with a capital for each word, and in capitals."""
    changed: list[Callable[[str], str]] = [str.upper] if name else [str.lower, _capitalised, _title, str.upper]
    return [pair, *((way(pair[0]), way(pair[1])) for way in changed)]


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _title(text: str) -> str:
    return " ".join(map(_capitalised, text.split(" ")))


def _with_article(pair: Term) -> Term:
    """Both with `a` or `an` where they differ in it, else as they are."""
    first, second = (bool(_AN.match(term)) for term in pair)
    if first == second:
        return pair
    return (f"{'an' if first else 'a'} {pair[0]}", f"{'an' if second else 'a'} {pair[1]}")


@lru_cache(maxsize=1)
def _file() -> _File:
    from ruamel.yaml import YAML

    text = resources.files(__package__).joinpath("lexicon.yaml").read_text("utf-8")
    return _File(**YAML(typ="safe").load(text))
