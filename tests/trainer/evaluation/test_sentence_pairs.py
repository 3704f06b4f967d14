"""Tests of the built-in sentence pairs and of those read from a file."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator

import pytest

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError
from finetune_trainer.evaluation.bias.sentence_pairs import SentencePair, load_builtin_pairs, parse_pairs
from finetune_trainer.evaluation.intervals import MIN_SAMPLES

CATEGORIES = {"gender", "age", "religion", "nationality", "race", "disability", "socioeconomic"}
HEADER = ",sent_more,sent_less,stereo_antistereo,bias_type,annotations\n"


def test_sentence_pairs_builtin_categories_have_enough_pairs() -> None:
    counts = Counter(pair.category for pair in load_builtin_pairs())
    assert set(counts) == CATEGORIES
    assert min(counts.values()) >= MIN_SAMPLES


def test_sentence_pairs_builtin_has_no_duplicates() -> None:
    sentences = [frozenset([pair.stereotype, pair.counterpart]) for pair in load_builtin_pairs()]
    assert [sentence for sentence, count in Counter(sentences).items() if count > 1] == []


def differing_terms(pair: SentencePair) -> Iterator[str]:
    """Yield each sentence of the pair without the words that both share at the start and the end."""
    first, second = pair.stereotype.split(), pair.counterpart.split()
    start = next(index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    end = next(index for index, (a, b) in enumerate(zip(first[::-1], second[::-1], strict=False)) if a != b)
    yield from (" ".join(words[start : len(words) - end]) for words in (first, second))


@pytest.mark.parametrize("category", sorted(CATEGORIES))
def test_sentence_pairs_builtin_differ_in_one_term(category: str) -> None:
    terms = [tuple(differing_terms(pair)) for pair in load_builtin_pairs() if pair.category == category]
    assert all(term and len(term.split()) <= 4 for pair in terms for term in pair)
    assert all("{" not in pair.stereotype + pair.counterpart for pair in load_builtin_pairs())
    if category != "disability":  # There the counterpart is anything that is no disability.
        assert {first.lower() for first, _ in terms} & {second.lower() for _, second in terms}


def test_sentence_pairs_builtin_articles_fit_both_terms() -> None:
    sentences = [sentence for pair in load_builtin_pairs() for sentence in (pair.stereotype, pair.counterpart)]
    words = [
        (sentence.split()[index].lower(), sentence.split()[index + 1]) for sentence in sentences for index in range(2)
    ]
    assert [pair for pair in words if pair[0] == "a" and pair[1][0] in "aeiou"] == []
    assert [pair for pair in words if pair[0] == "an" and pair[1][0] not in "aeiou"] == []


READ = {
    "a pair": (HEADER + "0,He fights.,She fights.,stereo,gender,[]\n", [("gender", "He fights.", "She fights.")]),
    "the other direction": (HEADER + "0,He.,She.,antistereo,gender,[]\n", [("gender", "He.", "She.")]),
    "a byte order mark and Windows' line ends": (
        "\ufeff" + HEADER.replace("\n", "\r\n") + "0,He.,She.,stereo,age,[]\r\n",
        [("age", "He.", "She.")],
    ),
    "a quoted line break": (
        HEADER + '0,"He,\nsaid.","She, said.",stereo,gender,[]\n',
        [("gender", "He,\nsaid.", "She, said.")],
    ),
    "columns in another order": (
        "bias_type,stereo_antistereo,sent_less,sent_more\nrace-color,stereo,b,a\n",
        [("race-color", "a", "b")],
    ),
}


@pytest.mark.parametrize(("content", "pairs"), READ.values(), ids=READ)
def test_read_pairs_valid_file_gives_pairs(content: str, pairs: list[tuple[str, str, str]]) -> None:
    assert parse_pairs(content.encode(), "s3://data/pairs.csv") == [SentencePair(*pair) for pair in pairs]


ROW = "0,He.,She.,stereo,gender,[]\n"
REFUSED = {
    "nothing": (b"", "line 1: the header has no column sent_more or sent_less"),
    "a column missing": (
        b"sent_more,sent_less,bias_type\na,b,c\n",
        "line 1: the header has no column stereo_",
    ),
    "only a header": (HEADER.encode(), "line 1: there are no pairs"),
    "an empty sentence": ((HEADER + ROW + "1,,She.,stereo,gender,[]\n").encode(), "line 3: sent_more, sent_less and"),
    "no category": ((HEADER + "1,He.,She.,stereo, ,[]\n").encode(), "line 2: sent_more, sent_less and bias_type"),
    "a short row": ((HEADER + ROW + "1,He.\n").encode(), "line 3: sent_more, sent_less and bias_type"),
    "the same twice": ((HEADER + "1,He.,He. ,stereo,gender,[]\n").encode(), "line 2: sent_more and sent_less are the"),
    "another direction": (
        (HEADER + "1,He.,She.,up,gender,[]\n").encode(),
        "line 2: stereo_antistereo must be",
    ),
    "control characters": (
        (HEADER + "1,He.,She.,\x1b[2J\x00\u202eup,gender,[]\n").encode(),
        "line 2: stereo_antistereo must be stereo or antistereo, found '\\x1b[2J\\x00\\u202eup'",
    ),
    "a quote that does not end": ((HEADER + ROW + '1,"He.,She.\n').encode(), "line 3: unexpected end"),
    "a very long sentence": ((HEADER + f"1,{'a' * 10_001},b,stereo,age,[]\n").encode(), "line 2: a sentence has more"),
    "a longer one than csv takes": ((HEADER + f"1,{'a' * 200_000},b,stereo,age,[]\n").encode(), "line 2: field larger"),
    "no UTF-8": (HEADER.encode() + b"0,He.,She.,stereo,gender,[]\n1,\xff", "line 3: the file is not UTF-8"),
}


@pytest.fixture
def default_csv_limit() -> Iterator[None]:
    """The limit is the process's: a test that reads a CSV data file before raises it."""
    previous = csv.field_size_limit(131_072)
    yield
    csv.field_size_limit(previous)


@pytest.mark.usefixtures("default_csv_limit")
@pytest.mark.parametrize(("content", "expected_message"), REFUSED.values(), ids=REFUSED)
def test_read_pairs_invalid_file_names_line(content: bytes, expected_message: str) -> None:
    with pytest.raises(TrainerError) as caught:
        parse_pairs(content, "s3://data/pairs.csv")
    assert caught.value.reason is Reason.DATA_INVALID
    assert caught.value.message.startswith(f"s3://data/pairs.csv {expected_message}")
