"""The data's account as lines that add up."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.contract import DatasetReport

_REASONS = {
    "invalid": "could not be read, or the chat template refused them",
    "emptyAnswer": "nothing of an answer was left after cleaning",
    "identicalAnswers": "the better and the worse answer were the same",
    "duplicate": "the same row was there before",
    "nearDuplicate": "nearly the same row was there before",
    "leaked": "also among the validation rows",
    "overlength": "longer than the longest example allowed",
    "tooShort": "shorter than asked for",
    "noSupervisedTokens": "nothing of them would have been learnt",
    "promptsDiffer": "the two answers did not follow the same prompt",
}


@dataclass(frozen=True)
class Line:
    """So many rows, and what became of them."""

    name: str
    rows: int
    meaning: str
    kind: str
    """`kept`, `validation`, `rejected` or `lost`."""


def lines(report: DatasetReport) -> list[Line]:
    """What became of every row read: the lines' rows sum up to `report.rows`."""
    known = [Line("trained on", report.kept, "the model learnt from them", "kept")]
    if report.validation:
        known.append(Line("validation", report.validation, "set aside to measure on", "validation"))
    known += [
        Line(reason, count, _REASONS.get(reason, "left out"), "rejected")
        for reason, count in sorted(report.rejected.items(), key=lambda each: -each[1])
        if count
    ]
    lost = report.rows - sum(line.rows for line in known)
    return [*known, Line("unaccounted", lost, "a bug; please report it", "lost")] if lost else known
