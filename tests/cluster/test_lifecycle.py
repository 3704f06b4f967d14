"""Runs that are stopped, taken away, too slow or too large, with real pods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from tests.support.cluster.cluster_harness import ClusterHarness, find_condition, open_cluster_harness

if TYPE_CHECKING:
    from local_cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

Manifest = dict[str, Any]
LONG_TRAINING = {"maxSteps": 400, "checkpoints": {"everySteps": 10}}  # long enough to be caught in the middle
SPECS: dict[str, Manifest] = {  # all start at once
    "endless": {"training": {"maxSteps": 1_000_000}, "activeDeadlineSeconds": 60},
    "nowhere": {"startupDeadlineSeconds": 5, "compute": {"nodeSelector": {"finetune.dev/nowhere": "true"}}},
    "greedy": {"compute": {"resources": {"limits": {"memory": "256Mi"}}}, "backoffLimit": 0},
    "forgotten": {"ttlSecondsAfterFinished": 1},
}


class StartupProblem(NamedTuple):
    """A change of a spec that keeps the pod from starting, and the condition that reports it."""

    changes: Manifest
    reason: str
    message_part: str


_TOO_MUCH_MEMORY = {"requests": {"memory": "900Gi"}, "limits": {"memory": "900Gi"}}
STARTUP_PROBLEMS = {
    "no-image": StartupProblem(
        {"compute": {"image": "registry.invalid/trainer:1"}}, "ImagePullFailed", "registry.invalid/trainer:1"
    ),
    "no-claim": StartupProblem(
        {"model": {"uri": "pvc://no-such-claim/base"}}, "ClaimNotFound", "no-such-claim (spec.model.uri) does not exist"
    ),
    "no-quota": StartupProblem({"compute": {"resources": _TOO_MUCH_MEMORY}}, "JobRefused", "exceeded quota"),
    "no-node": StartupProblem(
        {"compute": {"nodeSelector": {"finetune.dev/nowhere": "true"}}}, "Unschedulable", "node(s) didn't match"
    ),
}
MAX_SECONDS = 60
"""Limit on the time until the event. It allows for a kubelet that tries to pull an image on a busy machine."""


def _merge(base: Manifest, changes: Manifest) -> Manifest:
    merged_values = {
        key: _merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in changes.items()
    }
    return {**base, **merged_values}


@pytest.fixture(scope="module")
def flow(cluster: Cluster, operator: str, tiny_model: Path) -> Iterator[ClusterHarness]:
    """Yield the harness after starting all runs."""
    assert operator
    with open_cluster_harness(cluster, tiny_model) as started:
        hard = {"hard": {"requests.memory": "800Gi"}}
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "memory"}, "spec": hard}
        started.create_object(json.dumps(quota))
        for name, changes in SPECS.items():
            _start_run(started, name, changes)
        for name, problem in STARTUP_PROBLEMS.items():
            _start_run(started, name, problem.changes)
        yield started


def _start_run(flow: ClusterHarness, name: str, changes: Manifest) -> None:
    manifest = json.loads(flow.build_manifest(name))
    flow.create_object(json.dumps({**manifest, "spec": _merge(manifest["spec"], changes)}))


def _get_reason(status: Manifest, condition_type: str) -> str:
    return str(find_condition(status, condition_type).get("reason"))


@pytest.mark.parametrize("name", STARTUP_PROBLEMS)
def test_run_pod_cannot_start_sets_reason_within_a_minute(flow: ClusterHarness, name: str) -> None:
    problem = STARTUP_PROBLEMS[name]
    status = flow.wait_for(
        name, lambda status: any(candidate["reason"] == problem.reason for candidate in status.get("conditions", []))
    )
    assert status["phase"] == "Pending"
    running = find_condition(status, "Running")
    assert problem.message_part in running["message"]
    selector = f"--field-selector=reason={problem.reason}"
    events = json.loads(flow.kubectl("get", "events", selector, "--output=json"))["items"]
    (timestamp,) = [event["lastTimestamp"] for event in events if event["involvedObject"]["name"] == name]
    created = flow.get_object("ftj", name)["metadata"]["creationTimestamp"]
    assert (datetime.fromisoformat(timestamp) - datetime.fromisoformat(created)).total_seconds() < MAX_SECONDS
    flow.kubectl("delete", "ftj", name, "--wait=false")


def test_run_unschedulable_fails_at_startup_deadline(flow: ClusterHarness) -> None:
    status = flow.wait_until_finished("nowhere")
    assert _get_reason(status, "Failed") == "StartupDeadlineExceeded"
    assert "node(s) didn't match" in find_condition(status, "Failed")["message"]
    assert "attempts" not in status
    flow.wait_until_deleted("nowhere")


def test_run_out_of_memory_fails_with_oom_killed(flow: ClusterHarness) -> None:
    status = flow.wait_until_finished("greedy")
    assert _get_reason(status, "Failed") == "OOMKilled", status
    assert "limits.memory" in find_condition(status, "Failed")["message"]


def test_run_suspended_resumes_from_checkpoint(flow: ClusterHarness) -> None:
    _start_run(flow, "suspended", {"training": LONG_TRAINING})
    flow.wait_for("suspended", lambda status: status.get("lastCheckpointStep", 0) >= 10)
    flow.kubectl("patch", "ftj", "suspended", "--type=merge", "--patch", '{"spec": {"suspend": true}}')
    flow.kubectl("wait", "--for=condition=Suspended", "ftj/suspended", "--timeout=120s")
    before = flow.get_status("suspended")
    assert (before["phase"], before["attempts"]) == ("Suspended", 1)
    assert before["activeSeconds"] > 0
    assert not flow.list_pods("suspended")
    change = {"spec": {"suspend": True, "compute": {"resources": {"limits": {"memory": "5Gi"}}}}}
    flow.kubectl("patch", "ftj", "suspended", "--type=merge", "--patch", json.dumps(change))
    flow.kubectl("patch", "ftj", "suspended", "--type=merge", "--patch", '{"spec": {"suspend": false}}')
    flow.wait_until_running("suspended")
    limits = flow.get_object("job", "suspended")["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["memory"] == "5Gi"
    status = flow.wait_until_finished("suspended")
    assert _get_reason(status, "Complete") == "Completed", status
    assert status["attempts"] == 2
    assert status["activeSeconds"] > before["activeSeconds"]
    log = flow.kubectl("logs", "job/suspended")
    assert f"resuming from step {before['lastCheckpointStep']}" in log


def test_run_evicted_resumes_without_using_retry(flow: ClusterHarness) -> None:
    _start_run(flow, "evicted", {"training": LONG_TRAINING, "backoffLimit": 0})
    before = flow.wait_for("evicted", lambda status: status.get("lastCheckpointStep", 0) >= 10)
    (pod,) = flow.list_pods("evicted")
    name = pod.removeprefix("pod/")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": flow.namespace}}
    path = f"/api/v1/namespaces/{flow.namespace}/pods/{name}/eviction"
    flow.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))
    status = flow.wait_until_finished("evicted")
    assert _get_reason(status, "Complete") == "Completed", status
    assert (status["attempts"], flow.get_object("job", "evicted")["status"].get("failed", 0)) == (2, 0)
    assert status["lastCheckpointStep"] >= before["lastCheckpointStep"]
    assert "resuming from step" in flow.kubectl("logs", flow.list_pods("evicted")[-1])


def test_run_active_deadline_exceeded_saves_and_fails(flow: ClusterHarness) -> None:
    status = flow.wait_until_finished("endless")
    assert _get_reason(status, "Failed") == "DeadlineExceeded", status
    assert 55 <= status["activeSeconds"] <= 60 + 30 + 10  # and at most its grace period
    assert "resumes from the latest checkpoint" in find_condition(status, "Failed")["message"]


def test_run_ttl_expired_is_deleted_and_keeps_output(flow: ClusterHarness) -> None:
    flow.kubectl("wait", "--for=delete", "ftj/forgotten", "--timeout=600s")
    flow.wait_until_deleted("forgotten")
    assert "manifest.json" in flow.list_keys("out/forgotten/")
