"""FineTuneSweeps on a real API server. The tests act as Kubernetes' controllers and as the trainers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.operator.builders import seconds_ago
from tests.support.operator.fault_proxy import build_error_response
from tests.support.operator.namespace_harness import RequestRejected, build_lease_rules
from tests.support.operator.sweeps import DIGEST
from tests.support.operator.trial_cluster import REPORT, REPORT_URI, TrialCluster

from finetune_operator.policy.limits import Bounds

if TYPE_CHECKING:
    from aiohttp import web
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

Body = dict[str, Any]
SIX = {"parameters": {"learningRate": {"values": [1e-4, 3e-4, 1e-3]}, "loraRank": {"values": [8, 16]}}}
TWO = {"parameters": {"learningRate": {"values": [1e-4, 3e-4]}}, "maxParallel": 2}
KILLING_WRITES = {"POST lr-1", "status cut", "PATCH ['cancel']", "status Completed"}
SIX_LOSSES = {"lr-1": 1.5, "lr-2": 1.25, "lr-4": 1.75, "lr-5": 2.0, "lr-6": 2.5}
NAMES = [f"lr-{number}" for number in range(1, 7)]


@pytest.fixture
def cluster(world: NamespaceHarness) -> TrialCluster:
    """Return the trainers of all trials."""
    return TrialCluster(world)


@asynccontextmanager
async def _run(world: NamespaceHarness, cluster: TrialCluster, **settings: Any) -> AsyncIterator[None]:
    async with world.run_operator(**settings), cluster.act():
        yield


def _get_phases(status: Body) -> dict[str, str]:
    return {row["name"]: row.get("phase", "") for row in status["trials"]}


async def _list_trials(world: NamespaceHarness) -> list[str]:
    return sorted(body["metadata"]["name"] for body in await world.list_objects("finetunejobs"))


async def test_sweep_of_six_with_one_failure_ranks_the_others_and_reports(
    world: NamespaceHarness, cluster: TrialCluster
) -> None:
    cluster.losses, cluster.failures = SIX_LOSSES, {"lr-3"}
    async with _run(world, cluster):
        await cluster.create_sweep({**SIX, "maxParallel": 2})
        status = await cluster.wait_for_reason("Completed")
    assert (status["phase"], status["reportURI"]) == ("Complete", REPORT_URI)
    assert [condition["type"] for condition in status["conditions"]] == ["Complete", "Running"]
    assert status["counts"] == {
        "total": 6, "active": 0, "complete": 5, "cut": 0, "failed": 1, "finished": "6/6",
    }  # fmt: skip
    best = status["best"]
    assert (best["name"], best["runnerUp"], best["value"]) == ("lr-2", "lr-1", 1.25)
    assert (best["verdict"], best["parameters"]) == ("Inconclusive", {"learningRate": 1e-4, "loraRank": 16})
    assert "lr-2" in status["conditions"][0]["message"]
    assert status["trials"][2]["reason"] == "DataInvalid"
    assert (cluster.started, cluster.max_active) == (NAMES, 2)
    assert world.proxy.requests.count(("POST", world.path("finetunejobs"))) == 2 * len(NAMES)  # each is asked for once
    events = {(event["reason"], event["type"]) for event in await world.list_objects("events")}
    assert {("TrialCreated", "Normal"), ("TrialsActive", "Normal"), ("Completed", "Normal")} <= events


async def test_sweep_with_more_failures_than_allowed_fails_and_cancels_the_others(
    world: NamespaceHarness, cluster: TrialCluster
) -> None:
    cluster.failures = {"lr-1", "lr-3"}
    async with _run(world, cluster):
        await cluster.create_sweep({**SIX, "maxParallel": 3, "maxFailed": 1})
        status = await cluster.wait_for_status(lambda status: status["counts"].get("finished") == "4/6")
    assert (status["phase"], status["reason"]) == ("Failed", "TooManyFailedTrials")
    assert {condition["type"]: condition["status"] for condition in status["conditions"]} == {
        "Failed": "True", "Running": "False", "Stalled": "True",
    }  # fmt: skip
    assert "lr-1 (DataInvalid), lr-3 (DataInvalid)" in status["conditions"][0]["message"]
    assert [phase for phase in _get_phases(status).values() if phase] == ["Failed", "Cancelled", "Failed", "Cancelled"]


async def test_sweep_suspended_then_resumed_then_cancelled(world: NamespaceHarness, cluster: TrialCluster) -> None:
    async with _run(world, cluster):
        await cluster.create_sweep({**SIX, "maxParallel": 2})
        await cluster.wait_for_status(lambda status: "Running" in _get_phases(status).values())
        await cluster.patch_sweep(suspend=True)
        status = await cluster.wait_for_reason("Suspended")
        assert (status["phase"], status["counts"]["active"], await cluster.list_running()) == ("Suspended", 0, [])
        await cluster.patch_trial("lr-1", suspend=False)
        await world.wait_until(lambda: _has_spec(world, "lr-1", suspend=True))
        await cluster.wait_for_reason("Suspended")
        await cluster.patch_sweep(suspend=False)
        await cluster.wait_for_status(lambda status: status["counts"]["active"] == 2)
        cluster.losses = {"lr-1": 1.0}
        await cluster.wait_for_status(lambda status: _get_phases(status)["lr-1"] == "Complete")
        await cluster.patch_sweep(cancel=True)
        status = await cluster.wait_for_reason("Cancelled")
        with pytest.raises(RequestRejected, match="cancel cannot be undone"):
            await cluster.patch_sweep(cancel=False)
    assert (status["phase"], await cluster.list_running()) == ("Cancelled", [])
    phases = _get_phases(status)
    assert (phases["lr-1"], phases["lr-2"], phases["lr-3"]) == ("Complete", "Cancelled", "Cancelled")
    assert await _list_trials(world) == ["lr-1", "lr-2", "lr-3"]
    assert "best" not in status


async def _has_spec(world: NamespaceHarness, name: str, **fields: Any) -> bool:
    spec = (await world.get("finetunejobs", name))["spec"]
    return all(spec.get(key) == value for key, value in fields.items())


async def test_sweep_at_its_budget_is_suspended_until_it_is_raised(
    world: NamespaceHarness, cluster: TrialCluster
) -> None:
    cluster.losses = {"lr-1": 1.0}
    async with _run(world, cluster):
        await cluster.create_sweep({"budget": {"gpuSeconds": 2}, "template": {"spec": {"compute": {"gpusPerNode": 1}}}})
        status = await cluster.wait_for_reason("BudgetExhausted")
        assert (status["phase"], status["gpuSeconds"] >= 2) == ("Suspended", True)
        assert "above" in status["conditions"][0]["message"]
        cluster.losses |= {"lr-2": 2.0, "lr-3": 3.0}
        await cluster.patch_sweep(budget=None)
        status = await cluster.wait_for_reason("Completed")
    assert status["counts"]["complete"] == 3


async def test_sweep_trial_deleted_counts_as_failed_and_is_not_created_again(
    world: NamespaceHarness, cluster: TrialCluster
) -> None:
    async with _run(world, cluster):
        await cluster.create_sweep({"maxParallel": 2})
        await cluster.wait_for_status(lambda status: len([row for row in status["trials"] if row["created"]]) == 2)
        await world.delete("finetunejobs", "lr-1")
        status = await cluster.wait_for_status(
            lambda status: status["counts"]["active"] == 2 and status["counts"]["failed"] == 1
        )
        assert (status["trials"][0]["phase"], status["trials"][0]["reason"]) == ("Deleted", "TrialDeleted")
        await world.delete("jobs", "lr-1")  # as the garbage collector
        cluster.losses = {"lr-2": 2.0, "lr-3": 3.0}
        status = await cluster.wait_for_reason("Completed")
    assert (await _list_trials(world), status["best"]["name"]) == (["lr-2", "lr-3"], "lr-2")


async def test_sweep_deleted_half_way_leaves_owned_trials_and_creates_no_more(
    world: NamespaceHarness, cluster: TrialCluster
) -> None:
    async with _run(world, cluster):
        await cluster.create_sweep({"maxParallel": 1})
        await cluster.wait_for_status(lambda status: "Running" in _get_phases(status).values())
        sweep = await world.get("finetunesweeps", "lr")
        await world.delete("finetunesweeps", "lr")
        cluster.losses = {"lr-1": 1.0}
        await world.wait_for_reason("Completed", "lr-1")
        await asyncio.sleep(0.5)
    (trial,) = await world.list_objects("finetunejobs")
    (owner,) = trial["metadata"]["ownerReferences"]
    assert (owner["uid"], owner["controller"]) == (sweep["metadata"]["uid"], True)


async def test_sweep_halving_at_two_steps_cuts_and_continues(world: NamespaceHarness, cluster: TrialCluster) -> None:
    cluster.losses = {name: float(number) for number, name in enumerate(NAMES, start=1)}
    four = {"learningRate": {"values": [1e-4, 3e-4]}, "loraRank": {"values": [8, 16]}}
    async with _run(world, cluster):
        await cluster.create_sweep({"parameters": four, "maxParallel": 2, "halving": {"atSteps": [200, 100]}})
        status = await cluster.wait_for_status(lambda status: status.get("reason") == "Completed", 40)
    cuts = {row["name"]: row.get("cutAtStep") for row in status["trials"]}
    assert cuts == {"lr-1": None, "lr-2": 200, "lr-3": 100, "lr-4": 100}
    assert status["counts"] | {"cut": 3, "complete": 1, "failed": 0, "finished": "4/4"} == status["counts"]
    assert (status["best"]["name"], "runnerUp" in status["best"]) == ("lr-1", False)
    assert cluster.max_active <= 2
    assert (await world.get("finetunejobs", "lr-4"))["spec"]["cancel"] is True
    assert "suspendAtStep" not in (await world.get("finetunejobs", "lr-1"))["spec"]
    cut_events = [event for event in await world.list_objects("events") if event["reason"] == "TrialCut"]
    assert len(cut_events) == 3


async def test_sweep_with_a_trial_that_the_api_server_rejects_fails_before_the_first_is_created(
    world: NamespaceHarness, cluster: TrialCluster
) -> None:
    template = {"spec": {"training": {"method": "kto"}}}
    parameters = {"learningRate": None, "batchSize": {"values": [8, 1]}}
    async with _run(world, cluster):
        await cluster.create_sweep({"template": template, "parameters": parameters})
        status = await cluster.wait_for_reason("TrialRefused")
    message = status["conditions"][0]["message"]
    assert (status["phase"], await _list_trials(world)) == ("Failed", [])
    assert "Trial lr-2 (batchSize 1, seed 42)" in message
    assert "spec.template.spec.training" in message


async def test_sweep_beyond_the_bounds_waits_until_they_allow_it(
    world: NamespaceHarness, cluster: TrialCluster
) -> None:
    bounds = Bounds(allowed_models=["s3://models/**"])
    async with _run(world, cluster, bounds=bounds):
        await cluster.create_sweep()
        status = await cluster.wait_for_reason("NotAllowed")
        assert (status["phase"], await _list_trials(world)) == ("Pending", [])
        assert status["conditions"][1]["type"] == "Reconciling"
        assert "spec.template.spec.model.uri: hf://org/name is not allowed" in status["conditions"][0]["message"]
    async with _run(world, cluster):
        await cluster.wait_for_reason("TrialsActive")


async def test_sweep_trial_with_the_name_of_another_finetunejob_fails(
    world: NamespaceHarness, cluster: TrialCluster
) -> None:
    await world.create_finetunejob("lr-2", spec={"suspend": True})
    async with _run(world, cluster):
        await cluster.create_sweep()
        status = await cluster.wait_for_reason("NameConflict")
    assert (status["phase"], await _list_trials(world)) == ("Failed", ["lr-2"])
    assert (
        "Trial lr-2 (learningRate 0.0003, seed 42): There is a FineTuneJob lr-2" in status["conditions"][0]["message"]
    )


async def test_sweep_later_trial_that_is_refused_fails_alone_and_an_event_says_why(
    world: NamespaceHarness, cluster: TrialCluster
) -> None:
    cluster.losses = {"lr-2": 2.0}
    async with _run(world, cluster):
        await cluster.create_sweep({"parameters": {"learningRate": {"values": [1e-4, 3e-4]}}})
        await cluster.wait_for_status(lambda status: status["counts"].get("active") == 1)
        await world.create_finetunejob("lr-2", spec={"suspend": True})
        cluster.losses = {"lr-1": 1.0}
        status = await cluster.wait_for_reason("Completed")
    assert (status["trials"][1]["reason"], status["counts"]["failed"]) == ("NameConflict", 1)
    (message,) = [each["message"] for each in await world.list_objects("events") if each["reason"] == "NameConflict"]
    assert "Trial lr-2 (learningRate 0.0003, seed 42): There is a FineTuneJob lr-2" in message


async def test_sweep_waits_for_the_end_of_trials_of_a_deleted_sweep(
    world: NamespaceHarness, cluster: TrialCluster
) -> None:
    owner = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneSweep", "name": "lr", "uid": "of-the-deleted-one"}
    references = [{**owner, "controller": True}]
    await world.create_finetunejob("lr-2", spec={"suspend": True}, ownerReferences=references)
    async with _run(world, cluster):
        await cluster.create_sweep()
        status = await cluster.wait_for_reason("NameConflict")
    assert (status["phase"], status["conditions"][1]["type"]) == ("Pending", "Reconciling")


async def test_sweep_refused_by_a_quota_waits(world: NamespaceHarness, cluster: TrialCluster) -> None:
    async def refuse_trials(request: web.Request) -> web.StreamResponse | None:
        is_creation = (request.method, request.path.rpartition("/")[2]) == ("POST", "finetunejobs")
        return build_error_response(403) if is_creation else None

    world.proxy.interceptor = refuse_trials
    async with _run(world, cluster):
        await cluster.create_sweep()
        status = await cluster.wait_for_reason("TrialRefused")
    assert (status["phase"], await _list_trials(world)) == ("Pending", [])
    assert "Trial lr-1 (learningRate 0.0001, seed 42): injected" in status["conditions"][0]["message"]


async def test_sweep_report_fails_then_succeeds_an_hour_later(world: NamespaceHarness, cluster: TrialCluster) -> None:
    cluster.report = {"reason": "AccessDenied", "message": "no write access to s3://bucket/lr/"}
    await cluster.create_sweep(TWO)
    await _store_complete_trials(world, "Reporting", "True")
    async with _run(world, cluster):
        status = await cluster.wait_for_reason("ReportFailed")
        assert (status["phase"], status["conditions"][0]["status"], "best" in status) == ("Running", "False", False)
        assert "AccessDenied: no write access" in status["conditions"][0]["message"]
    cluster.report = REPORT
    await _store_complete_trials(world, "ReportFailed", "False", hours=1)
    async with _run(world, cluster):
        status = await cluster.wait_for_reason("Completed")
    assert (status["best"]["name"], status["best"]["verdict"]) == ("lr-1", "Inconclusive")


async def test_sweep_report_that_fails_to_the_end_keeps_the_best_trial(
    world: NamespaceHarness, cluster: TrialCluster
) -> None:
    cluster.report = {"reason": "AccessDenied", "message": "no write access"}
    await cluster.create_sweep(TWO)
    await _store_complete_trials(world, "ReportFailed", "False", hours=2)
    async with _run(world, cluster):
        status = await cluster.wait_for_reason("Completed")
    assert (status["best"]["name"], status["best"]["verdict"]) == ("lr-1", "NotCompared")
    assert "no write access" in status["best"]["message"]


async def _store_complete_trials(world: NamespaceHarness, reason: str, running: str, hours: int = 0) -> None:
    """Store the status of a sweep whose trials are complete, with a condition that has been there for some hours."""
    condition = {"type": "Running", "status": running, "reason": reason, "message": "words"}
    times = {"lastTransitionTime": seconds_ago(hours * 3600 + 5), "observedGeneration": 1}
    result = {"created": True, "phase": "Complete", "adapterURI": "s3://bucket/lr/a", "digest": DIGEST}
    rows = [
        {"name": f"lr-{number}", "configuration": number, "parameters": {"learningRate": rate}, "seed": 42, **result}
        for number, rate in enumerate((1e-4, 3e-4), start=1)
    ]
    trials = [{**row, "value": float(row["configuration"])} for row in rows]
    status = {"phase": "Running", "reason": reason, "conditions": [{**condition, **times}], "trials": trials}
    await world.call("PATCH", world.path("finetunesweeps", "lr", "status"), {"status": status})


async def test_sweep_with_two_leaders_creates_each_trial_once(world: NamespaceHarness, cluster: TrialCluster) -> None:
    await world.grant_role(build_lease_rules("other"), "other")
    cluster.losses = {"lr-1": 1.0, "lr-2": 2.0}
    async with _run(world, cluster), world.run_operator(lease_name="other"):
        await cluster.create_sweep(TWO)
        status = await cluster.wait_for_reason("Completed")
    assert (status["counts"]["complete"], await _list_trials(world)) == (2, ["lr-1", "lr-2"])
    assert cluster.started == ["lr-1", "lr-2"]


async def test_sweep_whose_operator_is_killed_at_writes_makes_the_same_decisions(
    world: NamespaceHarness, cluster: TrialCluster
) -> None:
    cluster.losses = {"lr-1": 2.0, "lr-2": 1.0}
    async with cluster.act():
        await cluster.create_sweep({**TWO, "halving": {"atSteps": [100]}})
        writes = await _run_until_completed(world, cluster)
    status = await cluster.get_status()
    assert {row["name"]: row.get("cutAtStep") for row in status["trials"]} == {"lr-1": 100, "lr-2": None}
    assert (status["counts"]["complete"], status["best"]["name"]) == (1, "lr-2")
    assert writes == KILLING_WRITES
    assert await _list_trials(world) == ["lr-1", "lr-2"]


async def _run_until_completed(world: NamespaceHarness, cluster: TrialCluster) -> set[str]:
    """Run operators, each of which is killed at another one of `KILLING_WRITES`. Return those that happened."""
    writes = set[str]()

    async def kill_at_write(request: web.Request) -> None:
        """Runs in the proxy's thread. The write is executed, but the operator does not get the response."""
        write = await _describe_write(request)
        if write in KILLING_WRITES - writes:
            writes.add(write)
            world.proxy.killed.set()

    world.proxy.interceptor = kill_at_write
    while not await _is_completed(cluster):
        async with world.run_operator():
            while not (world.proxy.killed.is_set() or await _is_completed(cluster)):
                await asyncio.sleep(0.02)
        world.proxy.killed.clear()
    return writes


async def _is_completed(cluster: TrialCluster) -> bool:
    return (await cluster.get_status()).get("reason") == "Completed"


async def _describe_write(request: web.Request) -> str:
    """Return what is written about the sweep, or nothing for other requests."""
    is_sweep = "/finetunesweeps/" in request.path
    is_trial = "/finetunejobs" in request.path and not request.path.endswith("/status")
    if request.method == "GET" or "dryRun" in request.query or not (is_sweep or is_trial):
        return ""
    body = await request.json()
    if is_trial:
        return f"{request.method} {body['metadata'].get('name') or sorted(body['spec'])}"
    is_cut = any("cutAtStep" in row for row in body["status"].get("trials", []))
    return f"status {body['status'].get('reason') or ('cut' if is_cut else 'rows')}"
