"""Compute profiles on a real API server: the examples are admitted, and the operator follows a changing file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.support.operator.builders import build_manifest
from tests.support.operator.namespace_harness import RequestRejected

from finetune_operator.api import FineTuneJob
from finetune_operator.policy.profiles import Profiles, parse_profiles
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from tests.support.operator.namespace_harness import NamespaceHarness

pytestmark = pytest.mark.cluster

Body = dict[str, Any]
EXAMPLES = Path(__file__).resolve().parents[3] / "manifests" / "profiles"
# `compute` of a FineTuneJob that uses the profile of the file.
COMPUTES: dict[str, Body] = {
    "k3s-rke2": {},
    "eks-efa": {"nodes": 2, "gpusPerNode": 8},
    "gke": {"nodes": 2, "gpusPerNode": 8},
    "karpenter": {},
    "mig": {"gpuResource": "nvidia.com/mig-3g.40gb"},
    "dra": {"gpusPerNode": 0},
    "rdma-multus": {"nodes": 2, "gpusPerNode": 8},
    "proxy-mirror": {"gpusPerNode": 0},
}
REJECTED_BY_RESTRICTED = {("rdma-multus", True)}
_STRICT_DRY_RUN = "?dryRun=All&fieldValidation=Strict"


def _read_example(name: str) -> Profiles:
    values = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    return parse_profiles(json.dumps({"profiles": values["profiles"]}).encode())


def _build_example_job(name: str, namespace: str) -> Body:
    profiles = _read_example(name)
    (profile_name,) = profiles.profiles
    manifest = build_manifest(namespace=namespace, spec={"compute": COMPUTES[name]}, uid="uid-bot")
    job = build_job(FineTuneJob.model_validate(manifest), Settings(), profiles.choose(profile_name, namespace))
    del job["metadata"]["ownerReferences"]
    return job


async def test_examples_are_admitted_by_api_server(world: NamespaceHarness) -> None:
    """The namespace enforces Pod Security `restricted`."""
    runtime_class: Body = {"metadata": {"name": "nvidia"}, "handler": "nvidia"}
    await world.call("POST", "/apis/node.k8s.io/v1/runtimeclasses", runtime_class)
    rejected = set()
    for name in sorted(path.stem for path in EXAMPLES.glob("*.yaml")):
        job = _build_example_job(name, world.namespace)
        await world.call("POST", world.path("jobs") + _STRICT_DRY_RUN, job)
        template = job["spec"]["template"]
        pod = {"metadata": {"name": "bot-0", **template["metadata"]}, "spec": template["spec"]}
        try:
            await world.call("POST", world.path("pods") + _STRICT_DRY_RUN, pod)
        except RequestRejected as error:
            rejected.add((name, "violates PodSecurity" in str(error)))
    assert rejected == REJECTED_BY_RESTRICTED
    await world.call("DELETE", "/apis/node.k8s.io/v1/runtimeclasses/nvidia")


def _write_profiles(file: Path, profiles: Body) -> None:
    file.write_text(json.dumps({"profiles": profiles}))


async def test_profile_added_later_starts_waiting_run(world: NamespaceHarness, tmp_path: Path) -> None:
    file = tmp_path / "profiles.json"
    _write_profiles(file, {"a100": {}})
    world.settings = world.settings.model_copy(update={"profiles_file": file})
    async with world.run_operator():
        await world.create_finetunejob(spec={"compute": {"profile": "h100"}})
        status = await world.wait_for_reason("JobPending")
        message = status["conditions"][0]["message"]
        assert "there is no compute profile h100; profiles: a100." in message
        _write_profiles(file, {"h100": {"podAnnotations": {"k8s.v1.cni.cncf.io/networks": "rail-0"}}})
        await world.wait_for_reason("JobCreated")
        job = await world.get("jobs")
        assert job["metadata"]["annotations"]["finetune.dev/profile"] == "h100"
        annotations = job["spec"]["template"]["metadata"]["annotations"]
        assert annotations["k8s.v1.cni.cncf.io/networks"] == "rail-0"


async def test_profile_that_makes_job_invalid_is_no_failure(world: NamespaceHarness, tmp_path: Path) -> None:
    file = tmp_path / "profiles.json"
    _write_profiles(file, {"h100": {"podSpec": {"hostAliases": [{"ip": "not an address", "hostnames": ["a"]}]}}})
    world.settings = world.settings.model_copy(update={"profiles_file": file})
    async with world.run_operator():
        await world.create_finetunejob(spec={"compute": {"profile": "h100"}})
        status = await world.wait_for_reason("JobRefused")
        assert status["phase"] == "Pending"
        assert "With the compute profile h100, the Job is invalid: " in status["conditions"][0]["message"]
