"""Writes the report of a schedule: one page with its runs."""

from __future__ import annotations

from finetune_trainer.contract import ScheduleReport, ScheduleReportTask
from finetune_trainer.reporting.schedule_page import render_schedule_page
from finetune_trainer.storage import S3, Location, put_bytes


def write_report(s3: S3, task: ScheduleReportTask) -> ScheduleReport:
    """Write the page, or replace it."""
    put_bytes(s3, Location.parse(task.report_uri), render_schedule_page(task).encode())
    return ScheduleReport(report_uri=task.report_uri)
