"""Security contexts of all pods that the operator creates: the restricted profile of the Pod Security Standards."""

from __future__ import annotations

from finetune_operator.api.objects import Body

_NONROOT_UID = 65532  # user `nonroot` of distroless images, also the user of the trainer image


def build_pod_security_context() -> Body:
    """Return the security context of a pod."""
    return {
        "runAsNonRoot": True,
        "runAsUser": _NONROOT_UID,
        "runAsGroup": _NONROOT_UID,
        "fsGroup": _NONROOT_UID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def build_container_security_context() -> Body:
    """Return the security context of a container."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
