"""Builders of the tasks that write the alias and the report of a FineTuneSchedule."""

from __future__ import annotations

import hashlib
import json

from finetune_operator.api.schedule import (
    SCHEDULE_KIND,
    Champion,
    FineTuneSchedule,
    FineTuneScheduleStatus,
    PendingPromotion,
    ScheduledRun,
    ScheduleReason,
)
from finetune_operator.resources.owner import build_owner_reference
from finetune_operator.resources.task_job import Task, TaskKind
from finetune_trainer.contract import PromoteTask, ResultReference, RunHistoryRow, ScheduleReportTask, TaskConfig

_MAX_ROW_MESSAGE_LENGTH = 256
_DIGEST_LENGTH = 16


def build_promote_task(schedule: FineTuneSchedule, alias_uri: str, pending: PendingPromotion) -> Task:
    """Return the task of an attempt to write the alias.

    The identity is that of the attempt, so that an edit of the spec meanwhile does not begin a second one.
    """
    champion = pending.champion
    config = PromoteTask(
        alias_uri=alias_uri,
        schedule=_build_owner_name(schedule),
        champion=_build_reference(champion),
        metrics=champion.metrics,
        predecessor=_find_predecessor(schedule.status, alias_uri),
        promoted_time=champion.promoted_time,
        overwrite=champion.reason == ScheduleReason.PINNED,
        signing=schedule.spec.template.spec.output.signing,
    )
    attempt = (alias_uri, champion.run, champion.digest, champion.reason, pending.attempt_time, pending.generation)
    return _build_task(schedule, TaskKind.PROMOTE, TaskConfig(promote=config), json.dumps(attempt))


def build_report_task(schedule: FineTuneSchedule, status: FineTuneScheduleStatus) -> tuple[Task, str] | None:
    """Return the task that writes the decided runs beside the alias, and a digest of them, or None without any."""
    rows = [_build_row(run, status.champion) for run in status.runs if run.decision]
    if schedule.spec.alias is None or not rows:
        return None
    report_uri = schedule.spec.alias.uri.removesuffix(".json") + ".html"
    config = ScheduleReportTask(report_uri=report_uri, schedule=_build_owner_name(schedule), rows=rows)
    digest = hashlib.sha256(json.dumps(config.to_json(), sort_keys=True).encode()).hexdigest()[:_DIGEST_LENGTH]
    return _build_task(schedule, TaskKind.REPORT, TaskConfig(schedule_report=config), digest), digest


def _build_task(schedule: FineTuneSchedule, kind: TaskKind, config: TaskConfig, identity: str) -> Task:
    meta = schedule.metadata
    reference = build_owner_reference(meta, SCHEDULE_KIND)
    return Task(kind, config, meta.name, reference, f"{meta.uid}/{kind}/{identity}")


def _build_owner_name(schedule: FineTuneSchedule) -> str:
    return f"{schedule.metadata.namespace}/{schedule.metadata.name}"


def _build_reference(champion: Champion) -> ResultReference:
    return ResultReference(run=champion.run, adapter_uri=champion.adapter_uri, digest=champion.digest)


def _find_predecessor(status: FineTuneScheduleStatus | None, alias_uri: str) -> ResultReference | None:
    """Return what the alias names now. A new one names nothing."""
    champion = status.champion if status else None
    return _build_reference(champion) if champion and status and status.alias_uri == alias_uri else None


def _build_row(run: ScheduledRun, champion: Champion | None) -> RunHistoryRow:
    return RunHistoryRow(
        run=run.name,
        trigger=run.trigger.value,
        scheduled_time=run.scheduled_time,
        completion_time=run.completion_time,
        phase=run.phase or "",
        decision=run.decision,
        message=run.message[:_MAX_ROW_MESSAGE_LENGTH],
        adapter_uri=run.adapter_uri,
        metrics=run.metrics,
        changes=run.changes,
        is_champion=champion is not None and (champion.run, champion.digest) == (run.name, run.digest),
    )
