"""Of each kind of body, what the store keeps: thousands of runs that have ended lie in the cluster as long as their
users like, and whole they would take most of the memory. Pure; bodies are changed in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict

import msgspec

from finetune_operator import children

Body = dict[str, Any]

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_JOB_SPEC = ("suspend", "backoffLimit", "activeDeadlineSeconds")
_POD_SPEC = ("nodeName", "hostNetwork")
_POD_STATUS = ("phase", "reason", "message", "conditions", "containerStatuses", "podIP")
_ENDED_META = ("namespace", "name", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")
_ENDED_SPEC = ("ttlSecondsAfterFinished",)
_ENDED_STATUS = ("observedGeneration", "phase", "conditions", "completionTime")


class _Meta(TypedDict, total=False):
    namespace: str
    name: str
    uid: str
    resourceVersion: str
    labels: dict[str, str]


class _Condition(TypedDict):
    type: str
    status: str


class _Status(TypedDict, total=False):
    phase: str
    conditions: list[_Condition]


class _Head(TypedDict, total=False):
    metadata: _Meta
    status: _Status


_HEAD = msgspec.json.Decoder(_Head)


def head(raw: msgspec.Raw) -> Body:
    """What tells whose a body is, and whether it has ended: a tenth of the work of reading all of it."""
    return dict(_HEAD.decode(raw))


def whole(raw: msgspec.Raw) -> Body:
    """All of it."""
    body: Body = msgspec.json.decode(raw)
    return body


def finetunejob(body: Body) -> Body:
    """Whole as long as a Job may be made of it; then only what its end needs."""
    if not children.has_ended(body):
        return _without_history(body)
    status = _only(_ENDED_STATUS, body["status"])
    status["conditions"] = [each for each in status["conditions"] if each["status"] == "True"]
    spec = _only(_ENDED_SPEC, body.get("spec", {}))
    return {"metadata": _only(_ENDED_META, body["metadata"]), "spec": spec, "status": status}


def job(body: Body) -> Body:
    """Without its pods' template."""
    return {**_without_history(body), "spec": _only(_JOB_SPEC, body.get("spec", {}))}


def pod(body: Body) -> Body:
    """Without what the kubelet alone needs."""
    kept = {"spec": _only(_POD_SPEC, body.get("spec", {})), "status": _only(_POD_STATUS, body.get("status", {}))}
    return {**_without_history(body), **kept}


def _without_history(body: Body) -> Body:
    body["metadata"].pop("managedFields", None)
    body["metadata"].get("annotations", {}).pop(_LAST_APPLIED, None)
    return body


def _only(names: Iterable[str], body: Body) -> Body:
    return {key: body[key] for key in names if key in body}
