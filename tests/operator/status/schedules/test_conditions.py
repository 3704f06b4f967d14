"""The conditions of a schedule, and the Events about them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.operator.schedule_builders import build_check, build_run, build_schedule, build_status

from finetune_operator.api import Condition
from finetune_operator.api.schedule import FineTuneScheduleStatus, ScheduleReason
from finetune_operator.status.schedules.conditions import Stall, build_conditions, build_invalid_conditions
from finetune_operator.status.schedules.notices import list_condition_events

NOW, LATER = "2026-11-23T09:00:00Z", "2026-11-23T10:00:00Z"
RUN = build_run("bot-1")
ACTIVE, FAILED = build_run("bot-2", None), build_run("bot-2", "Failed", reason="OOMKilled")
CHANGED, UNCHANGED = build_check("bot-1", added_bytes=5), build_check("bot-1", unchanged=True)
OTHER_TEMPLATE = build_run("bot-1", template_hash="0" * 16)


def _build(
    status: FineTuneScheduleStatus, spec: dict[str, Any] | None = None, stall: Stall | None = None, now: str = NOW
) -> dict[str, Condition]:
    return {each.type: each for each in build_conditions(build_schedule(spec), status, stall, now)}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (build_status(), ("False", "NoRun")),
        (build_status(ACTIVE), ("False", "RunActive")),
        (build_status(FAILED), ("False", "RunFailed")),
        (build_status(RUN), ("Unknown", "InputsUnknown")),
        (build_status(RUN, inputs=build_check("bot-0", unchanged=True)), ("Unknown", "InputsUnknown")),
        (build_status(RUN, inputs=build_check("bot-1", digest=None)), ("Unknown", "CheckFailed")),
        (build_status(RUN, inputs=UNCHANGED), ("True", "Trained")),
        (build_status(ACTIVE, RUN, inputs=UNCHANGED), ("True", "Trained")),
        (build_status(RUN, inputs=CHANGED), ("False", "InputsChanged")),
        (build_status(ACTIVE, RUN, inputs=CHANGED), ("False", "RunActive")),
        (build_status(FAILED, RUN, inputs=CHANGED), ("False", "RunFailed")),
        (build_status(OTHER_TEMPLATE, inputs=UNCHANGED), ("False", "TemplateChanged")),
    ],
)
def test_build_conditions_up_to_date_compares_with_last_complete_run(
    status: FineTuneScheduleStatus, expected: tuple[str, str]
) -> None:
    condition = _build(status)["UpToDate"]
    assert (condition.status, condition.reason) == expected
    assert condition.message


def test_build_conditions_are_all_present_in_order() -> None:
    conditions = _build(build_status(), {"suspend": True}, Stall(ScheduleReason.NOT_ALLOWED, "too much"))
    assert list(conditions) == ["Stalled", "Reconciling", "Suspended", "UpToDate", "Promoted"]
    states = {name: (each.status, each.reason) for name, each in conditions.items()}
    assert states["Stalled"] == ("True", "NotAllowed")
    assert states["Reconciling"][0] == "False"
    assert states["Suspended"] == ("True", "Suspended")
    assert states["Promoted"] == ("Unknown", "NoRun")
    assert {each.observed_generation for each in conditions.values()} == {3}


def test_build_conditions_keep_transition_time_until_status_changes() -> None:
    before = build_status(conditions=list(_build(build_status()).values()))
    after = _build(before, stall=Stall(ScheduleReason.NOT_ALLOWED, "too much"), now=LATER)
    assert (after["Stalled"].last_transition_time, after["UpToDate"].last_transition_time) == (LATER, NOW)


def test_build_conditions_carry_promoted_of_the_promotion() -> None:
    promoted = Condition(type="Promoted", status="True", last_transition_time=NOW, reason="Pinned", message="set")
    assert _build(build_status(conditions=[promoted]), now=LATER)["Promoted"] == promoted


def test_build_invalid_conditions_replace_stalled_alone() -> None:
    before = list(_build(build_status()).values())
    after = build_invalid_conditions(before, "spec.template: wrong", 4, LATER)
    assert (after[0].status, after[0].reason, after[0].message) == ("True", "InvalidTemplate", "spec.template: wrong")
    assert after[1:] == before[1:]


def test_list_condition_events_report_changes_once() -> None:
    old = build_status()
    stall = Stall(ScheduleReason.INVALID_SCHEDULE, "never fires")
    new = build_status(RUN, inputs=UNCHANGED)
    new = new.model_copy(update={"conditions": list(_build(new, stall=stall).values())})
    contents = [(each.type, each.reason, each.message) for each in list_condition_events(old, new)]
    assert contents == [("Warning", "InvalidSchedule", "never fires"), ("Normal", "Trained", "found")]
    assert list(list_condition_events(new, new)) == []


def test_list_condition_events_report_each_new_champion() -> None:
    def build(message: str) -> FineTuneScheduleStatus:
        condition = Condition(
            type="Promoted", status="True", last_transition_time=NOW, reason="Promoted", message=message
        )
        return build_status(conditions=[condition])

    contents = list(list_condition_events(build("bot-1 is the champion"), build("bot-2 is the champion")))
    assert [(each.reason, each.message) for each in contents] == [("Promoted", "bot-2 is the champion")]


@pytest.mark.parametrize(("reason", "count"), [("NotBetter", 0), ("AwaitingApproval", 0), ("PromotionFailed", 1)])
def test_list_condition_events_leave_decisions_to_event_not_promoted(reason: str, count: int) -> None:
    condition = Condition(type="Promoted", status="False", last_transition_time=NOW, reason=reason, message="why")
    assert len(list(list_condition_events(build_status(), build_status(conditions=[condition])))) == count
