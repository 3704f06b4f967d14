"""The variables of the operator's container, as the kubelet sets them."""

from typing import Any


def read_environment(deployment: dict[str, Any]) -> dict[str, str]:
    """Name and value; the one that is not written out is the pod's own namespace."""
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {
        variable["name"]: variable["value"] if "value" in variable else _resolve_field_ref(variable, deployment)
        for variable in container["env"]
    }


def _resolve_field_ref(variable: dict[str, Any], deployment: dict[str, Any]) -> str:
    assert variable["valueFrom"] == {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    namespace: str = deployment["metadata"]["namespace"]
    return namespace
