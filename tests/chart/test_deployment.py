"""Tests of the operator's pod: its restrictions, its resources, and the effect of the values."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.chart.deployment_environment import read_environment

from finetune_operator.settings import Settings

Manifest = dict[str, Any]


def test_deployment_pod_is_restricted(deployment: Callable[..., Manifest]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and a read-only root."""
    pod = deployment()["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    assert [set(volume) for volume in pod["volumes"]] == [{"name", "configMap"}]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all("hostPort" not in port for port in container["ports"])


def test_deployment_one_replica_surges_before_old_stops(deployment: Callable[..., Manifest]) -> None:
    spec = deployment()["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert "topologySpreadConstraints" not in spec["template"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_deployment_two_replicas_are_spread_with_budget(render: Callable[..., list[Manifest]]) -> None:
    objects = {manifest["kind"]: manifest for manifest in render({"replicas": 2})}
    spec = objects["Deployment"]["spec"]
    selector = spec["selector"]["matchLabels"]
    spread = spec["template"]["spec"]["topologySpreadConstraints"]
    assert spec["replicas"] == 2
    assert {constraint["topologyKey"] for constraint in spread} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }
    assert all(constraint["whenUnsatisfiable"] == "ScheduleAnyway" for constraint in spread)
    assert all(constraint["labelSelector"]["matchLabels"] == selector for constraint in spread)
    budget = objects["PodDisruptionBudget"]["spec"]
    assert budget == {"maxUnavailable": 1, "selector": {"matchLabels": selector}}


def test_deployment_one_replica_has_no_disruption_budget(render: Callable[..., list[Manifest]]) -> None:
    assert "PodDisruptionBudget" not in {manifest["kind"] for manifest in render()}


@pytest.mark.parametrize(("probe", "path"), [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")])
def test_deployment_probes_use_health_port(deployment: Callable[..., Manifest], probe: str, path: str) -> None:
    (container,) = deployment()["spec"]["template"]["spec"]["containers"]
    assert container["ports"][0] == {"name": "health", "containerPort": Settings().health_port}
    assert container[probe]["httpGet"] == {"path": path, "port": "health"}


def test_deployment_limits_memory_but_not_cpu(deployment: Callable[..., Manifest]) -> None:
    (container,) = deployment()["spec"]["template"]["spec"]["containers"]
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    assert set(container["resources"]["limits"]) == {"memory"}


DIGEST = "sha256:" + "0" * 64
# As it is written, and as it is used.
IMAGES = {
    "digest": (f"registry.example:5000/team/x@{DIGEST}", f"registry.example:5000/team/x@{DIGEST}"),
    "tag": ("registry.example/x:2.0", "registry.example/x:2.0"),
    "tag and digest": (f"x:2.0@{DIGEST}", f"x:2.0@{DIGEST}"),
    "neither": ("registry.example/team/x", "registry.example/team/x:0.1.0"),
    "neither, but a port": ("localhost:5000/x", "localhost:5000/x:0.1.0"),
}


@pytest.mark.parametrize(("written", "used"), IMAGES.values(), ids=IMAGES)
def test_deployment_image_without_tag_gets_app_version(
    deployment: Callable[..., Manifest], written: str, used: str
) -> None:
    rendered = deployment({"image": written, "trainer": {"image": written}})
    (container,) = rendered["spec"]["template"]["spec"]["containers"]
    assert container["image"] == used
    assert read_environment(rendered)["FINETUNE_OPERATOR_TRAINER_IMAGE"] == used


IMAGE_PARTS: dict[str, tuple[dict[str, str], str]] = {
    "registry": ({"registry": "registry.example:5000/team"}, "registry.example:5000/team/x:0.1.0"),
    "tag": ({"tag": "2.0"}, "x:2.0"),
    "digest": ({"digest": DIGEST}, f"x@{DIGEST}"),
    "all": ({"registry": "r.example", "tag": "2.0", "digest": DIGEST}, f"r.example/x:2.0@{DIGEST}"),
}


@pytest.mark.parametrize(("parts", "used"), IMAGE_PARTS.values(), ids=IMAGE_PARTS)
def test_deployment_image_parts_form_reference(
    deployment: Callable[..., Manifest], parts: dict[str, str], used: str
) -> None:
    image = {"repository": "x", **parts}
    rendered = deployment({"image": image, "trainer": {"image": image}})
    (container,) = rendered["spec"]["template"]["spec"]["containers"]
    assert container["image"] == used
    assert read_environment(rendered)["FINETUNE_OPERATOR_TRAINER_IMAGE"] == used


def test_deployment_global_registry_replaces_those_of_images(deployment: Callable[..., Manifest]) -> None:
    values = {"global": {"imageRegistry": "mirror.example"}, "image": {"registry": "r.example"}}
    rendered = deployment(values)
    (container,) = rendered["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "mirror.example/finetune-operator:0.1.0"
    assert read_environment(rendered)["FINETUNE_OPERATOR_TRAINER_IMAGE"] == "mirror.example/finetune-trainer:0.1.0"


PULL_POLICIES: dict[str, tuple[dict[str, Any], tuple[str | None, str | None]]] = {
    "default": ({}, ("IfNotPresent", None)),
    "images as strings": ({"image": "r/a", "trainer": {"image": "r/b"}}, ("IfNotPresent", None)),
    "former values": ({"imagePullPolicy": "Never", "trainer": {"imagePullPolicy": "Always"}}, ("Never", "Always")),
    "former values with strings": (
        {"image": "r/a", "imagePullPolicy": "Never", "trainer": {"image": "r/b", "imagePullPolicy": "Always"}},
        ("Never", "Always"),
    ),
    "of Kubernetes": ({"image": {"pullPolicy": ""}}, (None, None)),
    "both": (
        {"image": {"pullPolicy": "Never"}, "trainer": {"image": {"pullPolicy": "Always"}}}, ("Never", "Always"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("values", "expected"), PULL_POLICIES.values(), ids=PULL_POLICIES)
def test_deployment_pull_policy_is_set_per_image(
    deployment: Callable[..., Manifest], values: dict[str, Any], expected: tuple[str | None, str | None]
) -> None:
    rendered = deployment(values)
    (container,) = rendered["spec"]["template"]["spec"]["containers"]
    trainer_policy = read_environment(rendered).get("FINETUNE_OPERATOR_TRAINER_IMAGE_PULL_POLICY")
    assert (container.get("imagePullPolicy"), trainer_policy) == expected


def test_deployment_extra_env_follows_settings(deployment: Callable[..., Manifest]) -> None:
    (container,) = deployment({"extraEnv": [{"name": "NO_PROXY", "value": "10.0.0.0/8"}]})["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["env"][-1] == {"name": "NO_PROXY", "value": "10.0.0.0/8"}


def test_deployment_own_spread_replaces_that_of_replicas(deployment: Callable[..., Manifest]) -> None:
    own = [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}]
    pod = deployment({"replicas": 2, "topologySpreadConstraints": own})["spec"]["template"]["spec"]
    assert pod["topologySpreadConstraints"] == own
    pod = deployment({"replicas": 2, "topologySpreadConstraints": []})["spec"]["template"]["spec"]
    assert "topologySpreadConstraints" not in pod


def test_deployment_pod_labels_are_not_in_selector(deployment: Callable[..., Manifest]) -> None:
    spec = deployment({"commonLabels": {"team": "ml"}, "podLabels": {"tier": "platform"}})["spec"]
    labels = spec["template"]["metadata"]["labels"]
    assert (labels["team"], labels["tier"]) == ("ml", "platform")
    assert set(spec["selector"]["matchLabels"]) == {"app.kubernetes.io/name", "app.kubernetes.io/instance"}


NAMES: dict[str, tuple[dict[str, str], str, str]] = {
    "default": ({}, "finetune-operator", "finetune-operator"),
    "name": ({"nameOverride": "tuner"}, "finetune-operator-tuner", "tuner"),
    "fullname": ({"fullnameOverride": "ml"}, "ml", "finetune-operator"),
}


@pytest.mark.parametrize(("values", "name", "label"), NAMES.values(), ids=NAMES)
def test_chart_name_overrides_apply_to_all_objects(
    render: Callable[..., list[Manifest]], values: dict[str, str], name: str, label: str
) -> None:
    objects = [manifest for manifest in render(values) if manifest["kind"] != "CustomResourceDefinition"]
    assert {manifest["metadata"]["labels"]["app.kubernetes.io/name"] for manifest in objects} == {label}
    assert all(manifest["metadata"]["name"].startswith(name) for manifest in objects)


@pytest.mark.parametrize("release", ["ml.tuner", "finetune-operator.ml", "a" * 51 + ".b"])
def test_chart_release_name_with_dot_gives_names_of_services(chart: Path, helm: str, release: str) -> None:
    """Helm accepts such a release, and the API server no such Service."""
    result = subprocess.run([helm, "template", release, chart], capture_output=True, text=True, check=True)
    (service,) = (each for each in yaml.safe_load_all(result.stdout) if each and each["kind"] == "Service")
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", service["metadata"]["name"])
    assert service["spec"]["selector"]["app.kubernetes.io/instance"] == release


def test_chart_existing_service_account_is_bound(render: Callable[..., list[Manifest]]) -> None:
    objects = render({"serviceAccount": {"create": False, "name": "own"}})
    assert "ServiceAccount" not in {manifest["kind"] for manifest in objects}
    subjects = [subject["name"] for manifest in objects for subject in manifest.get("subjects", [])]
    assert set(subjects) == {"own"}
    (deployment,) = (manifest for manifest in objects if manifest["kind"] == "Deployment")
    assert deployment["spec"]["template"]["spec"]["serviceAccountName"] == "own"


def test_deployment_default_has_no_empty_fields(deployment: Callable[..., Manifest]) -> None:
    pod = deployment()["spec"]["template"]["spec"]
    assert not {"imagePullSecrets", "nodeSelector", "tolerations", "priorityClassName", "affinity"} & set(pod)


def test_chart_namespaced_objects_name_their_namespace(render: Callable[..., list[Manifest]]) -> None:
    kinds = {"Deployment", "ServiceAccount"}
    namespaces = {manifest["metadata"]["namespace"] for manifest in render() if manifest["kind"] in kinds}
    assert namespaces == {"finetune-system"}
