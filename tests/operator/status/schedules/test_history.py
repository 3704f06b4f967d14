"""Which FineTuneJobs of a schedule are above its history limits."""

from __future__ import annotations

import pytest
from tests.support.operator.schedule_builders import DIGEST, build_child, build_run, build_schedule, build_status

from finetune_operator.api.schedule import Champion, FineTuneScheduleStatus
from finetune_operator.status.schedules.history import list_superfluous_runs

LIMITS = {"successfulRunsHistoryLimit": 1, "failedRunsHistoryLimit": 1}
CHILDREN = [
    build_child(f"bot-{index}", phase, f"2026-11-23T0{index}:00:00Z")
    for index, phase in enumerate(("Complete", "Complete", "Failed", "Cancelled", "Complete", None))
]
CHAMPION = Champion(
    run="bot-0",
    adapterURI="s3://bucket/bot/bot-0",
    digest=DIGEST,
    modelURI="hf://org/name",
    model_revision="main",
    promoted_time="2026-11-23T01:00:00Z",
    reason="Promoted",
)
OLD = build_run("bot-1", decision="NotBetter")


@pytest.mark.parametrize(
    ("spec", "status", "expected"),
    [
        ({}, build_status(OLD), ["bot-1", "bot-0", "bot-2"]),
        (
            {"successfulRunsHistoryLimit": 2, "failedRunsHistoryLimit": 0},
            build_status(OLD),
            ["bot-0", "bot-3", "bot-2"],
        ),
        ({}, build_status(OLD, champion=CHAMPION), ["bot-1", "bot-2"]),
        ({"champion": {"run": "bot-1"}}, build_status(OLD), ["bot-0", "bot-2"]),
        ({}, build_status(build_run("bot-1")), ["bot-0", "bot-2"]),  # undecided
        ({}, build_status(OLD, build_run("bot-2", None)), ["bot-1", "bot-0"]),  # its end is not recorded
        ({"successfulRunsHistoryLimit": 20, "failedRunsHistoryLimit": 20}, build_status(), []),
    ],
)
def test_list_superfluous_runs_are_the_oldest_above_the_limits(
    spec: dict[str, object], status: FineTuneScheduleStatus, expected: list[str]
) -> None:
    surplus = list_superfluous_runs(build_schedule({**LIMITS, **spec}).spec, status, CHILDREN)
    assert [child["metadata"]["name"] for child in surplus] == expected
