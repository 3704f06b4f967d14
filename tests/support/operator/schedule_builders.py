"""Builders of FineTuneSchedules, their runs and their FineTuneJobs, for tests of pure functions."""

from __future__ import annotations

from typing import Any

from tests.support.operator.builders import Body, build_finetunejob, merge_objects

from finetune_operator.api.schedule import FineTuneSchedule, FineTuneScheduleStatus, InputsCheck, ScheduledRun
from finetune_operator.status.schedules.runs import compute_template_hash

CREATED = "2026-11-23T08:00:00Z"
DIGEST = f"sha256:{'0' * 64}"


def build_schedule(spec: Body | None = None, status: FineTuneScheduleStatus | None = None) -> FineTuneSchedule:
    """Build a schedule as it is stored."""
    template = build_finetunejob()["spec"] | {"output": {"uri": "s3://bucket/bot/{name}"}}
    base = {"promotion": {"mode": "manual"}, "template": {"spec": template}}
    meta = {"name": "bot", "namespace": "team", "uid": "uid-bot", "generation": 3, "creationTimestamp": CREATED}
    schedule = FineTuneSchedule.model_validate({"metadata": meta, "spec": merge_objects(base, spec or {})})
    return schedule.model_copy(update={"status": status})


TEMPLATE_HASH = compute_template_hash(build_schedule().spec)


def build_run(name: str, phase: str | None = "Complete", **fields: Any) -> ScheduledRun:
    """Build a run of the template of `build_schedule`, by default one that has completed."""
    base = {
        "trigger": "Schedule",
        "scheduled_time": CREATED,
        "template_hash": TEMPLATE_HASH,
        "created": True,
        "completion_time": CREATED if phase else None,
        "digest": DIGEST if phase == "Complete" else None,
    }
    return ScheduledRun(name=name, phase=phase, **{**base, **fields})


def build_check(run: str, **fields: Any) -> InputsCheck:
    """Build a check that has found changes of no size."""
    return InputsCheck(run=run, **{"time": CREATED, "digest": DIGEST, "message": "found", **fields})


def build_status(*runs: ScheduledRun, **fields: Any) -> FineTuneScheduleStatus:
    """Build a status with runs, the newest first."""
    return FineTuneScheduleStatus(runs=list(runs), **fields)


def build_child(name: str, condition_type: str | None = None, created: str = CREATED, **status: Any) -> Body:
    """Build a FineTuneJob of the schedule, which has ended if it has a condition."""
    condition = {"type": condition_type, "status": "True", "reason": "said", "lastTransitionTime": CREATED}
    body = build_finetunejob(name, creationTimestamp=created)
    return {**body, "status": {"conditions": [condition] if condition_type else [], **status}}
