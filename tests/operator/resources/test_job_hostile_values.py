"""Hostile values in every field of the spec change nothing in the Job but the corresponding value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError
from tests.support.operator import spec_samples

from finetune_operator.api import FineTuneJob
from finetune_operator.api.compute import is_reserved_key
from finetune_operator.codegen.crd import build_root_schema
from finetune_operator.policy.validation import find_violations
from finetune_operator.resources import multi_node
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from tests.support.operator.builders import Builders

Body = dict[str, Any]

HOSTILE = [
    "$(HOME)", "$$(FINETUNE_CONFIG)", "${HOME}", "`id`", "--privileged", "; rm -rf /", "\n", "a\nLD_PRELOAD=/x", "\0",
    "\u2028", '"', "'", "\\", "{{ .Values }}", "../../etc", "/etc/shadow", "kube-system/admin", "a/b", "hostPath:/",
    "file:///etc/shadow", "http://169.254.169.254/latest", "{namespace}", "null", "true", "x" * 300,
]  # fmt: skip
KEYS = [
    *HOSTILE, "finetune.dev/job", "app.kubernetes.io/managed-by", "batch.kubernetes.io/job-name", "job-name",
    "container.apparmor.security.beta.kubernetes.io/trainer", "seccomp.security.alpha.kubernetes.io/pod",
    "vault.hashicorp.com/agent-inject", "sidecar.istio.io/userVolume", "cdi.k8s.io/gpu", "k8s.v1.cni.cncf.io/networks",
    "io.kubernetes.cri-o.userns-mode", "iam.amazonaws.com/role", "requests.cpu", "LD_PRELOAD",
]  # fmt: skip
FREE_MAPS = ("nodeSelector", "podLabels", "podAnnotations", "resources")
VOLUMES = {"emptyDir", "ephemeral", "projected", "configMap", "secret", "persistentVolumeClaim"}
POD_FIELDS = {
    "restartPolicy", "subdomain", "automountServiceAccountToken", "enableServiceLinks", "terminationGracePeriodSeconds",
    "securityContext", "containers", "initContainers", "volumes", "nodeSelector", "tolerations", "imagePullSecrets",
    "serviceAccountName", "priorityClassName",
}  # fmt: skip


def _build_job(build: type[Builders], spec: Body) -> Body:
    body = build.finetunejob()
    job = build_job(FineTuneJob.model_validate({**body, "spec": spec}), Settings(trainer_image="trainer:1"))
    # This variable is set unless a device is requested, and a hostile name of a resource may be that of a device.
    (container,) = job["spec"]["template"]["spec"]["containers"]
    container["env"] = [variable for variable in container["env"] if variable["name"] != "NVIDIA_VISIBLE_DEVICES"]
    return job


def _generate_hostile_specs() -> Iterator[tuple[str, Body]]:
    """Yield the path of a field and a spec: each string is replaced and extended, and each map gets another key."""
    spec = spec_samples.build_full_spec()
    for path, value in spec_samples.iter_strings(spec):
        for hostile in HOSTILE:
            for text in (hostile, value + hostile):
                yield ".".join(map(str, path)), spec_samples.replace_at(spec, path, text)
    for path in spec_samples.iter_free_maps(build_root_schema()["properties"]["spec"]):
        for key in KEYS:
            yield ".".join(map(str, path)), spec_samples.replace_at(spec, path, {key: "1"})


@pytest.fixture(scope="module")
def attempts() -> list[tuple[str, Body]]:
    return list(_generate_hostile_specs())


def _type_shape(value: object) -> object:
    """Return the value with each leaf replaced by the name of its type. Maps that users fill are leaves."""
    if isinstance(value, dict):
        return {
            key: type(item).__name__
            if key in (*FREE_MAPS, "labels", "annotations", "requests", "limits")
            else _type_shape(item)
            for key, item in value.items()
        }
    return [_type_shape(item) for item in value] if isinstance(value, list) else type(value).__name__


def _invariant_fields(job: Body) -> list[Any]:
    """Return the fields that are equal for all FineTuneJobs with the same name."""
    template = job["spec"]["template"]
    pod = template["spec"]
    (container,) = pod["containers"]
    (init,) = pod["initContainers"]
    service = multi_node.build_service(job) or {}
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    names = sorted(environment)
    run_variables = {name: environment.pop(name, None) for name in ("FINETUNE_CONFIG", "FINETUNE_IMAGE")}
    return [
        job["metadata"]["name"], job["metadata"]["namespace"], job["metadata"]["ownerReferences"],
        job["metadata"]["labels"], job["spec"]["podFailurePolicy"], service.get("metadata"), service.get("spec"),
        pod["restartPolicy"], pod["automountServiceAccountToken"], pod["enableServiceLinks"], pod["securityContext"],
        container["name"], container["args"], container["ports"], container["securityContext"],
        container["terminationMessagePath"], container["volumeMounts"], names, environment, list(run_variables),
        [{key for key in volume if key != "name"} for volume in pod["volumes"]],
        init["name"], init["args"], init["securityContext"], init["volumeMounts"],
    ]  # fmt: skip


def test_spec_samples_cover_every_field(build: type[Builders]) -> None:
    spec = spec_samples.build_full_spec()
    job = _build_job(build, spec)
    assert set(job["spec"]["template"]["spec"]) == POD_FIELDS
    assert len(list(spec_samples.iter_strings(spec))) > 40
    assert len(job["spec"]["template"]["spec"]["volumes"]) >= 3


def test_job_hostile_value_keeps_pod_invariants(build: type[Builders], attempts: list[tuple[str, Body]]) -> None:
    benign = _build_job(build, spec_samples.build_full_spec())
    accepted: dict[str, int] = {}
    for path, spec in attempts:
        try:
            job = _build_job(build, spec)
        except ValidationError:
            continue
        accepted[path] = accepted.get(path, 0) + 1
        assert _type_shape(job) == _type_shape(benign), path
        assert _invariant_fields(job) == _invariant_fields(benign), path
    assert len(accepted) > 10  # fields with free text, such as URIs, keys and annotations


def test_job_hostile_value_reaches_config_unchanged(build: type[Builders], attempts: list[tuple[str, Body]]) -> None:
    for path, spec in attempts:
        try:
            job = _build_job(build, spec)
        except ValidationError:
            continue
        (container,) = job["spec"]["template"]["spec"]["containers"]
        for variable in container["env"]:
            assert not re.search(r"\$\(|\n|\0", variable["value"].replace("$$", "")), path
        config = next(variable["value"] for variable in container["env"] if variable["name"] == "FINETUNE_CONFIG")
        read = json.loads(config.replace("$$", "$"))
        dataset = FineTuneJob.model_validate({**build.finetunejob(), "spec": spec}).spec.dataset.to_json()
        dataset.pop("tokenSecretRef")  # a reference that only the operator needs
        assert read["dataset"] == dataset


def test_job_reserved_keys_never_reach_pod(build: type[Builders], attempts: list[tuple[str, Body]]) -> None:
    operator_labels = {"app.kubernetes.io/managed-by": "finetune-operator", "finetune.dev/job": "bot"}
    for path, spec in attempts:
        if not path.startswith("compute.pod"):
            continue
        try:
            meta = _build_job(build, spec)["spec"]["template"]["metadata"]
        except ValidationError:
            continue
        assert operator_labels.items() <= meta["labels"].items()
        assert not any(map(is_reserved_key, set(meta["labels"]) - set(operator_labels) | set(meta["annotations"]))), (
            path
        )


def test_job_volumes_are_of_allowed_kinds(build: type[Builders]) -> None:
    spec = spec_samples.build_full_spec()
    for uri in ("s3://bucket/key", "hf://a/b", "pvc://claim", "pvc://claim/../../etc", "pvc://a.b/x"):
        spec = spec_samples.replace_at(spec, ("dataset", "sources", 0, "uri"), uri)
        for scratch in ({"size": "1Gi"}, {"size": "1Gi", "storageClassName": "fast"}):
            changed_spec = spec_samples.replace_at(
                spec_samples.replace_at(spec, ("model", "uri"), uri), ("compute", "scratch"), scratch
            )
            job = _build_job(build, changed_spec)
            pod = job["spec"]["template"]["spec"]
            kinds = {key: volume[key] for volume in pod["volumes"] for key in volume if key != "name"}
            assert set(kinds) <= VOLUMES
            assert kinds.get("persistentVolumeClaim", {}).get("readOnly", True)
            mounts = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
            assert all(re.match(r"/(scratch|etc/finetune/|var/lib/finetune/|dev/shm)", path) for path in mounts)
            assert not any(".." in path.split("/") for path in mounts)


def test_crd_references_have_no_namespace() -> None:
    text = json.dumps(build_root_schema()["properties"]["spec"])
    assert '"namespace":' not in text
    assert '"namespaces":' not in text


def test_job_mounted_secret_keys_are_closed_list(build: type[Builders]) -> None:
    """Secrets of other purposes, such as service account tokens, contain none of the mounted keys."""
    foreign_keys = {"token", "ca.crt", "namespace", ".dockerconfigjson", ".dockercfg", "tls.key", "tls.crt", "password"}
    pod = _build_job(build, spec_samples.build_full_spec())["spec"]["template"]["spec"]
    secrets = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    sources = [volume["projected"]["sources"] for volume in pod["volumes"] if "projected" in volume]
    secrets += [source["secret"] for projected in sources for source in projected]
    assert len(secrets) >= 3
    for secret in secrets:
        assert not {item["key"] for item in secret["items"]} & foreign_keys


def test_validation_every_secret_field_is_limited(build: type[Builders]) -> None:
    schema = build_root_schema()["properties"]["spec"]
    settings = Settings.model_validate({"bounds": {"allowedSecrets": ["none"]}})
    job = FineTuneJob.model_validate({**build.finetunejob(), "spec": spec_samples.build_full_spec()})
    violations = [violation for violation in find_violations(job, settings) if "allowed: none" in violation]
    assert len(violations) == len(list(spec_samples.iter_secret_fields(schema))) >= 3
