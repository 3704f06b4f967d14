"""No value of any field makes of the Job anything but the pod that it always is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError
from tests.operator import samples

from finetune_operator.api import FineTuneJob
from finetune_operator.api.compute import is_reserved_key
from finetune_operator.codegen.crd import build_root_schema
from finetune_operator.policy.validation import find_violations
from finetune_operator.resources import multi_node
from finetune_operator.resources.job import build_job
from finetune_operator.settings import Settings

if TYPE_CHECKING:
    from tests.operator.bodies import Build

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
POD = {
    "restartPolicy", "subdomain", "automountServiceAccountToken", "enableServiceLinks", "terminationGracePeriodSeconds",
    "securityContext", "containers", "volumes", "nodeSelector", "tolerations", "imagePullSecrets", "serviceAccountName",
    "priorityClassName",
}  # fmt: skip


def _job(build: type[Build], spec: Body) -> Body:
    body = build.stored()
    return build_job(FineTuneJob.model_validate({**body, "spec": spec}), Settings(trainer_image="trainer:1"))


def _attempts() -> Iterator[tuple[str, Body]]:
    """Every string replaced and lengthened, and every map given another key."""
    spec = samples.full_spec()
    for path, value in samples.strings(spec):
        for hostile in HOSTILE:
            for text in (hostile, value + hostile):
                yield ".".join(map(str, path)), samples.replaced(spec, path, text)
    for path in samples.maps(build_root_schema()["properties"]["spec"]):
        for key in KEYS:
            yield ".".join(map(str, path)), samples.replaced(spec, path, {key: "1"})


@pytest.fixture(scope="module")
def attempts() -> list[tuple[str, Body]]:
    return list(_attempts())


def _shape(value: object) -> object:
    """What is there, without what it says; maps that people fill are theirs."""
    if isinstance(value, dict):
        return {
            key: type(each).__name__
            if key in (*FREE_MAPS, "labels", "annotations", "requests", "limits")
            else _shape(each)
            for key, each in value.items()
        }
    return [_shape(each) for each in value] if isinstance(value, list) else type(value).__name__


def _fixed(job: Body) -> list[Any]:
    """What is the same for every FineTuneJob of that name."""
    template = job["spec"]["template"]
    pod = template["spec"]
    (container,) = pod["containers"]
    service = multi_node.build_service(job) or {}
    environment = {each["name"]: each["value"] for each in container["env"]}
    names = sorted(environment)
    said = {name: environment.pop(name, None) for name in ("FINETUNE_CONFIG", "FINETUNE_IMAGE")}
    return [
        job["metadata"]["name"], job["metadata"]["namespace"], job["metadata"]["ownerReferences"],
        job["metadata"]["labels"], job["spec"]["podFailurePolicy"], service.get("metadata"), service.get("spec"),
        pod["restartPolicy"], pod["automountServiceAccountToken"], pod["enableServiceLinks"], pod["securityContext"],
        container["name"], container["args"], container["ports"], container["securityContext"],
        container["terminationMessagePath"], container["volumeMounts"], names, environment, list(said),
        [{key for key in volume if key != "name"} for volume in pod["volumes"]],
    ]  # fmt: skip


def test_every_field_has_a_sample(build: type[Build]) -> None:
    spec = samples.full_spec()
    job = _job(build, spec)
    assert set(job["spec"]["template"]["spec"]) == POD
    assert len(list(samples.strings(spec))) > 40
    assert len(job["spec"]["template"]["spec"]["volumes"]) >= 3


def test_no_field_changes_what_the_pod_is(build: type[Build], attempts: list[tuple[str, Body]]) -> None:
    benign = _job(build, samples.full_spec())
    taken: dict[str, int] = {}
    for path, spec in attempts:
        try:
            job = _job(build, spec)
        except ValidationError:
            continue  # refused as a whole
        taken[path] = taken.get(path, 0) + 1
        assert _shape(job) == _shape(benign), path
        assert _fixed(job) == _fixed(benign), path
    assert len(taken) > 10  # of free text, such as URIs, keys and annotations


def test_values_arrive_as_they_were_written(build: type[Build], attempts: list[tuple[str, Body]]) -> None:
    for path, spec in attempts:
        try:
            job = _job(build, spec)
        except ValidationError:
            continue
        (container,) = job["spec"]["template"]["spec"]["containers"]
        for each in container["env"]:
            assert not re.search(r"\$\(|\n|\0", each["value"].replace("$$", "")), path
        config = next(each["value"] for each in container["env"] if each["name"] == "FINETUNE_CONFIG")
        read = json.loads(config.replace("$$", "$"))
        assert read["dataset"] == FineTuneJob.model_validate({**build.stored(), "spec": spec}).spec.dataset.to_json()


def test_reserved_keys_never_reach_a_pod(build: type[Build], attempts: list[tuple[str, Body]]) -> None:
    own = {"app.kubernetes.io/managed-by": "finetune-operator", "finetune.dev/job": "bot"}
    for path, spec in attempts:
        if not path.startswith("compute.pod"):
            continue
        try:
            meta = _job(build, spec)["spec"]["template"]["metadata"]
        except ValidationError:
            continue
        assert own.items() <= meta["labels"].items()
        assert not any(map(is_reserved_key, set(meta["labels"]) - set(own) | set(meta["annotations"]))), path


def test_volumes_are_of_the_harmless_kinds(build: type[Build]) -> None:
    spec = samples.full_spec()
    for uri in ("s3://bucket/key", "hf://a/b", "pvc://claim", "pvc://claim/../../etc", "pvc://a.b/x"):
        for scratch in ({"size": "1Gi"}, {"size": "1Gi", "storageClassName": "fast"}):
            tried = samples.replaced(samples.replaced(spec, ("model", "uri"), uri), ("compute", "scratch"), scratch)
            job = _job(build, tried)
            pod = job["spec"]["template"]["spec"]
            kinds = {key: volume[key] for volume in pod["volumes"] for key in volume if key != "name"}
            assert set(kinds) <= VOLUMES
            assert kinds.get("persistentVolumeClaim", {}).get("readOnly", True)
            mounts = [each["mountPath"] for each in pod["containers"][0]["volumeMounts"]]
            assert all(re.match(r"/(scratch|etc/finetune/|var/lib/finetune/|dev/shm)", each) for each in mounts)
            assert not any(".." in each.split("/") for each in mounts)


def test_no_reference_has_a_namespace() -> None:
    text = json.dumps(build_root_schema()["properties"]["spec"])
    assert '"namespace":' not in text
    assert '"namespaces":' not in text


def test_what_is_mounted_of_a_secret_is_a_closed_list(build: type[Build]) -> None:
    """A Secret of another use (a service account's token, a registry's, a certificate's key) lacks these keys."""
    others = {"token", "ca.crt", "namespace", ".dockerconfigjson", ".dockercfg", "tls.key", "tls.crt", "password"}
    pod = _job(build, samples.full_spec())["spec"]["template"]["spec"]
    secrets = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
    sources = [volume["projected"]["sources"] for volume in pod["volumes"] if "projected" in volume]
    secrets += [source["secret"] for each in sources for source in each]
    assert len(secrets) >= 3
    for secret in secrets:
        assert not {item["key"] for item in secret["items"]} & others


def test_every_secret_of_the_api_is_bounded(build: type[Build]) -> None:
    schema = build_root_schema()["properties"]["spec"]
    settings = Settings.model_validate({"bounds": {"allowedSecrets": ["none"]}})
    job = FineTuneJob.model_validate({**build.stored(), "spec": samples.full_spec()})
    refused = [each for each in find_violations(job, settings) if "allowed: none" in each]
    assert len(refused) == len(list(samples.references(schema))) >= 3
