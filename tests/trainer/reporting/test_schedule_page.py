"""The page of a schedule, as a reader sees it."""

from __future__ import annotations

from typing import Any

import pytest
from lxml import html
from tests.support.trainer.hostile_texts import HOSTILE_TEXTS
from tests.support.trainer.page_checks import (
    check_accessible,
    check_hostile_page,
    check_loads_and_runs_nothing,
    parse_page,
    visible_text,
)

from finetune_trainer.contract import MetricChange, RunHistoryRow, ScheduleReportTask
from finetune_trainer.reporting.schedule_page import render_schedule_page


def make_row(number: int, **fields: Any) -> RunHistoryRow:
    defaults: dict[str, Any] = {
        "run": f"bot-{number}",
        "trigger": "Schedule",
        "scheduled_time": f"2026-11-{number:02d}T03:00:00Z",
        "completion_time": f"2026-11-{number:02d}T04:12:00Z",
        "phase": "Complete",
        "decision": "NotBetter",
        "message": f"The run {number} is not better.",
        "adapter_uri": f"s3://results/bot/bot-{number}",
        "metrics": {"evalLoss": 2 - number / 10},
    }
    return RunHistoryRow(**(defaults | fields))


def make_change(change: float, **fields: Any) -> MetricChange:
    return MetricChange(
        metric="evalLoss",
        higher_is_better=False,
        baseline=1.5,
        value=1.5 + change,
        change=change,
        samples=200,
        **fields,
    )


def make_task(*rows: RunHistoryRow) -> ScheduleReportTask:
    return ScheduleReportTask(report_uri="s3://results/bot/champion.json.html", schedule="support/bot", rows=list(rows))


FULL = make_task(
    make_row(4, phase="Failed", decision="RunFailed", metrics={}, adapter_uri=None, completion_time=None),
    make_row(3, changes=[make_change(0.2, low=0.1, high=0.3)]),
    make_row(2, changes=[make_change(-0.1, low=-0.15, high=-0.05)], decision="Promoted", is_champion=True),
    make_row(1, decision="Promoted", trigger="Request"),
)


def render(task: ScheduleReportTask) -> html.HtmlElement:
    return parse_page(render_schedule_page(task))


def shown_text(element: html.HtmlElement) -> str:
    return visible_text(element).replace("\N{MINUS SIGN}", "-")


def test_schedule_page_has_a_row_for_each_run_the_newest_first() -> None:
    rows = [shown_text(row) for row in render(FULL).xpath("//section[@id='runs']//tbody/tr")]
    assert rows == [
        "bot-4 2026-11-04 03:00:00 UTC Schedule Failed none none RunFailed The run 4 is not better.",
        "bot-3 2026-11-03 03:00:00 UTC Schedule, ended 2026-11-03 04:12:00 UTC Complete Validation loss 1.700 "
        "Validation loss +0.200 +0.100 to +0.300 worse NotBetter The run 3 is not better.",
        "bot-2 champion 2026-11-02 03:00:00 UTC Schedule, ended 2026-11-02 04:12:00 UTC Complete Validation loss 1.800 "
        "Validation loss -0.100 -0.150 to -0.050 better Promoted The run 2 is not better.",
        "bot-1 2026-11-01 03:00:00 UTC Request, ended 2026-11-01 04:12:00 UTC Complete Validation loss 1.900 none "
        "Promoted The run 1 is not better.",
    ]


def test_schedule_page_names_the_champion() -> None:
    assert visible_text(next(render(FULL).iter("h1"))) == "Champion: bot-2"
    assert "None of these runs is the champion" in visible_text(render(make_task(make_row(1))))


def test_schedule_page_loads_nothing_and_links_the_reports_of_the_runs() -> None:
    links = {f"bot-{number}/report.html" for number in (1, 2, 3)}
    check_loads_and_runs_nothing(render(FULL), links)


def test_schedule_page_is_accessible_to_screen_readers() -> None:
    check_accessible(render(FULL))


def test_schedule_page_chart_marks_the_champion_among_the_versions() -> None:
    page = render(FULL)
    text = visible_text(page.get_element_by_id("versions"))
    assert "Validation loss goes from 1.900 in the oldest of 3 versions to 1.700 in the newest." in text
    (mark,) = page.xpath("//line[contains(@class, 'mark')]")
    assert mark.get("x1") == "50.0%"


def test_schedule_page_one_value_has_no_chart() -> None:
    page = render(make_task(make_row(2, metrics={}), make_row(1)))
    assert not page.xpath("//section[@id='versions']")
    assert [link.get("href") for link in page.find(".//nav").iter("a")] == ["#runs"]


def test_schedule_page_few_rows_show_the_p_value() -> None:
    row = make_row(1, changes=[make_change(-0.1, p_value=0.03)])
    assert "-0.100 p = 0.03" in shown_text(render(make_task(row)))


def test_schedule_page_without_runs_says_so() -> None:
    assert "There is no run yet." in visible_text(render(make_task()))


def test_schedule_page_result_in_another_bucket_is_named() -> None:
    page = render(make_task(make_row(1, adapter_uri="s3://other/bot-1")))
    assert "s3://other/bot-1" in visible_text(page)
    assert not page.xpath("//section[@id='runs']//a")


def make_hostile_task(text: str) -> ScheduleReportTask:
    """Return a task with the text in every field that can contain untrusted text."""
    texts = dict.fromkeys(("trigger", "scheduled_time", "completion_time", "phase", "decision", "message"), f"t{text}")
    rows = [
        row.model_copy(update={**texts, "metrics": {f"m{text}": 1.0}, "adapter_uri": f"s3://{bucket}/{text}/x"})
        for row, bucket in zip(FULL.rows[1:3], ("results", "other"), strict=True)
    ]
    return FULL.model_copy(update={"schedule": text, "rows": rows})


@pytest.mark.parametrize("text", HOSTILE_TEXTS.values(), ids=HOSTILE_TEXTS)
def test_schedule_page_hostile_text_keeps_structure(text: str) -> None:
    # The link is as long as its address, which the contract limits to 1100 characters.
    written = render_schedule_page(make_hostile_task(text[:1000].encode(errors="replace").decode()))
    assert len(written) < 100_000
    check_hostile_page(written, render_schedule_page(make_hostile_task("x")))


def test_schedule_page_most_runs_fit() -> None:
    page = render(make_task(*(make_row(1, run=f"bot-{number}") for number in range(50))))
    assert len(page.xpath("//section[@id='runs']//tbody/tr")) == 50
