"""FineTuneSchedules on a real API server, with a clock that the tests set: what runs are created for, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.schedule_harness import MINUTELY, ScheduleOperator, ScheduleWorld

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

Body = dict[str, Any]
ON_CHANGE = {"checkIntervalSeconds": 60, "minIntervalSeconds": 600, "minAddedBytes": 10}


async def _complete_first_run(schedules: ScheduleWorld, operator: ScheduleOperator) -> str:
    await operator.settle()
    (name,) = await schedules.list_run_names()
    await schedules.end_run(name)
    await operator.settle()
    return name


async def test_schedule_first_slot_creates_owned_run(schedules: ScheduleWorld) -> None:
    created = await schedules.create(schedule=MINUTELY)
    operator = schedules.build_operator()
    schedules.advance(-1)  # the slot is a second later
    assert await operator.settle() == 1
    assert await schedules.list_run_names() == []
    schedules.advance(1)
    assert await operator.settle() == 60
    (run,) = await schedules.list_runs()
    time = schedules.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert run["metadata"]["name"] == schedules.get_name()
    assert run["metadata"]["annotations"]["finetune.dev/scheduled-time"] == time
    (owner,) = run["metadata"]["ownerReferences"]
    assert owner == {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneSchedule",
        "name": "bot",
        "uid": created["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    status = await schedules.get_status()
    assert (status["lastScheduleTime"], status["active"]) == (time, [schedules.get_name()])
    types = [condition["type"] for condition in status["conditions"]]
    assert types == ["Stalled", "Reconciling", "Suspended", "UpToDate", "Promoted"]
    assert await schedules.list_event_reasons() == ["RunCreated"]


async def test_schedule_of_every_minute_with_slow_run_has_one_active_run(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule=MINUTELY)
    operator = schedules.build_operator()
    await operator.settle()
    first = schedules.get_name()
    for _ in range(5):
        schedules.advance()
        await operator.settle()
        assert await schedules.list_run_names() == [first]
    await schedules.end_run(first, "Failed")
    await operator.settle()
    assert await schedules.list_run_names() == [first, schedules.get_name()]  # the most recent slot alone
    schedules.advance(101 * 60)
    await schedules.end_run((await schedules.list_run_names())[1], "Failed")
    await operator.settle()
    assert "TooManyMissedTimes" in await schedules.list_event_reasons()
    assert (await schedules.list_run_names())[-1] == schedules.get_name()


async def test_schedule_policy_replace_creates_run_after_cancelled_one_has_ended(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule=MINUTELY, concurrencyPolicy="Replace")
    operator = schedules.build_operator()
    await operator.settle()
    first = schedules.get_name()
    schedules.advance()
    await operator.settle()
    (run,) = await schedules.list_runs()
    assert run["spec"]["cancel"] is True
    await schedules.end_run(first, "Cancelled")
    await operator.settle()
    assert await schedules.list_run_names() == [first, schedules.get_name()]
    assert (await schedules.list_event_reasons()).count("RunReplaced") == 1


async def test_schedule_slot_with_unchanged_inputs_is_skipped(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule=MINUTELY)
    operator = schedules.build_operator()
    first = await _complete_first_run(schedules, operator)
    assert await schedules.get_condition("UpToDate") == ("Unknown", "InputsUnknown")
    schedules.advance()
    assert await operator.settle() == 2
    await schedules.build_operator().settle()  # finds the same Job
    assert len(await schedules.list_checks()) == 1
    await schedules.end_check(unchanged=True)
    await operator.settle()
    assert await schedules.list_run_names() == [first]
    status = await schedules.get_status()
    assert status["lastScheduleTime"] == schedules.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert await schedules.get_condition("UpToDate") == ("True", "Trained")
    assert "RunSkipped" in await schedules.list_event_reasons()
    schedules.advance()
    await operator.settle()
    await schedules.end_check(reason="AccessDenied")  # the run reports its own errors
    await operator.settle()
    assert await schedules.list_run_names() == [first, schedules.get_name()]
    assert await schedules.get_condition("UpToDate") == ("Unknown", "CheckFailed")


async def _check_after(schedules: ScheduleWorld, operator: ScheduleOperator, seconds: float, **inputs: Any) -> int:
    """Let the time of the next check come. Return the number of FineTuneJobs after it."""
    schedules.advance(seconds)
    assert await operator.settle() == 2
    await schedules.end_check(**inputs)
    await operator.settle()
    return len(await schedules.list_run_names())


async def test_schedule_data_change_creates_run_after_minimum_interval(schedules: ScheduleWorld) -> None:
    await schedules.create(onDataChange=ON_CHANGE)
    operator = schedules.build_operator()
    await _complete_first_run(schedules, operator)
    assert await _check_after(schedules, operator, 60, unchanged=True) == 1
    assert await _check_after(schedules, operator, 600, addedBytes=9) == 1
    assert await schedules.get_condition("UpToDate") == ("False", "InputsChanged")
    assert await _check_after(schedules, operator, 60, addedBytes=10) == 2
    assert (await schedules.get_status())["runs"][0]["trigger"] == "DataChange"
    await schedules.end_run(schedules.get_name())
    await operator.settle()
    assert await _check_after(schedules, operator, 60, removedFiles=1) == 2  # the data went back, within the interval
    schedules.advance(540 - 60 * 1)
    assert await _check_after(schedules, operator, 60, removedFiles=1) == 3


async def test_schedule_check_that_ended_before_its_slot_is_repeated(schedules: ScheduleWorld) -> None:
    """The operator was down when the check ended, and data may have been added since."""
    await schedules.create(schedule=MINUTELY)
    operator = schedules.build_operator()
    await _complete_first_run(schedules, operator)
    schedules.advance()
    await operator.settle()
    await schedules.end_check(unchanged=True)
    schedules.advance()
    assert await operator.settle() == 2
    await schedules.end_check(addedBytes=1)
    await operator.settle()
    assert (await schedules.list_run_names())[1:] == [schedules.get_name()]


async def test_schedule_failed_run_of_data_change_is_repeated_after_interval(schedules: ScheduleWorld) -> None:
    await schedules.create(onDataChange={**ON_CHANGE, "minIntervalSeconds": 0})
    operator = schedules.build_operator()
    await operator.settle()
    first = schedules.get_name()
    await schedules.end_run(first, "Failed")
    assert await operator.settle() == 60
    assert await schedules.list_run_names() == [first]
    schedules.advance(60)
    await operator.settle()
    assert await schedules.list_run_names() == [first, schedules.get_name()]


async def test_schedule_requested_run_is_created_once_per_value(schedules: ScheduleWorld) -> None:
    await schedules.create()
    operator = schedules.build_operator()
    assert await operator.settle() is None
    await schedules.patch({"runAt": "2020-01-01T00:00:00+01:00"})
    await operator.settle()
    first = schedules.get_name()
    await schedules.end_run(first)
    schedules.advance()
    await operator.settle()
    assert await schedules.list_run_names() == [first]
    later = schedules.now.replace(microsecond=0)
    await schedules.patch({"runAt": later.isoformat()})
    schedules.advance(-30)
    assert await operator.settle() == 30
    schedules.advance(30)
    await operator.settle()
    assert await schedules.list_run_names() == [first, schedules.get_name()]


async def test_schedule_request_and_slot_of_one_minute_are_one_run(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule=MINUTELY)
    await schedules.patch({"runAt": schedules.now.isoformat()})
    operator = schedules.build_operator()
    await operator.settle()
    await schedules.end_run(schedules.get_name())
    await operator.settle()
    status = await schedules.get_status()
    assert [(run["name"], run["trigger"]) for run in status["runs"]] == [(schedules.get_name(), "Request")]
    assert await schedules.list_checks() == []


async def test_schedule_suspended_creates_nothing_until_resumed(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule=MINUTELY, suspend=True, runAt="2020-01-01T00:00:00Z", onDataChange=ON_CHANGE)
    operator = schedules.build_operator()
    schedules.advance(600)
    assert await operator.settle() is None
    assert await schedules.list_run_names() == []
    assert await schedules.get_condition("Suspended") == ("True", "Suspended")
    await schedules.patch({"suspend": False})
    await operator.settle()
    assert (await schedules.get_status())["runs"][0]["trigger"] == "Request"


async def test_schedule_clock_put_back_fires_nothing_twice(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule=MINUTELY, concurrencyPolicy="Allow")
    operator = schedules.build_operator()
    schedules.advance(600)
    await operator.settle()
    schedules.advance(-300)
    for _ in range(3):
        schedules.advance(60)
        await operator.settle()
    assert len(await schedules.list_run_names()) == 1


async def test_schedule_slot_after_deadline_is_missed(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule="0 0 1 1 *", startingDeadlineSeconds=100)
    operator = schedules.build_operator()
    schedules.advance(366 * 24 * 3600)
    await operator.settle()
    assert await schedules.list_run_names() == []
    assert await schedules.list_event_reasons() == ["MissedSchedule"]


async def test_schedule_history_limits_delete_oldest_ended_runs(
    schedules: ScheduleWorld, world: NamespaceHarness
) -> None:
    await schedules.create(successfulRunsHistoryLimit=1, failedRunsHistoryLimit=1)
    operator = schedules.build_operator()
    names = []
    for index, phase in enumerate(("Complete", "Failed", "Failed", "Complete", "Cancelled", "Complete")):
        await schedules.patch({"runAt": f"2020-01-01T00:00:0{index}Z"})
        await operator.settle()
        names.append(schedules.get_name())
        await schedules.end_run(names[-1], phase)
        await schedules.patch({"champion": {"run": names[0]}})
        await operator.settle()
        schedules.advance()
    runs = (await schedules.get_status())["runs"]
    decided = [{"decision": "NotBetter", **run} for run in runs]
    await world.call("PATCH", schedules.get_status_path(), {"status": {"runs": decided}})
    await operator.settle()
    assert await schedules.list_run_names() == [names[0], names[4], names[5]]
    assert (await schedules.list_event_reasons()).count("RunDeleted") == 3


async def test_schedule_in_whole_operator_is_woken_by_watch_of_its_run(
    schedules: ScheduleWorld, world: NamespaceHarness
) -> None:
    async with world.run_operator():
        await schedules.create(runAt="2020-01-01T00:00:00Z")

        async def find_run() -> Body | None:
            return next(iter(await schedules.list_runs()), None)

        run = await world.wait_until(find_run)
        await schedules.end_run(run["metadata"]["name"])

        async def is_recorded() -> bool:
            return (await schedules.get_status())["runs"][0].get("phase") == "Complete"

        await world.wait_until(is_recorded)
