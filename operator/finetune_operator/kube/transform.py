"""Reduce objects to the fields that the operator reads, before they are cached (client-go: `TransformFunc`).

Clusters contain thousands of finished runs, which would take most of the memory otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

import msgspec

from finetune_operator.api.labels import (
    DEFAULT_STARTUP_DEADLINE_ANNOTATION,
    INSTALLATION_ANNOTATION,
    JOB_LABEL,
    KUEUE_LABELS,
    SCRATCH_CLAIM_LABEL,
    STARTUP_DEADLINE_ANNOTATION,
    SUSPEND_AT_STEP_ANNOTATION,
)
from finetune_operator.api.objects import Body
from finetune_operator.observed.cleaning import may_have_checkpoints
from finetune_operator.observed.objects import is_finished
from finetune_operator.observed.pod import COMPLETION_INDEX_ANNOTATION

_METADATA_FIELDS = (
    "namespace",
    "name",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
)
_ANNOTATIONS = (
    COMPLETION_INDEX_ANNOTATION,
    STARTUP_DEADLINE_ANNOTATION,
    DEFAULT_STARTUP_DEADLINE_ANNOTATION,
    INSTALLATION_ANNOTATION,
    SUSPEND_AT_STEP_ANNOTATION,
)
_CHILD_SPEC_FIELDS = ("suspend", "suspendAtStep", "cancel", "budget")
_CHILD_STATUS_FIELDS = ("phase", "reason", "conditions", "completionTime", "gpuSeconds", "stepResult")
_JOB_SPEC_FIELDS = ("suspend", "backoffLimit", "activeDeadlineSeconds")
_POD_SPEC_FIELDS = ("nodeName", "hostNetwork")
_POD_STATUS_FIELDS = ("phase", "reason", "message", "conditions", "containerStatuses", "initContainerStatuses", "podIP")


class _HeadOwner(TypedDict, total=False):
    apiVersion: str
    kind: str
    name: str
    uid: str
    controller: bool


class _HeadMetadata(TypedDict, total=False):
    namespace: str
    name: str
    uid: str
    resourceVersion: str
    labels: dict[str, str]
    ownerReferences: list[_HeadOwner]


class _HeadSpec(TypedDict, total=False):
    managedBy: str


class _HeadCondition(TypedDict):
    type: str
    status: str


class _HeadStatus(TypedDict, total=False):
    phase: str
    conditions: list[_HeadCondition]
    startTime: str
    checkpointsCleanedTime: str


class _ObjectHead(TypedDict, total=False):
    metadata: _HeadMetadata
    spec: _HeadSpec
    status: _HeadStatus


class _FinishedMetadata(TypedDict, total=False):
    namespace: str
    name: str
    uid: str
    resourceVersion: str
    generation: int
    creationTimestamp: str
    deletionTimestamp: str


class _FinishedSpec(TypedDict, total=False):
    ttlSecondsAfterFinished: int


class _FinishedStatus(TypedDict, total=False):
    observedGeneration: int
    phase: str
    conditions: list[Body]
    startTime: str
    completionTime: str
    checkpointsCleanedTime: str


class _FinishedFineTuneJob(TypedDict):
    metadata: _FinishedMetadata
    spec: _FinishedSpec
    status: _FinishedStatus


class _UncleanedFineTuneJob(TypedDict):
    """A finished one whose spec is needed for the Job that cleans its checkpoints."""

    metadata: _FinishedMetadata
    spec: Body
    status: _FinishedStatus


_HEAD_DECODER, _FINISHED_DECODER = msgspec.json.Decoder(_ObjectHead), msgspec.json.Decoder(_FinishedFineTuneJob)
_UNCLEANED_DECODER = msgspec.json.Decoder(_UncleanedFineTuneJob)
_UNREADABLE_STATUS = {"phase": "Unreadable"}
"""Replaces a status that cannot be read. It may be terminal, so parsing it must fail and nothing be done."""


def decode_head(raw: msgspec.Raw) -> Body:
    """Decode the identity of an object, who manages it and whether it has ended.

    This is a tenth of the work of decoding all of it.
    """
    try:
        return dict(_HEAD_DECODER.decode(raw))
    except msgspec.ValidationError:  # one invalid object must not hide all others of its list
        body = decode_body(raw, {})
        return {"metadata": body["metadata"], "spec": body.get("spec")}


def decode_body(raw: msgspec.Raw, _head: Body) -> Body:
    """Decode an object completely."""
    body: Body = msgspec.json.decode(raw)
    return body


def decode_finetunejob(raw: msgspec.Raw, head: Body) -> Body:
    """Decode a FineTuneJob: an unfinished one completely, a finished one without the fields that are dropped."""
    if not is_finished(head):
        return decode_body(raw, head)
    try:
        return dict(_UNCLEANED_DECODER.decode(raw) if may_have_checkpoints(head) else _FINISHED_DECODER.decode(raw))
    except msgspec.ValidationError:
        return decode_body(raw, head)


def strip_finetunejob(body: Body) -> Body:
    """Keep a FineTuneJob complete while a Job may be created from it, then only its identity, TTL and final state.

    The spec of a run that has failed is kept until its checkpoints are cleaned.
    """
    body = _normalize_body(body)
    if not is_finished(body):
        return _strip_metadata(body)
    try:
        finished: Body = dict(
            msgspec.convert(body, _UncleanedFineTuneJob)
            if may_have_checkpoints(body)
            else msgspec.convert(body, _FinishedFineTuneJob)
        )
    except msgspec.ValidationError:
        return _strip_metadata(body)
    finished["status"]["conditions"] = [
        condition for condition in finished["status"]["conditions"] if condition["status"] == "True"
    ]
    return finished


def _normalize_body(body: Body) -> Body:
    """Give spec and status the types of the CRD. Objects of another version, or without a schema, may have others."""
    spec, status = body.get("spec"), body.get("status") or {}
    try:
        msgspec.convert(status, _HeadStatus)
    except msgspec.ValidationError:
        status = _UNREADABLE_STATUS
    return {**body, "spec": spec if isinstance(spec, dict) else {}, "status": status}


def strip_child(body: Body) -> Body:
    """Keep of a FineTuneJob what its FineTuneSchedule or FineTuneSweep reads. The result is read when it is needed."""
    body = _normalize_body(body)
    return {
        **_strip_metadata(body),
        "spec": _select_keys(_CHILD_SPEC_FIELDS, body["spec"]),
        "status": _select_keys(_CHILD_STATUS_FIELDS, body["status"]),
    }


def strip_owner(body: Body) -> Body:
    """Drop the metadata of a FineTuneSchedule or a FineTuneSweep that is not read."""
    return _strip_metadata(_normalize_body(body))


def strip_job(body: Body) -> Body:
    """Drop the pod template of a Job."""
    return {**_strip_metadata(body), "spec": _select_keys(_JOB_SPEC_FIELDS, body.get("spec", {}))}


def strip_pod(body: Body) -> Body:
    """Drop what only the kubelet needs of a pod."""
    fields = {
        "spec": _select_keys(_POD_SPEC_FIELDS, body.get("spec", {})),
        "status": _select_keys(_POD_STATUS_FIELDS, body.get("status", {})),
    }
    return {**_strip_metadata(body), **fields}


def _strip_metadata(body: Body) -> Body:
    """Drop metadata that is not read: labels and annotations may take up to 256 KiB."""
    meta = body["metadata"]
    fields = _select_keys((*_METADATA_FIELDS, "ownerReferences"), meta)
    labels = _select_keys((JOB_LABEL, SCRATCH_CLAIM_LABEL, *KUEUE_LABELS), meta.get("labels") or {})
    annotations = _select_keys(_ANNOTATIONS, meta.get("annotations") or {})
    selected = {"labels": labels, "annotations": annotations}
    return {**body, "metadata": fields | {key: value for key, value in selected.items() if value}}


def _select_keys(keys: Iterable[str], body: Body) -> Body:
    return {key: body[key] for key in keys if key in body}
