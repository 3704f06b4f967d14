"""Tests of queued runs with real trainers. In CI the test acts as Kueue; `make test-kueue` runs the real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.cluster.cluster_harness import ClusterHarness, find_condition, open_cluster_harness

from local_cluster import kueue, paths, tools
from local_cluster.errors import UserError

if TYPE_CHECKING:
    from local_cluster.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

Manifest = dict[str, Any]
LABELS = {"kueue.x-k8s.io/queue-name": "team"}
URGENT = {**LABELS, "kueue.x-k8s.io/priority-class": "urgent"}
POOL = {"finetune.dev/pool": "spot"}
TOLERATION = {"key": "spot", "operator": "Exists", "effect": "NoSchedule"}
SYSTEM = ("--namespace", "finetune-system")
_RESUMED_PATTERN = re.compile(r"checkpoint: resuming from step (\d+)")


@pytest.fixture
def flow(cluster: Cluster, operator: str, tiny_model: Path) -> Iterator[ClusterHarness]:
    """A namespace with data, a base model and keys."""
    assert operator
    with open_cluster_harness(cluster, tiny_model) as harness:
        yield harness


def _start_run(flow: ClusterHarness, name: str, steps: int, labels: Manifest = LABELS, **spec: Any) -> None:
    manifest = json.loads(flow.build_manifest(name, steps=steps))
    manifest["metadata"]["labels"] = labels
    manifest["spec"]["training"]["checkpoints"] = {"everySteps": 20}
    flow.create_object(json.dumps({**manifest, "spec": {**manifest["spec"], **spec}}))


def _patch_job(flow: ClusterHarness, name: str, change: Manifest, *flags: str) -> None:
    flow.kubectl("patch", "job", name, "--type=merge", "--patch", json.dumps(change), *flags)


def _wait_for_checkpoint(flow: ClusterHarness, name: str) -> Manifest:
    return flow.wait_for(name, lambda status: status.get("lastCheckpointStep", 0) >= 20)


def _wait_until_queued(flow: ClusterHarness, name: str, words: str) -> str:
    """Why it waits."""

    def is_queued(status: Manifest) -> bool:
        running = find_condition(status, "Running") if status.get("conditions") else {}
        return running.get("reason") == "Queued" and words in running["message"]

    message: str = find_condition(flow.wait_for(name, is_queued), "Running")["message"]
    print(f"{name}: {message}")
    return message


def _wait_until_resumed(flow: ClusterHarness, name: str, step: int) -> None:
    """Wait until another attempt logs that it resumed from that step or a later one."""

    def has_resumed(_: Manifest) -> bool:
        with suppress(UserError):  # its container is being created
            match = _RESUMED_PATTERN.search(flow.kubectl("logs", f"--selector=finetune.dev/job={name}", "--tail=-1"))
            return bool(match and int(match[1]) >= step)
        return False

    flow.wait_for(name, has_resumed)


@contextmanager
def _record_exit_codes(cluster: Cluster, flow: ClusterHarness) -> Iterator[dict[str, int]]:
    """Watch and yield the exit codes of pods by name, because Kueue deletes the pods that it stops."""
    codes: dict[str, int] = {}
    command = [tools.find_program("kubectl"), "--namespace", flow.namespace, "get", "pods", "--watch", "--output=json"]
    environment = {**os.environ, **cluster.build_environment()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        reader = threading.Thread(target=_read_exit_codes, args=(process, codes))
        reader.start()
        yield codes
        process.terminate()
        reader.join()


def _read_exit_codes(process: subprocess.Popen[str], codes: dict[str, int]) -> None:
    assert process.stdout
    text = ""
    for line in process.stdout:
        text += line
        if line.rstrip() == "}":
            pod, text = json.loads(text), ""
            for container_status in pod["status"].get("containerStatuses", []):
                if "terminated" in container_status["state"]:
                    codes[pod["metadata"]["name"]] = container_status["state"]["terminated"]["exitCode"]


def test_job_suspended_by_queue_resumes_without_using_attempt(cluster: Cluster, flow: ClusterHarness) -> None:
    """The run has a single attempt, so it would fail if the stop counted as one. The test acts as Kueue."""
    _start_run(flow, "bot", 400, backoffLimit=0)
    saved = _wait_for_checkpoint(flow, "bot")
    with _record_exit_codes(cluster, flow) as codes:
        _patch_job(flow, "bot", {"spec": {"suspend": True}})
        _wait_until_queued(flow, "bot", "until quota is available")
        flow.wait_for("bot", lambda _: not flow.get_object("job", "bot")["status"].get("active"))
    assert set(codes.values()) == {143}
    _patch_job(flow, "bot", {"status": {"startTime": None}}, "--subresource=status")
    template = {"metadata": {"labels": {"queue": "x"}}, "spec": {"tolerations": [TOLERATION]}}
    _patch_job(flow, "bot", {"spec": {"suspend": False, "template": template}})
    _wait_until_resumed(flow, "bot", saved["lastCheckpointStep"])
    status = flow.wait_until_finished("bot")
    assert find_condition(status, "Complete")["reason"] == "Completed", status
    job = flow.get_object("job", "bot")
    assert (status["attempts"], job["status"].get("failed", 0)) == (2, 0)
    assert job["spec"]["template"]["spec"]["tolerations"] == [TOLERATION]
    flow.kubectl("delete", "ftj", "bot")
    flow.wait_until_deleted("bot")


# --- the real Kueue -------------------------------------------------------------------------------------------------


@pytest.fixture
def queue(cluster: Cluster, operator: str, flow: ClusterHarness) -> None:
    """A queue in which one run at a time has room, and which prefers the urgent ones."""
    kueue.install_kueue(cluster)
    chart = str(paths.REPOSITORY / "charts" / "finetune-operator")
    cluster.helm("upgrade", operator, chart, *SYSTEM, "--reuse-values", "--set", "kueue.enabled=true")
    node = cluster.kubectl("get", "nodes", "--output=name").strip()
    cluster.kubectl("label", "--overwrite", node, *(f"{key}={value}" for key, value in POOL.items()))
    name = flow.namespace
    quota = [{"name": "cpu", "nominalQuota": "80m"}, {"name": "memory", "nominalQuota": "8Gi"}]
    group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": name, "resources": quota}]}
    cluster_queue = {
        "namespaceSelector": {}, "resourceGroups": [group], "preemption": {"withinClusterQueue": "LowerPriority"},
    }  # fmt: skip
    flavor = {"nodeLabels": POOL, "tolerations": [TOLERATION]}
    for body in (
        {"kind": "ResourceFlavor", "metadata": {"name": name}, "spec": flavor},
        {"kind": "ClusterQueue", "metadata": {"name": name}, "spec": cluster_queue},
        {"kind": "LocalQueue", "metadata": {"name": "team"}, "spec": {"clusterQueue": name}},
        {"kind": "WorkloadPriorityClass", "metadata": {"name": "urgent"}, "value": 1000},
    ):
        _apply(flow, json.dumps({"apiVersion": "kueue.x-k8s.io/v1beta2", **body}))


def _apply(flow: ClusterHarness, body: str) -> None:
    """Kueue's Deployment is ready some time before its webhooks answer."""
    deadline = time.monotonic() + 90
    while True:
        try:
            flow.kubectl("apply", "--filename=-", stdin=body)
        except UserError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
        else:
            return


@pytest.mark.kueue
@pytest.mark.usefixtures("queue")
def test_kueue_run_preempted_and_readmitted_completes(cluster: Cluster, operator: str, flow: ClusterHarness) -> None:
    _start_run(
        flow, "first", 2000, backoffLimit=0, activeDeadlineSeconds=3600
    )  # longer than the operator's restart takes
    saved = _wait_for_checkpoint(flow, "first")
    _start_run(flow, "second", 4)
    assert _wait_until_queued(flow, "second", "insufficient unused quota for cpu").startswith("Kueue holds the Job. ")
    admitted = flow.get_object("job", "first")["spec"]
    assert admitted["template"]["spec"]["nodeSelector"] == POOL
    assert admitted["activeDeadlineSeconds"]
    cluster.kubectl(*SYSTEM, "rollout", "restart", f"deployment/{operator}")
    cluster.kubectl(*SYSTEM, "rollout", "status", f"deployment/{operator}")

    with _record_exit_codes(cluster, flow) as codes:
        _start_run(flow, "urgent", 4, URGENT)
        _wait_until_queued(flow, "first", "Kueue holds the Job. Preempted: Preempted to accommodate")
        assert "nodeSelector" not in flow.get_object("job", "first")["spec"]["template"]["spec"]
        _wait_until_queued(flow, "second", "insufficient unused quota")
        urgent = flow.wait_until_finished("urgent")
    assert find_condition(urgent, "Complete")["reason"] == "Completed"
    print(f"exit codes: {codes}")
    assert {code for pod, code in codes.items() if pod.startswith("first-")} == {143}

    _wait_until_resumed(flow, "first", saved["lastCheckpointStep"])
    status = flow.wait_until_finished("first")
    assert find_condition(status, "Complete")["reason"] == "Completed", status
    job = flow.get_object("job", "first")
    assert (status["attempts"], job["status"].get("failed", 0)) == (2, 0)
    assert job["spec"]["template"]["spec"]["nodeSelector"] == POOL
    second = flow.wait_until_finished("second")
    assert find_condition(second, "Complete")["reason"] == "Completed"
    assert urgent["completionTime"] <= status["completionTime"] <= second["startTime"]
    flow.kubectl("delete", "ftj", "first", "second", "urgent")
    for name in ("first", "second", "urgent"):
        flow.wait_until_deleted(name)
    flow.kubectl("wait", "--for=delete", "workloads", "--all", "--timeout=60s")
