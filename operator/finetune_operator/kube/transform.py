"""Of each kind of body, what the store keeps: thousands of runs that have ended lie in the cluster as long as their
users like, and whole they would take most of the memory. Pure; bodies are changed in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypedDict

import msgspec

from finetune_operator.observed import objects
from finetune_operator.resources.job import JOB_LABEL, KUEUE_LABELS

Body = dict[str, Any]

_META = ("namespace", "name", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")
_JOB_SPEC = ("suspend", "backoffLimit", "activeDeadlineSeconds")
_POD_SPEC = ("nodeName", "hostNetwork")
_POD_STATUS = ("phase", "reason", "message", "conditions", "containerStatuses", "podIP")


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


class _EndedMeta(TypedDict, total=False):
    namespace: str
    name: str
    uid: str
    resourceVersion: str
    generation: int
    creationTimestamp: str
    deletionTimestamp: str


class _EndedSpec(TypedDict, total=False):
    ttlSecondsAfterFinished: int


class _EndedStatus(TypedDict, total=False):
    observedGeneration: int
    phase: str
    conditions: list[Body]
    completionTime: str


class _Ended(TypedDict):
    metadata: _EndedMeta
    spec: _EndedSpec
    status: _EndedStatus


_HEAD, _ENDED = msgspec.json.Decoder(_Head), msgspec.json.Decoder(_Ended)
_UNREADABLE = {"phase": "Unreadable"}
"""No status that the operator takes for one: it may be an end, so nothing is done."""


def head(raw: msgspec.Raw) -> Body:
    """What tells whose a body is, and whether it has ended: a tenth of the work of reading all of it."""
    try:
        return dict(_HEAD.decode(raw))
    except msgspec.ValidationError:  # one poisoned body must not hide all others of its list
        return {"metadata": msgspec.json.decode(raw)["metadata"]}


def read(raw: msgspec.Raw, _head: Body) -> Body:
    """All of a body."""
    body: Body = msgspec.json.decode(raw)
    return body


def read_finetunejob(raw: msgspec.Raw, head: Body) -> Body:
    """All of one that goes on; of one that has ended, what is kept of it."""
    if not objects.has_ended(head):
        return read(raw, head)
    try:
        return dict(_ENDED.decode(raw))
    except msgspec.ValidationError:
        return read(raw, head)


def finetunejob(body: Body) -> Body:
    """Whole as long as a Job may be made of it; then only what its end needs."""
    body = _well_formed(body)
    if not objects.has_ended(body):
        return _with_few_words(body)
    try:
        ended: Body = dict(msgspec.convert(body, _Ended))
    except msgspec.ValidationError:
        return _with_few_words(body)
    ended["status"]["conditions"] = [each for each in ended["status"]["conditions"] if each["status"] == "True"]
    return ended


def _well_formed(body: Body) -> Body:
    """As its CRD promises. Of another version, or without a schema, it promises nothing."""
    spec, status = body.get("spec"), body.get("status") or {}
    try:
        msgspec.convert(status, _Status)
    except msgspec.ValidationError:
        status = _UNREADABLE
    return {**body, "spec": spec if isinstance(spec, dict) else {}, "status": status}


def job(body: Body) -> Body:
    """Without its pods' template."""
    return {**_with_few_words(body), "spec": _only(_JOB_SPEC, body.get("spec", {}))}


def pod(body: Body) -> Body:
    """Without what the kubelet alone needs."""
    kept = {"spec": _only(_POD_SPEC, body.get("spec", {})), "status": _only(_POD_STATUS, body.get("status", {}))}
    return {**_with_few_words(body), **kept}


def _with_few_words(body: Body) -> Body:
    """Of its metadata what is read: what its owner adds may be a quarter of a megabyte."""
    meta = body["metadata"]
    kept = _only((*_META, "ownerReferences"), meta)
    labels = _only((JOB_LABEL, *KUEUE_LABELS), meta.get("labels") or {})
    annotations = _only((objects.INDEX,), meta.get("annotations") or {})
    words = {"labels": labels, "annotations": annotations}
    return {**body, "metadata": kept | {key: each for key, each in words.items() if each}}


def _only(names: Iterable[str], body: Body) -> Body:
    return {key: body[key] for key in names if key in body}
