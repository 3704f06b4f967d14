"""The operator's pod: restricted, small, and told about by the values."""

from collections.abc import Callable
from typing import Any

import pytest
from tests.chart.environment import environment

from finetune_operator.settings import Settings

Manifest = dict[str, Any]


def test_restricted_pod_security(deployment: Callable[..., Manifest]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted, and a read-only root."""
    pod = deployment()["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC", "volumes", "initContainers"} & set(pod)
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert all("hostPort" not in port for port in container["ports"])


def test_one_replica_that_stands_by_before_another_goes(deployment: Callable[..., Manifest]) -> None:
    spec = deployment()["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert "topologySpreadConstraints" not in spec["template"]["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


def test_several_replicas_are_spread_and_never_evicted_together(render: Callable[..., list[Manifest]]) -> None:
    objects = {each["kind"]: each for each in render({"replicas": 2})}
    spec = objects["Deployment"]["spec"]
    selector = spec["selector"]["matchLabels"]
    spread = spec["template"]["spec"]["topologySpreadConstraints"]
    assert spec["replicas"] == 2
    assert {each["topologyKey"] for each in spread} == {"kubernetes.io/hostname", "topology.kubernetes.io/zone"}
    assert all(each["whenUnsatisfiable"] == "ScheduleAnyway" for each in spread)
    assert all(each["labelSelector"]["matchLabels"] == selector for each in spread)
    budget = objects["PodDisruptionBudget"]["spec"]
    assert budget == {"maxUnavailable": 1, "selector": {"matchLabels": selector}}


def test_one_replica_has_no_budget_that_would_block_a_drain(render: Callable[..., list[Manifest]]) -> None:
    assert "PodDisruptionBudget" not in {each["kind"] for each in render()}


@pytest.mark.parametrize(("probe", "path"), [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")])
def test_probes_ask_the_health_port(deployment: Callable[..., Manifest], probe: str, path: str) -> None:
    (container,) = deployment()["spec"]["template"]["spec"]["containers"]
    assert container["ports"][0] == {"name": "health", "containerPort": Settings().health_port}
    assert container[probe]["httpGet"] == {"path": path, "port": "health"}


def test_memory_is_bounded_and_cpu_is_not_throttled(deployment: Callable[..., Manifest]) -> None:
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
def test_images_have_the_charts_version_unless_they_name_one(
    deployment: Callable[..., Manifest], written: str, used: str
) -> None:
    found = deployment({"image": written, "trainer": {"image": written}})
    (container,) = found["spec"]["template"]["spec"]["containers"]
    assert container["image"] == used
    assert environment(found)["FINETUNE_OPERATOR_TRAINER_IMAGE"] == used


def test_no_empty_fields_by_default(deployment: Callable[..., Manifest]) -> None:
    pod = deployment()["spec"]["template"]["spec"]
    assert not {"imagePullSecrets", "nodeSelector", "tolerations", "priorityClassName", "affinity"} & set(pod)


def test_namespaced_objects_name_their_namespace(render: Callable[..., list[Manifest]]) -> None:
    kinds = {"Deployment", "ServiceAccount"}
    namespaces = {each["metadata"]["namespace"] for each in render() if each["kind"] in kinds}
    assert namespaces == {"finetune-system"}
