"""Metrics say what happened, cost little, and are written down."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.operator.api_server import free_port
from tests.operator.exposed import families

from finetune_operator.api import Condition, FineTuneJobStatus, Metadata, Phase
from finetune_operator.controller import state_collector
from finetune_operator.kube.cache import Store
from finetune_operator.kube.transport import verb_and_resource
from finetune_operator.manager import Operator
from finetune_operator.telemetry import counters

if TYPE_CHECKING:
    from tests.operator.bodies import Build
    from tests.operator.world import World

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "operations" / "observability.md"
RUNNING = {"running": {"startedAt": "2026-11-23T08:00:05Z"}}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def value(name: str, **labels: str) -> float:
    return counters.REGISTRY.get_sample_value(name, labels) or 0.0


def test_the_guide_lists_what_is_exposed() -> None:
    section = GUIDE.read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in section.splitlines()]
    listed = {row[0]: (row[1], set(row[2].replace("`", "").replace(" ", "").split(",")) - {""})
              for row in rows if row[0].startswith("finetune_")}  # fmt: skip
    assert listed == {name: each for name, each in families().items() if name.startswith("finetune_")}
    assert all(f"`{name}`" in section for name in families())


UNITS = ("_total", "_seconds", "_bytes", "_ratio", "_info", "_fds")
BARE = {  # counts of things, which have no unit
    "finetune_jobs", "finetune_gpus", "finetune_job_step", "finetune_job_steps", "finetune_job_loss",
    "finetune_job_eval_loss", "finetune_job_tokens_per_second", "finetune_running_jobs_omitted",
    "finetune_operator_leader", "finetune_operator_queue_depth", "finetune_operator_stored_objects",
    "finetune_operator_namespace_readable",
}  # fmt: skip


def test_names_end_with_their_unit() -> None:
    """https://prometheus.io/docs/practices/naming/"""
    assert {name for name in families() if not name.endswith(UNITS)} <= BARE
    assert all(name.endswith("_total") == (kind == "counter") for name, (kind, _) in families().items())


def _status(phase: Phase, kind: str, reason: str, **more: Any) -> FineTuneJobStatus:
    true = Condition(type=kind, status="True", last_transition_time="2026-11-23T08:00:00Z", reason=reason)
    return FineTuneJobStatus(phase=phase, conditions=[true], **more)


def test_a_life_is_counted_once() -> None:
    meta = Metadata(name="bot", namespace="counted", uid="u", creation_timestamp="2026-11-23T08:00:00Z")
    steps = [
        FineTuneJobStatus(),
        _status(Phase.RUNNING, "Running", "PodRunning", attempts=1, start_time="2026-11-23T08:02:00Z"),
        _status(Phase.RUNNING, "Running", "PodRunning", attempts=2, interruptions=1, gpu_seconds=80,
                start_time="2026-11-23T08:02:00Z"),
        _status(Phase.COMPLETE, "Complete", "Completed", attempts=2, gpu_seconds=200, active_seconds=50,
                start_time="2026-11-23T08:02:00Z"),
    ]  # fmt: skip
    waited, ran = value("finetune_job_queue_duration_seconds_sum"), _ran()
    for old, new in zip(steps, [*steps[1:], steps[-1]], strict=True):
        counters.count(meta, old, new)
    assert value("finetune_job_attempts_total", namespace="counted") == 2
    assert value("finetune_job_interruptions_total", namespace="counted") == 1
    assert value("finetune_job_gpu_seconds_total", namespace="counted") == 200
    ended = {"namespace": "counted", "phase": "Complete", "reason": "Completed"}
    assert value("finetune_jobs_finished_total", **ended) == 1
    assert value("finetune_job_queue_duration_seconds_sum") - waited == 120
    assert _ran() - ran == 50


def _ran() -> float:
    return value("finetune_job_run_duration_seconds_sum", phase="Complete")


def _filled(build: type[Build], count: int) -> Store:
    store = Store()
    for number in range(count):
        body = build.stored(f"bot-{number:05}", uid=f"u{number}")
        running = {"type": "Running", "status": "True", "reason": "PodRunning"}
        body["status"] = {"phase": "Running", "conditions": [running], "progress": {"percentage": 40, "loss": 1.5}}
        store.finetunejobs.put(("team", body["metadata"]["name"]), body)
    return store


def test_jobs_beyond_the_limit_are_counted_not_shown(build: type[Build]) -> None:
    found = {each.name: each for each in state_collector.job_gauges(_filled(build, 12), 10)}
    shown = [each.labels["name"] for each in found["finetune_job_loss"].samples]
    assert shown == [f"bot-{number:05}" for number in range(10)]
    assert found["finetune_running_jobs_omitted"].samples[0].value == 2
    (all_of_them,) = found["finetune_jobs"].samples
    assert (all_of_them.value, all_of_them.labels["reason"]) == (12, "PodRunning")


def test_what_is_not_known_is_absent_and_what_ended_is_gone(build: type[Build]) -> None:
    store = _filled(build, 1)
    body = build.stored("done", uid="d")
    body["status"] = {"phase": "Complete", "progress": {"percentage": 100, "loss": 1.0}}
    store.finetunejobs.put(("team", "done"), body)
    store.finetunejobs.put(("team", "new"), build.stored("new", uid="n"))
    found = {each.name: each for each in state_collector.job_gauges(store, 10)}
    assert found["finetune_job_eval_loss"].samples == []
    assert [each.labels["name"] for each in found["finetune_job_loss"].samples] == ["bot-00000"]
    phases = {each.labels["phase"]: each.value for each in found["finetune_jobs"].samples}
    assert phases == {"Running": 1, "Complete": 1, "Pending": 1}


def test_gpus_are_those_of_running_pods(build: type[Build]) -> None:
    store = Store()
    store.finetunejobs.put(("team", "bot"), build.stored(spec={"compute": {"nodes": 2, "gpusPerNode": 4}}))
    for name, state in (("bot-0", RUNNING), ("bot-1", RUNNING), ("bot-2", build.ended(1))):
        pod = build.pod(name, state, "Running")
        pod["metadata"]["labels"] = {"finetune.dev/job": "bot"}
        store.pods.put(("team", "bot"), pod)
    (gpus,) = next(each for each in state_collector.job_gauges(store, 10) if each.name == "finetune_gpus").samples
    assert (gpus.labels["namespace"], gpus.value) == ("team", 8)


def test_a_scrape_is_cheap(build: type[Build]) -> None:
    """Generously: it takes some 40 ms."""
    store = _filled(build, 5000)
    began = time.process_time()
    list(state_collector.job_gauges(store, 1000))
    assert time.process_time() - began < 0.5


REQUESTS = {
    "all of a kind": ("GET", "/apis/finetune.dev/v1alpha1/finetunejobs", ("list", "finetunejobs")),
    "one namespace's": ("GET", "/api/v1/namespaces/a/pods", ("list", "pods")),
    "one": ("GET", "/apis/batch/v1/namespaces/a/jobs/b", ("get", "jobs")),
    "a status": ("PATCH", "/apis/finetune.dev/v1alpha1/namespaces/a/finetunejobs/b/status",
                 ("patch", "finetunejobs/status")),
    "a new one": ("POST", "/api/v1/namespaces/a/events", ("create", "events")),
    "a whole one": ("PUT", "/apis/coordination.k8s.io/v1/namespaces/a/leases/b", ("update", "leases")),
}  # fmt: skip


@pytest.mark.parametrize(("method", "path", "expected"), REQUESTS.values(), ids=REQUESTS)
def test_requests_are_named_as_roles_name_them(method: str, path: str, expected: tuple[str, str]) -> None:
    assert verb_and_resource(method, path) == expected


async def _get(port: int, path: str = "/metrics") -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


async def _scrape(port: int) -> Samples:
    _, text = await _get(port)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples}  # fmt: skip


def _is(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


@pytest.mark.cluster
async def test_leader_and_standby_as_prometheus_sees_them(world: World) -> None:
    ports = {"one": free_port(), "other": free_port()}
    async with world.operator(metrics_port=ports["one"]) as one:
        await world.until(lambda: _leads(one.election.is_leader()))
        async with world.operator(metrics_port=ports["other"], health_port=(health := free_port())):
            await world.apply()
            await world.pod()
            await world.kubelet(RUNNING)
            await world.reason("PodRunning")
            leader, standby = await _scrape(ports["one"]), await _scrape(ports["other"])
            assert (await _get(health, "/readyz"))[0] == 200
            assert '"standby"' in (await _get(health, "/healthz"))[1]
    running = {"namespace": world.namespace, "phase": "Running", "reason": "PodRunning"}
    assert _is(leader, "finetune_operator_leader") == 1
    assert _is(leader, "finetune_jobs", **running) == 1
    assert _is(leader, "finetune_gpus", namespace=world.namespace) == 1
    assert _is(leader, "finetune_operator_api_requests_total", verb="create", resource="jobs", code="201")
    assert _is(standby, "finetune_operator_leader") == 0
    assert _is(standby, "finetune_operator_stored_objects", resource="finetunejobs") == 1
    assert not any(name == "finetune_jobs" for name, _ in standby)


async def _leads(leads: bool) -> bool:
    return leads


@pytest.mark.cluster
async def test_readiness_waits_for_the_first_list_and_for_the_lease(world: World) -> None:
    with pytest.raises(RuntimeError, match="first list"):
        Operator(world.settings).readiness()
    async with world.operator() as operator:
        await world.until(lambda: _leads(operator.election.is_leader()))
        assert operator.readiness()["role"] == "leader"
        operator.election.answered -= 3600
        with pytest.raises(RuntimeError, match="Lease"):
            operator.readiness()
