"""Faults of FineTuneSchedules on a real API server: killed operators, changes by hand, and refused runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.schedule_harness import MINUTELY, ScheduleWorld

from finetune_operator.kube.transport import ApiError
from finetune_operator.policy.limits import Bounds

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

Body = dict[str, Any]


# The writes of one run, and the number of reconciles before each: what is recorded before the FineTuneJob, the
# FineTuneJob, and what is recorded after it.
STATUS = "finetuneschedules/bot/status"
WRITES = ((0, "PATCH", STATUS), (1, "POST", "finetunejobs"), (1, "PATCH", STATUS))


@pytest.mark.parametrize("after_effect", [False, True])
async def test_schedule_operator_killed_at_any_write_creates_one_run_per_slot(
    schedules: ScheduleWorld, after_effect: bool
) -> None:
    await schedules.create(schedule=MINUTELY, concurrencyPolicy="Allow")
    names = []
    for reconcile_count, method, path in WRITES:
        operator = schedules.build_operator()
        await operator.refresh()
        for _ in range(reconcile_count):
            assert await operator.reconcile() == 0
        schedules.proxy.fail_next(method, path, 503, after_effect)
        with pytest.raises(ApiError):
            await operator.reconcile()
        names.append(schedules.get_name())
        schedules.advance(20)  # until another operator has started
        await schedules.build_operator().settle()
        assert await schedules.list_run_names() == names
        status = await schedules.get_status()
        assert [(run["name"], run["created"]) for run in reversed(status["runs"])] == [(name, True) for name in names]
        schedules.advance(40)
    await schedules.build_operator().settle()
    assert await schedules.list_run_names() == [*names, schedules.get_name()]


async def test_schedule_two_operators_at_once_create_one_run(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule=MINUTELY)
    operators = [schedules.build_operator(), schedules.build_operator()]
    for _ in range(5):
        await asyncio.gather(*(each.refresh() for each in operators))
        results = await asyncio.gather(*(each.reconcile() for each in operators), return_exceptions=True)
        assert all(result is None or isinstance(result, float | ApiError) for result in results)
    assert await schedules.list_run_names() == [schedules.get_name()]
    assert len((await schedules.get_status())["runs"]) == 1


async def test_schedule_operator_with_old_cache_creates_nothing(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule=MINUTELY)
    deposed, leader = schedules.build_operator(), schedules.build_operator()
    await deposed.refresh()
    await leader.settle()
    (name,) = await schedules.list_run_names()
    await schedules.delete_run(name)
    with pytest.raises(ApiError):
        await deposed.reconcile()
    assert await schedules.list_run_names() == []


async def test_schedule_run_that_no_watch_has_reported_is_not_taken_for_deleted(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule=MINUTELY)
    operator = schedules.build_operator()
    await operator.settle()
    operator.cache.children.clear()
    schedules.advance()
    await operator.reconcile()
    (run,) = (await schedules.get_status())["runs"]
    assert "phase" not in run
    assert await schedules.list_run_names() == [run["name"]]


async def test_schedule_deleted_run_is_recorded_and_not_created_again(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule=MINUTELY)
    operator = schedules.build_operator()
    await operator.settle()
    await schedules.delete_run(schedules.get_name())
    await operator.settle()
    await schedules.build_operator().settle()
    assert await schedules.list_run_names() == []
    assert (await schedules.get_status())["runs"][0]["phase"] == "Deleted"
    assert await schedules.get_condition("UpToDate") == ("False", "RunFailed")
    schedules.advance()
    await operator.settle()
    assert await schedules.list_run_names() == [schedules.get_name()]


async def test_schedule_edited_run_and_edited_template_are_left_alone(
    schedules: ScheduleWorld, world: NamespaceHarness
) -> None:
    await schedules.create(schedule=MINUTELY)
    operator = schedules.build_operator()
    await operator.settle()
    name = schedules.get_name()
    await world.patch_spec({"suspend": True}, name)
    await schedules.patch({"template": {"spec": {"training": {"epochs": 2}}}})
    schedules.advance()
    before = len(schedules.proxy.list_writes())
    await operator.settle()
    (run,) = await schedules.list_runs()
    assert (run["spec"]["suspend"], run["spec"]["training"]["epochs"]) == (True, 1)
    assert {path.rpartition("/")[2] for _, path in schedules.proxy.list_writes()[before:]} == {"status"}
    await schedules.end_run(name)
    await operator.settle()
    assert [run["spec"]["training"]["epochs"] for run in await schedules.list_runs()] == [1, 2]


@pytest.mark.parametrize("spec", [{"schedule": "0 0 30 2 *"}, {"schedule": MINUTELY, "timeZone": "Mars/Base"}])
async def test_schedule_that_never_fires_is_stalled_and_runs_on_request(schedules: ScheduleWorld, spec: Body) -> None:
    await schedules.create(**spec)
    operator = schedules.build_operator()
    await operator.refresh()
    await operator.reconcile()
    assert await schedules.get_condition("Stalled") == ("True", "InvalidSchedule")
    schedules.advance(600)
    await operator.settle()
    assert await schedules.list_run_names() == []
    await schedules.patch({"runAt": schedules.now.isoformat()})
    await operator.settle()
    assert await schedules.list_run_names() == [schedules.get_name()]
    await schedules.patch({"schedule": "@yearly", "timeZone": "UTC"})
    await operator.settle()
    assert await schedules.get_condition("Stalled") == ("False", "Active")


async def test_schedule_request_at_impossible_time_is_stalled_and_slots_go_on(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule=MINUTELY, runAt="2026-11-23t08:00:00+99:00")
    await schedules.build_operator().settle()
    assert await schedules.get_condition("Stalled") == ("True", "InvalidSchedule")
    assert await schedules.list_run_names() == [schedules.get_name()]


async def test_schedule_of_newer_version_is_stalled_and_left_alone(schedules: ScheduleWorld) -> None:
    body = await schedules.create(schedule=MINUTELY)
    operator = schedules.build_operator()
    newer = {**body, "spec": {**body["spec"], "fromTheFuture": True}}
    operator.cache.owners.update(operator.cache.get_key(body), newer)
    assert await operator.reconcile() is None
    assert await schedules.get_condition("Stalled") == ("True", "InvalidTemplate")
    assert await schedules.list_run_names() == []


async def test_schedule_time_in_status_edited_to_nonsense_is_stalled_until_it_is_corrected(
    schedules: ScheduleWorld, world: NamespaceHarness
) -> None:
    await schedules.create(schedule=MINUTELY)
    operator = schedules.build_operator()
    await operator.settle()
    handled = (await schedules.get_status())["lastScheduleTime"]
    await world.call("PATCH", schedules.get_status_path(), {"status": {"lastScheduleTime": "yesterday"}})
    await operator.settle()
    assert await schedules.get_condition("Stalled") == ("True", "InvalidTemplate")
    await world.call("PATCH", schedules.get_status_path(), {"status": {"lastScheduleTime": handled}})
    await operator.settle()
    assert await schedules.get_condition("Stalled") == ("False", "Active")
    assert len(await schedules.list_run_names()) == 1


async def test_schedule_template_outside_bounds_is_stalled_before_first_slot(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule=MINUTELY, template={"spec": {"compute": {"image": "evil.example/x:1"}}})
    operator = schedules.build_operator(bounds=Bounds(allowed_images=["good.example/**"]))
    schedules.advance(-30)
    await operator.settle()
    assert await schedules.get_condition("Stalled") == ("True", "NotAllowed")
    (message,) = [each["message"] for each in (await schedules.get_status())["conditions"] if each["type"] == "Stalled"]
    assert "spec.template.spec.compute.image" in message
    schedules.advance(30)
    await operator.settle()
    assert await schedules.list_run_names() == []
    assert "lastScheduleTime" not in await schedules.get_status()
    await schedules.patch({"template": {"spec": {"compute": {"image": "good.example/x:1"}}}})
    await operator.settle()
    assert await schedules.list_run_names() == [schedules.get_name()]
    assert await schedules.get_condition("Stalled") == ("False", "Active")


async def test_schedule_refused_run_stays_pending_until_later_slot_replaces_it(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule=MINUTELY)
    operator = schedules.build_operator()
    schedules.proxy.fail_next("POST", "finetunejobs", 403)
    assert await operator.settle() == 60
    assert await schedules.get_condition("Stalled") == ("True", "RunRefused")
    assert [run["created"] for run in (await schedules.get_status())["runs"]] == [False]
    schedules.proxy.fail_next("POST", "finetunejobs", 403)
    schedules.advance()
    await operator.settle()
    assert await schedules.list_run_names() == [schedules.get_name()]
    status = await schedules.get_status()
    assert [(run["name"], run["created"]) for run in status["runs"]] == [(schedules.get_name(), True)]
    assert await schedules.get_condition("Stalled") == ("False", "Active")


async def test_schedule_template_edited_before_creation_is_the_one_that_is_recorded(schedules: ScheduleWorld) -> None:
    await schedules.create(runAt="2020-01-01T00:00:00Z")
    operator = schedules.build_operator()
    schedules.proxy.fail_next("POST", "finetunejobs", 403)
    await operator.settle()
    await schedules.patch({"template": {"spec": {"training": {"epochs": 2}}}})
    await operator.settle()
    (run,) = await schedules.list_runs()
    assert run["spec"]["training"]["epochs"] == 2
    await schedules.end_run(schedules.get_name())
    await operator.settle()
    assert await schedules.get_condition("UpToDate") == ("Unknown", "InputsUnknown")


async def test_schedule_name_of_foreign_run_is_conflict(schedules: ScheduleWorld, world: NamespaceHarness) -> None:
    await schedules.create(schedule=MINUTELY)
    await world.create_finetunejob(schedules.get_name())
    operator = schedules.build_operator()
    await operator.settle()
    assert await schedules.get_condition("Stalled") == ("True", "NameConflict")
    await world.delete("finetunejobs", schedules.get_name())
    await operator.settle()
    (run,) = await schedules.list_runs()
    assert run["metadata"]["ownerReferences"][0]["name"] == "bot"


async def test_schedule_deleted_creates_nothing(schedules: ScheduleWorld) -> None:
    await schedules.create(schedule=MINUTELY)
    operator = schedules.build_operator()
    await operator.refresh()
    await schedules.delete()
    await operator.reconcile()  # the cache still has it
    await operator.settle()
    assert await schedules.list_run_names() == []
