"""The gauges of FineTuneSchedules and FineTuneSweeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.cached_owners import build_schedule, build_sweep, cache_owners

from finetune_operator.api.schedule import SCHEDULE_KIND
from finetune_operator.api.sweep import SWEEP_KIND
from finetune_operator.controller.finetuneschedule.gauges import collect_schedule_gauges
from finetune_operator.controller.finetunesweep.gauges import collect_sweep_gauges

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.core import Metric
    from tests.support.operator.builders import Body

Samples = dict[str, dict[tuple[str, ...], float]]
STALLED = [{"type": "Stalled", "status": "True", "reason": "InvalidSchedule"}]


def _read_samples(families: Iterable[Metric]) -> Samples:
    """Return the value of each series by the name of its metric and the values of its labels."""
    return {
        family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples} for family in families
    }


def _collect_schedules(*bodies: Body, limit: int = 10) -> Samples:
    return _read_samples(collect_schedule_gauges(cache_owners(SCHEDULE_KIND, *bodies), limit))


def _collect_sweeps(*bodies: Body, limit: int = 10) -> Samples:
    return _read_samples(collect_sweep_gauges(cache_owners(SWEEP_KIND, *bodies), limit))


def test_schedule_gauges_count_states() -> None:
    samples = _collect_schedules(
        build_schedule("a"),
        build_schedule("b", status={"conditions": STALLED}),
        build_schedule("c", spec={"suspend": True}),
        build_schedule("d", spec={"suspend": True}, status={"conditions": STALLED}),
        build_schedule("e", status={"conditions": [{**STALLED[0], "status": "False"}]}),
    )
    assert samples["finetune_schedules"] == {
        ("team", "Active", ""): 2,
        ("team", "Suspended", ""): 1,
        ("team", "Stalled", "InvalidSchedule"): 2,
    }


def test_schedule_gauges_champion_has_time_and_metrics_of_rules() -> None:
    champion = {"promotedTime": "1970-01-01T00:01:40Z", "metrics": {"accuracy": 0.9, "macroF1": 0.8}}
    rules = [{"metric": "accuracy"}, {"metric": "accuracy"}, {"metric": "evalLoss"}]
    samples = _collect_schedules(
        build_schedule(spec={"promotion": {"rules": rules}}, status={"champion": champion, "runsSincePromotion": 3}),
        build_schedule("new", status={}),
    )
    assert samples["finetune_schedule_champion_timestamp_seconds"] == {("team", "bot"): 100}
    assert samples["finetune_schedule_champion_metric"] == {("team", "bot", "accuracy"): 0.9}
    assert samples["finetune_schedule_runs_since_promotion"] == {("team", "bot"): 3, ("team", "new"): 0}


@pytest.mark.parametrize(("suspend", "shown"), [(False, {("team", "bot"): 60.0}), (True, {})])
def test_schedule_gauges_next_time_is_absent_while_suspended(suspend: bool, shown: dict[Any, float]) -> None:
    status = {"nextScheduleTime": "1970-01-01T00:01:00Z", "lastScheduleTime": "1970-01-01T00:00:30Z"}
    samples = _collect_schedules(build_schedule(spec={"suspend": suspend}, status=status))
    assert samples["finetune_schedule_next_schedule_timestamp_seconds"] == shown
    assert samples["finetune_schedule_last_schedule_timestamp_seconds"] == {("team", "bot"): 30}
    assert samples["finetune_schedule_last_successful_timestamp_seconds"] == {}


PHASES = {
    "none": ([], 0),
    "complete": (["Complete", "Failed"], 0),
    "failed": (["Failed", "Cancelled", "Complete", "Failed"], 2),
    "active": ([None, "Failed", "Complete"], 1),
}


@pytest.mark.parametrize(("phases", "failed"), PHASES.values(), ids=PHASES)
def test_schedule_gauges_count_runs_that_failed_since_last_complete_one(phases: list[str | None], failed: int) -> None:
    status = {"runs": [{"name": "bot-1", "phase": phase} if phase else {"name": "bot-2"} for phase in phases]}
    samples = _collect_schedules(build_schedule(status=status), build_schedule("b", spec={"suspend": True}))
    assert samples["finetune_schedule_failed_runs"] == {("team", "bot"): failed}
    assert samples["finetune_schedule_runs_since_promotion"] == {("team", "bot"): 0}


def test_schedule_gauges_failed_tasks_have_reason() -> None:
    conditions = [
        {"type": "UpToDate", "status": "Unknown", "reason": "CheckFailed"},
        {"type": "Promoted", "status": "False", "reason": "AliasConflict"},
    ]
    status = {"conditions": conditions}
    samples = _collect_schedules(
        build_schedule(status=status),
        build_schedule("off", spec={"suspend": True}, status=status),
        build_schedule(
            "works", status={"conditions": [{"type": "Promoted", "status": "False", "reason": "NotBetter"}]}
        ),
    )
    assert samples["finetune_schedule_task_failed"] == {
        ("team", "bot", "CheckFailed"): 1,
        ("team", "bot", "AliasConflict"): 1,
        ("team", "off", "AliasConflict"): 1,
    }


def test_schedule_gauges_beyond_limit_are_counted_not_shown() -> None:
    samples = _collect_schedules(*(build_schedule(name) for name in "cab"), limit=2)
    assert set(samples["finetune_schedule_runs_since_promotion"]) == {("team", "a"), ("team", "b")}
    assert samples["finetune_schedules_omitted"] == {(): 1}
    assert samples["finetune_schedules"] == {("team", "Active", ""): 3}


def test_owner_gauges_unreadable_objects_are_omitted() -> None:
    newer = build_schedule("newer", status={"runsSincePromotion": "many"})
    cache = cache_owners(SCHEDULE_KIND, newer, build_schedule("other", namespace="lost"), build_schedule())
    cache.unreadable_namespaces = {"lost"}
    samples = _read_samples(collect_schedule_gauges(cache, 10))
    assert samples["finetune_schedules"] == {("team", "Active", ""): 1}


def test_owner_gauges_recreated_object_is_counted_once() -> None:
    deleted = build_schedule(uid="old", resourceVersion="5", deletionTimestamp="2026-11-23T08:00:00Z")
    samples = _collect_schedules(build_schedule(status={"runsSincePromotion": 2}, resourceVersion="9"), deleted)
    assert samples["finetune_schedules"] == {("team", "Active", ""): 1}
    assert samples["finetune_schedule_runs_since_promotion"] == {("team", "bot"): 2}


def test_sweep_gauges_show_trials_and_budget_of_unfinished_sweeps() -> None:
    counts = {"total": 6, "active": 2, "complete": 1, "cut": 1, "failed": 1}
    running = {"phase": "Running", "reason": "TrialsActive", "counts": counts, "gpuSeconds": 90}
    samples = _collect_sweeps(
        build_sweep("lr", spec={"budget": {"gpuSeconds": 100}}, status=running),
        build_sweep("done", status={**running, "phase": "Complete", "reason": "Completed"}),
        build_sweep("new", status={}),
    )
    assert samples["finetune_sweeps"] == {
        ("team", "Running", "TrialsActive"): 1,
        ("team", "Complete", "Completed"): 1,
        ("team", "Pending", ""): 1,
    }
    states = {"Waiting": 1, "Active": 2, "Complete": 1, "Cut": 1, "Failed": 1}
    trials = samples["finetune_sweep_trials"]
    assert {labels[2]: count for labels, count in trials.items() if labels[1] == "lr"} == states
    assert {labels[1] for labels in trials} == {"lr", "new"}
    assert samples["finetune_sweep_gpu_seconds"] == {("team", "lr"): 90}
    assert samples["finetune_sweep_budget_gpu_seconds"] == {("team", "lr"): 100}


def test_sweep_gauges_beyond_limit_count_unfinished_sweeps() -> None:
    ended = [build_sweep(f"{phase}".lower(), status={"phase": phase}) for phase in ("Complete", "Failed", "Cancelled")]
    samples = _collect_sweeps(*ended, *(build_sweep(name) for name in "xyz"), limit=2)
    assert {labels[1] for labels in samples["finetune_sweep_trials"]} == {"x", "y"}
    assert samples["finetune_sweeps_omitted"] == {(): 1}
