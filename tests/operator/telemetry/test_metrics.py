"""Metrics are correct, cheap and documented."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.support.operator.api_server import find_free_port
from tests.support.operator.builders import build_key
from tests.support.operator.exposed_metrics import list_metric_families

from finetune_operator.api import Condition, FineTuneJobStatus, ObjectMeta, Phase
from finetune_operator.controller.finetunejob import gauges, transition_metrics
from finetune_operator.kube.finetunejob_cache import FineTuneJobCache
from finetune_operator.kube.transport import parse_verb_and_resource
from finetune_operator.manager import Manager
from finetune_operator.telemetry import counters
from finetune_trainer.contract import CacheResult

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders
    from tests.support.operator.namespace_harness import NamespaceHarness

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "operations" / "observability.md"
RUNNING = {"running": {"startedAt": "2026-11-23T08:00:05Z"}}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def get_metric_value(name: str, **labels: str) -> float:
    return counters.REGISTRY.get_sample_value(name, labels) or 0.0


def test_metrics_guide_lists_every_exposed_metric() -> None:
    section = GUIDE.read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in section.splitlines()]
    listed = {row[0]: (row[1], set(row[2].replace("`", "").replace(" ", "").split(",")) - {""})
              for row in rows if row[0].startswith("finetune_")}  # fmt: skip
    exposed = {name: (metric.type, metric.labels) for name, metric in list_metric_families().items()}
    assert listed == {name: family for name, family in exposed.items() if name.startswith("finetune_")}
    assert all(f"`{name}`" in section for name in list_metric_families())


UNITS = ("_total", "_seconds", "_bytes", "_ratio", "_info", "_fds")
UNITLESS = {  # counts of things, which have no unit
    "finetune_jobs", "finetune_gpus", "finetune_job_step", "finetune_job_steps", "finetune_job_loss",
    "finetune_job_eval_loss", "finetune_job_tokens_per_second", "finetune_running_jobs_omitted",
    "finetune_operator_leader", "finetune_operator_queue_depth", "finetune_operator_stored_objects",
    "finetune_operator_namespace_readable", "finetune_unreadable_objects", "finetune_foreign_jobs",
    "finetune_profiles_invalid", "finetune_schedules", "finetune_schedule_champion_metric",
    "finetune_schedule_runs_since_promotion", "finetune_schedule_failed_runs", "finetune_schedule_task_failed",
    "finetune_schedules_omitted", "finetune_sweeps", "finetune_sweep_trials", "finetune_sweeps_omitted",
}  # fmt: skip


def test_metrics_names_end_with_unit() -> None:
    """https://prometheus.io/docs/practices/naming/"""
    assert {name for name in list_metric_families() if not name.endswith(UNITS)} <= UNITLESS
    assert all(name.endswith("_total") == (metric.type == "counter") for name, metric in list_metric_families().items())


def _build_status(phase: Phase, kind: str, reason: str, **fields: Any) -> FineTuneJobStatus:
    true = Condition(type=kind, status="True", last_transition_time="2026-11-23T08:00:00Z", reason=reason)
    return FineTuneJobStatus(phase=phase, conditions=[true], **fields)


def test_counters_full_lifecycle_is_counted_once() -> None:
    meta = ObjectMeta(name="bot", namespace="counted", uid="u", creation_timestamp="2026-11-23T08:00:00Z")
    steps = [
        FineTuneJobStatus(),
        _build_status(Phase.RUNNING, "Running", "PodRunning", attempts=1, start_time="2026-11-23T08:02:00Z"),
        _build_status(Phase.RUNNING, "Running", "PodRunning", attempts=2, interruptions=1, gpu_seconds=80,
                start_time="2026-11-23T08:02:00Z"),
        _build_status(Phase.COMPLETE, "Complete", "Completed", attempts=2, gpu_seconds=200, active_seconds=50,
                model_cache=CacheResult.HIT, start_time="2026-11-23T08:02:00Z"),
    ]  # fmt: skip
    waited, run_seconds = get_metric_value("finetune_job_queue_duration_seconds_sum"), _get_run_duration_sum()
    for old, new in zip(steps, [*steps[1:], steps[-1]], strict=True):
        transition_metrics.count_status_change(meta, old, new)
    assert get_metric_value("finetune_job_attempts_total", namespace="counted") == 2
    assert get_metric_value("finetune_job_interruptions_total", namespace="counted") == 1
    assert get_metric_value("finetune_job_gpu_seconds_total", namespace="counted") == 200
    labels = {"namespace": "counted", "phase": "Complete", "reason": "Completed"}
    assert get_metric_value("finetune_jobs_finished_total", **labels) == 1
    assert get_metric_value("finetune_job_model_cache_results_total", namespace="counted", result="Hit") == 1
    assert get_metric_value("finetune_job_queue_duration_seconds_sum") - waited == 120
    assert _get_run_duration_sum() - run_seconds == 50


def test_counters_namespace_without_finetunejobs_is_removed_after_a_day() -> None:
    for namespace in ("used", "unused"):
        counters.ATTEMPTS.labels(namespace).inc()
        counters.JOBS_FINISHED.labels(namespace, "Failed", "DataInvalid").inc()
    for hour in range(0, 26):
        counters.remove_unused_namespaces({"used"}, 1e6 + hour * 3600)
        unused = get_metric_value("finetune_job_attempts_total", namespace="unused")
        assert unused == (1 if hour <= 24 else 0)
    assert get_metric_value("finetune_job_attempts_total", namespace="used") == 1
    remaining = {sample.labels.get("namespace") for family in counters.REGISTRY.collect() for sample in family.samples}
    assert "unused" not in remaining


def test_counters_cancelled_run_is_counted() -> None:
    meta = ObjectMeta(name="bot", namespace="cancelled", uid="u")
    running = _build_status(Phase.RUNNING, "Running", "Cancelling", attempts=1)
    transition_metrics.count_status_change(
        meta, running, _build_status(Phase.CANCELLED, "Cancelled", "Cancelled", attempts=1)
    )
    labels = {"namespace": "cancelled", "phase": "Cancelled", "reason": "Cancelled"}
    assert get_metric_value("finetune_jobs_finished_total", **labels) == 1


def _get_run_duration_sum() -> float:
    return get_metric_value("finetune_job_run_duration_seconds_sum", phase="Complete")


def _build_cache(build: type[Builders], count: int) -> FineTuneJobCache:
    cache = FineTuneJobCache()
    for number in range(count):
        body = build.finetunejob(f"bot-{number:05}", uid=f"u{number}")
        running = {"type": "Running", "status": "True", "reason": "PodRunning"}
        body["status"] = {"phase": "Running", "conditions": [running], "progress": {"percentage": 40, "loss": 1.5}}
        cache.finetunejobs.update(build_key(body["metadata"]["name"]), body)
    return cache


def test_collector_jobs_beyond_limit_are_counted_not_shown(build: type[Builders]) -> None:
    metric_families = {family.name: family for family in gauges.collect_job_gauges(_build_cache(build, 12), 10)}
    shown_names = [sample.labels["name"] for sample in metric_families["finetune_job_loss"].samples]
    assert shown_names == [f"bot-{number:05}" for number in range(10)]
    assert metric_families["finetune_running_jobs_omitted"].samples[0].value == 2
    (job_count,) = metric_families["finetune_jobs"].samples
    assert (job_count.value, job_count.labels["reason"]) == (12, "PodRunning")


def test_collector_unknown_values_and_ended_jobs_are_absent(build: type[Builders]) -> None:
    cache = _build_cache(build, 1)
    body = build.finetunejob("done", uid="d")
    body["status"] = {"phase": "Complete", "progress": {"percentage": 100, "loss": 1.0}}
    cache.finetunejobs.update(build_key("done"), body)
    cache.finetunejobs.update(build_key("new"), build.finetunejob("new", uid="n"))
    metric_families = {family.name: family for family in gauges.collect_job_gauges(cache, 10)}
    assert metric_families["finetune_job_eval_loss"].samples == []
    assert [sample.labels["name"] for sample in metric_families["finetune_job_loss"].samples] == ["bot-00000"]
    phases = {sample.labels["phase"]: sample.value for sample in metric_families["finetune_jobs"].samples}
    assert phases == {"Running": 1, "Complete": 1, "Pending": 1}


def test_collector_gpus_count_running_pods_only(build: type[Builders]) -> None:
    cache = FineTuneJobCache()
    cache.finetunejobs.update(build_key(), build.finetunejob(spec={"compute": {"nodes": 2, "gpusPerNode": 4}}))
    for name, state in (("bot-0", RUNNING), ("bot-1", RUNNING), ("bot-2", build.terminated(1))):
        pod = build.pod(name, state, "Running")
        pod["metadata"]["labels"] = {"finetune.dev/job": "bot"}
        cache.pods.update(build_key(), pod)
    (gpus,) = next(family for family in gauges.collect_job_gauges(cache, 10) if family.name == "finetune_gpus").samples
    assert (gpus.labels["namespace"], gpus.value) == ("team", 8)


def test_collector_5000_jobs_scrape_takes_under_half_a_second(build: type[Builders]) -> None:
    """The limit is generous: a scrape takes about 40 ms."""
    cache = _build_cache(build, 5000)
    started = time.process_time()
    list(gauges.collect_job_gauges(cache, 1000))
    assert time.process_time() - started < 0.5


class RequestCase(NamedTuple):
    method: str
    path: str
    verb: str
    resource: str


REQUESTS = {
    "list in all namespaces": RequestCase("GET", "/apis/finetune.dev/v1alpha1/finetunejobs", "list", "finetunejobs"),
    "list in one namespace": RequestCase("GET", "/api/v1/namespaces/a/pods", "list", "pods"),
    "get": RequestCase("GET", "/apis/batch/v1/namespaces/a/jobs/b", "get", "jobs"),
    "patch of a status": RequestCase(
        "PATCH", "/apis/finetune.dev/v1alpha1/namespaces/a/finetunejobs/b/status", "patch", "finetunejobs/status"
    ),
    "create": RequestCase("POST", "/api/v1/namespaces/a/events", "create", "events"),
    "update": RequestCase("PUT", "/apis/coordination.k8s.io/v1/namespaces/a/leases/b", "update", "leases"),
}


@pytest.mark.parametrize("case", REQUESTS.values(), ids=REQUESTS)
def test_verb_and_resource_match_rbac_names(case: RequestCase) -> None:
    assert parse_verb_and_resource(case.method, case.path) == (case.verb, case.resource)


async def _http_get(port: int, path: str = "/metrics") -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}{path}") as response:
        return response.status, await response.text()


async def _scrape(port: int) -> Samples:
    _, text = await _http_get(port)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples}  # fmt: skip


def _sample_value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, tuple(sorted(labels.items()))))


@pytest.mark.cluster
async def test_metrics_leader_and_standby_expose_their_roles(world: NamespaceHarness) -> None:
    ports = {"one": find_free_port(), "other": find_free_port()}
    async with world.run_operator(metrics_port=ports["one"]) as leader_operator:
        await world.wait_until(lambda: _as_awaitable(leader_operator.leader_elector.is_leader()))
        async with world.run_operator(metrics_port=ports["other"], health_port=(health := find_free_port())):
            await world.create_finetunejob()
            await world.create_pod()
            await world.report_container_state(RUNNING)
            await world.wait_for_reason("PodRunning")
            leader, standby = await _scrape(ports["one"]), await _scrape(ports["other"])
            assert (await _http_get(health, "/readyz"))[0] == 200
            assert '"standby"' in (await _http_get(health, "/healthz"))[1]
    running = {"namespace": world.namespace, "phase": "Running", "reason": "PodRunning"}
    assert _sample_value(leader, "finetune_operator_leader") == 1
    assert _sample_value(leader, "finetune_jobs", **running) == 1
    assert _sample_value(leader, "finetune_gpus", namespace=world.namespace) == 1
    assert _sample_value(leader, "finetune_operator_api_requests_total", verb="create", resource="jobs", code="201")
    assert _sample_value(standby, "finetune_operator_leader") == 0
    assert _sample_value(standby, "finetune_operator_stored_objects", resource="finetunejobs") == 1
    assert not any(name == "finetune_jobs" for name, _ in standby)


async def _as_awaitable(leads: bool) -> bool:
    return leads


@pytest.mark.cluster
async def test_readiness_requires_first_list_and_lease(world: NamespaceHarness) -> None:
    with pytest.raises(RuntimeError, match="first list"):
        Manager(world.settings).check_readiness()
    async with world.run_operator() as operator:
        await world.wait_until(lambda: _as_awaitable(operator.leader_elector.is_leader()))
        assert operator.check_readiness()["role"] == "leader"
        operator.leader_elector.last_contact -= 3600
        with pytest.raises(RuntimeError, match="Lease"):
            operator.check_readiness()
