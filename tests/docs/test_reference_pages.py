"""The generated reference pages are those of the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from documentation.__main__ import render_pages
from documentation.tables import parse_tables
from finetune_operator.api import OperatorReason
from finetune_operator.api.schedule import ScheduleEventReason, ScheduleReason
from finetune_operator.api.sweep import SweepReason
from finetune_trainer.contract import Reason

PAGES = render_pages()
REASONS = next(text for path, text in PAGES.items() if path.name == "reasons.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_reference_page_is_up_to_date(page: Path) -> None:
    assert page.read_text() == PAGES[page], "run `make generate`"


def test_reasons_page_lists_every_reason() -> None:
    listed = {cells[0].strip("`") for _, cells in parse_tables(REASONS)}
    reasons = [*Reason, *OperatorReason, *ScheduleReason, *ScheduleEventReason, *SweepReason]
    assert [reason for reason in reasons if reason.value not in listed] == []


def test_reasons_page_has_exit_code_of_run() -> None:
    rows = {cells[0].strip("`"): cells for _, cells in parse_tables(REASONS) if cells[1] == "run"}
    assert rows["DataInvalid"][2:4] == ["42", "no"]
    assert rows["Preempted"][2:4] == ["143", "free"]
    assert rows["PodPending"][2:4] == ["", ""]
