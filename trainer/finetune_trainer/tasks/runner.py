"""Runs the task of a task pod: reads its configuration, does its work, and writes its outcome."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from finetune_trainer.contract import (
    OUTCOME_PATH_ENV,
    TASK_CONFIG_ENV,
    CheckInputsTask,
    CleanReport,
    CleanTask,
    Outcome,
    PromoteTask,
    Reason,
    ScheduleReportTask,
    SweepReportTask,
    TaskConfig,
    TaskOutcome,
    join_variables,
)
from finetune_trainer.errors import TrainerError
from finetune_trainer.formatting import pluralize
from finetune_trainer.storage import S3, Location
from finetune_trainer.storage.aged_objects import read_store_time
from finetune_trainer.tasks import check_inputs, clean, promote, schedule_report, sweep_report


def run_task() -> TaskOutcome:
    """Run the task that the environment describes."""
    config = _load_config()
    s3 = S3(config.storage)
    if config.clean:
        return _clean(s3, config.clean)
    if config.check_inputs:
        return _check_inputs(s3, config.check_inputs)
    if config.promote:
        return _promote(s3, config.promote)
    if config.schedule_report:
        return _report_schedule(s3, config.schedule_report)
    if config.sweep_report:
        return _report_sweep(s3, config.sweep_report)
    raise TrainerError(Reason.CONFIG_INVALID, f"{TASK_CONFIG_ENV}: this version does not know the task")


def _clean(s3: S3, task: CleanTask) -> TaskOutcome:
    output = Location.parse_folder(task.output_uri)
    if task.not_before and not _is_due(s3, output, task):
        message = f"nothing is deleted before {task.not_before}"
        return TaskOutcome(reason=Reason.COMPLETED, message=message, clean=CleanReport())
    report = clean.clean_output(s3, output, task.min_age_seconds)
    message = f"deleted {clean.format_report(report)} at {output}"
    return TaskOutcome(reason=Reason.COMPLETED, message=message, clean=report)


def _check_inputs(s3: S3, task: CheckInputsTask) -> TaskOutcome:
    report = check_inputs.check_inputs(s3, task)
    return TaskOutcome(reason=Reason.COMPLETED, message=check_inputs.format_report(report), inputs=report)


def _promote(s3: S3, task: PromoteTask) -> TaskOutcome:
    report = promote.promote(s3, task)
    message = f"{task.alias_uri} names {task.champion.run}"
    return TaskOutcome(reason=Reason.COMPLETED, message=message, promote=report)


def _report_schedule(s3: S3, task: ScheduleReportTask) -> TaskOutcome:
    message = f"wrote the report of {pluralize(len(task.rows), 'run')}"
    report = schedule_report.write_report(s3, task)
    return TaskOutcome(reason=Reason.COMPLETED, message=message, schedule_report=report)


def _report_sweep(s3: S3, task: SweepReportTask) -> TaskOutcome:
    message = f"wrote the report of {pluralize(len(task.trials), 'trial')}"
    report = sweep_report.write_report(s3, task)
    return TaskOutcome(reason=Reason.COMPLETED, message=message, sweep_report=report)


def write_outcome(outcome: TaskOutcome) -> None:
    """Write the outcome to the termination message of the pod, if there is one."""
    path = os.environ.get(OUTCOME_PATH_ENV)
    if path:
        Path(path).write_text(outcome.model_dump_json(by_alias=True, exclude_none=True))


def describe_failure(outcome: Outcome) -> TaskOutcome:
    """Return the outcome of a task that ended with an error."""
    return TaskOutcome(reason=outcome.reason, message=outcome.message)


def _load_config() -> TaskConfig:
    text = join_variables(TASK_CONFIG_ENV, os.environ)
    if not text:
        message = f"{TASK_CONFIG_ENV} is not set; the operator sets it in task pods"
        raise TrainerError(Reason.CONFIG_INVALID, message)
    try:
        return TaskConfig.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise TrainerError(Reason.CONFIG_INVALID, f"{TASK_CONFIG_ENV}: {problems}") from error


def _is_due(s3: S3, output: Location, task: CleanTask) -> bool:
    message = f"{TASK_CONFIG_ENV}: clean.notBefore: {task.not_before} is not a time in RFC 3339"
    try:
        not_before = datetime.fromisoformat(task.not_before or "")
    except ValueError as error:
        raise TrainerError(Reason.CONFIG_INVALID, message) from error
    if not_before.tzinfo is None:
        raise TrainerError(Reason.CONFIG_INVALID, message)
    return read_store_time(s3, output) >= not_before
