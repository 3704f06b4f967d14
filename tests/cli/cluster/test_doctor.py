"""Tests of `doctor` against a real API server, as an administrator and with a tenant's rights."""

from __future__ import annotations

import json

import pytest
from tests.support.cli.cluster import ClusterNamespace
from tests.support.cli.command import Answer, CommandLine
from tests.support.operator.builders import build_manifest

pytestmark = [pytest.mark.cluster]

EDIT = {"apiGroups": ["finetune.dev"], "resources": ["*"], "verbs": ["*"]}


def read_findings(answer: Answer) -> dict[str, tuple[str, str]]:
    return {each["check"]: (each["level"], each["message"]) for each in json.loads(answer.stdout)}


def test_doctor_names_what_is_there_and_what_is_missing(admin: CommandLine, namespace: ClusterNamespace) -> None:
    answer = admin("doctor", "-o", "json")
    findings = read_findings(answer)
    assert answer.status == 1
    assert findings["API server"][0] == "ok"
    assert findings["FineTuneJob"] == ("ok", "its CRD has the fields of this version")
    assert findings["FineTuneSweep"][0] == "ok"
    assert findings["operator"][0] == "missing"
    assert findings["GPUs"][0] == "warning"
    assert findings["submit runs"] == ("ok", "you have the rights")
    assert f"{namespace.name}; its Pod Security level is restricted" in findings["namespace"][1]


def test_doctor_running_operator_is_found(admin: CommandLine, namespace: ClusterNamespace) -> None:
    from kubernetes.client import AppsV1Api

    labels = {"app.kubernetes.io/name": "finetune-operator"}
    containers = [{"name": "operator", "image": "operator"}]
    template = {"metadata": {"labels": labels}, "spec": {"containers": containers}}
    apps = AppsV1Api(namespace.core.api_client)
    apps.create_namespaced_deployment(
        namespace.name,
        {
            "metadata": {"name": "ft", "labels": labels},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        },
    )
    status = {"status": {"replicas": 1, "readyReplicas": 1, "availableReplicas": 1}}
    apps.patch_namespaced_deployment_status("ft", namespace.name, status)
    answer = admin("doctor")
    apps.delete_namespaced_deployment("ft", namespace.name)
    assert f"ok: operator: Deployment ft in namespace {namespace.name} runs" in answer.stdout
    assert answer.status == 0


def test_doctor_tenant_sees_rights_and_what_is_hidden(tenant: CommandLine, namespace: ClusterNamespace) -> None:
    namespace.grant(EDIT)
    answer = tenant("doctor", "-o", "json")
    findings = read_findings(answer)
    assert answer.status == 0
    assert findings["FineTuneJob"][0] == "ok"
    assert findings["submit runs"][0] == "ok"
    assert findings["plan and chat in pods"] == (
        "warning",
        "you may not create pods, delete pods, create pods/portforward, list jobs: have Kubernetes' ClusterRole edit "
        "bound to you in the namespace",
    )
    hidden = ("operator", "GPUs", "compute profiles", "StorageClass", "namespace", "quotas", "limits")
    assert {findings[name][0] for name in hidden} == {"unknown"}
    assert "you are not allowed to see this" in findings["operator"][1]


def test_doctor_user_without_rights_misses_the_role(tenant: CommandLine) -> None:
    answer = tenant("doctor")
    assert answer.status == 1
    assert "missing: submit runs: you may not create finetunejobs" in answer.stdout
    assert "ClusterRole finetune-operator-edit" in answer.stdout


def test_doctor_quota_without_room_is_missing(admin: CommandLine, namespace: ClusterNamespace) -> None:
    hard = {"pods": "0", "requests.memory": "10Gi", "requests.nvidia.com/gpu": "0"}
    namespace.core.create_namespaced_resource_quota(namespace.name, {"metadata": {"name": "q"}, "spec": {"hard": hard}})
    namespace.core.patch_namespaced_resource_quota_status(
        "q", namespace.name, {"status": {"hard": hard, "used": dict.fromkeys(hard, "0")}}
    )
    lines = admin("doctor").stdout.splitlines()
    assert "missing: quotas: ResourceQuota q: 0 of 0 pods are used: end other runs, or have it raised" in lines
    assert any(line.startswith("warning: quotas: ResourceQuota q: 0 of 0 requests.nvidia.com/gpu") for line in lines)
    assert any("refuses pods without requests.memory: set them in compute.resources" in line for line in lines)


def test_doctor_missing_secret_of_a_run_is_named(admin: CommandLine, namespace: ClusterNamespace) -> None:
    storage = {"storage": {"credentialsSecretRef": {"name": "keys"}}, "model": {"tokenSecretRef": {"name": "hub"}}}
    namespace.create("finetunejobs", build_manifest("bot", namespace.name, storage))
    namespace.core.create_namespaced_secret(namespace.name, {"metadata": {"name": "hub"}})
    lines = admin("doctor").stdout.splitlines()
    assert "missing: Secrets: Secret keys does not exist, but a run refers to it: create it" in lines
    assert "ok: Secrets: Secret hub exists" in lines


def test_doctor_unreachable_store_is_missing(
    admin: CommandLine, namespace: ClusterNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert namespace
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    answer = admin("doctor", "--storage", "s3://bucket/x", "--endpoint", "http://127.0.0.1:9")
    assert answer.stdout.splitlines()[-1].startswith(
        "missing: storage: s3://bucket/x at http://127.0.0.1:9: no response"
    )


def test_doctor_without_cluster_is_one_line(finetune: CommandLine) -> None:
    answer = finetune("doctor")
    assert (answer.status, answer.stdout, answer.stderr.count("\n")) == (1, "", 1)
