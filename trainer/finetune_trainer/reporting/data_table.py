"""The data's account as lines that add up."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.contract import DatasetReport

_REASON_TEXTS = {
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
class DataTableRow:
    """So many rows, and what became of them."""

    name: str
    rows: int
    meaning: str
    kind: str
    """`kept`, `validation`, `rejected` or `lost`."""


def build_data_table(report: DatasetReport) -> list[DataTableRow]:
    """What became of every row read: the lines' rows sum up to `report.rows`."""
    table = [DataTableRow("trained on", report.kept, "the model learnt from them", "kept")]
    if report.validation:
        table.append(DataTableRow("validation", report.validation, "set aside to measure on", "validation"))
    table += [
        DataTableRow(reason, count, _REASON_TEXTS.get(reason, "left out"), "rejected")
        for reason, count in sorted(report.rejected.items(), key=lambda item: -item[1])
        if count
    ]
    unaccounted = report.rows - sum(row.rows for row in table)
    return (
        [*table, DataTableRow("unaccounted", unaccounted, "a bug; please report it", "lost")] if unaccounted else table
    )
