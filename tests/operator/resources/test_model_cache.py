"""Tests of the init container that fills the model cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from finetune_operator.api import FineTuneJob
from finetune_operator.policy.profiles import ChosenProfile, Profile
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

Body = dict[str, Any]
COMPUTE = {
    "modelCacheClaimName": "model-cache",
    "gpusPerNode": 8,
    "resources": {
        "requests": {"cpu": "4", "memory": "16Gi", "rdma/hca": "1"},
        "limits": {"memory": "16Gi", "rdma/hca": "1"},
    },
}


def _build_pod_spec(build: type[Builders], **spec: Any) -> Body:
    body = build.finetunejob(spec={"compute": COMPUTE, **spec})
    job = build_job(FineTuneJob.model_validate(body), Settings(trainer_image="trainer:1"))
    pod: Body = job["spec"]["template"]["spec"]
    return pod


def test_model_cache_init_container_differs_from_trainer_in_few_fields(build: type[Builders]) -> None:
    pod = _build_pod_spec(build, model={"tokenSecretRef": {"name": "hub"}})
    (init,), (trainer,) = pod["initContainers"], pod["containers"]
    changed = {key for key in init.keys() | trainer.keys() if init.get(key) != trainer.get(key)}
    assert changed == {"name", "args", "env", "resources", "volumeMounts", "ports"}
    assert (init["name"], init["args"]) == ("model-cache", ["cache", "fill"])
    assert init["env"] == [*trainer["env"], {"name": "NVIDIA_VISIBLE_DEVICES", "value": "none"}]
    requests = {"ephemeral-storage": "50Gi", "cpu": "4", "memory": "16Gi"}
    assert init["resources"] == {"requests": requests, "limits": {"memory": "16Gi"}}
    assert trainer["resources"]["limits"]["nvidia.com/gpu"] == "8"


def test_model_cache_init_container_has_access_of_profile_but_no_devices(build: type[Builders]) -> None:
    """It downloads through the proxy of the profile, and needs neither its devices nor its capabilities."""
    container: dict[str, Any] = {
        "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "resources": {"limits": {"rdma/hca": "1"}, "claims": [{"name": "gpu"}]},
        "addCapabilities": ["IPC_LOCK"],
    }
    pod_spec = {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "gpu"}]}
    profile = Profile.model_validate({"container": container, "podSpec": pod_spec, "caConfigMapRef": {"name": "ca"}})
    body = build.finetunejob(spec={"compute": {"modelCacheClaimName": "model-cache", "gpusPerNode": 0}})
    job = build_job(FineTuneJob.model_validate(body), Settings(), ChosenProfile("proxy", profile))
    (init,) = job["spec"]["template"]["spec"]["initContainers"]
    environment = {variable["name"]: variable["value"] for variable in init["env"]}
    assert (environment["HTTPS_PROXY"], environment["NVIDIA_VISIBLE_DEVICES"]) == ("http://proxy:3128", "none")
    assert environment["SSL_CERT_FILE"] in {f"{mount['mountPath']}/ca.crt" for mount in init["volumeMounts"]}
    assert init["resources"] == {"requests": {"ephemeral-storage": "50Gi"}, "limits": {}}
    assert init["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_model_cache_is_read_only_for_the_trainer_alone(build: type[Builders]) -> None:
    pod = _build_pod_spec(build)
    (init,), (trainer,) = pod["initContainers"], pod["containers"]
    environment = {variable["name"]: variable["value"] for variable in trainer["env"]}
    volume = next(volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume)
    assert volume["persistentVolumeClaim"] == {"claimName": "model-cache"}
    mounts = {
        container["name"]: mount
        for container in (init, trainer)
        for mount in container["volumeMounts"]
        if mount["name"] == volume["name"]
    }
    assert {mount["mountPath"] for mount in mounts.values()} == {environment["FINETUNE_MODEL_CACHE_DIR"]}
    assert (mounts["model-cache"]["readOnly"], mounts["trainer"]["readOnly"]) == (False, True)


def test_model_cache_in_a_claim_with_data_is_one_volume(build: type[Builders]) -> None:
    pod = _build_pod_spec(build, dataset={"sources": [{"uri": "pvc://model-cache/rows.jsonl"}]})
    claims = [volume for volume in pod["volumes"] if "persistentVolumeClaim" in volume]
    assert [volume["persistentVolumeClaim"] for volume in claims] == [{"claimName": "model-cache"}]
    names = [volume["name"] for volume in pod["volumes"]]
    assert len(names) == len(set(names))
    (init,) = pod["initContainers"]
    writable = {mount["mountPath"] for mount in init["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/scratch", "/var/lib/finetune/model-cache", "/dev/shm"}
    mounted = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == claims[0]["name"]]
    assert [(mount["mountPath"], mount["readOnly"]) for mount in mounted] == [
        ("/var/lib/finetune/claims/model-cache", True),
        ("/var/lib/finetune/model-cache", True),
    ]


def test_model_cache_in_every_pod_of_several_nodes(build: type[Builders]) -> None:
    body = build.finetunejob(spec={"compute": {**COMPUTE, "nodes": 2}})
    job = build_job(FineTuneJob.model_validate(body), Settings(trainer_image="trainer:1"))
    assert job["spec"]["completionMode"] == "Indexed"
    assert [init["name"] for init in job["spec"]["template"]["spec"]["initContainers"]] == ["model-cache"]
    rules = job["spec"]["podFailurePolicy"]["rules"]
    exit_rules = [rule["onExitCodes"]["containerName"] for rule in rules if "onExitCodes" in rule]
    assert exit_rules == ["trainer", "trainer"]


@pytest.mark.parametrize("spec", [{"model": {"uri": "pvc://models/tiny"}}, {"compute": {}}], ids=["volume", "no cache"])
def test_model_cache_not_used_has_no_init_container(build: type[Builders], spec: Body) -> None:
    pod = _build_pod_spec(build, **spec)
    assert "initContainers" not in pod
    names = {variable["name"] for variable in pod["containers"][0]["env"]}
    assert "FINETUNE_MODEL_CACHE_DIR" not in names
