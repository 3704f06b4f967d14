"""The operator's pod: restricted, small, and told about by the values."""

from collections.abc import Callable
from typing import Any

import pytest

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


def test_one_replica_that_is_never_two(deployment: Callable[..., Manifest]) -> None:
    spec = deployment()["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize("probe", ["livenessProbe", "readinessProbe"])
def test_probes_ask_the_health_port(deployment: Callable[..., Manifest], probe: str) -> None:
    (container,) = deployment()["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "health", "containerPort": 8080}]
    assert container[probe]["httpGet"] == {"path": "/healthz", "port": "health"}


def test_memory_is_bounded_and_cpu_is_not_throttled(deployment: Callable[..., Manifest]) -> None:
    (container,) = deployment()["spec"]["template"]["spec"]["containers"]
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}
    assert set(container["resources"]["limits"]) == {"memory"}


def test_images_are_taken_as_they_are_written(deployment: Callable[..., Manifest]) -> None:
    digest = "registry.example:5000/team/finetune-operator@sha256:" + "0" * 64
    (container,) = deployment({"image": digest})["spec"]["template"]["spec"]["containers"]
    assert container["image"] == digest


def test_no_empty_fields_by_default(deployment: Callable[..., Manifest]) -> None:
    pod = deployment()["spec"]["template"]["spec"]
    assert not {"imagePullSecrets", "nodeSelector", "tolerations", "priorityClassName"} & set(pod)


def test_namespaced_objects_name_their_namespace(render: Callable[..., list[Manifest]]) -> None:
    kinds = {"Deployment", "ServiceAccount"}
    namespaces = {each["metadata"]["namespace"] for each in render() if each["kind"] in kinds}
    assert namespaces == {"finetune-system"}
