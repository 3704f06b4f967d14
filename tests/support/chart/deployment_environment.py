"""The environment variables of the operator's container in a rendered Deployment."""

from typing import Any


def read_environment(deployment: dict[str, Any]) -> dict[str, str]:
    """Return the variables by name. The one that refers to a field of the pod gets the namespace of the release.

    `$(NAME)` is replaced by the value of an earlier variable, as by the kubelet.
    """
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment: dict[str, str] = {}
    for variable in container["env"]:
        value = variable["value"] if "value" in variable else _resolve_field_ref(variable, deployment)
        for name, earlier_value in environment.items():
            value = value and value.replace(f"$({name})", earlier_value or "")
        environment[variable["name"]] = value
    return environment


def _resolve_field_ref(variable: dict[str, Any], deployment: dict[str, Any]) -> str:
    assert variable["valueFrom"] == {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    namespace: str = deployment["metadata"]["namespace"]
    return namespace
