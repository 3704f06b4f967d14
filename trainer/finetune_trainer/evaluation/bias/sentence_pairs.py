"""Sentences with a stereotype, each beside its counterpart: our own, or a file like CrowS-Pairs'."""

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
_LONGEST = 10_000
"""Characters of a sentence; far above any, far below what would hold a run up."""


@dataclass(frozen=True)
class SentencePair:
    """Two sentences that differ in the group they speak of."""

    category: str
    stereotype: str
    counterpart: str


@lru_cache(maxsize=1)
def own_pairs() -> tuple[SentencePair, ...]:
    """The pairs of `pairs.yaml`, at least 20 of each of seven categories."""
    from ruamel.yaml import YAML

    text = resources.files(__package__).joinpath("sentence_pairs.yaml").read_text("utf-8")
    lines: dict[str, list[tuple[str, str, str]]] = YAML(typ="safe").load(text)
    return tuple(
        SentencePair(category, sentence.replace("{}", stereotype), sentence.replace("{}", counterpart))
        for category, of_category in lines.items()
        for sentence, stereotype, counterpart in of_category
    )


def read_pairs(content: bytes, where: str) -> list[SentencePair]:
    """The pairs of a CSV file with CrowS-Pairs' columns; `where` names the file. Raises `DATA_INVALID` with the line.

    `sent_more` is the more stereotyped sentence in either direction; `antistereo` says only that the sentence people
    wrote first was the other one.
    """
    rows = csv.DictReader(io.StringIO(_decoded(content, where), newline=""), strict=True)
    try:
        if missing := [column for column in _COLUMNS if column not in (rows.fieldnames or [])]:
            raise _invalid(where, 1, f"the header has no column {' or '.join(missing)}")
        pairs = list(_read(rows, where))
    except csv.Error as error:
        # The row that failed is not among the lines counted yet.
        raise _invalid(where, rows.line_num + 1, str(error)) from error
    if not pairs:
        raise _invalid(where, rows.line_num, "there are no pairs")
    return pairs


def _read(rows: csv.DictReader[str], where: str) -> Iterator[SentencePair]:
    for row in rows:
        more, less, direction, category = ((row[column] or "").strip() for column in _COLUMNS)
        if why := _why_not(more, less, direction, category):
            raise _invalid(where, rows.line_num, why)
        yield SentencePair(category, more, less)


def _why_not(more: str, less: str, direction: str, category: str) -> str | None:
    if not (more and less and category):
        return "sent_more, sent_less and bias_type must not be empty"
    if more == less:
        return "sent_more and sent_less are the same"
    if max(len(more), len(less)) > _LONGEST:
        return f"a sentence has more than {_LONGEST} characters"
    return (
        None
        if direction in _DIRECTIONS
        else f"stereo_antistereo has to be stereo or antistereo, not {direction[:40]!r}"
    )


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _invalid(where, content[: error.start].count(b"\n") + 1, "this is not UTF-8") from error


def _invalid(where: str, line: int, why: str) -> TrainerError:
    return TrainerError(Reason.DATA_INVALID, f"{where} line {line}: {why}")
