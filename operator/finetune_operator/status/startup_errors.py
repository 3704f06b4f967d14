"""Explains why a pod does not start, from the texts of the scheduler and the kubelet.

The texts are no API. They are those of Kubernetes 1.31 to 1.36; a text that is not known keeps the general reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from finetune_operator.api import OperatorReason
from finetune_operator.api.objects import Body


class _Pattern(NamedTuple):
    """A text about an object that a pod names and that is missing."""

    reason: OperatorReason
    kind: str
    text: re.Pattern[str]
    """The group `name` is the name of the object, the group `key` that of the missing key."""


_NAME = r'"?(?P<name>[a-z0-9][a-z0-9.-]*)"?'
_KEY = r'"?(?P<key>[A-Za-z0-9._-]+)"?'
_PATTERNS = tuple(
    _Pattern(reason, kind, re.compile(text))
    for reason, kind, text in (
        # plugins/volumebinding of the scheduler, and volumemanager of the kubelet with the plural
        (OperatorReason.CLAIM_NOT_FOUND, "PersistentVolumeClaim", rf"persistentvolumeclaims? {_NAME} not found"),
        # volumes, and variables of a container
        (OperatorReason.SECRET_NOT_FOUND, "Secret", rf"secrets? {_NAME} not found"),
        (OperatorReason.CONFIG_MAP_NOT_FOUND, "ConfigMap", rf"configmaps? {_NAME} not found"),
        # volumes: the kubelet names neither the Secret nor the ConfigMap
        (OperatorReason.KEY_NOT_FOUND, "Secret", rf"references non-existent secret key: {_KEY}"),
        (OperatorReason.KEY_NOT_FOUND, "ConfigMap", rf"references non-existent config key: {_KEY}"),
        # variables of a container
        (OperatorReason.KEY_NOT_FOUND, "Secret", rf"couldn't find key {_KEY} in Secret [^/\s]+/{_NAME}"),
        (OperatorReason.KEY_NOT_FOUND, "ConfigMap", rf"couldn't find key {_KEY} in ConfigMap [^/\s]+/{_NAME}"),
    )
)
_REFERENCE_FIELDS = {
    "PersistentVolumeClaim": ("modelCacheClaimName",),
    "Secret": ("credentialsSecretRef", "tokenSecretRef", "keySecretRef"),
    "ConfigMap": ("caConfigMapRef",),
}
"""Names of the fields of the spec that refer to objects of a kind."""


class StartupError(NamedTuple):
    """Why a pod does not start."""

    reason: OperatorReason
    hint: str
    """Sentences that say what is missing, which field names it and what to do."""


def find_missing_object(text: str, spec: Body) -> StartupError | None:
    """Return which object or key is missing according to the text, or None if the text says nothing of the kind."""
    for pattern in _PATTERNS:
        if match := pattern.text.search(text):
            groups = match.groupdict()
            return StartupError(pattern.reason, _build_hint(pattern.kind, groups.get("name"), groups.get("key"), spec))
    return None


def find_missing_gpu(text: str, gpu_resource: str) -> StartupError | None:
    """Return that the nodes lack free GPUs, if the scheduler's text says so."""
    if not re.search(rf"Insufficient {re.escape(gpu_resource)}(?![\w/-]|\.\w)", text):
        return None
    hint = (
        f"No node that the pod may use has enough free {gpu_resource}. Wait until GPUs are free, lower "
        "spec.compute.gpusPerNode, or choose another spec.compute.profile or spec.compute.gpuResource. On a cluster "
        "without GPUs set spec.compute.gpusPerNode to 0."
    )
    return StartupError(OperatorReason.GPU_UNAVAILABLE, hint)


def _build_hint(kind: str, name: str | None, key: str | None, spec: Body) -> str:
    fields = [field for field, value in _list_references(kind, spec, "spec") if name is None or value == name]
    where = f" ({', '.join(dict.fromkeys(fields))})" if fields else ""
    if key is None:
        return f"{kind} {name}{where} does not exist in this namespace. Create it; the pod then starts by itself."
    owner = f"{kind} {name}" if name else f"A {kind}"
    return f"{owner}{where} has no key {key}. Add the key; the pod then starts by itself."


def _list_references(kind: str, node: object, path: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the name of each reference to an object of this kind. The spec may be of another version."""
    if isinstance(node, list):
        for index, item in enumerate(node):
            yield from _list_references(kind, item, f"{path}[{index}]")
    for field, value in node.items() if isinstance(node, dict) else ():
        if field in _REFERENCE_FIELDS[kind]:
            yield f"{path}.{field}", str(value.get("name", "") if isinstance(value, dict) else value)
        elif kind == "PersistentVolumeClaim" and isinstance(value, str) and value.startswith("pvc://"):
            yield f"{path}.{field}", value.removeprefix("pvc://").partition("/")[0]
        else:
            yield from _list_references(kind, value, f"{path}.{field}")
