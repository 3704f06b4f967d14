"""Tests of `promote`, `rollback` and `schedule` against a real API server."""

from __future__ import annotations

import io
import json
import threading
import time
from typing import Any

import pytest
from tests.support.cli.cluster import Body, ClusterNamespace
from tests.support.cli.command import CommandLine
from tests.support.operator.builders import NOW, build_manifest
from tests.support.operator.schedule_samples import build_champion, build_result, build_run, build_schedule_manifest

pytestmark = [pytest.mark.cluster]


def build_status(**fields: Any) -> Body:
    runs = [
        build_run("bot-4", phase=None, reason=None, adapter_uri=None, digest=None, completion_time=None),
        build_run("bot-3", phase="Failed", reason="OutOfMemory", adapter_uri=None, digest=None),
        build_run("bot-2", decision="NotBetter", metrics={"accuracy": 0.91234567}),
    ]
    champions = [build_champion("bot-1"), build_champion("bot-0")]
    status = {
        "runs": [run.to_json() for run in runs],
        "champion": champions[0].to_json(),
        "champions": [champion.to_json() for champion in champions],
        "nextScheduleTime": "2026-12-07T03:00:00Z",
        "observedGeneration": 1,
    }
    return {**status, **fields}


@pytest.fixture
def schedule(namespace: ClusterNamespace) -> ClusterNamespace:
    """Return the namespace with the schedule `bot`."""
    namespace.create("finetuneschedules", build_schedule_manifest("bot", namespace.name), build_status())
    return namespace


def read_pin(namespace: ClusterNamespace) -> object:
    return namespace.read("finetuneschedules", "bot")["spec"].get("champion", {}).get("run")


@pytest.mark.parametrize("run", ["bot-2", "bot-0"], ids=["complete run", "earlier champion"])
def test_promote_usable_run_is_pinned(admin: CommandLine, schedule: ClusterNamespace, run: str) -> None:
    answer = admin("promote", "bot", run, "--yes")
    assert (answer.status, answer.stdout) == (0, f"schedule bot: spec.champion.run is {run}\n")
    assert "no run is promoted by the rules until spec.champion is removed" in answer.stderr
    assert read_pin(schedule) == run


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("bot-3", "run bot-3 has no result to promote: its phase is Failed"),
        ("bot-4", "run bot-4 has no result to promote: its phase is active"),
        (
            "bot-9",
            "neither a run of schedule bot nor another run of the namespace; complete runs of the schedule: bot-2",
        ),
    ],
)
def test_promote_run_without_result_changes_nothing(
    admin: CommandLine, schedule: ClusterNamespace, run: str, message: str
) -> None:
    answer = admin("promote", "bot", run, "--yes")
    assert (answer.status, answer.stdout, answer.stderr.count("\n")) == (1, "", 1)
    assert message in answer.stderr
    assert read_pin(schedule) is None


def test_promote_complete_run_of_the_namespace_is_pinned(admin: CommandLine, schedule: ClusterNamespace) -> None:
    status = {"phase": "Complete", "result": build_result("seed")}
    schedule.create("finetunejobs", build_manifest("seed", schedule.name), status)
    answer = admin("promote", "bot", "seed", "--yes")
    assert (answer.status, read_pin(schedule)) == (0, "seed")
    assert "run seed was not created by schedule bot" in answer.stderr


def test_promote_without_terminal_needs_yes(
    admin: CommandLine, schedule: ClusterNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    answer = admin("promote", "bot", "bot-2")
    assert (answer.status, read_pin(schedule)) == (2, None)
    assert "--yes" in answer.stderr


def test_rollback_pins_the_champion_before(admin: CommandLine, schedule: ClusterNamespace) -> None:
    assert admin("rollback", "bot", "--yes").status == 0
    assert read_pin(schedule) == "bot-0"


def test_rollback_without_earlier_champion_says_so(admin: CommandLine, namespace: ClusterNamespace) -> None:
    status = build_status(champions=[build_champion("bot-1").to_json()])
    namespace.create("finetuneschedules", build_schedule_manifest("bot", namespace.name), status)
    answer = admin("rollback", "bot", "--yes")
    assert (answer.status, answer.stderr) == (1, "error: schedule bot has had no champion before bot-1\n")


def test_promote_wait_ends_when_the_status_has_the_champion(admin: CommandLine, schedule: ClusterNamespace) -> None:
    champions = [build_champion("bot-2"), build_champion("bot-1")]
    status = build_status(
        champion=champions[0].to_json(), champions=[each.to_json() for each in champions], observedGeneration=2
    )
    operator = threading.Thread(
        target=lambda: (time.sleep(1.5), schedule.write_status("finetuneschedules", "bot", status))
    )
    operator.start()
    answer = admin("promote", "bot", "bot-2", "--yes", "--wait")
    operator.join()
    assert (answer.status, answer.stdout.splitlines()[-1]) == (0, "schedule bot: the champion is bot-2")


def test_promote_wait_failed_alias_is_the_error(admin: CommandLine, schedule: ClusterNamespace) -> None:
    promoting = {
        "champion": build_champion("bot-2").to_json(), "attemptTime": NOW, "generation": 2, "failure": "AuthFailed",
        "message": "the keys are wrong",
    }  # fmt: skip
    schedule.write_status("finetuneschedules", "bot", build_status(promoting=promoting, observedGeneration=2))
    answer = admin("promote", "bot", "bot-2", "--yes", "--wait")
    assert answer.status == 1
    assert "schedule bot: the alias is not written: AuthFailed: the keys are wrong" in answer.stderr


def test_promote_wait_times_out_with_its_exit_status(admin: CommandLine, schedule: ClusterNamespace) -> None:
    answer = admin("promote", "bot", "bot-2", "--yes", "--wait", "--timeout", "1")
    assert (answer.status, "bot-2 is not the champion after 1 s" in answer.stderr) == (5, True)


def test_promote_object_of_argo_cd_warns(admin: CommandLine, namespace: ClusterNamespace) -> None:
    manifest = build_schedule_manifest("bot", namespace.name)
    manifest["metadata"]["annotations"] = {"argocd.argoproj.io/tracking-id": "app:finetune.dev/FineTuneSchedule:x/bot"}
    namespace.create("finetuneschedules", manifest, build_status())
    answer = admin("promote", "bot", "bot-2", "--yes")
    assert "schedule bot is applied from Git by Argo CD, which may revert this change" in answer.stderr


def test_promote_missing_right_names_the_role(tenant: CommandLine, schedule: ClusterNamespace) -> None:
    schedule.grant({"apiGroups": ["finetune.dev"], "resources": ["finetuneschedules"], "verbs": ["get"]})
    answer = tenant("promote", "bot", "bot-2", "--yes")
    assert (answer.status, read_pin(schedule)) == (1, None)
    assert "you may not patch FineTuneSchedule bot" in answer.stderr
    assert "finetune-operator-edit" in answer.stderr


def test_schedule_shows_champion_next_time_and_decisions(admin: CommandLine, schedule: ClusterNamespace) -> None:
    assert schedule
    answer = admin("schedule", "bot")
    assert answer.status == 0
    fields = [line.split(maxsplit=1) for line in answer.stdout.partition("\n\n")[0].splitlines()]
    assert ["champion", f"bot-1 (Promoted {NOW})"] in fields
    assert "2026-12-07T03:00:00Z" in answer.stdout
    assert "0 3 * * 1 (UTC)" in answer.stdout
    rows = [line.split() for line in answer.stdout.partition("\n\n")[2].splitlines()]
    assert rows[2][:1] + rows[2][3:5] == ["bot-3", "Failed", "(OutOfMemory)"]
    assert rows[3][3:] == ["Complete", "NotBetter", "bot-1", "accuracy", "0.9123"]


def test_schedule_list_has_one_line_for_each(admin: CommandLine, schedule: ClusterNamespace) -> None:
    assert schedule
    rows = [line.split() for line in admin("schedule", "list").stdout.splitlines()]
    assert [row[0] for row in rows] == ["NAME", "bot"]
    assert rows[1][6:] == ["Active", "2026-12-07T03:00:00Z", "bot-4", "bot-1"]


def test_schedule_json_is_the_object_without_managed_fields(admin: CommandLine, schedule: ClusterNamespace) -> None:
    assert schedule
    body = json.loads(admin("schedule", "bot", "-o", "json").stdout)
    assert (body["status"]["champion"]["run"], "managedFields" in body["metadata"]) == ("bot-1", False)


def test_schedule_run_requests_a_run_now(admin: CommandLine, schedule: ClusterNamespace) -> None:
    answer = admin("schedule", "run", "bot")
    run_at = schedule.read("finetuneschedules", "bot")["spec"]["runAt"]
    assert (answer.status, answer.stdout) == (0, f"schedule bot: a run is requested for {run_at}\n")


def test_schedule_that_does_not_exist_is_one_line(admin: CommandLine, namespace: ClusterNamespace) -> None:
    answer = admin("schedule", "nope")
    assert (answer.status, answer.stdout) == (1, "")
    assert answer.stderr == f"error: there is no FineTuneSchedule nope in namespace {namespace.name}\n"
