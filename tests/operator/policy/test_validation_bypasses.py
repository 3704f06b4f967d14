"""Bounds that are side doors of each other: what one closes, no other field opens, whichever of them are set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.api import FineTuneJob
from finetune_operator.policy.validation import find_violations
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

Body = dict[str, Any]

SECRET = {"credentialsSecretRef": {"name": "finetune-a"}}
COLLECTOR = {"tool": "mlflow", "uri": "https://evil.example/x", **SECRET}
OWN_COLLECTOR = (
    "spec.tracking.uri: https://evil.example is not allowed with spec.tracking.credentialsSecretRef; "
    "set bounds.allowedTrackers."
)
SECRETS = {"allowedSecrets": ["finetune-*"]}
NO_DEVICES = "allowed: no devices; set compute.gpusPerNode for GPUs."
GPUS, DEVICES, MODELS = (
    {"allowedGPUResources": ["nvidia.com/gpu"]}, {"allowedResources": ["rdma/*"]}, {"allowedModels": ["hf://org/*"]},
)  # fmt: skip


def _compute_with_amd_gpus(**compute: Any) -> Body:
    return {"compute": {"resources": {"limits": {"memory": "1Gi", "amd.com/gpu": "8"}}, **compute}}


# spec, bounds, and what is said; nothing if it is allowed
CASES: dict[str, tuple[Body, Body, str | None]] = {
    "a Secret for a tracker of one's own": ({"tracking": COLLECTOR}, SECRETS, OWN_COLLECTOR),
    "W&B's key for a server of one's own": ({"tracking": {**COLLECTOR, "tool": "wandb"}}, SECRETS, OWN_COLLECTOR),
    "W&B itself": ({"tracking": {"tool": "wandb", **SECRET}}, SECRETS, None),
    "a tracker without a Secret": ({"tracking": {**COLLECTOR, "credentialsSecretRef": None}}, SECRETS, None),
    "a Secret for a tracker of the list": (
        {"tracking": COLLECTOR}, {**SECRETS, "allowedTrackers": ["https://evil.example"]}, None,
    ),
    "no bound on Secrets": ({"tracking": COLLECTOR}, {"maxNodes": 1}, None),
    "other GPUs as devices": (
        _compute_with_amd_gpus(), GPUS, f"spec.compute.resources: amd.com/gpu is not allowed; {NO_DEVICES}"),
    "other GPUs as devices, on the CPU": (
        _compute_with_amd_gpus(gpusPerNode=0), GPUS,
        f"spec.compute.resources: amd.com/gpu is not allowed; {NO_DEVICES}",
    ),
    "a device of the host": (
        {"compute": {"resources": {"limits": {"devices.kubevirt.io/kvm": "1"}}}}, GPUS,
        f"spec.compute.resources: devices.kubevirt.io/kvm is not allowed; {NO_DEVICES}",
    ),
    "other GPUs of the list": (_compute_with_amd_gpus(), {**GPUS, "allowedResources": ["amd.com/*"]}, None),
    "a device as GPUs": (
        {"compute": {"gpuResource": "smarter-devices/fuse"}}, DEVICES,
        "spec.compute.gpuResource: smarter-devices/fuse is not allowed; allowed: rdma/*, nvidia.com/gpu.",
    ),
    "a device of the list as GPUs": ({"compute": {"gpuResource": "rdma/hca"}}, DEVICES, None),
    "GPUs as ever": ({}, DEVICES, None),
    "a device that is not asked for": ({"compute": {"gpuResource": "a.b/c", "gpusPerNode": 0}}, DEVICES, None),
    "GPUs of a list of their own": (
        {"compute": {"gpuResource": "amd.com/gpu"}}, {**DEVICES, "allowedGPUResources": ["amd.com/gpu"]}, None,
    ),
    "an adapter of somebody else": (
        {"model": {"adapterURI": "s3://evil/x"}}, MODELS,
        "spec.model.adapterURI: s3://evil/x is not allowed; allowed: hf://org/*.",
    ),
    "an adapter of the list": (
        {"model": {"uri": "hf://org/x", "adapterURI": "s3://adapters/team/x"}},
        {"allowedModels": ["hf://org/*", "s3://adapters/**"]}, None,
    ),
    "a pull request": (
        {"model": {"revision": "refs/pr/7"}}, MODELS,
        "spec.model.revision: refs/pr/7 is not allowed; allowed: a branch, a tag or a commit.",
    ),
    "a branch": ({"model": {"revision": "release/refs"}}, MODELS, None),
    "a pull request without a bound": ({"model": {"revision": "refs/pr/7"}}, SECRETS, None),
}  # fmt: skip


@pytest.mark.parametrize(("spec", "allowed", "message"), CASES.values(), ids=CASES)
def test_validation_limit_cannot_be_bypassed_by_other_field(
    build: type[Builders], spec: Body, allowed: Body, message: str | None
) -> None:
    job = FineTuneJob.model_validate(build.finetunejob(spec=spec))
    assert find_violations(job, Settings.model_validate({"bounds": allowed})) == ([message] if message else [])
