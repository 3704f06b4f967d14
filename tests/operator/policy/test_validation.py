"""Validation of FineTuneJobs against the limits of an installation, and the messages about violations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

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


class LimitCase(NamedTuple):
    spec: Body
    bounds: Body
    violation: str | None
    """None if the spec is allowed."""


NODES = {"nodes": 4, "gpusPerNode": 2}
HIDDEN_GPUS = {"gpusPerNode": 0, "resources": {"limits": {"memory": "1Gi", "nvidia.com/gpu": "8"}}}
CASES = {
    "no limits": LimitCase({"compute": {**NODES, "image": "evil:1", "serviceAccountName": "ci"}}, {}, None),
    "image": LimitCase(
        {"compute": {"image": "evil:1"}},
        {"allowedImages": [f"{IMAGES}**", "other:1"]},
        f"spec.compute.image: evil:1 is not allowed; allowed: {IMAGES}**, other:1, registry.example/own:1.",
    ),
    "image in list": LimitCase({"compute": {"image": f"{IMAGES}x:1"}}, {"allowedImages": [f"{IMAGES}**"]}, None),
    "image of the operator": LimitCase(
        {"compute": {"image": "registry.example/own:1"}},
        {"allowedImages": ["other:1"]},
        None,
    ),
    "image unset": LimitCase({}, {"allowedImages": ["other:1"]}, None),
    "service account": LimitCase(
        {"compute": {"serviceAccountName": "ci"}},
        {"allowedServiceAccounts": ["finetune-*"]},
        "spec.compute.serviceAccountName: ci is not allowed; allowed: finetune-*.",
    ),
    "service account unset": LimitCase(
        {},
        {"allowedServiceAccounts": ["finetune"]},
        "spec.compute.serviceAccountName: default is not allowed; allowed: finetune.",
    ),
    "service account unset, default in list": LimitCase({}, {"allowedServiceAccounts": ["finetune", "default"]}, None),
    "endpoint": LimitCase(
        {"storage": {"endpoint": "https://evil.example"}},
        {"allowedStorageEndpoints": ["aws", "https://*.s3.example"]},
        "spec.storage.endpoint: https://evil.example is not allowed; allowed: aws, https://*.s3.example.",
    ),
    "endpoint in other spelling": LimitCase(
        {"storage": {"endpoint": "https://A.S3.Example/"}},
        {"allowedStorageEndpoints": ["https://*.s3.example"]},
        None,
    ),
    "endpoint unset": LimitCase(
        {},
        {"allowedStorageEndpoints": ["https://s3.example"]},
        "spec.storage.endpoint: aws is not allowed; allowed: https://s3.example.",
    ),
    "endpoint unset, aws in list": LimitCase({}, {"allowedStorageEndpoints": ["aws"]}, None),
    "tracker": LimitCase(
        {"tracking": {"tool": "mlflow", "uri": "https://evil.example/mlflow"}},
        {"allowedTrackers": ["https://mlflow.example"]},
        "spec.tracking.uri: https://evil.example is not allowed; allowed: https://mlflow.example.",
    ),
    "tracker in other spelling": LimitCase(
        {"tracking": {"tool": "mlflow", "uri": "https://A.MLflow.example/path/"}},
        {"allowedTrackers": ["https://*.mlflow.example"]},
        None,
    ),
    "tracker W&B without uri": LimitCase(
        {"tracking": {"tool": "wandb", "credentialsSecretRef": {"name": "a"}}},
        {"allowedTrackers": ["https://mlflow.example"]},
        "spec.tracking.uri: wandb is not allowed; allowed: https://mlflow.example.",
    ),
    "tracker TensorBoard without server": LimitCase(
        {"tracking": {"tool": "tensorboard"}}, {"allowedTrackers": ["https://mlflow.example"]}, None
    ),
    "endpoint of a grader": LimitCase(
        {"evaluation": {"endpoints": [{"name": "a", "uri": "https://evil.example/v1"}]}},
        {"allowedGraderEndpoints": ["http://vllm.judges:8000"]},
        "spec.evaluation.endpoints[0].uri: https://evil.example is not allowed; allowed: http://vllm.judges:8000.",
    ),
    "endpoint of a grader in other spelling": LimitCase(
        {"evaluation": {"endpoints": [{"name": "a", "uri": "http://VLLM.judges:8000/v1/"}]}},
        {"allowedGraderEndpoints": ["http://vllm.judges:8000"]},
        None,
    ),
    "Secret for an endpoint of a grader": LimitCase(
        {"evaluation": {"endpoints": [{"name": "a", "uri": "http://a", "credentialsSecretRef": {"name": "db"}}]}},
        {"allowedSecrets": ["finetune-*"], "allowedGraderEndpoints": ["http://a"]},
        "spec.evaluation.endpoints[0].credentialsSecretRef.name: db is not allowed; allowed: finetune-*.",
    ),
    "Secret for signing": LimitCase(
        {"output": {"signing": {"keySecretRef": {"name": "db"}}}},
        {"allowedSecrets": ["finetune-*"]},
        "spec.output.signing.keySecretRef.name: db is not allowed; allowed: finetune-*.",
    ),
    "Secret for tracker": LimitCase(
        {"tracking": {"tool": "wandb", "credentialsSecretRef": {"name": "db"}}},
        {"allowedSecrets": ["finetune-*"]},
        "spec.tracking.credentialsSecretRef.name: db is not allowed; allowed: finetune-*.",
    ),
    "model": LimitCase(
        {"model": {"uri": "hf://evil/x"}},
        {"allowedModels": ["hf://org/*", "s3://models/**"]},
        "spec.model.uri: hf://evil/x is not allowed; allowed: hf://org/*, s3://models/**.",
    ),
    "model on volume claim": LimitCase(
        {"model": {"uri": "pvc://home/x"}},
        {"allowedModels": ["pvc://models/**"]},
        "spec.model.uri: pvc://home/x is not allowed; allowed: pvc://models/**.",
    ),
    "claim of the model cache": LimitCase(
        {"compute": {"modelCacheClaimName": "home"}},
        {"allowedModelCacheClaims": ["model-cache-*"]},
        "spec.compute.modelCacheClaimName: home is not allowed; allowed: model-cache-*.",
    ),
    "no model cache": LimitCase({}, {"allowedModelCacheClaims": ["model-cache-*"]}, None),
    "data in bucket": LimitCase(
        {"dataset": {"sources": [{"uri": "s3://data/a"}, {"uri": "s3://payroll/**"}]}},
        {"allowedDatasets": ["s3://data/**"]},
        "spec.dataset.sources[1].uri: s3://payroll/** is not allowed; allowed: s3://data/**.",
    ),
    "validation data on volume claim": LimitCase(
        {
            "dataset": {
                "sources": [{"uri": "pvc://data/a"}],
                "validation": {"sources": [{"uri": "pvc://home/b"}]},
            }
        },
        {"allowedDatasets": ["pvc://data/**"]},
        "spec.dataset.validation.sources[0].uri: pvc://home/b is not allowed; allowed: pvc://data/**.",
    ),
    "data of the hub": LimitCase(
        {"dataset": {"sources": [{"uri": "hf://datasets/evil/x@main/a.csv"}]}},
        {"allowedDatasets": ["hf://datasets/org/*"]},
        "spec.dataset.sources[0].uri: hf://datasets/evil/x is not allowed; allowed: hf://datasets/org/*.",
    ),
    "data of the hub in list": LimitCase(
        {
            "dataset": {
                "sources": [
                    {"uri": "hf://datasets/org/x"},
                    {"uri": "hf://datasets/org/x@v1/data/*.csv"},
                    {"uri": "hf://datasets/org/x/a@b.csv"},
                ]
            }
        },
        {"allowedDatasets": ["hf://datasets/org/*"]},
        None,
    ),
    "sentence pairs": LimitCase(
        {"evaluation": {"bias": {"pairsURI": "s3://payroll/pairs.csv"}}},
        {"allowedDatasets": ["s3://bucket/**"]},
        "spec.evaluation.bias.pairsURI: s3://payroll/pairs.csv is not allowed; allowed: s3://bucket/**.",
    ),
    "Secret for dataset": LimitCase(
        {"dataset": {"tokenSecretRef": {"name": "db"}}},
        {"allowedSecrets": ["finetune-*"]},
        "spec.dataset.tokenSecretRef.name: db is not allowed; allowed: finetune-*.",
    ),
    "Secret for S3": LimitCase(
        {"storage": {"credentialsSecretRef": {"name": "db"}}},
        {"allowedSecrets": ["finetune-*"]},
        "spec.storage.credentialsSecretRef.name: db is not allowed; allowed: finetune-*.",
    ),
    "Secret for hub token": LimitCase(
        {"model": {"tokenSecretRef": {"name": "db"}}},
        {"allowedSecrets": ["finetune-*"]},
        "spec.model.tokenSecretRef.name: db is not allowed; allowed: finetune-*.",
    ),
    "second image pull Secret": LimitCase(
        {"compute": {"imagePullSecrets": [{"name": "finetune-a"}, {"name": "b"}]}},
        {"allowedSecrets": ["finetune-*"]},
        "spec.compute.imagePullSecrets[1].name: b is not allowed; allowed: finetune-*.",
    ),
    "ConfigMap": LimitCase(
        {"storage": {"caConfigMapRef": {"name": "app"}}},
        {"allowedConfigMaps": ["company-ca"]},
        "spec.storage.caConfigMapRef.name: app is not allowed; allowed: company-ca.",
    ),
    "priority class": LimitCase(
        {"compute": {"priorityClassName": "high"}},
        {"allowedPriorityClasses": ["low"]},
        "spec.compute.priorityClassName: high is not allowed; allowed: low.",
    ),
    "priority class unset": LimitCase({}, {"allowedPriorityClasses": ["low"]}, None),
    "toleration": LimitCase(
        {"compute": {"tolerations": [{"key": "gpu"}, {"key": "node-role.kubernetes.io/control-plane"}]}},
        {"allowedTolerations": ["gpu"]},
        "spec.compute.tolerations: node-role.kubernetes.io/control-plane is not allowed; allowed: gpu.",
    ),
    "toleration without key": LimitCase(
        {"compute": {"tolerations": [{"operator": "Exists"}]}},
        {"allowedTolerations": ["*", "*/*"]},
        "spec.compute.tolerations: (no key) is not allowed; allowed: *, */*.",
    ),
    "toleration without key, all in list": LimitCase(
        {"compute": {"tolerations": [{"operator": "Exists"}]}},
        {"allowedTolerations": ["**"]},
        None,
    ),
    "GPU resource": LimitCase(
        {"compute": {"gpuResource": "devices.kubevirt.io/kvm"}},
        {"allowedGPUResources": ["nvidia.com/*"]},
        "spec.compute.gpuResource: devices.kubevirt.io/kvm is not allowed; allowed: nvidia.com/*.",
    ),
    "GPU resource without GPUs": LimitCase(
        {"compute": {"gpusPerNode": 0, "gpuResource": "x/y"}},
        {"allowedGPUResources": ["nvidia.com/gpu"]},
        None,
    ),
    "device": LimitCase(
        {"compute": {"resources": {"requests": {"smarter-devices/fuse": "1", "cpu": "1"}}}},
        {"allowedResources": ["rdma/*"]},
        "spec.compute.resources: smarter-devices/fuse is not allowed; allowed: rdma/*.",
    ),
    "pod label": LimitCase(
        {"compute": {"podLabels": {"app": "payments"}}},
        {"allowedPodLabels": ["team", "example.com/*"]},
        "spec.compute.podLabels: app is not allowed; allowed: team, example.com/*.",
    ),
    "pod annotation": LimitCase(
        {"compute": {"podAnnotations": {"a.example/x": "y"}}},
        {"allowedPodAnnotations": ["b.example/*"]},
        "spec.compute.podAnnotations: a.example/x is not allowed; allowed: b.example/*.",
    ),
    "profile": LimitCase(
        {"compute": {"profile": "admin"}},
        {"allowedProfiles": ["gpu-*"]},
        "spec.compute.profile: admin is not allowed; allowed: gpu-*.",
    ),
    "profile in list": LimitCase({"compute": {"profile": "gpu-a100"}}, {"allowedProfiles": ["gpu-*"]}, None),
    "profile unset": LimitCase({}, {"allowedProfiles": ["gpu-*"]}, None),
    "node selector with other value": LimitCase(
        {"compute": {"nodeSelector": {"pool": "system"}}},
        {"requiredNodeSelector": {"pool": "tenants"}},
        "spec.compute.nodeSelector: must contain pool=tenants.",
    ),
    "node selector unset": LimitCase(
        {}, {"requiredNodeSelector": {"pool": ""}}, "spec.compute.nodeSelector: must contain pool=."
    ),
    "node selector with more labels": LimitCase(
        {"compute": {"nodeSelector": {"pool": "tenants", "gpu": "h100"}}},
        {"requiredNodeSelector": {"pool": "tenants"}},
        None,
    ),
    "too many GPUs": LimitCase(
        {"compute": NODES},
        {"maxGPUs": 7},
        "spec.compute: a total of 8 GPUs (nodes 4 x gpusPerNode 2) is not allowed; allowed: at most 7.",
    ),
    "maximum of GPUs": LimitCase({"compute": NODES}, {"maxGPUs": 8}, None),
    "no GPUs allowed": LimitCase(
        {},
        {"maxGPUs": 0},
        "spec.compute: a total of 1 GPUs (nodes 1 x gpusPerNode 1) is not allowed; allowed: at most 0.",
    ),
    "GPUs in resources": LimitCase(
        {"compute": HIDDEN_GPUS},
        {"maxGPUs": 4},
        "spec.compute.resources: nvidia.com/gpu is not allowed; "
        "allowed: no devices; set spec.compute.gpusPerNode for GPUs.",
    ),
    "GPUs of another vendor in resources": LimitCase(
        {"compute": {"resources": {"requests": {"amd.com/gpu": "8"}}}},
        {"maxGPUs": 4},
        "spec.compute.resources: amd.com/gpu is not allowed; "
        "allowed: no devices; set spec.compute.gpusPerNode for GPUs.",
    ),
    "GPUs in resources and gpusPerNode": LimitCase(
        {"compute": {"resources": {"limits": {"nvidia.com/gpu": "8"}}}}, {"maxGPUs": 1}, None
    ),
    "device in list with limit on GPUs": LimitCase(
        {"compute": {"resources": {"limits": {"rdma/hca": "1"}}}},
        {"maxGPUs": 4, "allowedResources": ["rdma/hca"]},
        None,
    ),
    "too many nodes": LimitCase(
        {"compute": NODES}, {"maxNodes": 3}, "spec.compute.nodes: 4 is not allowed; allowed: at most 3."
    ),
    "namespace not in list": LimitCase(
        {}, {"allowedNamespaces": ["ml-*"]}, "metadata.namespace: team is not allowed; allowed: ml-*."
    ),
    "namespace denied": LimitCase(
        {},
        {"allowedNamespaces": ["*"], "deniedNamespaces": ["kube-*", "team"]},
        "metadata.namespace: team is not allowed; denied: kube-*, team.",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_validation_field_outside_limits_names_field(build: type[Builders], case: LimitCase) -> None:
    assert _find_violations(build, case.spec, case.bounds) == ([case.violation] if case.violation else [])


def test_validation_every_limit_has_rejecting_case() -> None:
    used = {name for case in CASES.values() if case.violation for name in case.bounds}
    assert used == {field.alias for field in Bounds.model_fields.values()}


def test_validation_kueue_priority_label_checked_as_priority_class(build: type[Builders]) -> None:
    labels = {"kueue.x-k8s.io/priority-class": "urgent", "kueue.x-k8s.io/queue-name": "gpus"}
    (violation,) = _find_violations(build, {}, {"allowedPriorityClasses": ["low"]}, labels=labels)
    assert violation == "metadata.labels[kueue.x-k8s.io/priority-class]: urgent is not allowed; allowed: low."
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
