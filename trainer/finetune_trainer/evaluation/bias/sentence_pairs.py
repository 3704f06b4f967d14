"""Pairs of a sentence with a stereotype and its counterpart: built-in ones, or a CSV file in the format of CrowS-Pairs
(Nangia et al., 2020, https://arxiv.org/abs/2010.00133)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from finetune_trainer.contract import Reason
from finetune_trainer.errors import TrainerError

_COLUMNS = ("sent_more", "sent_less", "stereo_antistereo", "bias_type")
_DIRECTIONS = ("stereo", "antistereo")
_MAX_SENTENCE_CHARS = 10_000
"""Maximum characters of a sentence: more than any real sentence, but few enough to be processed quickly."""


@dataclass(frozen=True)
class SentencePair:
    """Two sentences that differ in the group that they are about."""

    category: str
    stereotype: str
    counterpart: str


@lru_cache(maxsize=1)
def load_builtin_pairs() -> tuple[SentencePair, ...]:
    """Return the pairs of `sentence_pairs.yaml`: at least 20 in each of seven categories."""
    from ruamel.yaml import YAML

    text = resources.files(__package__).joinpath("sentence_pairs.yaml").read_text("utf-8")
    sentences_by_category: dict[str, list[tuple[str, str, str]]] = YAML(typ="safe").load(text)
    return tuple(
        SentencePair(category, sentence.replace("{}", stereotype), sentence.replace("{}", counterpart))
        for category, sentences in sentences_by_category.items()
        for sentence, stereotype, counterpart in sentences
    )


def parse_pairs(content: bytes, source: str) -> list[SentencePair]:
    """Return the pairs of a CSV file with the columns of CrowS-Pairs. Raises `DATA_INVALID` with `source` and line.

    `sent_more` is the more stereotypical sentence in both directions; `antistereo` only means that the annotators wrote
    the other sentence first.
    """
    rows = csv.DictReader(io.StringIO(_decode_utf8(content, source), newline=""), strict=True)
    try:
        if missing_columns := [column for column in _COLUMNS if column not in (rows.fieldnames or [])]:
            raise _invalid_pair(source, 1, f"the header has no column {' or '.join(missing_columns)}")
        pairs = list(_parse_rows(rows, source))
    except csv.Error as error:
        # The row that failed is not among the lines counted yet.
        raise _invalid_pair(source, rows.line_num + 1, str(error)) from error
    if not pairs:
        raise _invalid_pair(source, rows.line_num, "there are no pairs")
    return pairs


def _parse_rows(rows: csv.DictReader[str], source: str) -> Iterator[SentencePair]:
    for row in rows:
        sent_more, sent_less, direction, category = ((row[column] or "").strip() for column in _COLUMNS)
        if problem := _find_problem(sent_more, sent_less, direction, category):
            raise _invalid_pair(source, rows.line_num, problem)
        yield SentencePair(category, sent_more, sent_less)


def _find_problem(sent_more: str, sent_less: str, direction: str, category: str) -> str | None:
    if not (sent_more and sent_less and category):
        return "sent_more, sent_less and bias_type must not be empty"
    if sent_more == sent_less:
        return "sent_more and sent_less are the same"
    if max(len(sent_more), len(sent_less)) > _MAX_SENTENCE_CHARS:
        return f"a sentence has more than {_MAX_SENTENCE_CHARS} characters"
    return (
        None
        if direction in _DIRECTIONS
        else f"stereo_antistereo must be stereo or antistereo, found {direction[:40]!r}"
    )


def _decode_utf8(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _invalid_pair(source, content[: error.start].count(b"\n") + 1, "the file is not UTF-8") from error


def _invalid_pair(source: str, line: int, problem: str) -> TrainerError:
    return TrainerError(Reason.DATA_INVALID, f"{source} line {line}: {problem}")
