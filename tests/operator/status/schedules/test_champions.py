"""The status of a FineTuneSchedule after decisions and promotions."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.operator.builders import NOW
from tests.support.operator.schedule_samples import (
    build_champion,
    build_complete_run,
    build_run,
    build_schedule,
)

from finetune_operator.api.schedule import FineTuneSchedule, FineTuneScheduleStatus, ScheduleReason
from finetune_operator.status.schedules import champions
from finetune_operator.status.schedules.promoted_condition import update_promoted_condition
from finetune_operator.status.schedules.promotion import Decision

Body = dict[str, Any]
SCHEDULE = build_schedule()
NOT_BETTER = Decision(ScheduleReason.NOT_BETTER, "worse", {"accuracy": 0.5}, ())


def _build_status(*runs: Any, **fields: Any) -> FineTuneScheduleStatus:
    return FineTuneScheduleStatus(runs=list(runs), **fields)


def _begin(name: str, status: FineTuneScheduleStatus, schedule: FineTuneSchedule = SCHEDULE) -> FineTuneScheduleStatus:
    return champions.begin_promotion(schedule, status, build_champion(name), NOW)


def _finish(name: str, status: FineTuneScheduleStatus) -> FineTuneScheduleStatus:
    started = _begin(name, status)
    assert started.promoting
    return champions.finish_promotion(started, started.promoting)


def _fail(name: str, status: FineTuneScheduleStatus, reason: ScheduleReason) -> FineTuneScheduleStatus:
    started = _begin(name, status)
    assert started.promoting
    return champions.fail_promotion(started, started.promoting, reason, "why")


def _get_promoted(status: FineTuneScheduleStatus) -> tuple[str, str, str]:
    (condition,) = update_promoted_condition(SCHEDULE, status, NOW).conditions
    return condition.status, condition.reason, condition.message


def test_find_next_undecided_is_the_run_that_ended_first() -> None:
    runs = [
        build_run("bot-4", phase=None, completion_time=None),
        build_run("bot-3", completion_time="2026-11-23T08:00:01Z"),
        build_run("bot-2", completion_time="2026-11-23T09:00:00Z"),
        build_run("bot-1", decision="Promoted"),
    ]
    undecided = champions.find_next_undecided(_build_status(*runs))
    assert undecided
    assert undecided.name == "bot-3"
    assert champions.is_decision_pending(_build_status(*runs))


def test_is_decision_pending_until_the_alias_is_written_or_has_failed() -> None:
    status = _begin("bot-2", _build_status(build_run(decision="NotBetter")))
    assert champions.is_decision_pending(status)
    assert not champions.is_decision_pending(_fail("bot-2", status, ScheduleReason.PROMOTION_FAILED))
    assert not champions.is_decision_pending(_finish("bot-2", status))


def test_finish_promotion_keeps_ten_champions_each_once() -> None:
    status = _build_status()
    for index in range(12):
        status = _finish(f"bot-{index}", status)
    status = _finish("bot-5", status)
    names = [champion.run for champion in status.champions]
    assert names == ["bot-5", "bot-11", "bot-10", "bot-9", "bot-8", "bot-7", "bot-6", "bot-4", "bot-3", "bot-2"]
    assert status.champion == status.champions[0]


def test_begin_promotion_without_alias_is_the_promotion() -> None:
    schedule = build_schedule({"alias": None})
    status = _begin("bot-2", _build_status(build_run()), schedule)
    assert status.champion
    assert (status.champion.run, status.promoting, status.alias_uri) == ("bot-2", None, None)
    assert status.runs[0].decision == "Promoted"


def test_runs_since_promotion_counts_each_complete_run_once() -> None:
    failed_run = build_run("bot-0", phase="Failed")
    status = _build_status(build_run(), build_run("bot-3"), failed_run)
    status = champions.record_decision(status, failed_run, NOT_BETTER._replace(reason=ScheduleReason.RUN_FAILED), None)
    assert status.runs_since_promotion == 0
    status = champions.record_decision(status, status.runs[0], NOT_BETTER, build_complete_run())
    assert status.runs_since_promotion == 1
    for _ in range(2):
        status = _fail("bot-3", status, ScheduleReason.PROMOTION_FAILED)
    assert status.runs_since_promotion == 2
    assert _finish("bot-3", status).runs_since_promotion == 0


def test_record_decision_long_message_is_cut_to_the_limit_of_the_status() -> None:
    status = champions.record_decision(
        _build_status(build_run()), build_run(), NOT_BETTER._replace(message="x" * 9999), build_complete_run()
    )
    assert len(FineTuneScheduleStatus.model_validate(status.to_json()).runs[0].message) == 512


def test_find_known_champion_is_a_run_whose_finetunejob_was_deleted() -> None:
    status = champions.record_decision(_build_status(build_run()), build_run(), NOT_BETTER, build_complete_run())
    champion = champions.find_known_champion(status, "bot-2", NOW)
    assert champion
    assert champion.to_json() == build_champion("bot-2", reason="Pinned", metrics={"accuracy": 0.5}).to_json() | {
        "completionTime": NOW
    }
    assert champions.find_known_champion(status, "bot-9", NOW) is None


def _pin(name: str) -> FineTuneSchedule:
    return build_schedule({"champion": {"run": name}})


LATER = "2026-11-23T08:30:00Z"
MUCH_LATER = "2026-11-23T09:00:00Z"


@pytest.mark.parametrize(
    ("spec", "now", "due_in"),
    [({}, LATER, 1800.0), ({}, MUCH_LATER, 0.0), ({}, "2026-11-22T08:00:00Z", 0.0)],
    ids=["half an hour", "an hour", "clock set back"],
)
def test_find_target_failed_promotion_is_tried_again_after_an_hour(spec: Body, now: str, due_in: float) -> None:
    status = _fail("bot-2", _build_status(), ScheduleReason.ALIAS_CONFLICT)
    assert status.promoting
    assert champions.find_target(build_schedule(spec), status, None, now) == (status.promoting.champion, due_in)


def test_find_target_failed_promotion_is_tried_at_once_after_an_edit() -> None:
    status = _fail("bot-2", _build_status(), ScheduleReason.PROMOTION_FAILED)
    edited = SCHEDULE.model_copy(update={"metadata": SCHEDULE.metadata.model_copy(update={"generation": 2})})
    assert champions.find_target(edited, status, None, LATER).due_in == 0


def test_find_target_failed_promotion_stays_while_a_champion_is_set_that_is_not_found() -> None:
    status = _fail("bot-2", _build_status(), ScheduleReason.PROMOTION_FAILED)
    assert champions.find_target(_pin("gone"), status, None, MUCH_LATER).champion is None
    assert champions.give_up_pin(status) == status


@pytest.mark.parametrize("is_first", [True, False])
def test_find_target_removed_pin_that_failed_restores_the_champion(is_first: bool) -> None:
    status = _build_status() if is_first else _finish("bot-1", _build_status())
    pin = build_champion("bot-2", reason="Pinned")
    started = champions.begin_promotion(_pin("bot-2"), status, pin, NOW)
    assert started.promoting
    failed = champions.fail_promotion(started, started.promoting, ScheduleReason.PROMOTION_FAILED, "why")
    restored = None if is_first else build_champion("bot-1", reason="Pinned")  # which replaces whatever was written
    assert champions.find_target(SCHEDULE, failed, None, LATER).champion == restored
    assert champions.give_up_pin(failed) == status


def test_find_target_pinned_champion_is_written_once() -> None:
    pin = build_champion("bot-1", reason="Pinned")
    status = _finish("bot-1", _build_status())
    assert champions.find_target(_pin("bot-1"), status, pin, NOW).champion == pin  # it may have been changed in S3
    started = champions.begin_promotion(_pin("bot-1"), status, pin, LATER)
    assert started.promoting
    status = champions.finish_promotion(started, started.promoting)
    assert status.champion
    assert status.champion.promoted_time == NOW
    assert champions.find_target(_pin("bot-1"), status, pin, LATER).champion is None
    assert champions.find_target(SCHEDULE, status, None, LATER).champion is None


def test_find_target_pin_replaces_a_failed_promotion_although_it_is_the_champion() -> None:
    pin = build_champion("bot-1", reason="Pinned")
    status = FineTuneScheduleStatus(champion=pin, champions=[pin], alias_uri="s3://bucket/bot/champion.json")
    status = _fail("bot-2", status, ScheduleReason.PROMOTION_FAILED)
    assert champions.find_target(_pin("bot-1"), status, pin, LATER) == (pin, 0.0)


def test_find_target_pin_replaces_foreign_content_although_it_is_the_champion() -> None:
    pin = build_champion("bot-1", reason="Pinned")
    status = FineTuneScheduleStatus(champion=pin, champions=[pin], alias_uri="s3://bucket/bot/champion.json")
    assert champions.find_target(_pin("bot-1"), status, pin, NOW).champion is None
    conflict = status.model_copy(update={"alias_conflict": "foreign"})
    assert champions.find_target(_pin("bot-1"), conflict, pin, NOW).champion == pin


def test_find_target_moved_alias_gets_the_champion() -> None:
    moved = build_schedule({"alias": {"uri": "s3://bucket/other.json"}})
    status = _finish("bot-1", _build_status())
    assert champions.find_target(SCHEDULE, status, None, NOW).champion is None
    assert champions.find_target(moved, status, None, NOW).champion == status.champion


CONDITIONS: dict[str, tuple[FineTuneScheduleStatus, tuple[str, str], str]] = {
    "nothing": (_build_status(), ("Unknown", "NoRun"), "no complete run"),
    "only failed": (
        _build_status(build_run(phase="Failed", decision="RunFailed")),
        ("Unknown", "NoRun"),
        "no complete run",
    ),
    "champion": (_finish("bot-2", _build_status(build_run())), ("True", "Promoted"), "bot-2 is the champion"),
    "champion, then a failed run": (
        _finish("bot-2", _build_status(build_run("bot-3", phase="Failed", decision="RunFailed"), build_run())),
        ("True", "Promoted"),
        "bot-2 is the champion",
    ),
    "not better": (
        _finish("bot-1", _build_status(build_run(decision="NotBetter", message="worse"))),
        ("False", "NotBetter"),
        "bot-2 is not the champion. worse",
    ),
    "rollback": (
        _finish("bot-1", _finish("bot-2", _build_status(build_run()))).model_copy(
            update={"champion": build_champion(reason="Pinned")}
        ),
        ("False", "Pinned"),
        "The champion is bot-1",
    ),
    "in flight": (_begin("bot-2", _build_status(build_run())), ("Unknown", "Promoting"), "champion.json to bot-2"),
    "failed": (
        _fail("bot-2", _build_status(build_run()), ScheduleReason.PROMOTION_FAILED),
        ("False", "PromotionFailed"),
        "once an hour: why",
    ),
    "conflict": (
        _fail("bot-2", _build_status(build_run()), ScheduleReason.ALIAS_CONFLICT),
        ("False", "AliasConflict"),
        "Set spec.champion.run",
    ),
}


@pytest.mark.parametrize(("status", "expected", "message"), CONDITIONS.values(), ids=CONDITIONS)
def test_promoted_condition_tells_whether_the_last_complete_run_is_the_champion(
    status: FineTuneScheduleStatus, expected: tuple[str, str], message: str
) -> None:
    *state, text = _get_promoted(status)
    assert tuple(state) == expected
    assert message in text


def test_promoted_condition_keeps_its_place_and_time_while_its_status_is_the_same() -> None:
    status = update_promoted_condition(SCHEDULE, _build_status(build_run(decision="NotBetter")), NOW)
    again = update_promoted_condition(SCHEDULE, status, LATER)
    assert again == status
    changed = update_promoted_condition(SCHEDULE, _finish("bot-2", again), LATER)
    assert changed.conditions[0].last_transition_time == LATER


def test_status_after_each_step_is_valid_for_the_api() -> None:
    status = _build_status(build_run())
    steps = (_begin("bot-2", status), _fail("bot-2", status, ScheduleReason.ALIAS_CONFLICT), _finish("bot-2", status))
    for step in steps:
        stored = update_promoted_condition(SCHEDULE, step, NOW)
        assert FineTuneScheduleStatus.model_validate_json(stored.model_dump_json(by_alias=True)) == stored
