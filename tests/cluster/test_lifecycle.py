"""Runs that are stopped, taken away, too slow or too large, with real pods."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.cluster.flows import Flow, condition, new_flow

if TYPE_CHECKING:
    from local_cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

Manifest = dict[str, Any]
LONG = {"maxSteps": 400, "checkpoints": {"everySteps": 10}}  # long enough to be caught in the middle
SPECS: dict[str, Manifest] = {  # all start at once
    "endless": {"training": {"maxSteps": 1_000_000}, "activeDeadlineSeconds": 60},
    "nowhere": {"startupDeadlineSeconds": 5, "compute": {"nodeSelector": {"finetune.dev/nowhere": "true"}}},
    "greedy": {"compute": {"resources": {"limits": {"memory": "256Mi"}}}, "backoffLimit": 0},
    "forgotten": {"ttlSecondsAfterFinished": 1},
}

# What keeps a pod from starting, and the words by which the status says so.
WAITING: dict[str, tuple[Manifest, str, str]] = {
    "no-image": ({"compute": {"image": "registry.invalid/trainer:1"}}, "ImagePullFailed", "registry.invalid/trainer:1"),
    "no-claim": ({"model": {"uri": "pvc://no-such-claim/base"}}, "Unschedulable", '"no-such-claim" not found'),
    "no-quota": ({"compute": {"resources": {"requests": {"memory": "900Gi"}, "limits": {"memory": "900Gi"}}}},
                 "JobRefused", "exceeded quota"),
    "no-node": ({"compute": {"nodeSelector": {"finetune.dev/nowhere": "true"}}},
                "Unschedulable", "node(s) didn't match"),
}  # fmt: skip
SECONDS = 60
"""In which it says so: those of a kubelet that tries an image, on a machine that does much else."""


def _merged(base: Manifest, changes: Manifest) -> Manifest:
    both = {
        key: _merged(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
        for key, value in changes.items()
    }
    return {**base, **both}


@pytest.fixture(scope="module")
def flow(cluster: Cluster, operator: str, tiny_model: Path) -> Iterator[Flow]:
    """All runs, started."""
    assert operator
    with new_flow(cluster, tiny_model) as started:
        hard = {"hard": {"requests.memory": "800Gi"}}
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "memory"}, "spec": hard}
        started.create(json.dumps(quota))
        for name, changes in {**SPECS, **{name: changes for name, (changes, *_) in WAITING.items()}}.items():
            _start(started, name, changes)
        yield started


def _start(flow: Flow, name: str, changes: Manifest) -> None:
    manifest = json.loads(flow.manifest(name))
    flow.create(json.dumps({**manifest, "spec": _merged(manifest["spec"], changes)}))


def _reason(status: Manifest, kind: str) -> str:
    return str(condition(status, kind).get("reason"))


@pytest.mark.parametrize("name", WAITING)
def test_why_a_pod_does_not_start_is_told_within_seconds(flow: Flow, name: str) -> None:
    _, reason, words = WAITING[name]
    status = flow.wait(name, lambda status: any(each["reason"] == reason for each in status.get("conditions", [])))
    assert status["phase"] == "Pending"
    running = condition(status, "Running")
    assert words in running["message"]
    events = json.loads(flow.kubectl("get", "events", f"--field-selector=reason={reason}", "--output=json"))["items"]
    (told,) = [each["lastTimestamp"] for each in events if each["involvedObject"]["name"] == name]
    created = flow.get("ftj", name)["metadata"]["creationTimestamp"]
    assert (datetime.fromisoformat(told) - datetime.fromisoformat(created)).total_seconds() < SECONDS
    flow.kubectl("delete", "ftj", name, "--wait=false")


def test_a_pod_that_no_node_takes_ends_the_run_in_time(flow: Flow) -> None:
    status = flow.ended("nowhere")
    assert _reason(status, "Failed") == "StartupDeadlineExceeded"
    assert "node(s) didn't match" in condition(status, "Failed")["message"]
    assert "attempts" not in status
    flow.gone("nowhere")


def test_memory_over_the_limit_is_named(flow: Flow) -> None:
    status = flow.ended("greedy")
    assert _reason(status, "Failed") == "OOMKilled", status
    assert "limits.memory" in condition(status, "Failed")["message"]


def test_a_suspended_run_goes_on_where_it_was(flow: Flow) -> None:
    _start(flow, "suspended", {"training": LONG})
    flow.wait("suspended", lambda status: status.get("lastCheckpointStep", 0) >= 10)
    flow.kubectl("patch", "ftj", "suspended", "--type=merge", "--patch", '{"spec": {"suspend": true}}')
    flow.kubectl("wait", "--for=condition=Suspended", "ftj/suspended", "--timeout=120s")
    before = flow.status("suspended")
    assert (before["phase"], before["attempts"]) == ("Suspended", 1)
    assert before["activeSeconds"] > 0
    assert not flow.pods("suspended")
    more = {"spec": {"suspend": True, "compute": {"resources": {"limits": {"memory": "5Gi"}}}}}
    flow.kubectl("patch", "ftj", "suspended", "--type=merge", "--patch", json.dumps(more))
    flow.kubectl("patch", "ftj", "suspended", "--type=merge", "--patch", '{"spec": {"suspend": false}}')
    flow.running("suspended")
    limits = flow.get("job", "suspended")["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["memory"] == "5Gi"
    status = flow.ended("suspended")
    assert _reason(status, "Complete") == "Completed", status
    assert status["attempts"] == 2
    assert status["activeSeconds"] > before["activeSeconds"]
    log = flow.kubectl("logs", "job/suspended")
    assert f"going on from step {before['lastCheckpointStep']}" in log


def test_an_eviction_costs_no_retry_and_no_work(flow: Flow) -> None:
    _start(flow, "evicted", {"training": LONG, "backoffLimit": 0})
    before = flow.wait("evicted", lambda status: status.get("lastCheckpointStep", 0) >= 10)
    (pod,) = flow.pods("evicted")
    name = pod.removeprefix("pod/")
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": flow.namespace}}
    path = f"/api/v1/namespaces/{flow.namespace}/pods/{name}/eviction"
    flow.kubectl("create", f"--raw={path}", "--filename=-", stdin=json.dumps(eviction))
    status = flow.ended("evicted")
    assert _reason(status, "Complete") == "Completed", status
    assert (status["attempts"], flow.get("job", "evicted")["status"].get("failed", 0)) == (2, 0)
    assert status["lastCheckpointStep"] >= before["lastCheckpointStep"]
    assert "going on from step" in flow.kubectl("logs", flow.pods("evicted")[-1])


def test_a_run_that_takes_too_long_saves_and_ends(flow: Flow) -> None:
    status = flow.ended("endless")
    assert _reason(status, "Failed") == "DeadlineExceeded", status
    assert 55 <= status["activeSeconds"] <= 60 + 30 + 10  # and at most its grace period
    assert "goes on from the newest checkpoint" in condition(status, "Failed")["message"]


def test_a_finished_run_goes_when_its_time_has_come(flow: Flow) -> None:
    flow.kubectl("wait", "--for=delete", "ftj/forgotten", "--timeout=600s")
    flow.gone("forgotten")
    assert "manifest.json" in flow.keys("out/forgotten/")
