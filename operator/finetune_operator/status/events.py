"""Builders of what the operator writes about a status: a merge patch, and an Event for a transition."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from finetune_operator.api import (
    API_VERSION,
    KIND,
    Condition,
    EventReason,
    FineTuneJobStatus,
    ObjectMeta,
    OperatorReason,
)
from finetune_operator.api.labels import INSTALLATION_ANNOTATION
from finetune_operator.api.objects import Body

_COMPONENT = "finetune-operator"
_MESSAGE_MAX_LENGTH = 1024  # limit of the API server for Events
_WARNING_REASONS = frozenset(
    {
        OperatorReason.UNSCHEDULABLE,
        OperatorReason.IMAGE_PULL_FAILED,
        OperatorReason.GPU_UNAVAILABLE,
        OperatorReason.CLAIM_NOT_FOUND,
        OperatorReason.SECRET_NOT_FOUND,
        OperatorReason.CONFIG_MAP_NOT_FOUND,
        OperatorReason.KEY_NOT_FOUND,
        OperatorReason.CONTAINER_CONFIG_ERROR,
        OperatorReason.RETRYING,
        OperatorReason.JOB_REFUSED,
    }
)


class EventContent(NamedTuple):
    """What an Event says."""

    type: str
    """Normal or Warning."""
    reason: str
    message: str


def create_merge_patch(old: Body, new: Body) -> Body:
    """Return the JSON merge patch (RFC 7386) that turns `old` into `new`. It is empty if they are equal."""
    patch: Body = {key: None for key in old if key not in new}
    for key, value in new.items():
        old_value = old.get(key)
        if isinstance(old_value, dict) and isinstance(value, dict):
            if nested_patch := create_merge_patch(old_value, value):
                patch[key] = nested_patch
        elif key not in old or old_value != value:
            patch[key] = value
    return patch


def find_headline_condition(status: FineTuneJobStatus) -> Condition | None:
    """Return the condition that has the message of the status, which is the first, or None if there is none yet."""
    return next(iter(status.conditions), None)


def build_transition_event(
    meta: ObjectMeta, old: FineTuneJobStatus, new: FineTuneJobStatus, status_version: int, now: str
) -> Body | None:
    """Return the Event for a changed headline condition, or None if it has not changed or soon changes again.

    The name contains the resource version of the FineTuneJob with the new status, so that nobody creates the Event
    twice. `kubectl describe` sorts Events by `lastTimestamp`, whose resolution is one second, and leaves those of one
    second in the order of their names:
    https://github.com/kubernetes/kubectl/blob/master/pkg/util/event/sorted_event_list.go
    """
    old_headline, new_headline = find_headline_condition(old), find_headline_condition(new)
    if new_headline is None or (old_headline and _get_state(old_headline) == _get_state(new_headline)):
        return None
    if new_headline.reason == OperatorReason.FINISHING:
        return None
    is_warning = new_headline.type == "Failed" or new_headline.reason in _WARNING_REASONS
    content = EventContent("Warning" if is_warning else "Normal", new_headline.reason, new_headline.message)
    return _build_event(meta, content, f"{meta.name}.{status_version:016x}", now)


def build_foreign_job_event(meta: ObjectMeta, job: Body, installation_id: str, now: str) -> Body:
    """Return the Event for a Job that another installation of the operator has created.

    Its name is the same each time, so that a restarted operator does not create it again.
    """
    message = (
        f"Job {meta.name} was created by installation {installation_id} of the operator, so another installation that "
        f"also watches this namespace leaves it alone. To hand it over, change the Job's annotation "
        f"{INSTALLATION_ANNOTATION}."
    )
    digest = hashlib.sha256("/".join((meta.uid, job["metadata"]["uid"], installation_id)).encode()).hexdigest()
    content = EventContent("Warning", EventReason.FOREIGN_JOB, message)
    return _build_event(meta, content, f"{meta.name}.{digest[:16]}", now)


def build_cleaning_event(meta: ObjectMeta, reason: EventReason, message: str, now: str) -> Body:
    """Return the Event for a task that has deleted checkpoints, or that could not. It is not repeated."""
    content = EventContent("Warning" if reason is EventReason.CLEANING_FAILED else "Normal", reason, message)
    digest = hashlib.sha256("/".join((meta.uid, reason, message)).encode()).hexdigest()
    return _build_event(meta, content, f"{meta.name}.{digest[:16]}", now)


def build_owner_event(kind: str, meta: ObjectMeta, content: EventContent, now: str) -> Body:
    """Return the Event about a FineTuneSchedule or a FineTuneSweep. The same content is one Event a day."""
    identity = "/".join((meta.uid, content.reason, content.message, now[:10]))
    name = f"{meta.name}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    return _build_event(meta, content, name, now, kind)


def _build_event(meta: ObjectMeta, content: EventContent, name: str, now: str, kind: str = KIND) -> Body:
    """Return an Event about a FineTuneJob, or about an object of another kind."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": meta.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": kind,
            "name": meta.name,
            "namespace": meta.namespace,
            "uid": meta.uid,
        },
        "type": content.type,
        "reason": content.reason,
        "message": content.message[:_MESSAGE_MAX_LENGTH],
        "source": {"component": _COMPONENT},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }


def _get_state(condition: Condition) -> tuple[str, str, str]:
    return condition.type, condition.status, condition.reason
