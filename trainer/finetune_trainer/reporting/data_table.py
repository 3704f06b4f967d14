"""Table that accounts for every row that was read."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.contract import DatasetReport

_REASON_TEXTS = {
    "invalid": "could not be read, or were rejected by the chat template",
    "emptyAnswer": "the answer was empty after cleaning",
    "rewrittenAnswer": "the chat template removes or rewrites words of the answer",
    "identicalAnswers": "both answers were the same",
    "echo": "the answer repeated the message before it",
    "duplicate": "exact duplicates of earlier rows",
    "nearDuplicate": "near-duplicates of earlier rows",
    "leaked": "duplicates of validation rows",
    "overlength": "longer than the maximum length",
    "tooShort": "shorter than the minimum length",
    "noSupervisedTokens": "no token of an answer was left to train on",
    "promptsDiffer": "the two prompts did not have the same tokens",
}

_LEAKED_WITH_TEST = "duplicates of validation or test rows"


@dataclass(frozen=True)
class DataTableRow:
    """One line of the table: a number of rows, and what happened to them."""

    name: str
    rows: int
    meaning: str
    kind: str
    """`kept`, `validation`, `rejected` or `lost`."""


def build_data_table(report: DatasetReport) -> list[DataTableRow]:
    """Return the lines of the table. Their numbers of rows add up to `report.rows`."""
    table = [DataTableRow("trained on", report.kept, "used for training", "kept")]
    if report.validation:
        table.append(DataTableRow("validation", report.validation, "held out for evaluation", "validation"))
    if report.test:
        table.append(DataTableRow("test", report.test, "held out for the test of the finished model", "validation"))
    reasons = _REASON_TEXTS if report.test is None else {**_REASON_TEXTS, "leaked": _LEAKED_WITH_TEST}
    table += [
        DataTableRow(reason, count, reasons.get(reason, "rejected"), "rejected")
        for reason, count in sorted(report.rejected.items(), key=lambda item: -item[1])
        if count
    ]
    unaccounted = report.rows - sum(row.rows for row in table)
    return (
        [*table, DataTableRow("unaccounted", unaccounted, "a bug; please report it", "lost")] if unaccounted else table
    )
