"""The checks whether the inputs of a FineTuneSchedule have changed since its last complete run."""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_operator.api.schedule import FineTuneScheduleStatus, InputsCheck, OnDataChange, ScheduledRun
from finetune_operator.status.schedules.runs import find_last_complete_run
from finetune_operator.status.schedules.times import parse_time
from finetune_trainer.contract import InputsReport

_MESSAGE_MAX_LENGTH = 512


def compute_next_check_time(on_data_change: OnDataChange, status: FineTuneScheduleStatus) -> datetime | None:
    """Return when the inputs are checked next, or None without a complete run to compare them with.

    The first check after a run is one interval after its end.
    """
    last, check = find_last_complete_run(status), status.inputs
    if last is None:
        return None
    is_of_run = check is not None and check.run == last.name
    since = check.time if check and is_of_run else last.completion_time or last.scheduled_time
    return parse_time(since) + timedelta(seconds=on_data_change.check_interval_seconds)


def build_check(run: ScheduledRun, report: InputsReport, time: str) -> InputsCheck:
    """Return the result of a check. Without a result in S3 to compare with, the inputs count as changed."""
    return InputsCheck(
        time=time,
        run=run.name,
        digest=report.digest,
        unchanged=report.unchanged and report.has_result,
        added_bytes=report.added_bytes if report.has_result else report.bytes,
        removed_files=report.removed_files,
        model_changed=report.model_changed,
        message=_describe_report(run, report),
    )


def build_failed_check(run: ScheduledRun, message: str, time: str) -> InputsCheck:
    """Return a check that has found out nothing."""
    return InputsCheck(time=time, run=run.name, message=message[:_MESSAGE_MAX_LENGTH])


def _describe_report(run: ScheduledRun, report: InputsReport) -> str:
    size = f"{report.files} files with {report.bytes} bytes"
    if not report.has_result:
        return f"There is no result of run {run.name} in S3 to compare with; the inputs are {size}."
    if report.unchanged:
        return f"The inputs are those of run {run.name}: {size}."
    model = " The base model is another one." if report.model_changed else ""
    return (
        f"Since run {run.name}, {report.added_bytes} bytes were added and {report.removed_files} files were removed or "
        f"replaced; the inputs are {size} now.{model}"
    )
