"""Tests of the operator's pod: its restrictions, its resources, and the effect of the values."""

from collections.abc import Callable
from typing import Any

import pytest
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


def test_deployment_default_has_no_empty_fields(deployment: Callable[..., Manifest]) -> None:
    pod = deployment()["spec"]["template"]["spec"]
    assert not {"imagePullSecrets", "nodeSelector", "tolerations", "priorityClassName", "affinity"} & set(pod)


def test_chart_namespaced_objects_name_their_namespace(render: Callable[..., list[Manifest]]) -> None:
    kinds = {"Deployment", "ServiceAccount"}
    namespaces = {manifest["metadata"]["namespace"] for manifest in render() if manifest["kind"] in kinds}
    assert namespaces == {"finetune-system"}
