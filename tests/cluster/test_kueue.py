"""Queued runs with real trainers. In CI the test does to a Job what Kueue does; `make test-kueue` has the real one."""

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
from tests.cluster.flows import Flow, condition, new_flow

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
_TAKEN_UP = re.compile(r"checkpoint: going on from step (\d+)")


@pytest.fixture
def flow(cluster: Cluster, operator: str, tiny_model: Path) -> Iterator[Flow]:
    """A namespace with data, a base model and keys."""
    assert operator
    with new_flow(cluster, tiny_model) as made:
        yield made


def _start(flow: Flow, name: str, steps: int, labels: Manifest = LABELS, **spec: Any) -> None:
    manifest = json.loads(flow.manifest(name, steps=steps))
    manifest["metadata"]["labels"] = labels
    manifest["spec"]["training"]["checkpoints"] = {"everySteps": 20}
    flow.create(json.dumps({**manifest, "spec": {**manifest["spec"], **spec}}))


def _patch(flow: Flow, name: str, change: Manifest, *more: str) -> None:
    flow.kubectl("patch", "job", name, "--type=merge", "--patch", json.dumps(change), *more)


def _saved(flow: Flow, name: str) -> Manifest:
    return flow.wait(name, lambda status: status.get("lastCheckpointStep", 0) >= 20)


def _queued(flow: Flow, name: str, words: str) -> str:
    """Why it waits."""

    def told(status: Manifest) -> bool:
        running = condition(status, "Running") if status.get("conditions") else {}
        return running.get("reason") == "Queued" and words in running["message"]

    message: str = condition(flow.wait(name, told), "Running")["message"]
    print(f"{name}: {message}")
    return message


def _goes_on(flow: Flow, name: str, step: int) -> None:
    """Wait until another attempt says that it took up the checkpoint of that step, or a later one."""

    def said(_: Manifest) -> bool:
        with suppress(UserError):  # its container is being created
            found = _TAKEN_UP.search(flow.kubectl("logs", f"--selector=finetune.dev/job={name}", "--tail=-1"))
            return bool(found and int(found[1]) >= step)
        return False

    flow.wait(name, said)


@contextmanager
def _exit_codes(cluster: Cluster, flow: Flow) -> Iterator[dict[str, int]]:
    """How pods ended while the block ran, by name: those that Kueue stops are gone too soon to be asked."""
    codes: dict[str, int] = {}
    command = [tools.find_program("kubectl"), "--namespace", flow.namespace, "get", "pods", "--watch", "--output=json"]
    environment = {**os.environ, **cluster.build_environment()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        reader = threading.Thread(target=_read_codes, args=(process, codes))
        reader.start()
        yield codes
        process.terminate()
        reader.join()


def _read_codes(process: subprocess.Popen[str], codes: dict[str, int]) -> None:
    assert process.stdout
    text = ""
    for line in process.stdout:
        text += line
        if line.rstrip() == "}":
            pod, text = json.loads(text), ""
            for each in pod["status"].get("containerStatuses", []):
                if "terminated" in each["state"]:
                    codes[pod["metadata"]["name"]] = each["state"]["terminated"]["exitCode"]


def test_a_job_that_its_queue_stops_goes_on_without_using_an_attempt(cluster: Cluster, flow: Flow) -> None:
    """With no attempt to spare: had the stop counted, the run would have failed."""
    _start(flow, "bot", 400, {}, backoffLimit=0)
    saved = _saved(flow, "bot")
    with _exit_codes(cluster, flow) as codes:
        _patch(flow, "bot", {"spec": {"suspend": True}})
        _queued(flow, "bot", "suspended")
        flow.wait("bot", lambda _: not flow.get("job", "bot")["status"].get("active"))
    assert set(codes.values()) == {143}
    _patch(flow, "bot", {"status": {"startTime": None}}, "--subresource=status")
    template = {"metadata": {"labels": {"queue": "x"}}, "spec": {"tolerations": [TOLERATION]}}
    _patch(flow, "bot", {"spec": {"suspend": False, "template": template}})
    _goes_on(flow, "bot", saved["lastCheckpointStep"])
    status = flow.ended("bot")
    assert condition(status, "Complete")["reason"] == "Completed", status
    job = flow.get("job", "bot")
    assert (status["attempts"], job["status"].get("failed", 0)) == (2, 0)
    assert job["spec"]["template"]["spec"]["tolerations"] == [TOLERATION]
    flow.kubectl("delete", "ftj", "bot")
    flow.gone("bot")


# --- the real Kueue -------------------------------------------------------------------------------------------------


@pytest.fixture
def queue(cluster: Cluster, operator: str, flow: Flow) -> None:
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


def _apply(flow: Flow, body: str) -> None:
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
def test_queue_preemption_and_return(cluster: Cluster, operator: str, flow: Flow) -> None:
    _start(flow, "first", 2000, backoffLimit=0, activeDeadlineSeconds=3600)  # longer than the operator's restart takes
    saved = _saved(flow, "first")
    _start(flow, "second", 4)
    assert _queued(flow, "second", "insufficient unused quota for cpu").startswith("Kueue holds the Job. ")
    admitted = flow.get("job", "first")["spec"]
    assert admitted["template"]["spec"]["nodeSelector"] == POOL
    assert admitted["activeDeadlineSeconds"]
    cluster.kubectl(*SYSTEM, "rollout", "restart", f"deployment/{operator}")
    cluster.kubectl(*SYSTEM, "rollout", "status", f"deployment/{operator}")

    with _exit_codes(cluster, flow) as codes:
        _start(flow, "urgent", 4, URGENT)
        _queued(flow, "first", "Kueue holds the Job. Preempted: Preempted to accommodate")
        assert "nodeSelector" not in flow.get("job", "first")["spec"]["template"]["spec"]
        _queued(flow, "second", "insufficient unused quota")
        urgent = flow.ended("urgent")
    assert condition(urgent, "Complete")["reason"] == "Completed"
    print(f"exit codes: {codes}")
    assert {code for pod, code in codes.items() if pod.startswith("first-")} == {143}

    _goes_on(flow, "first", saved["lastCheckpointStep"])
    status = flow.ended("first")
    assert condition(status, "Complete")["reason"] == "Completed", status
    job = flow.get("job", "first")
    assert (status["attempts"], job["status"].get("failed", 0)) == (2, 0)
    assert job["spec"]["template"]["spec"]["nodeSelector"] == POOL
    second = flow.ended("second")
    assert condition(second, "Complete")["reason"] == "Completed"
    assert urgent["completionTime"] <= status["completionTime"] <= second["startTime"]
    flow.kubectl("delete", "ftj", "first", "second", "urgent")
    for name in ("first", "second", "urgent"):
        flow.gone(name)
    flow.kubectl("wait", "--for=delete", "workloads", "--all", "--timeout=60s")
