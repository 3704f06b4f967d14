"""What a schedule creates its next run for, and when it looks again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.support.operator.schedule_builders import build_check, build_run, build_schedule, build_status

from finetune_operator.api.schedule import FineTuneScheduleStatus, Trigger
from finetune_operator.status.schedules.slots import Timetable
from finetune_operator.status.schedules.triggers import Due, compute_next_time, find_due_run, mark_handled

NOW = datetime(2026, 11, 23, 9, 0, 30, tzinfo=UTC)
SLOT = NOW.replace(second=0)
ON_CHANGE = {"onDataChange": {"checkIntervalSeconds": 600, "minIntervalSeconds": 3600, "minAddedBytes": 100}}
RUN = build_run("bot-1")  # scheduled, and completed, at 8:00


def _find(spec: dict[str, Any], status: FineTuneScheduleStatus, slot: datetime | None = None) -> Due | None:
    return find_due_run(build_schedule(spec).spec, status, slot, NOW)


@pytest.mark.parametrize(
    ("run_at", "slot", "expected"),
    [
        ("2026-11-23T09:00:00Z", None, Due(Trigger.REQUEST, NOW, run_at="2026-11-23T09:00:00Z")),
        ("2026-11-23T10:00:00+01:00", SLOT, Due(Trigger.REQUEST, SLOT, SLOT, "2026-11-23T10:00:00+01:00")),
        ("2026-11-23T08:59:00Z", SLOT, Due(Trigger.REQUEST, NOW, run_at="2026-11-23T08:59:00Z")),
        ("2026-11-23T09:00:31Z", SLOT, Due(Trigger.SCHEDULE, SLOT, SLOT)),
        (None, SLOT, Due(Trigger.SCHEDULE, SLOT, SLOT)),
        (None, None, None),
    ],
)
def test_find_due_run_with_request_and_slot(run_at: str | None, slot: datetime | None, expected: Due | None) -> None:
    spec = {"runAt": run_at} if run_at else {}
    assert _find(spec, build_status(), slot) == expected
    if run_at and expected and expected.run_at:
        handled = mark_handled(build_status(), expected)
        assert _find(spec, handled) is None


@pytest.mark.parametrize(
    ("check", "is_due"),
    [
        (None, False),
        ({"added_bytes": 99}, False),
        ({"added_bytes": 100}, True),
        ({"removed_files": 1}, True),
        ({"model_changed": True}, True),
        ({"unchanged": True}, False),
        ({"digest": None, "added_bytes": 100}, False),  # the check has failed
        ({"run": "bot-0", "added_bytes": 100}, False),  # of an earlier run
    ],
)
def test_find_due_run_after_check_is_data_change(check: dict[str, Any] | None, is_due: bool) -> None:
    inputs = build_check(**{"run": "bot-1", **check}) if check else None
    due = _find(ON_CHANGE, build_status(RUN, inputs=inputs))
    assert due == (Due(Trigger.DATA_CHANGE, NOW) if is_due else None)


def test_find_due_run_without_complete_run_is_data_change() -> None:
    assert _find(ON_CHANGE, build_status()) == Due(Trigger.DATA_CHANGE, NOW)
    assert _find({}, build_status()) is None
    assert _find(ON_CHANGE, build_status(build_run("bot-1", None, created=False))) is None


@pytest.mark.parametrize(("minutes", "is_due"), [(29, False), (30, True)])
@pytest.mark.parametrize("phase", ["Failed", "Complete", "Deleted"])
def test_find_due_run_within_minimum_interval_waits(phase: str, minutes: int, is_due: bool) -> None:
    time = (NOW - timedelta(minutes=minutes + 30)).strftime("%Y-%m-%dT%H:%M:%SZ")
    newest = build_run("bot-2", phase, scheduled_time=time)
    inputs = build_check(newest.name if phase == "Complete" else RUN.name, removed_files=1)
    assert (_find(ON_CHANGE, build_status(newest, RUN, inputs=inputs)) is not None) is is_due


def test_find_due_run_after_failure_without_minimum_interval_waits_for_check_interval() -> None:
    spec = {"onDataChange": {"checkIntervalSeconds": 600, "minIntervalSeconds": 0}}
    failed = build_run("bot-1", "Failed", scheduled_time="2026-11-23T08:51:00Z")
    assert _find(spec, build_status(failed)) is None
    assert _find(spec, build_status(failed.model_copy(update={"scheduled_time": "2026-11-23T08:50:00Z"})))


@pytest.mark.parametrize(
    ("spec", "status", "expected"),
    [
        ({}, build_status(), None),
        ({"schedule": "0 * * * *"}, build_status(), "2026-11-23T10:00:00+00:00"),
        ({"schedule": "0 * * * *", "suspend": True}, build_status(), None),
        ({"schedule": "0 * * * *", "runAt": "2026-11-23T09:30:00Z"}, build_status(), "2026-11-23T09:30:00+00:00"),
        (
            {"schedule": "0 * * * *", "runAt": "2026-11-23T09:30:00Z"},
            build_status(last_run_at="2026-11-23T09:30:00Z"),
            "2026-11-23T10:00:00+00:00",
        ),
        (
            ON_CHANGE,
            build_status(RUN, inputs=build_check("bot-1", time="2026-11-23T09:00:00Z")),
            "2026-11-23T09:10:00+00:00",
        ),
        (
            ON_CHANGE,
            build_status(
                RUN.model_copy(update={"completion_time": "2026-11-23T08:55:00Z"}), inputs=build_check("bot-0")
            ),
            "2026-11-23T09:05:00+00:00",
        ),
        (
            ON_CHANGE,
            build_status(RUN.model_copy(update={"completion_time": "2026-11-23T08:55:00Z"})),
            "2026-11-23T09:05:00+00:00",
        ),
        (
            ON_CHANGE,
            build_status(build_run("bot-1", "Failed", scheduled_time="2026-11-23T08:30:00Z")),
            "2026-11-23T09:30:00+00:00",
        ),
    ],
)
def test_compute_next_time_is_the_earliest(
    spec: dict[str, Any], status: FineTuneScheduleStatus, expected: str | None
) -> None:
    schedule = build_schedule(spec).spec
    timetable = Timetable(schedule.schedule, "UTC") if schedule.schedule else None
    next_time = compute_next_time(schedule, status, timetable, NOW)
    assert (next_time.isoformat() if next_time else None) == expected
