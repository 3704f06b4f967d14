"""Tests of the pods that `plan` and `chat` start, against a real API server. The tests act as the kubelet."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import V1Pod
from tests.support.cli.cluster import Body, ClusterNamespace
from tests.support.cli.command import SCRIPTS, CommandLine
from tests.support.operator.builders import build_manifest, merge_objects
from tests.support.operator.schedule_samples import build_result

from finetune_operator.api import FineTuneJob
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings

pytestmark = [pytest.mark.cluster]

SPEC: Body = {
    "storage": {"endpoint": "https://s3.example", "credentialsSecretRef": {"name": "keys"}},
    "model": {"uri": "pvc://models/base"},
    "compute": {"resources": {"limits": {"memory": "4Gi", "nvidia.com/gpu": "2"}}, "modelCacheClaimName": "cache"},
    "output": {"signing": {"keySecretRef": {"name": "signing"}}},
}


def write_manifest(folder: Path, namespace: ClusterNamespace, spec: Body | None = None) -> Path:
    import json

    path = folder / "job.yaml"
    path.write_text(json.dumps(build_manifest("bot", namespace.name, SPEC if spec is None else spec)))
    return path


def wait_for_pod(namespace: ClusterNamespace) -> V1Pod:
    deadline = time.monotonic() + 20
    while not (pods := namespace.core.list_namespaced_pod(namespace.name).items):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return pods[0]


def write_pod_status(namespace: ClusterNamespace, status: Body) -> threading.Thread:
    """Write the status of the next pod, as the kubelet does."""

    def write() -> None:
        pod = wait_for_pod(namespace)
        namespace.core.patch_namespaced_pod_status(pod.metadata.name, namespace.name, {"status": status})

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def build_waiting_status(reason: str, message: str) -> Body:
    state = {"waiting": {"reason": reason, "message": message}}
    base = {"name": "trainer", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    return {"phase": "Pending", "containerStatuses": [{**base, "state": state}]}


def test_plan_pod_that_cannot_pull_its_image_is_deleted(
    admin: CommandLine, namespace: ClusterNamespace, tmp_path: Path
) -> None:
    kubelet = write_pod_status(namespace, build_waiting_status("ImagePullBackOff", "no such image"))
    answer = admin("plan", write_manifest(tmp_path, namespace), "--pod", "--image", "registry/nope:1")
    kubelet.join()
    assert (answer.status, answer.stdout) == (1, "")
    assert answer.stderr.splitlines()[-1].endswith("cannot start: ImagePullBackOff: no such image")
    assert namespace.core.list_namespaced_pod(namespace.name).items == []


@pytest.mark.parametrize(("stop", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_plan_stopped_client_deletes_its_pod(
    namespace: ClusterNamespace, tmp_path: Path, stop: signal.Signals, status: int
) -> None:
    manifest = write_manifest(tmp_path, namespace)
    environment = {**os.environ, "KUBECONFIG": str(namespace.admin_kubeconfig)}
    command = [SCRIPTS / "finetune", "plan", manifest, "--pod", "--image", "trainer:1", "--check"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        pod = wait_for_pod(namespace)
        time.sleep(0.5)
        process.send_signal(stop)
        assert "Traceback" not in process.communicate()[1]
    assert process.returncode == status
    assert namespace.core.list_namespaced_pod(namespace.name).items == []
    container = pod.spec.containers[0]
    assert (container.args, container.resources.limits) == (["plan", "--check"], {"memory": "4Gi"})
    assert pod.spec.active_deadline_seconds > 0
    volumes = {volume.name for volume in pod.spec.volumes}
    assert volumes == {"scratch", "s3-credentials", "claim-0"}  # no signing key, and no cache of another node


def test_plan_image_and_defaults_are_those_of_the_newest_run(
    admin: CommandLine, namespace: ClusterNamespace, tmp_path: Path
) -> None:
    create_run_with_defaults(namespace)
    status = {"phase": "Failed", "reason": "Evicted"}
    seen: list[Any] = []
    kubelet = threading.Thread(target=lambda: seen.append(wait_for_pod(namespace)))
    kubelet.start()
    evicted = write_pod_status(namespace, status)
    answer = admin("plan", write_manifest(tmp_path, namespace, {}), "--pod")
    kubelet.join()
    evicted.join()
    assert answer.status == 1
    container = seen[0].spec.containers[0]
    manifest = next(variable.value for variable in container.env if variable.name == "FINETUNE_MANIFEST")
    assert container.image == "registry/trainer:7"
    assert "https://store.example" in manifest
    assert "s3-credentials" in {volume.name for volume in seen[0].spec.volumes}


def create_run_with_defaults(namespace: ClusterNamespace) -> None:
    """Create a FineTuneJob without storage, and its Job as the operator of an installation with defaults creates it."""
    from kubernetes.client import BatchV1Api

    storage = {"endpoint": "https://store.example", "credentialsSecretRef": {"name": "defaults"}}
    body = namespace.create("finetunejobs", build_manifest("old", namespace.name))
    defaults: Any = {"storage": storage}
    settings = Settings(trainer_image="registry/trainer:7", defaults=defaults)
    BatchV1Api(namespace.core.api_client).create_namespaced_job(
        namespace.name, build_job(FineTuneJob.model_validate(body), settings)
    )


def test_plan_without_any_run_asks_for_an_image(
    admin: CommandLine, namespace: ClusterNamespace, tmp_path: Path
) -> None:
    answer = admin("plan", write_manifest(tmp_path, namespace), "--pod")
    assert (answer.status, answer.stdout) == (1, "")
    assert "to take the trainer image from: name it with --image" in answer.stderr


def test_plan_without_right_to_create_pods_names_the_role(
    tenant: CommandLine, namespace: ClusterNamespace, tmp_path: Path
) -> None:
    namespace.grant({"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["list"]})
    answer = tenant("plan", write_manifest(tmp_path, namespace), "--pod", "--image", "trainer:1")
    assert answer.status == 1
    assert answer.stderr.splitlines()[-1] == (
        f"error: you may not create pods in namespace {namespace.name}; the ClusterRole edit has this right, ask "
        "an administrator to bind it to you"
    )


def test_plan_data_of_this_machine_is_refused_in_a_pod(
    admin: CommandLine, namespace: ClusterNamespace, tmp_path: Path
) -> None:
    spec = merge_objects(SPEC, {"dataset": {"sources": [{"uri": "./train.jsonl"}]}})
    answer = admin("plan", write_manifest(tmp_path, namespace, spec), "--pod")
    assert (answer.status, "./train.jsonl is on this machine" in answer.stderr) == (2, True)


def test_plan_invalid_manifest_creates_no_pod(admin: CommandLine, namespace: ClusterNamespace, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, namespace, {"training": {"epoch": 1}})
    answer = admin("plan", manifest, "--pod", "--image", "trainer:1")
    assert answer.status != 0
    assert "spec.training.epoch: there is no such field" in answer.stderr
    assert namespace.core.list_namespaced_pod(namespace.name).items == []


def test_chat_pod_requests_a_gpu_and_runs_the_server(admin: CommandLine, namespace: ClusterNamespace) -> None:
    namespace.create(
        "finetunejobs",
        build_manifest("bot", namespace.name, SPEC),
        {"phase": "Complete", "result": build_result("bot")},
    )
    seen: list[Any] = []
    kubelet = threading.Thread(target=lambda: seen.append(wait_for_pod(namespace)))
    kubelet.start()
    waiting = write_pod_status(namespace, build_waiting_status("ErrImageNeverPull", "x"))
    answer = admin("chat", "bot", "--prompt", "Hi", "--image", "trainer:1")
    kubelet.join()
    waiting.join()
    assert answer.status == 1
    container = seen[0].spec.containers[0]
    assert container.args[:3] == ["chat-server", "--adapter", "s3://bucket/bot/bot"]
    assert container.resources.limits == {"memory": "4Gi", "nvidia.com/gpu": "1"}


def test_chat_run_without_result_says_its_phase(admin: CommandLine, namespace: ClusterNamespace) -> None:
    namespace.create("finetunejobs", build_manifest("bot", namespace.name), {"phase": "Running"})
    answer = admin("chat", "bot")
    assert (answer.status, answer.stderr) == (
        1,
        "error: run bot has no result to talk to: its phase is Running\n",
    )
