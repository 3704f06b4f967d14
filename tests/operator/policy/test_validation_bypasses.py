"""Attempts to bypass one limit with another field, with all combinations of limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from finetune_operator.api import FineTuneJob
from finetune_operator.policy.validation import find_violations
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

Body = dict[str, Any]

SECRET = {"credentialsSecretRef": {"name": "finetune-a"}}
TRACKING = {"tool": "mlflow", "uri": "https://evil.example/x", **SECRET}
TRACKER_VIOLATION = (
    "spec.tracking.uri: https://evil.example is not allowed with spec.tracking.credentialsSecretRef; "
    "an administrator can allow it in bounds.allowedTrackers."
)
SECRETS = {"allowedSecrets": ["finetune-*"]}
NO_CACHE = (
    "spec.compute.modelCacheClaimName: database is not allowed; "
    "allowed: no claims; an administrator can allow them in bounds.allowedModelCacheClaims."
)
NO_DEVICES = "allowed: no devices; set spec.compute.gpusPerNode for GPUs."
GPUS, DEVICES, MODELS = (
    {"allowedGPUResources": ["nvidia.com/gpu"]}, {"allowedResources": ["rdma/*"]}, {"allowedModels": ["hf://org/*"]},
)  # fmt: skip


def _compute_with_amd_gpus(**compute: Any) -> Body:
    return {"compute": {"resources": {"limits": {"memory": "1Gi", "amd.com/gpu": "8"}}, **compute}}


class LimitCase(NamedTuple):
    spec: Body
    bounds: Body
    violation: str | None
    """None if the spec is allowed."""


CASES = {
    "Secret for user's tracker": LimitCase({"tracking": TRACKING}, SECRETS, TRACKER_VIOLATION),
    "W&B Secret for user's server": LimitCase({"tracking": {**TRACKING, "tool": "wandb"}}, SECRETS, TRACKER_VIOLATION),
    "W&B Secret for W&B": LimitCase({"tracking": {"tool": "wandb", **SECRET}}, SECRETS, None),
    "tracker without Secret": LimitCase({"tracking": {**TRACKING, "credentialsSecretRef": None}}, SECRETS, None),
    "Secret for tracker in list": LimitCase(
        {"tracking": TRACKING},
        {**SECRETS, "allowedTrackers": ["https://evil.example"]},
        None,
    ),
    "Secret for user's judge": LimitCase(
        {"evaluation": {"endpoints": [{"name": "a", "uri": "https://evil.example/v1", **SECRET}]}},
        SECRETS,
        "spec.evaluation.endpoints[0].uri: https://evil.example is not allowed with credentialsSecretRef; an "
        "administrator can allow it in bounds.allowedGraderEndpoints.",
    ),
    "judge without Secret": LimitCase(
        {"evaluation": {"endpoints": [{"name": "a", "uri": "https://evil.example/v1"}]}}, SECRETS, None
    ),
    "claim to write to, reading limited by models": LimitCase(
        {"compute": {"modelCacheClaimName": "database"}}, {"allowedModels": ["hf://**", "pvc://models/**"]}, NO_CACHE
    ),
    "claim to write to, reading limited by datasets": LimitCase(
        {"compute": {"modelCacheClaimName": "database"}}, {"allowedDatasets": ["hf://**", "s3://**"]}, NO_CACHE
    ),
    "claim to write to, in list": LimitCase(
        {"compute": {"modelCacheClaimName": "cache-a"}},
        {"allowedModels": ["hf://**"], "allowedModelCacheClaims": ["cache-*"]},
        None,
    ),
    "claim to write to, no limit on claims": LimitCase(
        {"compute": {"modelCacheClaimName": "cache"}}, {"maxNodes": 1}, None
    ),
    "no limit on Secrets": LimitCase({"tracking": TRACKING}, {"maxNodes": 1}, None),
    "other GPUs as devices": LimitCase(
        _compute_with_amd_gpus(), GPUS, f"spec.compute.resources: amd.com/gpu is not allowed; {NO_DEVICES}"
    ),
    "other GPUs as devices, no gpusPerNode": LimitCase(
        _compute_with_amd_gpus(gpusPerNode=0),
        GPUS,
        f"spec.compute.resources: amd.com/gpu is not allowed; {NO_DEVICES}",
    ),
    "host device": LimitCase(
        {"compute": {"resources": {"limits": {"devices.kubevirt.io/kvm": "1"}}}},
        GPUS,
        f"spec.compute.resources: devices.kubevirt.io/kvm is not allowed; {NO_DEVICES}",
    ),
    "other GPUs in list": LimitCase(_compute_with_amd_gpus(), {**GPUS, "allowedResources": ["amd.com/*"]}, None),
    "device as GPU resource": LimitCase(
        {"compute": {"gpuResource": "smarter-devices/fuse"}},
        DEVICES,
        "spec.compute.gpuResource: smarter-devices/fuse is not allowed; allowed: rdma/*, nvidia.com/gpu.",
    ),
    "device in list as GPU resource": LimitCase({"compute": {"gpuResource": "rdma/hca"}}, DEVICES, None),
    "default GPU resource": LimitCase({}, DEVICES, None),
    "GPU resource without GPUs": LimitCase({"compute": {"gpuResource": "a.b/c", "gpusPerNode": 0}}, DEVICES, None),
    "GPU resource in its own list": LimitCase(
        {"compute": {"gpuResource": "amd.com/gpu"}},
        {**DEVICES, "allowedGPUResources": ["amd.com/gpu"]},
        None,
    ),
    "adapter of another organization": LimitCase(
        {"model": {"adapterURI": "s3://evil/x"}},
        MODELS,
        "spec.model.adapterURI: s3://evil/x is not allowed; allowed: hf://org/*.",
    ),
    "adapter in list": LimitCase(
        {"model": {"uri": "hf://org/x", "adapterURI": "s3://adapters/team/x"}},
        {"allowedModels": ["hf://org/*", "s3://adapters/**"]},
        None,
    ),
    "adapter as baseline": LimitCase(
        {"evaluation": {"baselines": [{"name": "old", "adapterURI": "s3://evil/x"}]}},
        MODELS,
        "spec.evaluation.baselines[0].adapterURI: s3://evil/x is not allowed; allowed: hf://org/*.",
    ),
    "dataset of pull request": LimitCase(
        {"dataset": {"sources": [{"uri": "hf://datasets/org/x@refs%2Fpr%2F7/a.csv"}]}},
        {"allowedDatasets": ["hf://datasets/org/*"]},
        "spec.dataset.sources[0].uri: hf://datasets/org/x@refs%2Fpr%2F7/a.csv is not allowed; "
        "allowed: a branch, a tag or a commit.",
    ),
    "dataset of pull request, not encoded": LimitCase(
        {"dataset": {"sources": [{"uri": "hf://datasets/org/x@refs/pr/7/a.csv"}]}},
        {"allowedDatasets": ["hf://datasets/org/*"]},
        "spec.dataset.sources[0].uri: hf://datasets/org/x@refs/pr/7/a.csv is not allowed; "
        "allowed: a branch, a tag or a commit.",
    ),
    "dataset converted by hub": LimitCase(
        {"dataset": {"sources": [{"uri": "hf://datasets/org/x@refs%2Fconvert%2Fparquet/a.parquet"}]}},
        {"allowedDatasets": ["hf://datasets/org/*"]},
        None,
    ),
    "revision of pull request": LimitCase(
        {"model": {"revision": "refs/pr/7"}},
        MODELS,
        "spec.model.revision: refs/pr/7 is not allowed; allowed: a branch, a tag or a commit.",
    ),
    "revision of branch": LimitCase({"model": {"revision": "release/refs"}}, MODELS, None),
    "revision of pull request, no limit": LimitCase({"model": {"revision": "refs/pr/7"}}, SECRETS, None),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_validation_limit_cannot_be_bypassed_by_other_field(build: type[Builders], case: LimitCase) -> None:
    finetunejob = FineTuneJob.model_validate(build.finetunejob(spec=case.spec))
    violations = find_violations(finetunejob, Settings.model_validate({"bounds": case.bounds}))
    assert violations == ([case.violation] if case.violation else [])
