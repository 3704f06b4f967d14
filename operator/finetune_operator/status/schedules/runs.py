"""The runs in the status of a FineTuneSchedule: their names, what is recorded about them, and which ones are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime

from pydantic import ValidationError

from finetune_operator.api.objects import Body
from finetune_operator.api.schedule import FineTuneScheduleSpec, FineTuneScheduleStatus, ScheduledRun
from finetune_operator.observed.objects import TERMINAL_CONDITIONS, find_true_condition, get_name, is_finished
from finetune_operator.status.schedules.times import get_minute

MAX_RUNS = 20
"""Number of runs in the status."""
COMPLETE_PHASE = "Complete"
DELETED_PHASE = "Deleted"
"""Phase of a run whose FineTuneJob was deleted by somebody before its end was recorded. It is not created again."""
MAX_MESSAGE_LENGTH = 512
"""Number of characters of the message about a run."""
_HASH_LENGTH = 16


def build_run_name(schedule_name: str, time: datetime) -> str:
    """Return the name of the FineTuneJob of a time: two runs of one minute are one."""
    return f"{schedule_name}-{get_minute(time)}"


def compute_template_hash(spec: FineTuneScheduleSpec) -> str:
    """Return 16 hex digits that identify what is trained: the spec of the template and `startFrom`.

    Fields with their default value count as unset, so that a new field of a later version changes no hash.
    """
    template = spec.template.spec.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    content = json.dumps({"spec": template, "startFrom": spec.start_from}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:_HASH_LENGTH]


def find_pending_run(status: FineTuneScheduleStatus) -> ScheduledRun | None:
    """Return the run whose FineTuneJob is to be created, or None."""
    return next((run for run in status.runs if not run.created and run.phase is None), None)


def find_last_complete_run(status: FineTuneScheduleStatus) -> ScheduledRun | None:
    """Return the newest run that is complete, or None."""
    return next((run for run in status.runs if run.phase == COMPLETE_PHASE), None)


def list_open_runs(status: FineTuneScheduleStatus) -> list[ScheduledRun]:
    """Return the runs whose FineTuneJob was created and whose end is not recorded."""
    return [run for run in status.runs if run.created and run.phase is None]


def list_active_names(status: FineTuneScheduleStatus, children: Iterable[Body]) -> list[str]:
    """Return the names of the runs that have not ended, also of FineTuneJobs that the status does not know."""
    unfinished = {get_name(child) for child in children if not is_finished(child)}
    return sorted({run.name for run in list_open_runs(status)} | unfinished)


def record_end(run: ScheduledRun, child: Body | None, now: str) -> ScheduledRun:
    """Return the run with its end: that of its FineTuneJob as it is stored with its result, or `Deleted` without one.

    A FineTuneJob that has not ended returns the run as it is.
    """
    if child is None:
        return run.model_copy(
            update={"phase": DELETED_PHASE, "reason": DELETED_PHASE, "created": True, "completion_time": now}
        )
    phase = next((each for each in TERMINAL_CONDITIONS if find_true_condition(child, each)), None)
    if phase is None:
        return run
    status, condition = child["status"], find_true_condition(child, phase) or {}
    changes = {
        "created": True,
        "phase": phase,
        "reason": status.get("reason"),
        "completionTime": status.get("completionTime") or now,
        "message": "" if phase == COMPLETE_PHASE else condition.get("message", "")[:MAX_MESSAGE_LENGTH],
    }
    result = status.get("result") if phase == COMPLETE_PHASE else None
    return _apply_changes(run, {**changes, **_select_result(result or {})}) or _apply_changes(run, changes) or run


def describe_failure(run: ScheduledRun) -> str:
    """Return in a sentence how a run without a result ended, with its error and, if it is decided, what to do."""
    if run.decision:
        return run.message
    reason = f" ({run.reason})" if run.reason and run.reason != run.phase else ""
    return f"The run ended as {run.phase}{reason}{f': {run.message}' if run.message else '.'}"


def _select_result(result: Body) -> Body:
    return {"adapterURI": result.get("adapterURI"), "digest": result.get("digest")}


def _apply_changes(run: ScheduledRun, changes: Body) -> ScheduledRun | None:
    """Return the changed run, or None if it is not valid: the trainer has reported the result, and is not trusted."""
    try:
        return ScheduledRun.model_validate({**run.to_json(), **changes})
    except ValidationError:
        return None


def replace_run(status: FineTuneScheduleStatus, run: ScheduledRun) -> FineTuneScheduleStatus:
    """Return the status with another version of the run of that name."""
    runs = [run if each.name == run.name else each for each in status.runs]
    complete_times = [each.completion_time for each in runs if each.phase == COMPLETE_PHASE and each.completion_time]
    last_time = max(
        [*complete_times, *([status.last_successful_time] if status.last_successful_time else [])], default=None
    )
    return status.model_copy(update={"runs": runs, "last_successful_time": last_time})


def add_run(status: FineTuneScheduleStatus, run: ScheduledRun) -> FineTuneScheduleStatus:
    """Return the status with a new run. It replaces one that could not be created, and the oldest that is not needed.

    Call it only if `can_add_run`.
    """
    others = [each for each in status.runs if each.created]
    needed = _list_needed_runs(status)
    for each in reversed(others):
        if len(others) < MAX_RUNS:
            break
        if each not in needed:
            others.remove(each)
    return status.model_copy(update={"runs": [run, *others]})


def can_add_run(status: FineTuneScheduleStatus) -> bool:
    """Return whether the status has room for another run. It is full only if 20 runs are active or undecided."""
    return len(_list_needed_runs(status)) < MAX_RUNS


def is_undecided(run: ScheduledRun) -> bool:
    """Return whether a complete run awaits the decision about its promotion."""
    return run.phase == COMPLETE_PHASE and run.decision is None


def _list_needed_runs(status: FineTuneScheduleStatus) -> list[ScheduledRun]:
    """Return the runs that later decisions read."""
    last = find_last_complete_run(status)
    return [run for run in status.runs if run.created and (run.phase is None or is_undecided(run) or run == last)]
