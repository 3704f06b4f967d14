"""The variables of the operator's container, as the kubelet sets them."""

from typing import Any


def environment(deployment: dict[str, Any]) -> dict[str, str]:
    """Name and value; the one that is not written out is the pod's own namespace."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each["value"] if "value" in each else _of_pod(each, deployment) for each in container["env"]}


def _of_pod(variable: dict[str, Any], deployment: dict[str, Any]) -> str:
    assert variable["valueFrom"] == {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    namespace: str = deployment["metadata"]["namespace"]
    return namespace
