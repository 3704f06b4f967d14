"""What an installation lets FineTuneJobs ask for, and what it says to one that asks for more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.api import FineTuneJob
from finetune_operator.policy.limits import Bounds
from finetune_operator.policy.validation import find_violations
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

Body = dict[str, Any]
IMAGES = "registry.example/ml/"


def _find_violations(
    build: type[Builders], spec: Body, allowed: Body, defaults: Body | None = None, **metadata: Any
) -> list[str]:
    settings = Settings.model_validate(
        {"trainer_image": "registry.example/own:1", "bounds": allowed, "defaults": defaults or {}}
    )
    return find_violations(FineTuneJob.model_validate(build.finetunejob(spec=spec, **metadata)), settings)


# spec, bounds, and what is said; nothing if it is allowed
NODES = {"nodes": 4, "gpusPerNode": 2}
HIDDEN_GPUS = {"gpusPerNode": 0, "resources": {"limits": {"memory": "1Gi", "nvidia.com/gpu": "8"}}}
CASES: dict[str, tuple[Body, Body, str | None]] = {
    "no bounds": ({"compute": {**NODES, "image": "evil:1", "serviceAccountName": "ci"}}, {}, None),
    "an image": (
        {"compute": {"image": "evil:1"}}, {"allowedImages": [f"{IMAGES}**", "other:1"]},
        f"spec.compute.image: evil:1 is not allowed; allowed: {IMAGES}**, other:1, registry.example/own:1.",
    ),
    "an image of the list": ({"compute": {"image": f"{IMAGES}x:1"}}, {"allowedImages": [f"{IMAGES}**"]}, None),
    "the operator's own image": (
        {"compute": {"image": "registry.example/own:1"}}, {"allowedImages": ["other:1"]}, None,
    ),
    "no image": ({}, {"allowedImages": ["other:1"]}, None),
    "a service account": (
        {"compute": {"serviceAccountName": "ci"}}, {"allowedServiceAccounts": ["finetune-*"]},
        "spec.compute.serviceAccountName: ci is not allowed; allowed: finetune-*.",
    ),
    "the service account of those who name none": (
        {}, {"allowedServiceAccounts": ["finetune"]},
        "spec.compute.serviceAccountName: default is not allowed; allowed: finetune.",
    ),
    "no service account": ({}, {"allowedServiceAccounts": ["finetune", "default"]}, None),
    "a store": (
        {"storage": {"endpoint": "https://evil.example"}}, {"allowedStorageEndpoints": ["aws", "https://*.s3.example"]},
        "spec.storage.endpoint: https://evil.example is not allowed; allowed: aws, https://*.s3.example.",
    ),
    "a store, written otherwise": (
        {"storage": {"endpoint": "https://A.S3.Example/"}}, {"allowedStorageEndpoints": ["https://*.s3.example"]}, None,
    ),
    "AWS": (
        {}, {"allowedStorageEndpoints": ["https://s3.example"]},
        "spec.storage.endpoint: aws is not allowed; allowed: https://s3.example.",
    ),
    "AWS of the list": ({}, {"allowedStorageEndpoints": ["aws"]}, None),
    "a tracker": (
        {"tracking": {"tool": "mlflow", "uri": "https://evil.example/mlflow"}},
        {"allowedTrackers": ["https://mlflow.example"]},
        "spec.tracking.uri: https://evil.example is not allowed; allowed: https://mlflow.example.",
    ),
    "a tracker, written otherwise": (
        {"tracking": {"tool": "mlflow", "uri": "https://A.MLflow.example/path/"}},
        {"allowedTrackers": ["https://*.mlflow.example"]}, None,
    ),
    "W&B": (
        {"tracking": {"tool": "wandb", "credentialsSecretRef": {"name": "a"}}}, {"allowedTrackers": ["https://mlflow.example"]},
        "spec.tracking.uri: wandb is not allowed; allowed: https://mlflow.example.",
    ),
    "TensorBoard": ({"tracking": {"tool": "tensorboard"}}, {"allowedTrackers": ["https://mlflow.example"]}, None),
    "a key to sign with": (
        {"output": {"signing": {"keySecretRef": {"name": "db"}}}}, {"allowedSecrets": ["finetune-*"]},
        "spec.output.signing.keySecretRef.name: db is not allowed; allowed: finetune-*.",
    ),
    "a tracker's key": (
        {"tracking": {"tool": "wandb", "credentialsSecretRef": {"name": "db"}}}, {"allowedSecrets": ["finetune-*"]},
        "spec.tracking.credentialsSecretRef.name: db is not allowed; allowed: finetune-*.",
    ),
    "a model": (
        {"model": {"uri": "hf://evil/x"}}, {"allowedModels": ["hf://org/*", "s3://models/**"]},
        "spec.model.uri: hf://evil/x is not allowed; allowed: hf://org/*, s3://models/**.",
    ),
    "a claim": (
        {"model": {"uri": "pvc://home/x"}}, {"allowedModels": ["pvc://models/**"]},
        "spec.model.uri: pvc://home/x is not allowed; allowed: pvc://models/**.",
    ),
    "keys to S3": (
        {"storage": {"credentialsSecretRef": {"name": "db"}}}, {"allowedSecrets": ["finetune-*"]},
        "spec.storage.credentialsSecretRef.name: db is not allowed; allowed: finetune-*.",
    ),
    "a token": (
        {"model": {"tokenSecretRef": {"name": "db"}}}, {"allowedSecrets": ["finetune-*"]},
        "spec.model.tokenSecretRef.name: db is not allowed; allowed: finetune-*.",
    ),
    "the second pull secret": (
        {"compute": {"imagePullSecrets": [{"name": "finetune-a"}, {"name": "b"}]}}, {"allowedSecrets": ["finetune-*"]},
        "spec.compute.imagePullSecrets[1].name: b is not allowed; allowed: finetune-*.",
    ),
    "a ConfigMap": (
        {"storage": {"caConfigMapRef": {"name": "app"}}}, {"allowedConfigMaps": ["company-ca"]},
        "spec.storage.caConfigMapRef.name: app is not allowed; allowed: company-ca.",
    ),
    "a priority": (
        {"compute": {"priorityClassName": "high"}}, {"allowedPriorityClasses": ["low"]},
        "spec.compute.priorityClassName: high is not allowed; allowed: low.",
    ),
    "no priority": ({}, {"allowedPriorityClasses": ["low"]}, None),
    "a taint": (
        {"compute": {"tolerations": [{"key": "gpu"}, {"key": "node-role.kubernetes.io/control-plane"}]}},
        {"allowedTolerations": ["gpu"]},
        "spec.compute.tolerations: node-role.kubernetes.io/control-plane is not allowed; allowed: gpu.",
    ),
    "every taint": (
        {"compute": {"tolerations": [{"operator": "Exists"}]}}, {"allowedTolerations": ["*", "*/*"]},
        "spec.compute.tolerations: (every key) is not allowed; allowed: *, */*.",
    ),
    "every taint, allowed": (
        {"compute": {"tolerations": [{"operator": "Exists"}]}}, {"allowedTolerations": ["**"]}, None,
    ),
    "another device for a GPU": (
        {"compute": {"gpuResource": "devices.kubevirt.io/kvm"}}, {"allowedGPUResources": ["nvidia.com/*"]},
        "spec.compute.gpuResource: devices.kubevirt.io/kvm is not allowed; allowed: nvidia.com/*.",
    ),
    "no GPU of any kind": (
        {"compute": {"gpusPerNode": 0, "gpuResource": "x/y"}}, {"allowedGPUResources": ["nvidia.com/gpu"]}, None,
    ),
    "a device": (
        {"compute": {"resources": {"requests": {"smarter-devices/fuse": "1", "cpu": "1"}}}},
        {"allowedResources": ["rdma/*"]},
        "spec.compute.resources: smarter-devices/fuse is not allowed; allowed: rdma/*.",
    ),
    "a label": (
        {"compute": {"podLabels": {"app": "payments"}}}, {"allowedPodLabels": ["team", "example.com/*"]},
        "spec.compute.podLabels: app is not allowed; allowed: team, example.com/*.",
    ),
    "an annotation": (
        {"compute": {"podAnnotations": {"a.example/x": "y"}}}, {"allowedPodAnnotations": ["b.example/*"]},
        "spec.compute.podAnnotations: a.example/x is not allowed; allowed: b.example/*.",
    ),
    "the wrong nodes": (
        {"compute": {"nodeSelector": {"pool": "system"}}}, {"requiredNodeSelector": {"pool": "tenants"}},
        "spec.compute.nodeSelector: must contain pool=tenants.",
    ),
    "no nodes chosen": ({}, {"requiredNodeSelector": {"pool": ""}}, "spec.compute.nodeSelector: must contain pool=."),
    "the right nodes and more": (
        {"compute": {"nodeSelector": {"pool": "tenants", "gpu": "h100"}}},
        {"requiredNodeSelector": {"pool": "tenants"}}, None,
    ),
    "GPUs": ({"compute": NODES}, {"maxGPUs": 7}, "spec.compute: nodes 4 x gpusPerNode 2 is 8 GPUs; allowed: 7."),
    "as many GPUs as there may be": ({"compute": NODES}, {"maxGPUs": 8}, None),
    "no GPUs at all": ({}, {"maxGPUs": 0}, "spec.compute: nodes 1 x gpusPerNode 1 is 1 GPUs; allowed: 0."),
    "GPUs by the side door": (
        {"compute": HIDDEN_GPUS}, {"maxGPUs": 4},
        "spec.compute.resources: nvidia.com/gpu is not allowed; "
        "allowed: no devices; set compute.gpusPerNode for GPUs.",
    ),
    "GPUs of another make by the side door": (
        {"compute": {"resources": {"requests": {"amd.com/gpu": "8"}}}}, {"maxGPUs": 4},
        "spec.compute.resources: amd.com/gpu is not allowed; allowed: no devices; set compute.gpusPerNode for GPUs.",
    ),
    "GPUs said twice": ({"compute": {"resources": {"limits": {"nvidia.com/gpu": "8"}}}}, {"maxGPUs": 1}, None),
    "a device beside GPUs": (
        {"compute": {"resources": {"limits": {"rdma/hca": "1"}}}}, {"maxGPUs": 4, "allowedResources": ["rdma/hca"]},
        None,
    ),
    "nodes": ({"compute": NODES}, {"maxNodes": 3}, "spec.compute.nodes: 4 is not allowed; allowed: 3."),
    "a namespace": ({}, {"allowedNamespaces": ["ml-*"]}, "metadata.namespace: team is not allowed; allowed: ml-*."),
    "a denied namespace": (
        {}, {"allowedNamespaces": ["*"], "deniedNamespaces": ["kube-*", "team"]},
        "metadata.namespace: team is not allowed; denied: kube-*, team.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "allowed", "message"), CASES.values(), ids=CASES)
def test_validation_field_outside_limits_names_field(
    build: type[Builders], spec: Body, allowed: Body, message: str | None
) -> None:
    assert _find_violations(build, spec, allowed) == ([message] if message else [])


def test_validation_every_limit_has_rejecting_case() -> None:
    used = {name for _, allowed, message in CASES.values() if message for name in allowed}
    assert used == {field.alias for field in Bounds.model_fields.values()}


def test_validation_kueue_priority_label_checked_as_priority_class(build: type[Builders]) -> None:
    labels = {"kueue.x-k8s.io/priority-class": "urgent", "kueue.x-k8s.io/queue-name": "gpus"}
    (refusal,) = _find_violations(build, {}, {"allowedPriorityClasses": ["low"]}, labels=labels)
    assert refusal == "metadata.labels[kueue.x-k8s.io/priority-class]: urgent is not allowed; allowed: low."
    assert not _find_violations(build, {}, {"allowedPriorityClasses": ["urgent"]}, labels=labels)


def test_validation_several_violations_reports_all(build: type[Builders]) -> None:
    compute = {"image": "evil:1", "nodes": 2}
    violations = _find_violations(build, {"compute": compute}, {"allowedImages": ["a:1"], "maxNodes": 1, "maxGPUs": 1})
    assert [violation.partition(":")[0] for violation in violations] == [
        "spec.compute.image", "spec.compute", "spec.compute.nodes",
    ]  # fmt: skip


DEFAULTS: dict[str, tuple[Body, Body]] = {
    "service account": ({"serviceAccountName": "finetune"}, {"allowedServiceAccounts": ["other"]}),
    "store": ({"storage": {"endpoint": "http://minio:9000"}}, {"allowedStorageEndpoints": ["https://s3.example"]}),
    "nodes": ({"nodeSelector": {"pool": "tenants"}}, {"requiredNodeSelector": {"pool": "tenants"}}),
    "priority": ({"priorityClassName": "batch"}, {"allowedPriorityClasses": ["low"]}),
}


@pytest.mark.parametrize(("defaults", "allowed"), DEFAULTS.values(), ids=DEFAULTS)
def test_validation_unset_field_with_default_is_allowed(build: type[Builders], defaults: Body, allowed: Body) -> None:
    assert _find_violations(build, {}, allowed, defaults) == []


def test_validation_field_equal_to_default_is_allowed(build: type[Builders]) -> None:
    defaults = {
        "storage": {"endpoint": "http://minio:9000/", "credentialsSecretRef": {"name": "minio"}},
        "serviceAccountName": "finetune", "priorityClassName": "batch", "imagePullSecrets": [{"name": "registry"}],
    }  # fmt: skip
    compute = {key: value for key, value in defaults.items() if key != "storage"}
    spec = {"storage": defaults["storage"], "compute": compute}
    allowed = {
        "allowedServiceAccounts": ["a"], "allowedStorageEndpoints": ["aws"], "allowedSecrets": ["b"],
        "allowedPriorityClasses": ["c"],
    }  # fmt: skip
    assert _find_violations(build, spec, allowed, defaults) == []
    assert len(_find_violations(build, spec, allowed)) == 5
